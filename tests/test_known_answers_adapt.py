"""The contest of adapters on planted data: the thin pair wins, the worn copy and the cheat lose, twins tie, and nothing else is told."""

import json
import random
from pathlib import Path

import pytest

from etude import catalogue
from etude.adapt import planted
from etude.harness.check import at_work
from etude.harness.compete import compete
from etude.harness.intervals import paired_difference
from etude.harness.recommend import recommend
from etude.harness.request import Request
from etude.measure.contract import Items, Metrics

SEEDS = 3
FIELD = ("head_only", "lora", "rslora", "dora", "lora_4bit", "few_shot_prompt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    room = tmp_path_factory.mktemp("planted")
    request = Request(
        out=room / "out",
        names=("full",),
        family="adapt",
        with_file=f"{planted.__file__}:ThinPair,WornPair,Idler,Twin,OtherTwin",
        without=FIELD,
        brought=planted.plant(room),
        seeds=SEEDS,
        dtype="float32",
    )
    compete(request, lambda line: None)
    return json.loads((room / "out" / "results.json").read_text())


def contender(results, name):
    return next(one for one in results["contenders"] if one["name"] == name)


def accuracies(results, name):
    return [Metrics.from_json(seed["metrics"])["accuracy"] for seed in contender(results, name)["seeds"]]


def test_the_planted_winner_is_recommended(results):
    told = results["recommendation"]
    assert told["status"] in ("recommended", "close") and told["name"] == planted.WINNER, told


def test_the_degraded_copy_loses(results):
    assert paired_difference(accuracies(results, planted.LOSER), accuracies(results, planted.WINNER)).high < 0
    assert not contender(results, planted.LOSER)["reached"]


def test_the_cheapest_folder_that_learned_nothing_is_not_recommended(results):
    cheat, winner = contender(results, planted.CHEAT), contender(results, planted.WINNER)
    assert Metrics.from_json(cheat["seeds"][0]["metrics"]).bytes < Metrics.from_json(winner["seeds"][0]["metrics"]).bytes
    told = results["recommendation"]
    assert planted.CHEAT not in {told["name"], told["winner"], *told["close"]} and not cheat["reached"]


def test_an_adapter_that_trains_its_base_model_is_refused_at_the_door():
    entry = catalogue.from_file(Path(planted.__file__), "Smuggler", "adapt")
    problems = list(at_work(entry, catalogue.contest("adapt"), "encoder"))
    assert len(problems) == 1 and "trained weights are not in the adapter's folder" in problems[0]


def test_rates_are_tuned_once_in_equal_trials_and_carried_over(results):
    for name in (results["reference"], planted.WINNER, *planted.TWINS):
        row = contender(results, name)
        assert len(row["tuning"]) == 4 and len(row["seeds"]) == SEEDS, name
        assert row["options"]["rate"] in {trial["options"]["rate"] for trial in row["tuning"]}
        assert "rate" in row["describe"]["its search chose"]


def test_between_the_twins_it_is_too_close_to_call(results):
    told = between_the_twins(results, [contender(results, name) for name in (results["reference"], *planted.TWINS)])
    assert told["status"] == "close" and {told["name"], *told["close"]} >= set(planted.TWINS), told


def between_the_twins(results, rows):
    """The recommendation where only the reference and the twins compete, for quality within bytes that the reference does not keep."""
    twin = Metrics.from_json(contender(results, planted.TWINS[0])["seeds"][0]["metrics"]).bytes
    limit = {"text": "twice a twin", "axis": "bytes", "limit": 2 * twin, "reference": 2 * twin}
    asked = results["settings"] | {"max_loss": None, "prefer": None, "budget": [limit]}
    return recommend(results | {"contenders": rows, "settings": asked})


def test_contests_resampled_from_the_twins_runs_seldom_name_a_winner(results):
    stored, dice, named = [run for name in planted.TWINS for run in accuracies(results, name)], random.Random(0), 0
    rows = [contender(results, name) for name in (results["reference"], *planted.TWINS)]
    base, count = accuracies(results, results["reference"])[:1], len(stored[0].ids)
    for _ in range(100):
        drawn, places = dice.sample(stored, 2 * SEEDS), dice.choices(range(count), k=count)
        runs = (base, drawn[:SEEDS], drawn[SEEDS:])
        told = between_the_twins(results, [with_runs(*pair, places) for pair in zip(rows, runs, strict=True)])
        named += told["status"] == "recommended"
    assert named <= 11, f"{named} of 100 contests between identical contenders named a winner"


def with_runs(row, runs, places):
    """A contender whose seeds gave these runs, each with its rows drawn again."""
    seeds = []
    for run in runs:
        drawn = Items.of(range(len(places)), [run.top[i] for i in places], [run.bottom[i] for i in places])
        old = row["seeds"][0]
        seeds.append(old | {"metrics": old["metrics"] | Metrics(accuracy=drawn).to_json()})
    return row | {"seeds": seeds}
