"""Which column plays which role: given, guessed from names or content, said aloud; rows that cannot serve are left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from data_files import LABELLED, file, fresh_home, lines, load, refused

from etude.data.contract import Rows, Split, Table, Text


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from fresh_home(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"sentence": "a b", "label": 0}, {"text": "sentence", "label": "label"}),
        ({"idx": 7, "review": "a b", "sentiment": "x"}, {"text": "review", "label": "sentiment"}),
        ({"question": "a?", "answer": "b"}, {"prompt": "question", "answer": "answer"}),
        ({"instruction": "do", "output": "done"}, {"prompt": "instruction", "answer": "output"}),
        ({"ctx": "a", "endings": ["x", "y"], "label": 0}, {"prompt": "ctx", "choices": "endings", "label": "label"}),
    ],
)
def test_roles_from_names(tmp_path: Path, row: dict[str, object], roles: dict[str, str]) -> None:
    def other(value: object, i: int) -> object:
        return i % 2 if isinstance(value, int) else f"{value} {i % 2}" if isinstance(value, str) and value == "x" else value

    rows = [{name: other(value, i) if name != "question" else f"{value}{i}" for name, value in row.items()} for i in range(6)]
    parts, heard = load(file(tmp_path, "a.jsonl", lines(rows)))
    assert dict(parts[Rows].roles) == roles
    assert all(f"{role}={name}" in heard for role, name in roles.items())
    assert parts[Text].roles["text"] == roles.get("text", roles.get("prompt"))


def test_roles_from_content_and_given(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"aa": i % 3, "bb": f"some longer text {i}", "cc": f"k{i}"} for i in range(12)]
    path = file(tmp_path, "a.jsonl", lines(rows))
    assert dict(load(path, (Rows,))[0][Rows].roles) == {"text": "bb", "label": "aa"}
    assert Rows not in load(path)[0]  # a column of few values makes no labelled rows where text is wanted as well
    parts, heard = load(path, text="cc", label="aa")
    assert dict(parts[Rows].roles) == {"text": "cc", "label": "aa"} and "columns taken" not in heard


def test_a_label_whose_values_are_all_different_is_no_label(tmp_path: Path) -> None:
    parts, _ = load(file(tmp_path, "a.jsonl", lines([{"text": f"t {i}", "label": f"a title {i}"} for i in range(9)])))
    assert Rows not in parts and Text in parts


def test_a_group_column_travels_along(tmp_path: Path) -> None:
    rows = [row | {"author": i // 2} for i, row in enumerate(LABELLED)]
    parts, _ = load(file(tmp_path, "a.jsonl", lines(rows)), group="author")
    assert parts[Rows].roles["group"] == parts[Text].roles["group"] == "author"


def test_empty_texts_are_left_out_aloud(tmp_path: Path) -> None:
    rows = [*LABELLED, {"text": "", "label": 0}, {"text": None, "label": 1}, {"text": " \n\t", "label": 1}]
    parts, heard = load(file(tmp_path, "a.jsonl", lines(rows)))
    assert parts[Rows].dataset.to_list() == LABELLED
    assert "3 of 9 rows are empty" in heard


# Tables


def table(parts: Split, role: str) -> list[float]:
    return list(parts[Table].column(role))


def test_scaling_tables_get_their_roles(tmp_path: Path) -> None:
    content = "color,Model Size,Training FLOP,loss\n#fff,10,600,3.0\n#000,20,2400,2.5\n"
    parts, heard = load(file(tmp_path, "a.csv", content), (Table,))
    assert table(parts, "tokens") == [10.0, 20.0] and table(parts, "parameters") == [10, 20]
    assert "tokens = compute / (6 parameters)" in heard and "parameters=Model Size" in heard


@pytest.mark.parametrize("names", ["N,D,loss", "params,tokens,val_loss", "n_params,n_tokens,final loss", "Parameters,Training tokens,Loss"])
def test_names_of_scaling_columns(tmp_path: Path, names: str) -> None:
    parts, _ = load(file(tmp_path, "a.csv", f"{names}\n1,2,3.5\n2,3,3.0\n"), (Table,))
    assert table(parts, "parameters") == [1, 2] and table(parts, "tokens") == [2, 3] and table(parts, "loss") == [3.5, 3.0]


def test_tables_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    parts, heard = load(file(tmp_path, "a.csv", "age,job\n31,baker\n44,cook\n"), (Table,))
    assert parts[Table].dataset.to_list() == [{"age": 31, "job": "baker"}, {"age": 44, "job": "cook"}]
    assert "columns taken" not in heard
    assert "no numbers" in refused(tmp_path / "a.csv", (Table,), loss="job")
