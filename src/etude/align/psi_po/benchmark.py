"""A training step of our forms against TRL's own IPO step on the same batch in turn, and the losses' difference where the forms coincide.

    python -m etude.align.psi_po.benchmark [--model smollm2] [--pairs 8] [--rounds 7] [--dtype bfloat16]

Every form trains the same LoRA policy on the same pairs with the reference's log-probabilities computed beforehand. A step is forward, loss and
backward. Forms are run in turn, so that whatever else the machine does meets all of them; the medians' ratios are what counts. TRL stands there
twice: as it is, and with the vocabulary opened at answers alone, as the family's trainer does on a processor for every loss. Run with
OMP_NUM_THREADS=1 on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from etude.align._pairs import Pair, encode
from etude.align._score import score
from etude.align._train import Job, Loss, Settings, compact_head, rows_of, trainer_class
from etude.align.psi_po.language import OWN
from etude.align.psi_po.losses import psi_po_loss
from etude.data.assets import model_folder
from etude.data.contract import Preferences
from etude.data.sources import load
from etude.nn.loading import load_decoder, load_tokenizer

TAU = 0.5
PEER, COMPACT = "TRL ipo", "TRL ipo, answers alone"


def forms() -> dict[str, tuple[Loss | None, float]]:
    """Each form by name: its loss (None: TRL's own) and the rate of every pair."""
    return {
        PEER: (None, 1.0),
        COMPACT: (None, 1.0),
        "mean": (psi_po_loss(TAU, "mean"), 1.0),
        "sum": (psi_po_loss(TAU, "sum"), 1.0),
        "soft labels": (psi_po_loss(TAU, "mean"), 0.8),
        "psi = logit": (psi_po_loss(TAU, "mean", "logit", 0.1), 1.0),
    }


def batch_of(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], loss: Loss | None, room: Path, rank: int = 8
) -> tuple[Any, Any]:
    """A trainer around `policy`, whose adapter is moved away from the reference, and its one batch of all pairs.

    Args:
        loss: None takes TRL's own IPO.
        room: a folder that the trainer may write to.
    """
    config = {"loss_type": ["ipo"], "beta": TAU} if loss is None else {}
    settings = Settings(rate=1e-4, epochs=1, batch=len(pairs), rank=rank)
    job = Job(policy, tokenizer, settings, loss, False, config, 0, list(pairs), score(policy, pairs))
    trainer = trainer_class()(job, rows_of(job), room, saves=False)
    dice = torch.Generator().manual_seed(0)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.02 * torch.randn(weight.shape, generator=dice).to(weight)
    return trainer, next(iter(trainer.get_train_dataloader()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    folder = model_folder(options.model)
    tokenizer = load_tokenizer(folder)
    part = load(str(OWN), (Preferences,), {}, lambda line: None)[Preferences]
    pairs = encode(tokenizer, part, 2048, tokens=None, most=options.pairs).pairs
    spent, values = dict[str, list[tuple[float, float]]](), dict[str, float]()
    with tempfile.TemporaryDirectory() as room:
        ready = {}
        for name, (loss, rate) in forms().items():
            rated = [replace(pair, rate=rate) for pair in pairs]
            ready[name] = batch_of(load_decoder(folder, options.dtype), tokenizer, rated, loss, Path(room))
        for turn in range(options.rounds + 1):
            for name, (trainer, batch) in ready.items():
                with nullcontext() if name == PEER else compact_head():
                    taken, values[name] = step(trainer, batch)
                if turn:  # the first round warms up
                    spent.setdefault(name, []).append(taken)
    report(spent, values, sum(pair.tokens for pair in pairs))


def step(trainer: Any, batch: Any) -> tuple[tuple[float, float], float]:
    """Seconds and processor seconds of forward, loss and backward; the loss."""
    trainer.model.train()
    trainer.model.zero_grad()
    start, busy = perf_counter(), process_time()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return (perf_counter() - start, process_time() - busy), float(loss.detach())


def report(spent: dict[str, list[tuple[float, float]]], values: dict[str, float], tokens: int) -> None:
    """One line a form, and what was asked for."""
    seconds, busy = ({name: statistics.median(taken[which] for taken in all_taken) for name, all_taken in spent.items()} for which in (0, 1))
    for name, median in seconds.items():
        ratios = f"{median / seconds[PEER]:.3f} times TRL's ({busy[name] / busy[PEER]:.3f} by processor seconds)"
        print(f"{name:22} {median:7.3f} s a step, {tokens / median:.0f} tokens/s, {ratios}; loss {values[name]:.7f}")
    ours = [name for name in seconds if name not in (PEER, COMPACT)]
    for peer, asked in ((PEER, " (asked: at most 1.05)"), (COMPACT, "")):
        worst = [max(taken[name] for name in ours) / taken[peer] for taken in (seconds, busy)]
        print(f"slowest of ours over {peer}: {worst[0]:.3f}{asked}, {worst[1]:.3f} by processor seconds")
    print(f"difference of the losses where the forms coincide: {abs(values['mean'] - values[PEER]):.1e} (asked: at most 1e-6)")


if __name__ == "__main__":
    main()
