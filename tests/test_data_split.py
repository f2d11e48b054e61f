"""Splits depend on nothing but the data; nothing is lost, nothing is in two parts."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import split
from etude.data.contract import Rows, Table, Text

SHARES = (0.7, 0.1, 0.1, 0.1)


def rows(values: list[dict[str, Any]], **roles: str) -> Rows:
    return Rows(Dataset.from_list(values), roles or {"text": "text", "label": "label"})


def running(pieces: list[str]) -> Text:
    return Text(Dataset.from_dict({"text": pieces}), {"text": "text"}, running=True)


def labelled(count: int) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": i % 3} for i in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 2)), min_size=4, max_size=60), st.integers(-5, 5), st.randoms())
def test_rows_are_parted_by_content_alone(values: list[tuple[str, int]], seed: int, dice: random.Random) -> None:
    whole = [{"text": text, "label": label} for text, label in values]
    if len({row["text"] for row in whole}) < 4:
        with pytest.raises(ValueError, match="different rows, too few for 4 parts"):
            split.by_hash(rows(whole), SHARES, seed)
        return
    parts = split.by_hash(rows(whole), SHARES, seed)
    shuffled = dice.sample(whole, len(whole))
    again = split.by_hash(rows(shuffled), SHARES, seed)

    def key(row: dict[str, Any]) -> tuple[str, int]:
        return row["text"], row["label"]

    assert [sorted(map(key, part.dataset)) for part in parts] == [sorted(map(key, part.dataset)) for part in again]
    assert sorted(key(row) for part in parts for row in part.dataset) == sorted(map(key, whole))
    texts = [{row["text"] for row in part.dataset} for part in parts]
    assert all(texts) and sum(map(len, texts)) == len(set.union(*texts))


def test_shares_are_about_right_and_seeds_differ() -> None:
    part = rows(labelled(4000))
    sizes = [len(piece) for piece in split.by_hash(part, SHARES, 0)]
    assert all(abs(size / 4000 - share) < 0.03 for size, share in zip(sizes, SHARES, strict=True))
    first, second = (set(split.by_hash(part, SHARES, seed)[3].column("text")) for seed in (0, 1))
    assert len(first & second) < 0.3 * len(first)


def test_a_row_stays_in_its_part_when_others_come() -> None:
    few, many = (split.by_hash(rows(labelled(count)), SHARES, 0) for count in (500, 900))
    for small, large in zip(few, many, strict=True):
        assert set(small.column("text")) <= set(large.column("text"))


def test_rows_and_their_texts_go_the_same_way() -> None:
    part = rows(labelled(300))
    texts = Text(part.dataset, {"text": "text"})
    for a, b in zip(split.by_hash(part, SHARES, 3), split.by_hash(texts, SHARES, 3), strict=True):
        assert list(a.column("text")) == list(b.column("text"))


@pytest.mark.parametrize("count", [4, 5, 7, 12])
def test_small_data_fills_every_part(count: int) -> None:
    for seed in range(5):
        assert all(len(part) for part in split.by_hash(rows(labelled(count)), SHARES, seed))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=30, max_size=80))
def test_groups_stay_together(groups: list[int]) -> None:
    values = [{"text": f"t{i}", "label": 0, "author": group} for i, group in enumerate(groups)]
    part = rows(values, text="text", label="label", group="author")
    if len(set(groups)) < 4:
        return
    seen = [set(piece.dataset["author"]) for piece in split.by_hash(part, SHARES, 0)]
    assert sum(map(len, seen)) == len(set(groups))
    assert [set(piece.dataset["author"]) for piece in split.by_hash(rows(values), SHARES, 0, group="author")] == seen


def test_a_group_column_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no group column who; the data has text, label"):
        split.by_hash(rows(labelled(9)), SHARES, 0, group="who")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1024), min_size=1, max_size=120), st.integers(0, 5000))
def test_spans_are_contiguous_with_gaps(lengths: list[int], gap: int) -> None:
    pieces = [chr(97 + i % 26) * length for i, length in enumerate(lengths)]
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    part = Text(Dataset.from_dict({"text": pieces, "at": list(range(len(pieces)))}), {"text": "text"}, running=True)
    try:
        spans = [list(span.dataset["at"]) for span in split.by_span(part, SHARES, gap)]
    except ValueError as error:
        assert "bring more text" in str(error) and sum(lengths) < 4 * (3 * gap + 20 * 1024)
        return
    for span in spans:
        assert span == list(range(span[0], span[-1] + 1))
    for before, after in itertools.pairwise(spans):
        left_out = starts[after[0]] - starts[before[-1] + 1]
        assert gap <= left_out < gap + 1024


def test_spans_have_about_their_shares() -> None:
    parts = split.by_span(running(["x" * 1000] * 2000), SHARES)
    for part, share in zip(parts, SHARES, strict=True):
        assert part.running and abs(len(part) / 2000 - share) < 0.01


def test_rows_are_no_spans_and_short_text_is_refused() -> None:
    with pytest.raises(ValueError, match="by_hash"):
        split.by_span(Text(Dataset.from_dict({"text": ["a", "b"]}), {"text": "text"}), SHARES)
    with pytest.raises(ValueError, match="5,000 bytes, too few for 4 parts with gaps of 4,096 bytes"):
        split.by_span(running(["x" * 1000] * 5), SHARES)


def test_duplicates_are_dropped_and_counted_aloud() -> None:
    heard = list[str]()
    values = [*labelled(5), {"text": "text 1", "label": 1}, {"text": "text 1", "label": 2}, {"text": "text 4", "label": 1}]
    kept = split.deduplicate(rows(values), heard.append)
    assert kept.dataset.to_list() == [*values[:5], {"text": "text 1", "label": 2}]
    assert heard == ["2 of 8 rows repeat an earlier one and are left out"]
    assert split.deduplicate(kept, heard.append) is kept and len(heard) == 1


def test_duplicates_of_tables_and_running_text() -> None:
    table = Table(Dataset.from_dict({"n": [1, 1, 1], "other": [1, 2, 1]}), {"parameters": "n"})
    assert len(split.deduplicate(table, lambda line: None)) == 2
    text = running(["\n", "\n", "\n"])
    assert split.deduplicate(text, lambda line: None) is text
