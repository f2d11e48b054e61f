"""What the README and the contributing guide tell to type is understood by the command line, and what they name is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from etude import catalogue
from etude.cli.parser import parser_of
from etude.cli.texts import ABOUT, EXAMPLES

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every etude command of the pages and of the command line's own examples."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    lines += [span for page in PAGES for span in re.findall(r"`(etude [^`]+)`", (ROOT / page).read_text())]
    lines += [example for examples in EXAMPLES.values() for example in examples]
    found = [part.strip() for line in lines for part in line.partition(" #")[0].split("&&") if part.strip().startswith("etude ")]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str) -> None:
    words = [word.replace("NAME", "laser").replace("PAPER", "laser") for word in shlex.split(command)[1:] if word not in ("...",)]
    assert words[0] in ABOUT
    if "--help" not in words:
        options = parser_of(words[0], words[1:]).read(words[1:])
        for name in getattr(options, "names", None) or ():
            catalogue.find(catalogue.parse(name)[0])


def test_the_first_two_commands_install_then_run_the_contest_and_the_tests() -> None:
    first, second = blocks("README.md", "sh")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert first.startswith("pip install -c constraints.txt -e . && etude compare laser --model smollm2-rotated")
    assert second.startswith("pip install -c constraints.txt -e '.[test]' && pytest")


def test_python_blocks_are_python() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, page, "exec")


def test_the_measure_of_the_readme_measures() -> None:
    from etude.nn.tiny import byte_tokenizer, tiny_llama, tiny_sentences

    known: dict[str, Any] = {}
    exec(next(block for block in blocks("README.md", "python") if "def score" in block), known)
    assert known["score"](tiny_llama(), byte_tokenizer(), tiny_sentences(8)) < 0


def test_the_readme_names_only_what_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    assert not re.search(r"TODO|FIXME|/work/|/tmp/", text)


def test_everything_that_is_needed_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert {re.match(r"[\w.-]+", need)[0].lower().replace("_", "-") for need in needed} <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
    assert not re.search(r"^(nvidia|cuda|triton)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
