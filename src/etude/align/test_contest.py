"""The contest of preference training: the planted winner wins, copies and cheats lose, twins tie; what is used is said; bad pairs are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from known_answers import MOST, contender, named_between_twins, planted_contest, runs_of

from etude import catalogue
from etude.align import _folders, planted
from etude.align._tiny import data_of, part_of, saved, tiny_rows
from etude.align.contest import PreferencePairs, preferred
from etude.data import sources
from etude.data.cache import artifact, store_folder
from etude.data.contract import Data, Journal, Preferences, Split
from etude.harness.compete import apply
from etude.harness.contract import Run
from etude.harness.inputs import adopt
from etude.harness.intervals import paired_difference
from etude.harness.recommend import recommend
from etude.harness.request import Request
from etude.nn.loading import load_decoder
from etude.nn.tiny import byte_tokenizer, tiny_llama

SEEDS = 4
DPO = "dpo:rate=1e-6,epochs=1"  # it hardly moves: no rival of the planted ones, and nothing is tuned


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    room, classes = tmp_path_factory.mktemp("planted"), "ReadsPrompt,ReadsHalf,Shouts,Twin,OtherTwin"
    return planted_contest(planted, classes, room, names=(DPO,), family="align", without=("sft",), seeds=SEEDS, dtype="float32")


def test_the_planted_winner_is_recommended(results):
    assert results["recommendation"]["line"].startswith("Recommended: reads_prompt, the best preference accuracy"), results["recommendation"]["line"]
    assert results["recommendation"]["name"] == planted.WINNER


def test_the_degraded_copy_loses(results):
    assert paired_difference(runs_of(results, planted.LOSER), runs_of(results, planted.WINNER)).high < 0


def test_a_cheat_that_is_right_but_cannot_speak_any_more_loses(results):
    assert "no language model any more" in contender(results, planted.CHEAT)["error"]


def test_a_cheat_that_ignores_the_prompt_is_no_better_than_chance(tmp_path):
    brought = planted.plant(tmp_path)
    part = sources.load(brought["data"], (Preferences,), {}, lambda line: None)[Preferences]
    half, other = Split(part.take(list(range(240)))), Split(part.take(list(range(240, 340))))
    found = dict[str, float]()
    for cls in (planted.ReadsPrompt, planted.IgnoresPrompt):
        made = cls().train(load_decoder(Path(brought["model"])), Data(half, half, 0, byte_tokenizer()))
        _folders.save(made, byte_tokenizer(), tmp_path / cls.__name__)
        found[cls.__name__] = PreferencePairs().measure(tmp_path / cls.__name__, other, run_of(model=adopt(Path(brought["model"])))).accuracy
    assert found["IgnoresPrompt"] < 0.65 and found["ReadsPrompt"] > 0.9


def test_the_winner_is_deterministic_and_no_twin_is(results):
    assert len(contender(results, planted.WINNER)["seeds"]) == 1
    assert all(len(contender(results, twin)["seeds"]) == SEEDS for twin in planted.TWINS)


@pytest.mark.parametrize("seeds", [2, 3])
def test_contests_resampled_from_the_twins_runs_seldom_name_a_winner(results, seeds):
    assert named_between_twins(results, planted.TWINS, seeds, lambda rows: recommend(results | {"contenders": rows, "floor": None})) <= MOST


def test_everything_of_the_table_is_measured(results):
    contest = PreferencePairs()
    measured = contender(results, planted.WINNER)["summary"]
    assert set(contest.axes) <= set(measured) and measured["kl"]["value"] > 0 and measured["seconds"]["value"] > 0
    assert contender(results, results["reference"])["summary"]["bytes"]["value"] < measured["bytes"]["value"]  # an adapter, a whole model
    assert results["floor"]["value"] == 0.5


# --- its parts ------------------------------------------------------------------------------------------------------------


def run_of(**parts):
    """A run whose inputs are these folders or parts of the data."""
    given = {name: store_folder(Split(part).save) if isinstance(part, Preferences) else part for name, part in parts.items()}
    return Run("contest:align/PreferencePairs", "dpo", "user", 0, inputs=tuple(given.items()))


@pytest.fixture(scope="module")
def model():
    return saved(tiny_llama).name


def rows_with(long, count):
    return part_of([row | {"prompt": "x" * 300 + row["prompt"]} if i < long else row for i, row in enumerate(tiny_rows(count))])


def test_a_contest_trains_and_judges_on_the_first_pairs_that_are_short_enough_and_says_so(model):
    contest = PreferencePairs()
    run = run_of(model=model, train=rows_with(4, 230), validation=rows_with(2, 80), choice=part_of(tiny_rows(9)))
    data = contest.data(run)
    assert (len(data.train[Preferences]), len(data.validation[Preferences])) == (200, 64)
    assert max(map(len, data.train[Preferences].column("prompt"))) < 100
    facts = contest.facts(run)
    assert facts["notes"] == [
        "trained on 200 of 230 pairs (at most 200); 4 of more than 256 tokens (both sequences) among the first 204 are left out"
    ]
    assert facts["pairs"] == 200 and 30 < facts["tokens a pair"] < 60
    assert contest.check(Split(rows_with(3, 50)), run) == [
        "judged on 47 of 50 pairs (at most 100); 3 of more than 256 tokens (both sequences) among the first 50 are left out"
    ]
    assert contest.check(Split(part_of(tiny_rows(20))), run) == []


def test_a_prompt_longer_than_the_context_is_said_with_the_side_that_is_cut():
    run = run_of(model=saved(lambda: tiny_llama(context=24)).name)
    told = PreferencePairs().check(Split(rows_with(2, 10)), run)
    assert told == ["judged on 2 prompts without their beginnings, since they are longer than the model's context of 24 tokens allows"]


def test_pairs_that_are_all_too_long_are_refused(model):
    with pytest.raises(ValueError, match="all 10 pairs hold more than 256 tokens"):
        PreferencePairs().check(Split(rows_with(10, 10)), run_of(model=model))


def test_apply_trains_on_all_rows_and_keeps_a_few_to_tune(model):
    contest = PreferencePairs()
    train, validation = contest.whole(Split(rows_with(4, 230)), 0)
    run = Run("", "", "", 0, inputs=(("model", model), ("train", store_folder(train.save)), ("validation", store_folder(validation.save, "0" * 40))))
    data = contest.data(run)
    assert (len(data.train[Preferences]), len(data.validation[Preferences])) == (207, 23)
    own = Run("", "", "", 0, inputs=(*run.inputs[:2], ("validation", store_folder(Split(part_of(tiny_rows(70))).save))))
    assert [len(part[Preferences]) for part in (contest.data(own).train, contest.data(own).validation)] == [230, 70]


def test_pairs_of_one_prompt_stay_on_one_side():
    rows = [row | {"prompt": f"ask {i // 2}"} for i, row in enumerate(tiny_rows(80))]
    pieces = [set(split[Preferences].column("prompt")) for split in PreferencePairs().split(Split(part_of(rows)), 0)]
    assert not any(a & b for i, a in enumerate(pieces) for b in pieces[i + 1 :]) and all(pieces)


def test_columns_that_a_contender_does_not_read_are_said(model):
    rows = Dataset.from_list([row | {"weight": 1.0, "rate": 0.5} for row in tiny_rows(30)])
    part = Preferences(rows, {name: name for name in ("prompt", "chosen", "rejected", "weight", "rate")})
    facts = PreferencePairs().facts(run_of(model=model, train=part, choice=part))
    for name in ("sft", "dpo"):
        said = PreferencePairs().marks(facts, catalogue.find(name).traits)
        assert said.startswith("it reads no weight and no rate column"), said
    assert PreferencePairs().marks(facts, ("trains",)) == "" == PreferencePairs().marks({"columns": []}, ("hard labels",))


def test_a_pair_without_a_lean_counts_half():
    import torch

    assert preferred(torch.tensor([2.0, 0.0, -1.0])) == [1.0, 0.5, 0.0]


def test_the_estimate_grows_with_what_is_read():
    contest, facts = PreferencePairs(), {"parameters": 1e8, "flops": 4e11, "pairs": 100, "tokens a pair": 50.0}
    for step in ("build", "measure", "time", "search"):
        small, large = (contest.estimate(facts | {"tokens a pair": tokens}, step).seconds for tokens in (50.0, 200.0))
        assert 0 < small < large
    assert contest.estimate(facts | {"pairs": 200}, "build").seconds > contest.estimate(facts, "build").seconds


def test_the_model_itself_prefers_nothing_and_went_nowhere(model, tmp_path):
    folder, policy = tmp_path / "same", load_decoder(artifact(model))
    _folders.save(policy, byte_tokenizer(), folder)
    found = PreferencePairs().measure(folder, Split(part_of(tiny_rows(12))), run_of(model=model))
    assert found.accuracy == 0.5 and found.margin == found.kl == found.drift == 0.0 and 0 <= found.likelihood <= 1


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_baseline_is_applied_to_ones_own_rows(name, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_rows(40)))
    brought = {"model": str(saved(tiny_llama)), "data": str(tmp_path / "rows.jsonl")}
    digest, told = apply(name, {"epochs": 1}, Request(out=tmp_path / "out", family="align", brought=brought, dtype="float32"), lambda line: None)
    assert (artifact(digest) / "adapter_model.safetensors").is_file() and (artifact(digest) / "tokenizer.json").is_file()
    assert len(told["tuning"]) == 3 and told["describe"]["its search chose"].startswith("rate ")
    assert _folders.load(artifact(digest)).peft_config["default"].r == 8


def test_a_search_is_journaled_and_settles_on_a_rate(tmp_path):
    data = data_of(12)
    journal = Journal(tmp_path / "trials.jsonl")
    catalogue.make(catalogue.find("dpo"), {"epochs": 1}).train(tiny_llama(layers=1), Data(data.train, data.validation, 0, data.tokenizer, journal))
    assert len(journal.trials) == 3 and set(journal.settled) == {"rate"}
    again = Journal(tmp_path / "trials.jsonl")
    assert again.trials == journal.trials
