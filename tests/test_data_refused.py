"""Bad data is refused before any work, with the place and the way out."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_files import LABELLED, file, fresh_home, lines, refused

from etude.data.contract import Table


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from fresh_home(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("content", ["", "\n\n \n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_an_empty_file(tmp_path: Path, content: str | bytes) -> None:
    assert "is empty" in refused(file(tmp_path, "a.txt", content))


def test_a_header_without_rows(tmp_path: Path) -> None:
    assert "is empty" in refused(file(tmp_path, "a.csv", "text,label\n"))
    assert "is empty" in refused(file(tmp_path, "a.json", "[]"))


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere.txt")
    assert "did you mean wikitext2" in refused(Path("wikitext2.txt"))


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "text".encode("utf-16"), "caf\xe9 au lait\n".encode("latin-1") * 3, b"a" * 70_000 + b"\0"]
)
def test_a_binary_file(tmp_path: Path, content: bytes) -> None:
    assert any(word in refused(file(tmp_path, "a.txt", content)) for word in ("binary", "UTF-16"))


def test_a_folder_in_no_known_form(tmp_path: Path) -> None:
    file(tmp_path, "a.txt", "text")
    assert "no known form" in refused(tmp_path)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_broken_json_line_is_numbered(tmp_path: Path, at: int) -> None:
    rows = lines(LABELLED).splitlines()
    rows[at] = rows[at][:-4]
    message = refused(file(tmp_path, "a.jsonl", "\n".join(rows)))
    assert f"line {at + 1} is no valid JSON" in message


def test_a_json_line_that_is_no_object(tmp_path: Path) -> None:
    assert "line 2: a row must be an object" in refused(file(tmp_path, "a.jsonl", '{"text": "a"}\n[1, 2]\n'))


@pytest.mark.parametrize(
    ("broken", "line"), [('[\n{"text": "a"},\n{"text": }\n]', 3), ('[\n{"text": "a"},\n{"text": "b"}\n', 4), ('[{"text": "a"}, 5]', 1)]
)
def test_a_broken_json_array_tells_the_line(tmp_path: Path, broken: str, line: int) -> None:
    assert f"line {line}" in refused(file(tmp_path, "a.json", broken))


def test_a_ragged_csv_tells_the_line(tmp_path: Path) -> None:
    assert "line 3 has 3 fields, the first has 2" in refused(file(tmp_path, "a.csv", "text,label\na,1\nb,2,3\n"))


def test_broken_archives_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = gzip.compress(os.urandom(1000).hex().encode() * 100)
    assert "truncated gzip" in refused(file(tmp_path, "a.txt.gz", whole[: len(whole) // 2]))
    pq.write_table(pa.Table.from_pylist(LABELLED), tmp_path / "whole.parquet")
    assert "truncated Parquet" in refused(file(tmp_path, "a.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20]))


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines(LABELLED))
    message = refused(path, text="sentence")
    assert "no column sentence" in message and "text, label" in message
    assert "did you mean label" in refused(path, labl="label")
    assert "no text" in refused(path, text="label")


def test_nothing_that_is_wanted_is_there(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines([{"x": i, "y2": i} for i in range(5)]))
    message = refused(path)
    assert "x, y2" in message and "--column" in message


def test_one_row(tmp_path: Path) -> None:
    assert "holds 1 row" in refused(file(tmp_path, "a.jsonl", lines(LABELLED[:1])))
    assert "holds 1 row with text" in refused(file(tmp_path, "b.jsonl", lines([{"text": "a", "label": 0}, {"text": "", "label": 1}])))
    assert "holds 1 row" in refused(file(tmp_path, "a.csv", "n,d,loss\n1,2,3\n"), (Table,))


def test_only_one_label(tmp_path: Path) -> None:
    assert "the label 'yes'" in refused(file(tmp_path, "a.jsonl", lines([row | {"label": "yes"} for row in LABELLED])))


@pytest.mark.parametrize("hole", [None, math.nan, "", "NaN"])
def test_missing_labels(tmp_path: Path, hole: object) -> None:
    filled = "x" if isinstance(hole, str) else 1
    rows = [row | {"label": hole if i == 3 else filled} for i, row in enumerate(LABELLED)]
    rows[0]["label"] = "z" if isinstance(hole, str) else 0
    message = refused(file(tmp_path, "a.jsonl", lines(rows)))
    assert "missing or NaN in 1 of 6 rows, first in row 4" in message


def test_missing_labels_in_a_csv(tmp_path: Path) -> None:
    assert "first in row 2" in refused(file(tmp_path, "a.csv", "text,label\na a,1\nb b,nan\nc c,0\nd d,\n"))


def test_labels_outside_the_choices(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": f"q{i}", "choices": ["a", "b"], "label": i} for i in range(3)]
    assert "row 3: label 2 is no index of its 2 choices" in refused(file(tmp_path, "a.jsonl", lines(rows)), label="label")
