"""The table of a contest in a terminal."""

from __future__ import annotations

import pytest
from made_results import contest, nothing

from etude.harness.terminal import recommendation_lines, table_lines


@pytest.mark.parametrize("width", [80, 90, 100])
def test_the_table_fits_and_keeps_what_decides(width: int) -> None:
    lines = table_lines(contest(errors={"broken": "ValueError: " + "long " * 40}), width)
    assert max(map(len, lines)) <= width
    assert "Bits per byte" in lines[0] and "disk" in lines[0] and lines[0].endswith("mark")
    (gptq,) = [line for line in lines if line.startswith("gptq")]
    assert "1.194 [1.182, 1.208]  113 MB" in gptq and gptq.endswith("recommended")
    (broken,) = [line for line in lines if line.startswith("broken")]
    assert "failed: ValueError: long" in broken and broken.endswith("...")
    assert any(line.startswith("[1] the weights lie on a Q4_1 grid") for line in lines)
    assert sum("not within budget" in line for line in lines) == 5


def test_more_costs_where_there_is_room() -> None:
    narrow, wide = table_lines(contest(), 80)[0], table_lines(contest(), 140)[0]
    assert "decode" not in narrow and all(word in wide for word in ("load", "memory", "decode tokens/s"))


def test_control_characters_do_not_reach_the_terminal() -> None:
    results = contest(("untouched",), {"a\x1b[2Jb": "\x1b]0;title\x07\nsecond"})
    results["recommendation"]["line"] = "Recommended: \x1b[31mred"
    lines = table_lines(results) + recommendation_lines(results)
    assert all(line.isprintable() for line in lines)


def test_the_recommendation_ends_with_its_command() -> None:
    results = contest()
    results["recommendation"] |= {"provisional": "Provisional: one seed.", "more": "laser: 9 more blocks"}
    assert recommendation_lines(results) == [
        "Recommended: gptq (113 MB, 1.196 bits per byte)",
        "It gives up 3.7 % of quality against untouched and is 58 % smaller.",
        "Provisional: one seed.",
        "To tell them apart: laser: 9 more blocks",
        "  etude apply gptq --model smollm2-rotated --data english --out best",
    ]


def test_only_failures_and_nothing_at_all() -> None:
    lines = table_lines(nothing()) + recommendation_lines(nothing())
    assert any("failed: killed after 60 s" in line for line in lines) and lines[-1] == "No recommendation: no contender finished."
    assert table_lines({}) == ["Nothing was run."] and recommendation_lines({}) == ["No recommendation: the contest did not finish."]
