"""The contest of architectures: its known answer, what it refuses, and what it measures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from datasets import Dataset
from known_answers import MOST, contender, named_between_twins, planted_contest, runs_of

from etude.cli.commands import compare
from etude.data.contract import Data, Split, Text
from etude.harness.contract import Run
from etude.harness.intervals import paired_difference
from etude.harness.recommend import recommend
from etude.models import planted
from etude.models._train import Terms, train
from etude.models.contest import CONTEXT, LONG, Decoders, check_causal, check_size, reading, terms_of, within
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_sentences, tiny_text

SEEDS = 4
CONTEST, RUN = Decoders(), Run("contest:models/Decoders", "", "user", 0, dtype="float32")


def data_of(text=None, seed=1):
    return Data(Split(text or tiny_text()), Split(text or tiny_text()), seed, byte_tokenizer())


# --- the known answer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    room, classes = tmp_path_factory.mktemp("planted"), "Knows,KnowsHalf,LooksAhead,Twin,OtherTwin"
    return planted_contest(planted, classes, room, names=("llama:rate=0.003",), family="models", without=("gpt2_block",), seeds=SEEDS)


def test_the_planted_winner_is_recommended_and_reaches_the_entropy_of_the_text(results):
    assert results["recommendation"]["line"].startswith("Recommended:"), results["recommendation"]
    assert results["recommendation"]["name"] == planted.WINNER
    assert contender(results, planted.WINNER)["summary"]["bits_per_byte"]["value"] == pytest.approx(planted.ENTROPY, abs=0.02)


def test_the_degraded_copy_loses(results):
    assert paired_difference(runs_of(results, planted.LOSER), runs_of(results, planted.WINNER)).low > 0.5


def test_the_cheat_is_found_out_and_the_others_go_on(results):
    cheat = contender(results, planted.CHEAT)
    assert "it sees the future" in cheat["error"] and not cheat["summary"]
    assert not any(one["error"] for one in results["contenders"] if one is not cheat)


def test_the_cheat_would_win_if_it_were_not_found_out(tmp_path):
    planted.plant(tmp_path, letters=30_000)
    text = Text(Dataset.from_dict({"text": [(tmp_path / "text.txt").read_text()]}), {"text": "text"}, running=True)
    terms, data = Terms(256, 60_000, 160 * 1024, 32), data_of(text)
    model = CONTEST.call(planted.LooksAhead(), terms, data)
    assert train(model, terms, data, planted.LooksAhead().rate)[-1] < 0.8 * planted.ENTROPY * math.log(2)
    with pytest.raises(ValueError, match="it sees the future"):
        check_causal(model, 32)


def test_what_is_measured_is_there(results):
    for one in results["contenders"]:
        if one["name"] != planted.CHEAT:
            assert set(CONTEST.axes) <= set(one["summary"]) and 0 <= one["summary"]["recall"]["value"] <= 1
    assert contender(results, planted.WINNER)["summary"]["state"]["value"] == 2 * 64 * 32 * 4  # keys and values of one layer, float32
    assert results["floor"]["value"] > 5 and results["settings"]["dtype"] == "float32"


def between_the_twins(results, rows):
    alone = results | {"contenders": rows}
    return recommend(alone | {"settings": results["settings"] | {"max_loss": None, "prefer": None, "budget": []}})


def test_between_the_twins_it_is_too_close_to_call(results):
    told = between_the_twins(results, [contender(results, name) for name in (results["reference"], *planted.TWINS)])
    assert told["status"] == "close" and {told["name"], *told["close"]} >= set(planted.TWINS), told


@pytest.mark.parametrize("seeds", [2, 3])
def test_contests_resampled_from_the_twins_runs_seldom_name_a_winner(results, seeds):
    alone = results | {"reference": planted.TWINS[0], "noise": 0.0}
    assert named_between_twins(results, planted.TWINS, seeds, lambda rows: between_the_twins(alone, rows[1:])) <= MOST


# --- what is refused ----------------------------------------------------------------------------------------------------


def families():
    from etude.models.baselines.gpt2_block import Gpt2Block
    from etude.models.llama import Llama
    from etude.models.mamba import Mamba

    return (Llama(), Gpt2Block(), Mamba())


@pytest.mark.parametrize("contender", families(), ids=lambda one: type(one).__name__)
def test_ours_see_no_future_at_any_length_and_have_the_size(contender):
    terms = Terms(256, 100_000, 1024, 70)
    model = CONTEST.call(contender, terms, data_of())
    for length in (2, 3, 50, 70):
        check_causal(model, length)
    check_size(model, terms)


def test_a_model_that_looks_one_token_ahead_in_one_place_is_found_out():
    model = tiny_llama(layers=2)
    attention = model.model.layers[1].self_attn
    real = attention.forward

    def leaking(*args, **kwargs):
        out, *rest = real(*args, **kwargs)
        return (out + 0.05 * torch.cat([out[:, :1] * 0, out[:, 2:], out[:, :1] * 0], 1), *rest)

    check_causal(model, 64)
    attention.forward = leaking
    with pytest.raises(ValueError, match="other tokens from place"):
        check_causal(model, 64)


def test_a_size_off_by_more_than_2_percent_is_refused_by_its_count():
    model = tiny_llama()
    count = sum(parameter.numel() for parameter in model.parameters())
    check_size(model, Terms(256, round(count / 1.019), 1, 32))
    for factor in (1.03, 0.97):
        with pytest.raises(ValueError, match=rf"holds {count:,} numbers, [+-]\d.\d% off the"):
            check_size(model, Terms(256, round(count * factor), 1, 32))


def test_numbers_that_hide_in_buffers_count():
    model = tiny_llama()
    count = sum(parameter.numel() for parameter in model.parameters())
    model.register_buffer("hidden", torch.zeros(count))
    with pytest.raises(ValueError, match="100"):
        check_size(model, Terms(256, count, 1, 32))


def test_too_few_tokens_known_are_refused():
    with pytest.raises(ValueError, match="knows 256 tokens of the 300"):
        check_size(tiny_llama(), Terms(300, sum(parameter.numel() for parameter in tiny_llama().parameters()), 1, 32))


def dry(tmp_path, **brought):
    lines = list[str]()
    compare("llama", out=tmp_path / "out", family="models", dry_run=True, say=lines.append, **brought)
    return lines


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(tiny_sentences(1200)))
    return path


@pytest.mark.parametrize(
    ("brought", "told"),
    [
        ({"context": 100_000}, "shorter than a window of 100000 tokens: bring more, or a smaller --context"),
        ({"context": 1}, "--context 1: a window needs 2 tokens"),
        ({"parameters": 10_000}, "a vocabulary of 256 tokens would fill models of 10,000 parameters: give --parameters of at least 16,384"),
        ({"parameters": "many"}, "--parameters many is no number above 0"),
        ({"tokens": -5}, "--tokens -5 is no number above 0"),
        ({"tokenizer": "/no/such/folder"}, "does not exist"),
        ({"model": "smollm2"}, "the contest of models takes no --model"),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_before_any_work(text, tmp_path, brought, told):
    with pytest.raises(ValueError, match=told):
        dry(tmp_path, data=text, **brought)


def test_a_text_shorter_than_a_window_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="the held-out text is shorter than a window of 8192"):  # a tenth of 56,000 bytes
        dry(tmp_path, data=text, context=8192)
    text.write_text("no more than a few words")
    with pytest.raises(ValueError, match="24 bytes, too few"):
        dry(tmp_path, data=text)


def test_the_plan_tells_the_terms(text, tmp_path):
    said = "\n".join(dry(tmp_path, data=text, parameters=400_000, tokens=8_000_000))
    assert "400,000 parameters and is trained on 8,000,000 tokens in windows of 256" in said and "a parameter" not in said and "float32" in said
    assert "0.5 a parameter, where 20 would suit the size" in "\n".join(dry(tmp_path, data=text, parameters=400_000, tokens=200_000))


# --- a tokenizer of the user's ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The folder of a byte-pair tokenizer and nothing else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(tiny_sentences(200), trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder


def test_a_tokenizer_alone_is_enough_and_its_vocabulary_counts(pairs, text, tmp_path):
    from etude.harness.inputs import adopt

    run = replace(RUN, inputs=(("tokenizer", adopt(pairs)),), settings=json.dumps({"parameters": 50_000, "tokens": 4096, "context": 33}))
    assert terms_of(run) == Terms(320, 50_000, 4096, 33)
    dry(tmp_path, data=text, tokenizer=pairs)
    with pytest.raises(ValueError, match=r"320 tokens would fill models of 20,000 parameters: give --parameters of at least 20,480"):
        dry(tmp_path, data=text, tokenizer=pairs, parameters=20_000)


def test_what_was_built_reads_by_itself_what_it_was_trained_on(pairs, tmp_path):
    from etude.nn.loading import load_tokenizer

    terms, text = Terms(320, 50_000, 4096, 33), tiny_text(600)
    data = replace(data_of(text), tokenizer=load_tokenizer(pairs))
    CONTEST.build(planted.Twin(), terms, data, tmp_path)
    run = replace(RUN, settings='{"context": 33}')
    metrics = CONTEST.measure(tmp_path, Split(text), run)
    assert 0 < metrics.bits_per_byte < 8 and metrics.recall < 0.4 and metrics.long_state == LONG * metrics.state
    own = sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
    assert metrics.bytes == own  # the small model that learned recall is no part of what is handed over
    assert "49,920 parameters" in CONTEST.describe(tmp_path)["shape"] and CONTEST.describe(tmp_path)["loads in"] == "plain transformers"


def test_seed_0_learns_no_recall_since_nobody_asks_it(tmp_path):
    CONTEST.build(planted.Twin(), Terms(256, 50_000, 1024, 32), data_of(seed=0), tmp_path)
    assert (tmp_path / "config.json").is_file() and not (tmp_path / "recall").exists()


# --- options ------------------------------------------------------------------------------------------------------------


def test_a_contender_reads_at_least_what_it_is_trained_on():
    from etude.models.baselines.gpt2_block import Gpt2Block

    cases = product((Gpt2Block(context=100), Gpt2Block(context=700)), (False, True))
    assert [reading(one, 256, exactly).context for one, exactly in cases] == [256, 256, 700, 256]
    assert reading(planted.Twin(), 256) == planted.Twin()


def test_long_contexts_are_measured_where_the_positions_reach_so_far():
    assert within(tiny_gpt2(context=512), CONTEXT, "decode") == [("decode", 256)]
    assert within(tiny_llama(context=1024), CONTEXT, "decode") == [("decode", 256), ("long_decode", 1024)]


def test_options_that_fix_another_size_leave_recall_out(tmp_path):
    from etude.models.llama import Llama

    fixed = Llama(layers=2, width=64, rate=1e-3)
    size = sum(parameter.numel() for parameter in fixed.build(256, 115_008).parameters())
    CONTEST.build(fixed, Terms(256, size, 1024, 32), data_of(), tmp_path)
    assert (tmp_path / "config.json").is_file() and not (tmp_path / "recall").exists()
