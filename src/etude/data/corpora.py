"""Texts by name: what every Python brings along, and public data sets (from the folder `ETUDE_DATA`, else from their public home)."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from etude.data.cache import CHUNK, artifact, digest_json, digest_of, home, locked, replacing, store_folder

Say = Callable[[str], None]
LAYOUT = 1  # of the texts made here
TIMEOUT = 30.0  # seconds without a byte
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "__pycache__", "ensurepip"}
WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2"
SST2 = "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/457ffd83de90a9d6d472d8ffc31bbffe40a8b236/data/SST2"

EMBEDDED = {
    "python-source": "the source code of Python's standard library",
    "python-docs": "Python's language reference as pydoc carries it (English, reStructuredText)",
    "english": "English prose: the paragraphs of whole sentences in Python's language reference and docstrings",
    "python-areas": "sentences of the standard library's docstrings, labelled by the area that they document (rows of text and label)",
    "python-answers": "what names of the standard library do: their own docstring is preferred to another one's (prompt, chosen, rejected)",
}
AREAS = {  # chapters of the library reference, those near to each other together
    "concurrency": "asyncio threading multiprocessing concurrent subprocess sched signal queue _threading_local",
    "files": "_pyio io pathlib shutil tempfile fileinput os posixpath ntpath genericpath glob fnmatch filecmp stat tarfile zipfile gzip bz2 lzma",
    "network": "email http urllib mailbox smtplib poplib imaplib nntplib ftplib socket socketserver ssl ipaddress wsgiref xmlrpc cgi selectors",
    "numbers": "_pydecimal decimal fractions statistics random numbers datetime _pydatetime _strptime calendar zoneinfo",
    "testing": "unittest doctest pdb bdb trace traceback tracemalloc timeit cProfile profile pstats pydoc",
    "windows": "tkinter turtle turtledemo curses colorsys",
}
MOST = 600  # rows of an area
WORDS = (6, 16)  # of a row
ANSWERS, BRIEF = 160, (4, 10)  # rows, and words of an answer


@dataclass(frozen=True)
class Piece:
    """One file of a public set: its path below `ETUDE_DATA`, its public home, the digest of its bytes."""

    path: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Public:
    """A public data set: its pieces are joined in this order, below `header` where they are tables without one."""

    title: str
    licence: str
    pieces: tuple[Piece, ...]
    header: str = ""

    @property
    def suffix(self) -> str:
        return Path(self.pieces[0].path).suffix


PUBLIC = {
    "wikitext2": Public(
        "WikiText-2, validation and test",
        "CC BY-SA 3.0",
        (
            Piece("text/wikitext2_valid.txt", f"{WIKITEXT}/valid.txt", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
            Piece("text/wikitext2_test.txt", f"{WIKITEXT}/test.txt", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
        ),
    ),
    "sst2": Public(
        "SST-2, film reviews with their sentiment",
        "research use",
        (
            Piece("classify/sst2_train.tsv", f"{SST2}/train.tsv", "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920"),
            Piece("classify/sst2_dev.tsv", f"{SST2}/dev.tsv", "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359"),
            Piece("classify/sst2_test.tsv", f"{SST2}/test.tsv", "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7"),
        ),
        "text\tlabel\n",
    ),
}
NAMES = (*EMBEDDED, *PUBLIC)


def known(name: str) -> bool:
    """Is this the name of a corpus?"""
    return name in NAMES


def file_of(name: str, say: Say = print) -> Path:
    """The file of a corpus, made or fetched now or before.

    Raises:
        ValueError: it cannot be fetched, or its bytes are not the published ones.
    """
    return _embedded(name) if name in EMBEDDED else _joined(name, PUBLIC[name], say)


def _joined(name: str, public: Public, say: Say) -> Path:
    def fill(folder: Path) -> None:
        with (folder / f"{name}{public.suffix}").open("wb") as out:
            out.write(public.header.encode())
            for piece in public.pieces:
                content = fetch(piece, say).read_bytes()
                out.write(content if content.endswith(b"\n") else content + b"\n")

    digest = store_folder(fill, digest_json([name, public.header, [piece.sha256 for piece in public.pieces], LAYOUT]))
    return artifact(digest) / f"{name}{public.suffix}"


def fetch(piece: Piece, say: Say = print) -> Path:
    """A file of a public set with the published bytes: from `ETUDE_DATA`, from the cache, else from its public home.

    Raises:
        ValueError: the bytes are others, or the download failed or stopped half-way; nothing is kept of it.
    """
    given = os.environ.get("ETUDE_DATA")
    if given and (Path(given) / piece.path).is_file():
        path = Path(given) / piece.path
        if digest_of(path) != piece.sha256:
            raise ValueError(
                f"{path} is not the published file: sha256 {digest_of(path)} instead of {piece.sha256}; fetch it again or unset ETUDE_DATA"
            )
        return path
    kept = home() / "public" / piece.sha256[:16] / Path(piece.path).name
    with locked(f"public {piece.sha256}"):
        if not kept.is_file() or digest_of(kept) != piece.sha256:
            say(f"fetching {piece.url} (once)")
            with replacing(kept) as part:
                _download(piece, part)
    return kept


def _download(piece: Piece, target: Path) -> None:
    way_out = f"try again, or put the file as {piece.path} into a folder and set ETUDE_DATA to it"
    running, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(piece.url, timeout=TIMEOUT) as reply, target.open("wb") as out:
            announced = int(reply.headers.get("Content-Length") or -1)
            while block := reply.read(CHUNK):
                running.update(block)
                size += len(block)
                out.write(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ValueError(f"{piece.url} could not be fetched ({error}): {way_out}") from error
    if announced >= 0 and size != announced:
        raise ValueError(f"{piece.url} stopped after {size:,} of {announced:,} bytes: {way_out}")
    if running.hexdigest() != piece.sha256:
        raise ValueError(f"{piece.url} has sha256 {running.hexdigest()} instead of {piece.sha256}: it is not used; {way_out}")


def _embedded(name: str) -> Path:
    makers = {"python-source": _sources, "python-docs": _topics, "english": _prose, "python-areas": _areas, "python-answers": _answers}
    file = f"{name}.jsonl" if name in ("python-areas", "python-answers") else f"{name}.txt"

    def fill(folder: Path) -> None:
        with (folder / file).open("w", encoding="utf-8") as out:
            out.writelines(makers[name]())

    how = [AREAS, MOST, WORDS] if name == "python-areas" else []
    return artifact(store_folder(fill, digest_json([name, sys.version, LAYOUT, *how]))) / file


def _modules() -> Iterator[tuple[str, str]]:
    """The top-level name and the text of each module of the standard library, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not LEFT_OUT & set(parts):
            try:
                yield parts[0].removesuffix(".py"), path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue


def _areas() -> Iterator[str]:
    """At most `MOST` sentences of each area's docstrings, those with the lowest digests, each once in all areas."""
    area_of = {module: area for area, modules in AREAS.items() for module in modules.split()}
    found = dict[str, str]()
    for module, text in _modules():
        if module in area_of:
            for sentence in _sentences(text):
                found.setdefault(sentence, area_of[module])
    ordered = sorted(found, key=lambda sentence: hashlib.sha256(sentence.encode()).digest())
    left = dict.fromkeys(AREAS, MOST)
    for sentence in ordered:
        left[found[sentence]] -= 1
        if left[found[sentence]] >= 0:
            yield json.dumps({"text": sentence, "label": found[sentence]}) + "\n"


def _sentences(text: str) -> Iterator[str]:
    """The plain sentences of a module's docstrings."""
    try:
        nodes = ast.walk(ast.parse(text))
    except (SyntaxError, ValueError):
        return
    for node in nodes:
        told = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else None
        for paragraph in re.split(r"\n\s*\n", told or ""):
            for sentence in re.split(r"(?<=[a-z)\"'][.!?]) (?=[A-Z])", " ".join(paragraph.split())):
                letters = sum(letter.isalpha() or letter in " ,.;'" for letter in sentence)
                whole = sentence[:1].isupper() and sentence[-1:] in ".!?" and letters > 0.9 * len(sentence)
                if whole and WORDS[0] <= len(sentence.split()) <= WORDS[1]:
                    yield sentence


def _answers() -> Iterator[str]:
    """Questions after public names; preferred is the name's own first sentence, rejected the one of another name, so that lengths tell nothing.

    Those with the lowest digests are taken; the wrong answer stands half of the way around their circle.
    """
    asked = dict[str, str]()
    for module, text in _modules():
        for question, answer in _questions(module, text):
            asked.setdefault(answer, question)
    chosen = sorted(asked, key=lambda answer: hashlib.sha256(answer.encode()).digest())[:ANSWERS]
    for place, answer in enumerate(chosen):
        other = chosen[(place + len(chosen) // 2) % len(chosen)]
        yield json.dumps({"prompt": f"Q: {asked[answer]}\nA:", "chosen": f" {answer}", "rejected": f" {other}"}) + "\n"


def _questions(module: str, text: str) -> Iterator[tuple[str, str]]:
    """A question after every public class, method and function of a module that a brief plain sentence answers, with that sentence."""
    try:
        body = [] if module.startswith("_") else ast.parse(text).body
    except (SyntaxError, ValueError):
        return
    named = [(node, "") for node in body] + [(node, f"{owner.name}.") for owner in body if isinstance(owner, ast.ClassDef) for node in owner.body]
    for node, owner in named:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or f"{owner}{node.name}".startswith("_") or "._" in owner:
            continue
        told = re.match(r"[A-Z].+?[a-z)\"'][.](?= [A-Z]|$)", " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()))
        sentence = told[0] if told and not node.name.startswith("_") else ""
        if BRIEF[0] <= len(sentence.split()) <= BRIEF[1] and sum(letter.isalpha() or letter in " ,.;'" for letter in sentence) > 0.9 * len(sentence):
            name = f"{module}.{owner}{node.name}"
            yield (f"What is {name}?" if isinstance(node, ast.ClassDef) else f"What does {name} do?"), sentence


def _sources() -> Iterator[str]:
    for _, text in _modules():
        yield text.rstrip() + "\n\n\n"


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("this Python comes without pydoc_data, so there is no python-docs here: give a text file of your own") from error
    for name in sorted(topics):
        yield topics[name].strip() + "\n\n\n"


def _prose() -> Iterator[str]:
    """Paragraphs of at least two whole sentences without code, each once."""
    seen = set[str]()
    for text in [*_topics(), *_docstrings()]:
        for paragraph in re.split(r"\n\s*\n", text):
            line = " ".join(paragraph.split())
            if line not in seen and _is_prose(line):
                seen.add(line)
                yield line + "\n\n"


def _docstrings() -> Iterator[str]:
    for _, text in _modules():
        yield from re.findall(r'"""(.+?)"""', text, re.DOTALL)


def _is_prose(line: str) -> bool:
    sentences = len(re.findall(r"[a-z)\"'][.!?](?= [A-Z]|$)", line))
    letters = sum(letter.isalpha() or letter in " ,.;'" for letter in line)
    return (
        line[:1].isupper() and line[-1:] in ".!?" and sentences >= 2 and len(line.split()) >= 20 and letters > 0.93 * len(line) and "::" not in line
    )
