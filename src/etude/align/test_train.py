"""Pairs and the trainer: tokens as TRL's, losses as TRL's, resumed to the last bit, and stopped where the loss is no number."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.align import _train
from etude.align._pairs import encode, fitted
from etude.align._score import error_rate, score
from etude.align._tiny import data_of, part_of, tiny_rows
from etude.align._traces import WHOLE
from etude.align._train import Settings, order_of, train
from etude.data.contract import Data, Journal, Preferences, Split
from etude.measure.contract import NotFinite
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
QUICK = Settings(rate=1e-3, epochs=1, rank=4)


def small(make=tiny_llama):
    return make(layers=2, width=32)


def journaled(folder, count=24):
    """Tiny data whose journal keeps checkpoints in `folder`."""
    data = data_of(count)
    return Data(data.train, data.validation, 0, data.tokenizer, Journal(folder / "trials.jsonl"))


def adapter(made):
    return {name: weight.detach().clone() for name, weight in made.named_parameters() if weight.requires_grad}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- pairs ----------------------------------------------------------------------------------------------------------------


def talking():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<e>", "pad_token": "<p>"})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def chats(rows):
    def turn(role, text):
        return [{"role": role, "content": text}]

    return [
        {"prompt": turn("user", r["prompt"]), "chosen": turn("assistant", r["chosen"]), "rejected": turn("assistant", r["rejected"])} for r in rows
    ]


@pytest.mark.parametrize("form", [lambda rows: rows, chats], ids=["texts", "chats"])
def test_pairs_have_the_tokens_that_trl_gives_them(form):
    from trl import DPOTrainer

    rows, tokenizer = form(tiny_rows(5)), talking()
    stand_in = SimpleNamespace(_tokenizer=tokenizer)
    theirs = DPOTrainer._prepare_dataset(
        stand_in, Dataset.from_list(rows), tokenizer, SimpleNamespace(dataset_num_proc=None, max_length=None), "train"
    )
    ours = encode(tokenizer, part_of(rows), 512).pairs
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in ours] == [(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in theirs]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 30), st.integers(2, 40))
def test_what_is_longer_than_the_context_loses_the_beginning_of_its_prompt(prompt, chosen, rejected, context):
    pair, cut = fitted(list(range(prompt)), [100] * chosen, [200] * rejected, context)
    assert cut == (prompt + max(chosen, rejected) > context)
    assert max(len(pair.prompt) + len(pair.chosen), len(pair.prompt) + len(pair.rejected)) <= context and pair.chosen and pair.rejected
    assert pair.prompt == list(range(prompt))[prompt - len(pair.prompt) :]
    if max(chosen, rejected) < context:
        assert (len(pair.chosen), len(pair.rejected)) == (chosen, rejected)


def test_long_pairs_are_left_out_and_counted():
    rows = [*tiny_rows(4), {"prompt": "x" * 200, "chosen": "a", "rejected": "b"}, *tiny_rows(3, seed=1)]
    found = encode(byte_tokenizer(), part_of(rows), 512, tokens=100, most=6)
    assert found.rows == [0, 1, 2, 3, 5, 6] and (found.long, found.cut) == (1, 0) and max(pair.tokens for pair in found.pairs) <= 100
    assert encode(byte_tokenizer(), part_of(rows), 64, tokens=None).cut == 1
    with pytest.raises(ValueError, match=r"all 8 pairs hold more than 3 tokens \(both sequences\)"):
        encode(byte_tokenizer(), part_of(rows), 512, tokens=3)


def test_weights_and_rates_travel_with_their_pairs():
    part = Preferences(
        Dataset.from_list([row | {"w": 2.0 * i, "r": 0.5} for i, row in enumerate(tiny_rows(3))]), {r: r for r in ("prompt", "chosen")}
    )
    part = Preferences(part.dataset, {**part.roles, "rejected": "rejected", "weight": "w", "rate": "r"})
    assert [(pair.weight, pair.rate) for pair in encode(byte_tokenizer(), part, 512).pairs] == [(0.0, 0.5), (2.0, 0.5), (4.0, 0.5)]


def test_chats_need_a_template():
    with pytest.raises(ValueError, match="no chat template: give plain strings"):
        encode(byte_tokenizer(), part_of(chats(tiny_rows(2))), 512)


# --- scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_scores_are_sums_of_log_probabilities(make):
    model, pairs = small(make), encode(byte_tokenizer(), part_of(tiny_rows(6)), 512).pairs
    found = score(model, pairs)
    for row, pair in enumerate(pairs):
        for side, told in ((pair.chosen, found.chosen), (pair.rejected, found.rejected)):
            ids = torch.tensor([pair.prompt + side])
            with torch.inference_mode():
                logprobs_TV = model(ids).logits[0].log_softmax(-1)
            alone = sum(float(logprobs_TV[len(pair.prompt) + i - 1, token]) for i, token in enumerate(side))
            assert float(told[row]) == pytest.approx(alone, abs=1e-4)


def test_the_error_rate_is_a_half_without_a_lean_and_does_not_know_the_scale():
    ratio = torch.tensor([1.0, 2.0, -0.5, 3.0])
    assert error_rate(torch.zeros(4)) == 0.5 and error_rate(ratio) == pytest.approx(error_rate(100 * ratio)) and error_rate(ratio) < 0.5
    assert error_rate(-ratio) == pytest.approx(1 - error_rate(ratio))


# --- training -------------------------------------------------------------------------------------------------------------


def stock(rows, rate, batch, beta):
    """TRL's own trainer on the same rows in the same order."""
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer._eos_token = None
    steps = -(-len(rows) // batch)
    config = DPOConfig(
        output_dir="unused",
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.1 * steps)),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        beta=beta,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=0,
        optim="adamw_torch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = InOrder(model=small(), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora)
    trainer.train()
    return trainer.model


def test_it_trains_as_trl_does_and_an_own_loss_of_the_same_form_does_so_too(monkeypatch, tmp_path):
    from trl import DPOTrainer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DPOTrainer, "_send_telemetry", lambda self: None)
    rows = tiny_rows(12)
    data = Data(Split(part_of(rows)), Split(part_of(rows)), 0, byte_tokenizer())

    def sigmoid(batch):
        return -torch.nn.functional.logsigmoid(0.5 * batch.ratio)

    ours = adapter(train(small(), data, QUICK, loss_type=["sigmoid"], beta=0.5))
    own = adapter(train(small(), data, QUICK, sigmoid))
    original = DPOTrainer._prepare_dataset

    def without_end(self, dataset, tokenizer, *args):  # the tiny tokenizer has no end token, which TRL appends unseen
        pairs = encode(tokenizer, part_of(list(dataset)), 512).pairs
        return Dataset.from_list([{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs])

    assert original is not without_end
    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", without_end)
    theirs = adapter(stock([rows[i] for i in order_of(12, 1, 0)], 1e-3, 4, 0.5))
    moved = max(float(weight.abs().max()) for name, weight in ours.items() if "lora_B" in name)
    assert moved > 5e-4
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=1e-2 * moved) and torch.allclose(own[name], weight, atol=1e-2 * moved), name


def test_preferences_are_learned_and_the_rate_is_tuned_alike(tmp_path):
    data = journaled(tmp_path, 48)
    policy, pairs = small(), encode(data.tokenizer, data.train[Preferences], 512).pairs
    before = score(policy, pairs)
    made = train(policy, data, Settings(epochs=3, trials=3, rank=4), loss_type=["sigmoid"], beta=0.1)
    assert error_rate(score(made, pairs).ratio(before)) < 0.35 and not made.training
    assert len(data.journal.trials) == 3 and data.journal.settled["rate"] in [trial["options"]["rate"] for trial in data.journal.trials]
    assert data.journal.chosen.startswith("rate ")


@pytest.mark.parametrize("rank", [4, 0])
def test_trials_leave_no_trace(rank):
    data = data_of(12)
    tuned = train(small(), data, Settings(epochs=1, trials=2, rank=rank), loss_type=["sigmoid"], beta=0.1)
    given = train(small(), data, Settings(rate=data.journal.settled["rate"], epochs=1, rank=rank), loss_type=["sigmoid"], beta=0.1)
    assert same(adapter(tuned), adapter(given))


def test_all_weights_are_trained_where_the_rank_is_0():
    policy = small().to(torch.bfloat16)
    made = train(policy, data_of(12), Settings(rate=1e-4, epochs=1, rank=0), loss_type=["sigmoid"], beta=0.1)
    assert made is policy and {weight.dtype for weight in made.parameters()} == {torch.float32}


def test_the_caller_finds_dice_forward_dropout_and_pad_token_as_they_were():
    policy = small(tiny_gpt2)
    policy.transformer.drop.p = 0.25
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    train(policy, data_of(12), QUICK, loss_type=["sigmoid"], beta=0.1)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert "forward" not in policy.__dict__ and policy.transformer.drop.p == 0.25 and policy.config.pad_token_id is None


def poisoned(step):
    """A loss that is no number from this step on."""
    seen = list[int]()

    def loss(batch):
        seen.append(1)
        return batch.chosen.sum() * (float("nan") if len(seen) >= step else 1.0)

    return loss


def test_a_loss_that_is_no_number_stops_with_its_step_and_the_last_checkpoint_stays(tmp_path):
    data, every_2 = journaled(tmp_path), Settings(rate=1e-3, epochs=2, rank=4, every=2)
    with pytest.raises(NotFinite, match=r"the loss is nan at step 6 of 8 \(rate 0.001\): lower the rate"):
        train(small(), data, every_2, poisoned(6))
    kept = sorted(folder.name for folder in (tmp_path / "trials.checkpoints" / "final").iterdir() if (folder / WHOLE).exists())
    assert kept == ["checkpoint-2", "checkpoint-4"]


def test_a_trial_that_diverges_loses(tmp_path):
    data, calls = journaled(tmp_path), list[int]()

    def loss(batch):
        calls.append(1)
        return batch.chosen.sum() * (float("nan") if len(calls) == 1 else -1e-3)

    train(small(), data, Settings(epochs=1, trials=2, rank=4), loss)
    assert data.journal.trials[0]["score"] == 1.0 and data.journal.settled["rate"] == pytest.approx(1.5e-3)


@pytest.mark.parametrize(("limit", "wins"), [(0.25, True), (0.001, False)])
def test_a_trial_that_runs_away_from_both_answers_loses(limit, wins, monkeypatch, tmp_path):
    monkeypatch.setattr(_train, "RUNAWAY", limit)
    data = journaled(tmp_path)
    train(small(), data, Settings(start=1e-2, epochs=4, trials=1, rank=4), lambda batch: batch.chosen.mean() + 2 * batch.rejected.mean())
    assert (data.journal.trials[0]["score"] < 1.0) == wins


def test_an_interrupted_run_ends_where_the_undisturbed_one_does(tmp_path):
    every_2 = Settings(rate=1e-3, epochs=2, rank=4, every=2)
    whole = adapter(train(small(), data_of(24), every_2, loss_type=["sigmoid"], beta=0.5))

    def broken(batch):
        broken.steps += 1
        if broken.steps == 6:
            raise KeyboardInterrupt
        return -torch.nn.functional.logsigmoid(0.5 * batch.ratio)

    broken.steps = 0
    (tmp_path / "trials.checkpoints" / "final" / "checkpoint-6").mkdir(parents=True)  # torn by a kill: it is not marked as whole
    with pytest.raises(KeyboardInterrupt):
        train(small(), journaled(tmp_path), every_2, broken)
    broken.steps = 10
    again = adapter(train(small(), journaled(tmp_path), every_2, broken))
    assert broken.steps == 14  # of 8 steps the four after the checkpoint
    assert same(again, adapter(train(small(), data_of(24), every_2, lambda batch: -torch.nn.functional.logsigmoid(0.5 * batch.ratio))))
    assert all(torch.allclose(again[name], weight, atol=1e-5) for name, weight in whole.items())


CHILD = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_train import digest_after_many_steps
print(digest_after_many_steps(Path(sys.argv[1])))
"""


def digest_after_many_steps(folder):
    made = train(small(), journaled(folder), Settings(rate=1e-3, epochs=12, rank=4, every=3), loss_type=["sigmoid"], beta=0.5)
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in adapter(made).values())).hexdigest()


def test_killed_at_any_moment_it_goes_on(tmp_path):
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", CHILD, str(tmp_path / "killed"), os.path.dirname(__file__)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("trials.checkpoints/final/*/whole")) and child.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == digest_after_many_steps(tmp_path / "calm")


def test_without_trl_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    _train.trainer_class.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'etude\[align\]'"):
        train(small(), data_of(12), QUICK, loss_type=["sigmoid"], beta=0.1)


def test_without_a_tokenizer_or_with_an_impossible_setting_it_is_refused():
    data = data_of(12)
    with pytest.raises(ValueError, match="the model folder holds none"):
        train(small(), Data(data.train, data.validation), QUICK)
    for wrong in ({"rate": 0.0}, {"rate": 2.0}, {"trials": 0}, {"epochs": 0}, {"batch": 0}, {"rank": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)
