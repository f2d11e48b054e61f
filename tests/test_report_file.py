"""The report and the scoreboard as files."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from made_results import CUT, EVIL, MISSING, PAPERS, PIXEL, board, choosing, contest, nothing, record

from etude.harness.display import Value, axis, front, interval, rows, shown
from etude.harness.recommend import recommend
from etude.harness.report import render, write
from etude.harness.scoreboard import scoreboard


def text_of(html: str) -> str:
    """What a reader sees: markup, styles and scripts taken away."""
    return re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", html))


# ---- as a file ----


def test_everything_asked_for_is_there() -> None:
    html = render(contest(errors={"broken": "ValueError: rank 7 is above 4"}))
    seen = text_of(html)
    wanted = [
        "Recommended: gptq",
        "It gives up 3.7 %",
        "etude apply gptq --model smollm2-rotated",
        "not within budget",
        "Failed: ",
        "rank 7 is above 4",
    ]
    wanted += [
        "2312.13558",
        "Apache-2.0",
        "MIT",
        "low rank, layerwise",
        "Tuning, on the validation split",
        "4 trials",
        "Operating points",
        "Seeds, on the test",
    ]
    wanted += ["3 duplicate rows were dropped", "134,515,008", "torch", "2.13.0", "unigram entropy", "once", "200MB", "beats it", "Holm", "1.196"]
    assert [part for part in wanted if part not in seen] == []
    for run in contest()["contenders"][0]["run_ids"]:
        assert run in seen


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render(contest())
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", html)
    assert not re.findall(r"url\(|@import", html)
    assert "default-src &#x27;none&#x27;" in html


def test_strings_are_escaped_everywhere() -> None:
    results = contest(("untouched", "laser", "gptq"), {EVIL: CUT})
    results |= {
        "title": EVIL,
        "command": CUT,
        "created": EVIL,
        "samples": {EVIL: [CUT]},
        "axes": results["axes"] | {"bytes": {"unit": EVIL, "title": CUT}},
    }
    results["recommendation"] |= {"line": EVIL, "sentence": CUT, "command": EVIL, "more": CUT, "provisional": EVIL}
    results["recommendation"]["comparisons"][0] |= {"against": EVIL, "test": CUT}
    results["model"]["name"], results["data"]["notes"], results["machine"] = CUT, [EVIL], {EVIL: CUT}
    for one in results["contenders"]:
        one |= {"mark": EVIL, "licence": CUT, "traits": [EVIL], "title": CUT, "options": {EVIL: CUT}, "run_ids": [EVIL], "describe": {EVIL: CUT}}
        one["tuning"] = [{"options": {EVIL: CUT}, "score": 1.0}, {"options": {EVIL: 2}, "score": 0.5}]
    html = render(results)
    assert html.count("<script") == 3 and html.count("</script>") == 3  # the data and our two
    assert "<img" not in html


def test_data_inside_the_page_is_json_without_items() -> None:
    results = contest()
    results["contenders"][0]["seeds"][0]["metrics"]["bits_per_byte"]["ids"][0] = "a line of the user's text"
    results["contenders"][1]["summary"]["load"]["value"] = float("nan")
    results["contenders"][1]["points"][0]["metrics"]["bits_per_byte"] = float("inf")
    html = render(results)
    found = re.search(r'(?s)id="plot-data">(.*?)</script>', html)
    assert found
    data = json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["fronts"]["bytes"] and {s["name"] for s in data["series"]} == {c["name"] for c in results["contenders"]}
    assert "a line of the user's text" not in html and "a line of the user&#x27;s text" not in html


def test_samples_stand_in_the_report_only_when_asked_for() -> None:
    text = "Once upon a time there was a user"
    assert text in render(contest() | {"samples": {"gptq": [text]}})
    assert "Samples" not in text_of(render(contest()))


@pytest.mark.parametrize("name", MISSING)
def test_missing_pieces_render(name: str, tmp_path: Path) -> None:
    path = write(MISSING[name](), tmp_path / "new")
    assert path.name == "report.html" and path.read_text().startswith("<!doctype html>")
    assert [other.name for other in path.parent.iterdir()] == ["report.html"]


def test_only_failures() -> None:
    seen = text_of(render(nothing()))
    assert "No recommendation: no contender finished." in seen and "it ran out of memory" in seen and "killed after 60 s" in seen
    assert "nothing to plot" in seen


def test_a_run_without_the_test_split_says_so() -> None:
    seen = text_of(render(choosing()))
    assert "the test split was not opened" in seen and "measured on the choice split only" in seen


def test_the_front_is_what_nothing_beats_in_both() -> None:
    results = contest()
    assert front(results, "bytes") == ["gptq", "laser", "untouched"]
    values = {row.name: row.values for row in rows(results)}
    for metric in ("bytes", "decode", "agreement"):
        sign = -1 if axis(results, metric)["better"] == "higher" else 1
        at = {name: (sign * value[metric].value, value["bits_per_byte"].value) for name, value in values.items()}
        beaten = {a for a, x in at.items() for y in at.values() if y[0] <= x[0] and y[1] <= x[1] and y != x}
        assert set(front(results, metric)) == set(at) - beaten


def test_numbers_read_well() -> None:
    assert [shown(x, "bytes") for x in (113.2e6, 1.5e9, 12, 0)] == ["113 MB", "1.50 GB", "12.0 bytes", "0 bytes"]
    assert [shown(x, "s") for x in (0.0123, 3.456, 75, 7200)] == ["12.3 ms", "3.46 s", "1.25 min", "2.00 h"]
    assert shown(0.875, "share") == "87.5 %" and shown(None) == "-" and shown(1234567.0) == "1234567"
    assert interval(Value(1.23456, 1.21, 1.26)) == "1.235 [1.210, 1.260]"
    assert interval(Value(113e6, 113e6, 113e6), "bytes") == "113.0 MB"


def test_failures_stand_last_and_errors_are_said_once() -> None:
    results = contest(("untouched", "gptq"), {"broken": "boom"})
    results["failures"] += [
        {"name": "gptq", "seed": 2, "step": "build", "error": "killed"},
        {"name": "gone", "seed": 0, "step": "points", "error": "left"},
    ]
    listed = rows(results)
    assert [row.name for row in listed] == ["untouched", "gptq", "broken", "gone"]
    assert [row.error for row in listed] == ["", "build, seed 2: killed", "boom", "points, seed 0: left"]


def test_what_the_referee_recommends_is_shown_whole() -> None:
    results = contest()
    results["settings"]["budget"] = []
    chosen = results["recommendation"] = recommend(results)
    seen = " ".join(text_of(render(results)).split())
    assert [chosen[key] for key in ("line", "sentence", "command") if " ".join(unescape(chosen[key]).split()) not in unescape(seen)] == []
    assert all(comparison["test"] in unescape(seen) for comparison in chosen["comparisons"]) and len(chosen["comparisons"]) > 3


def test_the_same_results_give_the_same_file() -> None:
    assert render(contest()) == render(contest())


# ---- the scoreboard as a file ----


def test_scoreboard_shows_all_papers_and_all_claims(tmp_path: Path) -> None:
    html = board(tmp_path)
    seen = text_of(html)
    assert html.count('<th scope="row"') == 100 and seen.count("missing") == 97
    wanted = ["3 of 100", "etude play laser --scale desk --fresh", "Benjamini and Hochberg", "over the 6 claims", "9 seeds would decide", "400 items"]
    wanted += ["above 0.02", "[0.0410, 0.0610]", "fresh", "stale", "not reproduced", "not recorded yet", "2025-11-24"]
    assert [part for part in wanted if part not in seen] == []
    assert html.count(f"data:image/png;base64,{PIXEL}") == 1
    assert html.count("<script") == 1


def test_scoreboard_without_records(tmp_path: Path) -> None:
    seen = text_of(scoreboard([], PAPERS, tmp_path).read_text())
    assert "0 of 100" in seen and "Nothing is recorded yet" in seen


def test_scoreboard_with_broken_records(tmp_path: Path) -> None:
    odd = record() | {
        "experiments": {EVIL: {"claims": [{"title": CUT, "status": EVIL}]}, "Empty": {}},
        "verdict": "",
        "plot": str(tmp_path / "gone.png"),
    }
    html = scoreboard([odd, {"name": "unknown"}], PAPERS, tmp_path).read_text()
    assert html.count("<script") == 1 and "<img" not in html
