"""What the arms of the language-model étude do: IPO and DPO on pairs of a short and a long answer, the short one always preferred."""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from etude.align._train import Batch, Loss, Settings, train
from etude.align.psi_po.losses import psi_po_loss
from etude.align.psi_po.saturation import Saturation, saturation
from etude.data.assets import model_folder
from etude.data.contract import Data, Preferences, Split
from etude.data.corpora import Piece, fetch
from etude.data.sources import load
from etude.fit.tune import climb
from etude.measure.contract import Items, Metrics, NotFinite
from etude.nn.loading import load_decoder, load_tokenizer
from etude.nn.tiny import byte_tokenizer, tiny_llama

if TYPE_CHECKING:
    from etude.harness.contract import Run

OWN = Path(__file__).with_name("short_answers.jsonl")
HH = Piece(
    "preferences/hh_harmless_test.jsonl.gz",
    "https://raw.githubusercontent.com/anthropics/hh-rlhf/0398e3636f8d641a03d65b9362aa091297f28564/harmless-base/test.jsonl.gz",
    "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
)
CONSTANT: dict[str, Any] = {"lr_scheduler_type": "constant_with_warmup"}  # a rate that falls to 0 would stop any loss from growing


@dataclass(frozen=True)
class Pairs:
    """Size of the language-model étude.

    Attributes:
        model: whose policy is trained.
        data: "short_answers", questions written for this étude, or "hh_harmless", dialogues judged by people.
        train, validation, held_out: how many rows of each, disjoint.
        epochs: passes over the pairs; trial_epochs: of a trial of the rate.
        trials: rates tried for each loss, from `start` on.
        batch: pairs of a step; rank: of the adapter, 0 trains all weights.
        tau: of IPO, mean form; beta: of DPO.
        tokens: of a sample on which the KL is measured; prompts: how many of them.
    """

    model: str
    data: str
    train: int
    validation: int
    held_out: int
    epochs: int
    trial_epochs: int
    trials: int
    start: float
    batch: int = 8
    rank: int = 8
    tau: float = 0.5
    beta: float = 0.1
    tokens: int = 16
    prompts: int = 32

    def loss(self, arm: str) -> tuple[Loss, str]:
        """The loss of an arm, and the form of h that it works on."""
        if arm == "ipo":
            return psi_po_loss(self.tau, "mean"), "mean"
        return (lambda batch: -logsigmoid(self.beta * batch.ratio)), "sum"


def rows_of(scale: Pairs) -> tuple[Preferences, Preferences, Preferences]:
    """Training, validation and held-out rows: the same for every seed, so that the rates are never tuned on what is held out."""
    file = OWN if scale.data == OWN.stem else fetch(HH, say=lambda line: None)
    part = load(str(file), (Preferences,), {}, lambda line: None)[Preferences]
    places = list(range(len(part)))
    random.Random(0).shuffle(places)
    ends = [0, scale.train, scale.train + scale.validation, scale.train + scale.validation + scale.held_out]
    if ends[-1] > len(places):
        raise ValueError(f"the étude wants {ends[-1]} rows, {scale.data} holds {len(places)}: bring more, or ask for fewer")
    first, second, third = (part.take(places[low:high]) for low, high in pairwise(ends))
    return first, second, third


def load_policy(scale: Pairs, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy before training, in bfloat16."""
    if scale.model == "tiny":
        return tiny_llama(2, 32), byte_tokenizer()
    folder = model_folder(scale.model)
    return load_decoder(folder, "bfloat16", run.device), load_tokenizer(folder)


def trained(arm: str, run: Run, scale: Pairs, rate: float, epochs: int) -> tuple[Any, PreTrainedTokenizerBase, list[float]]:
    """The policy after training, its tokenizer, and the mean h of every step's pairs before the step."""
    policy, tokenizer = load_policy(scale, run)
    train_part, validation, _ = rows_of(scale)
    loss, reduction = scale.loss(arm)
    curve = list[float]()

    def recorded(batch: Batch) -> Tensor:
        curve.append(float((batch.ratio if reduction == "sum" else batch.mean_ratio).detach().mean()))
        return loss(batch)

    settings = Settings(rate=rate, epochs=epochs, batch=scale.batch, rank=scale.rank)
    made = train(policy, Data(Split(train_part), Split(validation), run.seed, tokenizer), settings, recorded, **CONSTANT)
    return made, tokenizer, curve


def tune(run: Run, scale: Pairs, folder: Path) -> None:
    """`rates.json`: for each arm the rate whose short run tells the validation pairs apart most clearly.

    That is the largest mean of h in units of its spread, of the h that the arm's own loss works on: no rate wins by its size alone.
    """
    told = dict[str, Any]()
    for arm in ("ipo", "dpo"):
        found = climb(scale.start, lambda rate, arm=arm: _trial(arm, run, scale, rate), scale.trials)  # type: ignore[misc]
        told[arm] = {"rate": found.rate, "edge": found.edge, "tried": found.tried}
    (folder / "rates.json").write_text(json.dumps(told))


def _trial(arm: str, run: Run, scale: Pairs, rate: float) -> float:
    try:
        made, tokenizer, _ = trained(arm, run, scale, rate, scale.trial_epochs)
    except NotFinite:
        return math.inf
    h = seen(made, tokenizer, run, scale, rows_of(scale)[1], scale.loss(arm)[1], prompts=0).h
    return -statistics.fmean(h) / (statistics.pstdev(h) or 1.0)  # without a spread nothing was learned


def seen(made: Any, tokenizer: PreTrainedTokenizerBase, run: Run, scale: Pairs, part: Preferences, reduction: str, prompts: int) -> Saturation:
    """The diagnosis of a trained policy on some rows; without prompts no KL is measured."""
    reference = None if scale.rank else load_policy(scale, run)[0]
    return saturation(part, made, tokenizer, None, reduction, reference=reference, prompts=prompts, tokens=scale.tokens, seed=run.seed)


def aligned(arm: str, run: Run, scale: Pairs) -> Metrics:
    """One training at the tuned rate: h on the training pairs against its target and over time, accuracy and KL on held-out prompts."""
    tuned = json.loads((run.path("prepared") / "rates.json").read_text())[arm]
    made, tokenizer, curve = trained(arm, run, scale, tuned["rate"], scale.epochs)
    train_part, _, held_out = rows_of(scale)
    reduction = scale.loss(arm)[1]
    ours = seen(made, tokenizer, run, scale, train_part, reduction, prompts=0)
    theirs = seen(made, tokenizer, run, scale, held_out, reduction, scale.prompts)
    return Metrics(
        mean_h=sum(ours.h) / len(ours.h),
        median_h=ours.median,
        largest_h=ours.largest,
        target=1 / (2 * scale.tau) if arm == "ipo" else float("inf"),
        one_order=ours.one_order,
        slope=slope(by_epoch(curve, scale.epochs)),
        curve=curve,
        kl=theirs.kl,
        accuracy=Items.of(range(len(theirs.h)), [float(h > 0) for h in theirs.h]),
        rate=tuned["rate"],
        undertuned=float(tuned["edge"]),
    )


def by_epoch(curve: list[float], epochs: int) -> list[float]:
    """Mean h of every epoch: each reads the same pairs, so that only the policy differs."""
    steps = len(curve) // epochs
    return [float(np.mean(curve[epoch * steps : (epoch + 1) * steps])) for epoch in range(epochs)]


def slope(means: list[float]) -> float:
    """Growth of h an epoch over the last third of the epochs, at least two of them."""
    last = means[-max(2, len(means) // 3) :]
    return float(np.polyfit(range(len(last)), last, 1)[0])
