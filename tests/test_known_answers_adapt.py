"""The contest of adapters on planted data: the thin pair wins, the worn copy and the cheat lose, twins tie, and nothing else is told."""

from pathlib import Path

import pytest
from known_answers import MOST, contender, named_between_twins, planted_contest, runs_of

from etude import catalogue
from etude.adapt import planted
from etude.adapt._recipe import TRIALS
from etude.harness.check import at_work
from etude.harness.intervals import paired_difference
from etude.harness.recommend import recommend
from etude.measure.contract import Metrics

SEEDS = 3
FIELD = ("head_only", "lora", "rslora", "dora", "lora_4bit", "few_shot_prompt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    room, classes = tmp_path_factory.mktemp("planted"), "ThinPair,WornPair,Idler,Twin,OtherTwin"
    return planted_contest(planted, classes, room, names=("full",), family="adapt", without=FIELD, seeds=SEEDS, dtype="float32")


def test_the_planted_winner_is_recommended(results):
    told = results["recommendation"]
    assert told["status"] in ("recommended", "close") and told["name"] == planted.WINNER, told


def test_the_degraded_copy_loses(results):
    assert paired_difference(runs_of(results, planted.LOSER), runs_of(results, planted.WINNER)).high < 0
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
        assert len(row["tuning"]) == TRIALS and len(row["seeds"]) == SEEDS, name
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
    assert named_between_twins(results, planted.TWINS, SEEDS, lambda rows: between_the_twins(results, rows)) <= MOST
