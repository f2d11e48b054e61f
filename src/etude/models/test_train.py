"""The family's trainer: windows from anywhere in a text, equal tokens for all, the rate tuned, a stop and a resume that lose nothing."""

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from datasets import Dataset

from etude.data.contract import Data, Journal, Split, Text
from etude.harness.contract import Run
from etude.models import _train
from etude.models._train import Stream, Terms, train, tune, usual_rate
from etude.models.contest import Decoders
from etude.models.planted import Twin
from etude.nn.tiny import byte_tokenizer, tiny_text

TERMS = Terms(256, 40_000, 8192, 32)  # 8 steps of 32 windows


def text_of(*texts, running=False):
    return Text(Dataset.from_dict({"text": list(texts)}), {"text": "text"}, running)


def data_of(text=None, seed=1, journal=None):
    return Data(Split(text or tiny_text()), Split(text or tiny_text()), seed, byte_tokenizer(), journal or Journal())


def made(data, terms=TERMS):
    return Decoders().call(Twin(), terms, data)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# --- windows ------------------------------------------------------------------------------------------------------------


def test_windows_are_pieces_of_the_text_from_all_of_it():
    text, tokenizer = tiny_text(60), byte_tokenizer()
    whole = "".join(text.column("text"))
    ids_BT = Stream(text, tokenizer, 60).batch(400, random.Random(0))
    assert ids_BT.shape == (400, 60)
    places = [(whole + whole).find(tokenizer.decode(row)) for row in ids_BT]
    assert min(places) >= 0
    quarters = [sum(4 * place // len(whole) == quarter for place in places) for quarter in range(4)]
    assert min(quarters) > 60


def test_every_byte_is_as_likely_to_begin_a_window_whatever_the_length_of_its_document():
    tokenizer = byte_tokenizer()
    ids_BT = Stream(text_of("a" * 900, "b" * 100), tokenizer, 4).batch(1000, random.Random(0))
    starts = [tokenizer.decode(row[:1]) for row in ids_BT]
    assert 850 < starts.count("a") < 950


def test_documents_are_parted_by_an_empty_line_and_pieces_are_not():
    for running, between in ((False, "\n\n"), (True, "")):
        stream = Stream(text_of("abcd", "efgh", running=running), byte_tokenizer(), 8)
        assert byte_tokenizer().decode(stream.window(0)) == ("abcd" + between + "efgh")[:8]


def test_empty_documents_are_passed_over():
    assert byte_tokenizer().decode(Stream(text_of("", "abcdefgh", None, "ijklmnop"), byte_tokenizer(), 4).window(3)).startswith("d")


@pytest.mark.parametrize(("texts", "told"), [(("",), "is empty"), (("short",), "no more than one window of 32")])
def test_a_text_shorter_than_a_window_is_refused(texts, told):
    with pytest.raises(ValueError, match=told):
        Stream(text_of(*texts), byte_tokenizer(), 32).batch(1, random.Random(0))


@pytest.mark.parametrize(("tokens", "context"), [(250_000, 256), (10_000, 100), (1, 64), (10**9, 1024)])
def test_steps_take_the_tokens_that_were_asked_for(tokens, context):
    terms = Terms(256, 400_000, tokens, context)
    one = terms.batch * context
    assert abs(terms.steps * one - tokens) <= max(one, tokens / 100) and terms.steps <= _train.STEPS + 1


def test_the_usual_rate_is_gpt3s():
    assert usual_rate(125_000_000) == 6e-4 and usual_rate(1_300_000_000) == pytest.approx(2e-4, rel=0.4)
    assert usual_rate(175_000_000_000) == pytest.approx(0.6e-4, rel=0.15)


# --- training -----------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_leaves_evaluation_mode_and_dice():
    data, before = data_of(), torch.get_rng_state()
    model = made(data)
    losses = train(model, TERMS, data, 1e-2)
    assert len(losses) == TERMS.steps and losses[-1] < 0.8 * losses[0] and not model.training
    assert torch.equal(before, torch.get_rng_state())


def test_the_seed_draws_weights_and_batches():
    one, again, other = (made(data_of(seed=seed)) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other)
    losses = [train(made(data_of()), TERMS, data_of(seed=seed), 1e-2) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("context", [37, 130])
def test_a_length_that_is_no_multiple_of_a_chunk_is_trained_on(context):
    from etude.models.mamba import Mamba

    terms, data = Terms(256, 40_000, 2 * context, context), data_of()
    model = Decoders().call(Mamba(), terms, data)
    assert all(math.isfinite(loss) for loss in train(model, replace(terms, tokens=2048), data, 1e-3))


def test_a_loss_that_is_no_number_stops_says_where_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    data = data_of()
    model, real = made(data), Stream.batch
    drawn = list[int]()

    def poisoned(stream, count, dice):
        drawn.append(count)
        if len(drawn) == 6:
            torch.nn.init.constant_(model.get_output_embeddings().weight, math.inf)
        return real(stream, count, dice)

    monkeypatch.setattr(_train, "EVERY", 2)
    monkeypatch.setattr(Stream, "batch", poisoned)
    with pytest.raises(ValueError, match=r"the loss is nan at step 6 of 8 \(rate 0.01\)"):
        train(model, TERMS, data, 1e-2, tmp_path)
    monkeypatch.setattr(Stream, "batch", real)
    again = made(data)
    losses = train(again, TERMS, data, 1e-2, tmp_path)  # on from step 4
    fresh = made(data)
    assert losses == train(fresh, TERMS, data, 1e-2) and same(again, fresh)


# --- tuning -------------------------------------------------------------------------------------------------------------


def test_every_trial_is_in_the_journal_and_the_best_rate_is_settled(tmp_path):
    data = data_of(journal=Journal(tmp_path / "journal.jsonl"))
    rate = tune(lambda: made(data), TERMS, data, trials=3)
    scores = {trial["options"]["rate"]: trial["score"] for trial in data.journal.trials}
    assert len(scores) == 3 and rate == min(scores, key=scores.get) and data.journal.settled == {"rate": rate}
    assert f"rate {rate:.3g}" in data.journal.chosen


def test_a_rate_that_diverges_loses(monkeypatch):
    monkeypatch.setattr(_train, "climb", partial(_train.climb, factor=1e22))
    data = data_of()
    assert tune(lambda: made(data), replace(TERMS, tokens=2048), data, trials=2) == usual_rate(40_000)
    assert len(data.journal.trials) == 1  # what is no number is no score


def test_a_build_that_is_stopped_again_and_again_ends_where_the_undisturbed_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(_train, "EVERY", 3)
    contest, real, steps, limit = Decoders(), Stream.batch, [0], [math.inf]

    def counted(stream, count, dice):
        if steps[0] >= limit[0]:
            raise KeyboardInterrupt
        steps[0] += 1
        return real(stream, count, dice)

    monkeypatch.setattr(Stream, "batch", counted)

    def build(name):
        data = data_of(journal=Journal(tmp_path / name / "journal.jsonl"))
        contest.build(Twin(rate=None), TERMS, data, tmp_path / name / "built")
        return contest.load(tmp_path / name / "built", Run("contest:models/Decoders", "twin", "user", 1))

    for name in ("calm", "hurt"):
        (tmp_path / name).mkdir()
    calm = build("calm")
    needed, steps[0], kills = steps[0], 0, 0
    assert needed == 3 * TERMS.steps  # the best of three trials is not repeated
    for limit[0] in (4, 11, 17, 25):
        with pytest.raises(KeyboardInterrupt):
            build("hurt")
        kills += 1
    limit[0] = math.inf
    assert same(build("hurt"), calm) and steps[0] - needed <= kills * _train.EVERY
