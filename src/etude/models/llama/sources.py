"""Four public texts that every installation carries, for the étude of mixtures: no network is needed.

The sheet's were documentation, code, the King James Bible and help pages. The Bible is not on every machine; here the English sentences of docstrings
stand in for it, and the reference pages of numpy and scipy, which are installed with etude, for help pages.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from etude.data.corpora import file_of
from etude.models.llama.corpus.documents import Document, Pipeline, each, only
from etude.models.llama.corpus.duplicates import DistinctLines, DistinctTexts
from etude.models.llama.corpus.heuristics import is_code_file, strip_header

NAMES = ("docs", "code", "english", "reference")


def sources(limit: int | None = None) -> dict[str, str]:
    """The four texts, cleaned by the filters of the paper's pipeline, each cut to `limit` characters."""
    made = {"docs": _docs, "code": _code, "english": _english, "reference": _reference}
    return {name: _cut(make(), limit) for name, make in made.items()}


def _cut(documents: Iterator[Document], limit: int | None) -> str:
    out, size = list[str](), 0
    for document in documents:
        out.append(document.text.strip() + "\n\n")
        size += len(out[-1])
        if limit is not None and size >= limit:
            break
    return "".join(out)[:limit]


def _docs() -> Iterator[Document]:
    texts = file_of("python-docs").read_text(encoding="utf-8").split("\n\n\n")
    return Pipeline([DistinctLines()])(Document(text) for text in texts)


def _code() -> Iterator[Document]:
    """Functions and classes of the standard library without docstrings and comments."""
    texts = file_of("python-source").read_text(encoding="utf-8").split("\n\n\n")
    return Pipeline([each(strip_header), only(is_code_file), DistinctTexts(), each(_bare_code)])(Document(text) for text in texts)


def _english() -> Iterator[Document]:
    """Paragraphs of whole sentences from docstrings; what the language reference holds is left out."""
    known = " ".join(file_of("python-docs").read_text(encoding="utf-8").split())
    paragraphs = file_of("english").read_text(encoding="utf-8").split("\n\n")
    return (Document(text) for text in paragraphs if text and text not in known)


def _reference() -> Iterator[Document]:
    """Docstrings of numpy and scipy that have sections."""
    texts = (text for package in ("numpy", "scipy") for text in _docstrings(package))
    return Pipeline([only(lambda text: "Parameters" in text and len(text) > 400), DistinctTexts()])(Document(text) for text in texts)


def _docstrings(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{package} is not installed, whose reference pages are one of the four texts")
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        if "tests" not in path.relative_to(root).parts:
            yield from re.findall(r'"""(.+?)"""', path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)


def _bare_code(text: str) -> str:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))] or [ast.Pass()]
    return ast.unparse(tree)
