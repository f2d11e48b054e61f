"""The trainer: what it trains, how it is tuned, that it stops at NaN and goes on after a kill."""

import json
import math
import multiprocessing
import os
import signal
import time

import pytest
import torch
from datasets import Dataset

from etude.adapt import planted
from etude.adapt._rows import examples
from etude.adapt._train import HEAD, groups, mean_loss, train, trained, tune
from etude.adapt.baselines.full import Full
from etude.adapt.baselines.lora import Lora
from etude.data.contract import Data, Journal, Rows, Split
from etude.nn.tiny import byte_tokenizer


def subject(kind="encoder"):
    make, data = planted.tiny()[kind]
    return make(), data


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_training_lowers_the_loss_and_leaves_the_caller_alone(kind):
    model, data = subject(kind)
    made = Lora().attach(model, data)
    frozen = {name: p.clone() for name, p in made.named_parameters() if not p.requires_grad}
    rows = examples(data.train[Rows], made, data.tokenizer)
    before, dice = mean_loss(made, rows), torch.get_rng_state()
    losses = train(made, data, 1e-2, steps=40)
    assert len(losses) == 40 and mean_loss(made, rows) < 0.95 * before
    assert all(torch.equal(p, frozen[name]) for name, p in made.named_parameters() if name in frozen)
    assert torch.equal(torch.get_rng_state(), dice) and torch.is_grad_enabled() and not made.training


def test_trained_parts_are_float32_on_a_half_precision_base():
    rows = planted.labelled()
    model = planted.load_subject(planted.kept("bert", planted.tiny_bert), rows, "bfloat16")
    made = Lora().attach(model, Data(Split(rows), Split(rows), 0, byte_tokenizer()))
    losses = train(made, Data(Split(rows), Split(rows), 0, byte_tokenizer()), 1e-3, steps=3)
    kinds = {p.requires_grad: p.dtype for p in made.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16} and all(map(math.isfinite, losses))


def test_a_new_head_learns_faster():
    model, data = subject()
    head = {id(p) for name, p in trained(Full().attach(model, data)) if "classifier" in name}
    rates = {id(p): group["lr"] for group in groups(model) for p in group["params"]}
    assert {rates[one] for one in head} == {HEAD} and {rate for one, rate in rates.items() if one not in head} == {1.0}


def test_all_rates_are_tried_equally_from_the_same_start_and_remembered(tmp_path):
    model, data = subject()
    made = Lora().attach(model, data)
    before = {name: p.clone() for name, p in trained(made)}
    journal = Journal(tmp_path / "trials.jsonl")
    rate = tune(made, Data(data.train, data.validation, 0, data.tokenizer, journal), 1e-3, steps=6)
    assert len(journal.trials) == 3 and journal.settled == {"rate": rate} and f"{rate:g}" in {f"{t['options']['rate']:g}" for t in journal.trials}
    assert all(torch.equal(p, before[name]) for name, p in trained(made))
    assert journal.chosen.startswith("rate") and [folder.name for folder in tmp_path.glob("*.checkpoints/*")] == [f"rate {rate}"]
    again = Journal(tmp_path / "trials.jsonl")
    start = time.perf_counter()
    assert tune(made, Data(data.train, data.validation, 0, data.tokenizer, again), 1e-3, steps=10**6) == rate  # nothing is trained again
    assert time.perf_counter() - start < 5
    trials, calls = Data(data.train, data.validation, 0, data.tokenizer, again), []
    losses = train(made, trials, rate, steps=6, checkpoints=again.room({"rate": rate}), say=calls.append)  # the best trial's, taken as it is
    assert len(losses) == 6 and not calls and any(not torch.equal(p, before[name]) for name, p in trained(made))


def test_a_rate_that_diverges_counts_as_the_worst(monkeypatch):
    model, data = subject()
    made, real = Lora().attach(model, data), train

    def fragile(model, data, rate, **options):
        if rate > 1e-3:
            next(p for _, p in trained(model)).data.fill_(float("nan"))
        return real(model, data, rate, **options)

    monkeypatch.setattr("etude.adapt._train.train", fragile)
    assert tune(made, data, 1e-3, steps=4) <= 1e-3
    assert all(math.isfinite(trial["score"]) for trial in data.journal.trials)


def test_a_loss_that_is_no_number_stops_and_the_last_checkpoint_stays(tmp_path):
    rows = planted.asked(64)
    model, _ = subject("decoder")
    data = Data(Split(rows), Split(rows), 0, byte_tokenizer())
    made = Lora().attach(model, data)
    broken = train(made, data, 1e-3, steps=8, every=4, checkpoints=tmp_path / "run")

    embedding = made.get_base_model().get_input_embeddings()
    calls = []

    def poison(module, args, output):
        calls.append(1)
        return output * float("nan") if len(calls) > 3 else output

    hook = embedding.register_forward_hook(poison)
    with pytest.raises(ValueError, match=r"the loss is nan at step 12 of 16 \(rate 0\.001\)"):
        train(made, data, 1e-3, steps=16, every=4, checkpoints=tmp_path / "run")
    hook.remove()
    assert train(made, data, 1e-3, steps=16, every=4, checkpoints=tmp_path / "run")[:8] == broken


def test_rows_of_another_head_are_refused():
    model, data = subject()
    other = Rows(Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]}), {"text": "text", "label": "label"})
    with pytest.raises(ValueError, match="has no label 'x'|has no label 'y'"):
        train(Full().attach(model, data), Data(Split(other), Split(other), 0, data.tokenizer), 1e-3, steps=2)


def one_run(folder, out, told):
    """A whole training, its losses written to `out`; a line is told at every checkpoint."""
    torch.set_num_threads(1)
    model, data = subject()
    losses = train(Lora().attach(model, data), data, 3e-3, steps=60, every=5, checkpoints=folder, say=lambda line: told.send(line))
    out.write_text(json.dumps(losses))


def test_killed_runs_end_like_the_undisturbed_one_to_the_last_bit(tmp_path):
    context = multiprocessing.get_context("fork")

    def run(name, kill):
        hears, told = context.Pipe(duplex=False)
        process = context.Process(target=one_run, args=(tmp_path / name, tmp_path / f"{name}.json", told))
        process.start()
        if kill:
            hears.recv()  # a checkpoint was written
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == (-signal.SIGKILL if kill else 0)

    run("whole", kill=False)
    for kill in (True, True, True, False):
        run("broken", kill)
    assert (tmp_path / "broken.json").read_text() == (tmp_path / "whole.json").read_text()
