"""Every contest on planted data: the planted winner wins, the degraded copy loses, twins tie, and nothing else is told."""

import json
import random

import pytest

from etude.compress import planted
from etude.harness.compete import compete
from etude.harness.intervals import paired_difference
from etude.harness.recommend import recommend
from etude.harness.request import Request
from etude.measure.contract import Items, Metrics

SEEDS = 5
ONE_THIRD_OFF = {"text": "550KB", "axis": "bytes", "limit": 5.5e5, "reference": 6e5}  # the untouched model is larger


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    room = tmp_path_factory.mktemp("planted")
    brought = planted.plant(room)
    request = Request(
        out=room / "out",
        names=("untouched",),
        family="compress",
        with_file=f"{planted.__file__}:DropIdle,DropBusy,Twin,OtherTwin",
        without=("magnitude", "round_to_nearest", "gptq", "svd", "block_drop"),
        brought=brought,
        seeds=SEEDS,
        dtype="float32",
    )
    compete(request, lambda line: None)
    return json.loads((room / "out" / "results.json").read_text())


def contender(results, name):
    return next(one for one in results["contenders"] if one["name"] == name)


def test_the_planted_winner_is_recommended(results):
    assert results["recommendation"]["line"].startswith("Recommended:"), results["recommendation"]
    assert results["recommendation"]["name"] == planted.WINNER


def bits(results, name):
    return [Metrics.from_json(seed["metrics"])["bits_per_byte"] for seed in contender(results, name)["seeds"]]


def test_the_degraded_copy_loses(results):
    assert paired_difference(bits(results, planted.LOSER), bits(results, planted.WINNER)).low > 0
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
    stored, dice, named = [run for name in planted.TWINS for run in bits(results, name)], random.Random(seeds), 0
    rows = [contender(results, name) for name in (results["reference"], *planted.TWINS)]
    base, count = bits(results, results["reference"])[:1], len(stored[0].ids)
    for _ in range(200):
        drawn, places = dice.sample(stored, 2 * seeds), dice.choices(range(count), k=count)
        runs = (base, drawn[:seeds], drawn[seeds:])
        told = between_the_twins(results, [with_runs(*pair, places) for pair in zip(rows, runs, strict=True)])
        named += told["status"] == "recommended"
    assert named <= 18, f"{named} of 200 contests between identical contenders named a winner"


def with_runs(row, runs, places):
    """A contender whose seeds gave these runs, each with its blocks drawn again."""
    seeds = []
    for old, run in zip([row["seeds"][0]] * len(runs), runs, strict=True):
        drawn = Items.of(range(len(places)), [run.top[i] for i in places], [run.bottom[i] for i in places])
        seeds.append(old | {"metrics": old["metrics"] | Metrics(bits_per_byte=drawn).to_json()})
    return row | {"seeds": seeds}


def test_the_reference_is_measured_twice_and_its_noise_recorded(results):
    assert results["noise"] == 0.0 and results["openings"] == 1
