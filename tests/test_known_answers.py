"""The contest of compressed models on planted data: the planted winner wins, the degraded copy loses, twins tie, and nothing else is told."""

import pytest
from known_answers import MOST, contender, named_between_twins, planted_contest, runs_of

from etude.compress import planted
from etude.harness.intervals import paired_difference
from etude.harness.recommend import recommend

SEEDS = 5
FIELD = ("magnitude", "round_to_nearest", "gptq", "svd", "block_drop")
ONE_THIRD_OFF = {"text": "550KB", "axis": "bytes", "limit": 5.5e5, "reference": 6e5}  # the untouched model is larger


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    room, classes = tmp_path_factory.mktemp("planted"), "DropIdle,DropBusy,Twin,OtherTwin"
    return planted_contest(planted, classes, room, names=("untouched",), family="compress", without=FIELD, seeds=SEEDS, dtype="float32")


def test_the_planted_winner_is_recommended(results):
    assert results["recommendation"]["line"].startswith("Recommended:"), results["recommendation"]
    assert results["recommendation"]["name"] == planted.WINNER


def test_the_degraded_copy_loses(results):
    assert paired_difference(runs_of(results, planted.LOSER), runs_of(results, planted.WINNER)).low > 0
    assert not contender(results, planted.LOSER)["reached"]


def test_only_what_gave_bit_equal_answers_twice_is_taken_as_deterministic(results):
    assert contender(results, planted.WINNER)["deterministic"] and len(contender(results, planted.WINNER)["seeds"]) == 1
    for twin in planted.TWINS:
        assert not contender(results, twin)["deterministic"] and len(contender(results, twin)["seeds"]) == SEEDS


def between_the_twins(results, rows):
    """The recommendation where only the reference and the twins compete, for quality under a budget that the reference does not keep."""
    alone = results | {"contenders": rows}
    return recommend(alone | {"settings": results["settings"] | {"max_loss": None, "prefer": None, "budget": [ONE_THIRD_OFF]}})


def test_between_the_twins_it_is_too_close_to_call(results):
    told = between_the_twins(results, [contender(results, name) for name in (results["reference"], *planted.TWINS)])
    assert told["status"] == "close" and {told["name"], *told["close"]} >= set(planted.TWINS), told


@pytest.mark.parametrize("seeds", [2, 3])
def test_contests_resampled_from_the_twins_runs_seldom_name_a_winner(results, seeds):
    assert named_between_twins(results, planted.TWINS, seeds, lambda rows: between_the_twins(results, rows)) <= MOST


def test_the_reference_is_measured_twice_and_its_noise_recorded(results):
    assert results["noise"] == 0.0 and results["openings"] == 1
