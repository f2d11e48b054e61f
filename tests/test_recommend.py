"""The recommendation: winners, ties, budgets, floors, noise."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from etude.harness import verify
from etude.harness.recommend import recommend
from etude.harness.results import summarise
from etude.measure.contract import Items, Metrics

BLOCKS = 32
HARD = [random.Random(99).gauss(1.0, 0.2) for _ in range(BLOCKS)]  # how hard each block is, for everybody


def contender(name: str, dice: random.Random, loss: float, size: float, seeds: int = 1, between: float = 0.0, **more: Any) -> dict[str, Any]:
    """A row whose quality is `loss` above the blocks' own, noisy by block, and by seed where `between` is given."""
    runs = []
    for seed in range(seeds):
        shift = loss + dice.gauss(0, between)
        bits = Items.of(range(BLOCKS), [hard + shift + dice.gauss(0, 0.01) for hard in HARD])
        runs.append({"seed": seed, "metrics": Metrics(bits=bits, bytes=size, decode=1e3 / size).to_json()})
    base = {"name": name, "options": {"of": name}, "mark": "", "error": None, "deterministic": between == 0, "seeds": runs}
    return base | more


def results(*contenders: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A contest's results as far as the recommendation reads them."""
    top = {key: settings.pop(key) for key in ("floor", "noise", "model", "reference") if key in settings}
    axes = {
        "bits": {"unit": "bits/byte", "better": "lower"},
        "bytes": {"unit": "bytes", "better": "lower"},
        "decode": {"unit": "tokens/s", "better": "higher"},
    }
    base = {
        "settings": {"budget": [], "max_loss": None, "prefer": None, "dev": False} | settings,
        "quality": "bits",
        "main_axis": "bytes",
        "axes": axes,
        "contenders": list(contenders),
        "reference": "untouched",
        "noise": 0.0,
        "floor": {"value": 4.0, "what": "the unigram entropy"},
        "model": {"grid": ""},
    }
    return base | top


def limit(axis: str, most: float, **more: Any) -> dict[str, Any]:
    return {"text": f"{axis} {most:g}", "axis": axis, "limit": most, "reference": 100.0, "at_least": False} | more


@pytest.fixture
def dice() -> random.Random:
    return random.Random(0)


def test_the_smallest_within_the_loss(dice: random.Random) -> None:
    found = recommend(
        results(
            contender("untouched", dice, 0.0, 100e6),
            contender("eight", dice, 0.002, 52e6),
            contender("four", dice, 0.1, 27e6),
            max_loss=0.02,
        )
    )
    assert found["status"] == "recommended" and found["name"] == "eight" and found["close"] == []
    assert found["line"].startswith("Recommended: eight, the smallest within 2 % of untouched, 52 MB, ") and "95 % interval" in found["line"]
    assert found["options"] == {"of": "eight"} and found["command"] == "etude apply --from results.json --out DIR"
    assert "0.52 of" not in found["sentence"] and "for 0.52 times its bytes" in found["sentence"]
    assert {c["against"]: c["beats"] for c in found["comparisons"]} == {"untouched": True, "four": True}


def test_a_contender_on_the_border_of_the_loss_is_too_close_to_call(dice: random.Random) -> None:
    rows = contender("untouched", dice, 0.0, 100e6), contender("eight", dice, 0.001, 52e6)
    for loss, taken in ((0.0197, "edge"), (0.0204, "eight")):
        for _ in range(20):  # draw until the estimate lies on the intended side
            edge = contender("edge", dice, loss * sum(HARD) / BLOCKS, 30e6)
            found = recommend(results(*rows, edge, max_loss=0.02))
            if found["name"] == taken:
                break
        assert found["status"] == "close" and found["name"] == taken and found["line"].startswith("Too close to call: ")
        assert "test blocks (now 32)" in found["more"]


def test_the_best_inside_the_budget(dice: random.Random) -> None:
    rows = (
        contender("untouched", dice, 0.0, 100e6),
        contender("good", dice, 0.05, 50e6),
        contender("poor", dice, 0.10, 30e6),
    )
    found = recommend(results(*rows, budget=[limit("bytes", 60e6)]))
    assert (found["status"], found["name"]) == ("recommended", "good") and "inside the budget" in found["line"]
    faster = recommend(results(*rows, budget=[limit("decode", 3e-5, at_least=True)]))
    assert faster["name"] == "poor"
    both = recommend(results(*rows, budget=[limit("bytes", 60e6)], max_loss=0.01))
    assert both["status"] == "none" and "within 1 %" in both["line"] and "good comes nearest" in both["line"]
    none = recommend(results(*rows, budget=[limit("bytes", 10e6)]))
    assert none["line"].startswith("No recommendation: ") and "poor comes nearest with 30 MB" in none["line"]
    assert none["name"] is None and none["command"] == ""


def test_of_those_too_close_the_cheapest_is_taken(dice: random.Random) -> None:
    rows = contender("untouched", dice, 0.0, 100e6), contender("big", dice, 0.05, 58e6), contender("small", dice, 0.0501, 40e6)
    found = recommend(results(*rows, budget=[limit("bytes", 60e6)]))
    assert found["status"] == "close" and found["name"] == "small" and found["close"] == ["big"]
    assert found["line"].startswith("Too close to call: ") and "small is taken" in found["line"]
    assert "test blocks" in found["more"] or "no amount" in found["more"]


def test_no_difference_below_the_noise_counts(dice: random.Random) -> None:
    rows = contender("untouched", dice, 0.0, 100e6), contender("good", dice, 0.05, 50e6), contender("poor", dice, 0.08, 30e6)
    assert recommend(results(*rows, budget=[limit("bytes", 60e6)]))["status"] == "recommended"
    assert recommend(results(*rows, budget=[limit("bytes", 60e6)], noise=0.05))["status"] == "close"


def test_nobody_beats_the_floor(dice: random.Random) -> None:
    found = recommend(
        results(contender("untouched", dice, 0.0, 100e6), contender("four", dice, 0.1, 27e6), max_loss=0.02, floor={"value": 0.5, "what": "chance"})
    )
    assert found["line"] == "No recommendation: no contender beats chance (0.5): the model cannot do the task"


def test_a_broken_model_cannot_be_recommended_though_it_is_smallest(dice: random.Random) -> None:
    rows = contender("untouched", dice, 0.0, 100e6), contender("broken", dice, 9.0, 1e6)
    assert recommend(results(*rows, max_loss=10.0))["name"] == "untouched"


def test_the_reference_itself_may_win(dice: random.Random) -> None:
    found = recommend(results(contender("untouched", dice, 0.0, 100e6), contender("four", dice, 0.3, 27e6), max_loss=0.02))
    assert found["name"] == "untouched" and "Nothing is given up" in found["sentence"]


def test_what_costs_the_same_is_decided_by_quality(dice: random.Random) -> None:
    rows = contender("untouched", dice, 0.0, 100e6), contender("zeros", dice, 0.004, 100.3e6), contender("pruned", dice, 0.001, 99.9e6)
    found = recommend(results(*rows, max_loss=0.02))
    assert found["winner"] == "untouched" and {c["test"] for c in found["comparisons"]} == {"same bytes, better bits"}


def test_prefer_speed(dice: random.Random) -> None:
    rows = contender("untouched", dice, 0.0, 100e6), contender("fast", dice, 0.004, 20e6), contender("slow", dice, 0.001, 60e6)
    found = recommend(results(*rows, prefer="speed", max_loss=0.02))
    assert found["name"] == "fast" and "the fastest within 2 %" in found["line"] and "tokens/s" in found["line"]


def test_failed_contenders_and_a_failed_reference(dice: random.Random) -> None:
    failed = {"name": "untouched", "error": "ran out of memory", "seeds": [], "options": {}}
    assert "was not measured" in recommend(results(failed, contender("four", dice, 0.1, 27e6), max_loss=0.02))["line"]
    assert recommend(results(failed, contender("four", dice, 0.1, 27e6), budget=[limit("bytes", 60e6)]))["name"] == "four"
    assert recommend(results(failed))["line"].startswith("No recommendation: no contender was measured")


def test_marks_grids_and_single_seeds_make_it_provisional(dice: random.Random) -> None:
    rows = contender("untouched", dice, 0.0, 100e6), contender("four", dice, 0.001, 27e6, mark="quantises what is quantised")
    assert recommend(results(*rows, max_loss=0.02))["provisional"] == "Provisional: four: quantises what is quantised."
    assert "Q4_1" in recommend(results(*rows, max_loss=0.02, model={"grid": "Q4_1 blocks of 32"}))["provisional"]
    assert "--dev" in recommend(results(*rows, max_loss=0.02, dev=True))["provisional"]
    once = contender("lucky", dice, 0.001, 20e6, deterministic=False)
    assert "one seed" in recommend(results(rows[0], once, max_loss=0.02))["provisional"]
    assert recommend(results(rows[0], contender("five", dice, 0.001, 27e6), max_loss=0.02))["provisional"] == ""


def test_higher_is_better(dice: random.Random) -> None:
    rows = [contender("untouched", dice, 0.5, 100e6), contender("worse", dice, 0.2, 50e6), contender("same", dice, 0.498, 60e6)]
    case = results(*rows, max_loss=0.02, floor={"value": 0.3, "what": "the majority class"})
    case["axes"]["bits"]["better"] = "higher"
    found = recommend(case)
    assert found["name"] == "same" and found["status"] == "recommended"


def test_it_is_plain_json_and_pure(dice: random.Random) -> None:
    case = results(contender("untouched", dice, 0.0, 100e6), contender("eight", dice, 0.002, 52e6), max_loss=0.02)
    before = json.dumps(case)
    found = recommend(case)
    assert json.dumps(case) == before and json.loads(json.dumps(found, allow_nan=False)) == found == recommend(json.loads(before))


def test_a_quality_without_items_is_never_decided_by_one_number(dice: random.Random) -> None:
    rows = [contender(name, dice, 0.0, size) for name, size in (("untouched", 100e6), ("a", 50e6), ("b", 30e6))]
    for i, row in enumerate(rows):
        row["seeds"] = [{"seed": 0, "metrics": {"bits": 1.0 + i / 1000, "bytes": 100e6 - i}}]
    found = recommend(results(*rows, budget=[limit("bytes", 2e8)], floor={"value": None, "what": ""}))
    assert found["status"] == "close" and all(c["low"] is None and c["p"] == 1 for c in found["comparisons"])


# ---- verify ----


@pytest.fixture
def recorded(dice: random.Random, tmp_path: Path) -> Path:
    case = results(contender("untouched", dice, 0.0, 100e6), contender("eight", dice, 0.002, 52e6, 3, 0.001), max_loss=0.02)
    for row in case["contenders"]:
        row["summary"] = summarise([Metrics.from_json(seed["metrics"]) for seed in row["seeds"]])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(verify.sealed(case | {"schema": 1, "recommendation": recommend(case)})))
    return path


def test_an_honest_contest_verifies(recorded: Path) -> None:
    assert verify.verify([recorded]).differences == [] and verify.verify([recorded.parent]).checked == [str(recorded)]


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (("recommendation", "name"), "recommendation.name"),
        (("recommendation", "line"), "recommendation.line"),
        (("recommendation", "comparisons", 0, "p"), "recommendation.comparisons[0].p"),
        (("recommendation", "comparisons", 0, "low"), "recommendation.comparisons[0].low"),
        (("contenders", 1, "summary", "bits", "high"), "contenders[1] (eight).summary.bits.high"),
        (("contenders", 1, "summary", "bytes", "value"), "contenders[1] (eight).summary.bytes.value"),
        (("contenders", 1, "seeds", 0, "metrics", "bits", "top", 3), "contenders[1] (eight).summary.bits.value"),
    ],
)
def test_a_changed_field_is_named(recorded: Path, place: tuple[str | int, ...], named: str) -> None:
    document = json.loads(recorded.read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = inner[place[-1]] + "0" if isinstance(inner[place[-1]], str) else inner[place[-1]] * 1.000001 + 1e-9
    recorded.write_text(json.dumps(document))
    assert any(f"{named}: recorded" in text for text in verify.verify([recorded]).differences)


def test_a_sealed_contest_shows_any_change(recorded: Path) -> None:
    document = verify.sealed(json.loads(recorded.read_text()))
    assert list(verify.check_seal(document)) == []
    document["settings"]["max_loss"] = 0.020001
    assert list(verify.check_seal(document))


# ---- simulated contests: the known answers ----


def contest(dice: random.Random, *rows: tuple[str, float], seeds: int, between: float, size: float = 50e6, **settings: Any) -> dict[str, Any]:
    untouched = contender("untouched", dice, 0.0, 100e6)
    return recommend(results(untouched, *(contender(name, dice, loss, size, seeds, between) for name, loss in rows), **settings))


@pytest.mark.parametrize("settings", [{"budget": [limit("bytes", 60e6)]}, {"max_loss": 0.02}, {"max_loss": 0.05, "prefer": "speed"}])
@pytest.mark.parametrize(("seeds", "between"), [(2, 0.004), (3, 0.02)])
def test_identical_stochastic_contenders_tie(settings: dict[str, Any], seeds: int, between: float) -> None:
    dice = random.Random(1)
    wins = sum(
        any(c["beats"] for c in found["comparisons"] if {c["against"], found["winner"]} == {"one", "two"})
        for _ in range(200)
        for found in [contest(dice, ("one", 0.02), ("two", 0.02), seeds=seeds, between=between, **settings)]
    )
    assert wins <= 18


@pytest.mark.parametrize("settings", [{"budget": [limit("bytes", 60e6)]}, {"max_loss": 0.05}])
def test_the_planted_winner_wins_and_the_degraded_copy_loses(settings: dict[str, Any]) -> None:
    dice = random.Random(2)
    found = [contest(dice, ("winner", 0.01), ("degraded", 0.04), seeds=3, between=0.001, **settings) for _ in range(40)]
    assert sum(f["status"] == "recommended" and f["name"] == "winner" for f in found) >= 38
    assert not any(f["name"] == "degraded" for f in found)


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_copy_of_the_reference_loses_nothing_and_not_minus_nothing(dice: random.Random, better: str) -> None:
    base = contender("untouched", dice, 0.0, 100e6)
    given = results(base, base | {"name": "copy"} | {"seeds": [halved(base["seeds"][0])]}, max_loss=0.02, floor=None)
    told = recommend(given | {"axes": given["axes"] | {"bits": {"unit": "", "better": better}}})
    assert told["name"] == "copy" and "loses 0 % (95 % interval 0 to 0 %)" in told["line"] and "-0 " not in told["line"], told["line"]


def halved(seed: dict[str, Any]) -> dict[str, Any]:
    """The same run, stored in half the bytes."""
    return seed | {"metrics": seed["metrics"] | Metrics(bytes=50e6).to_json()}
