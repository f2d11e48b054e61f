"""What the tests of data share: files of any content, and what is said and refused when they are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etude.data import sources
from etude.data.contract import Part, Rows, Split, Text

KINDS = (Rows, Text)
LABELLED = [{"text": f"sentence number {i}", "label": i % 2} for i in range(6)]


def fresh_home(folder: Path) -> Iterator[None]:
    """A cache of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETUDE_HOME", str(folder))
        yield


def load(path: Path, kinds: tuple[type[Part], ...] = KINDS, **columns: str) -> tuple[Split, str]:
    heard = list[str]()
    return sources.load(str(path), kinds, columns, heard.append), "\n".join(heard)


def refused(path: Path, kinds: tuple[type[Part], ...] = KINDS, **columns: str) -> str:
    with pytest.raises(ValueError) as error:
        load(path, kinds, **columns)
    return str(error.value)


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def joined(part: Part) -> str:
    return "".join(part.column("text"))
