"""Associative recall, a task whose answer is known: store pairs of a key and a value, and answer with the value when its key is asked for.

A sequence holds `PAIRS` rounds of three tokens: a pair (one token for each key with each value), a key among those stored so far, and its value:

    (c, 5)  c? 5   (a, 2)  c? 5   (h, 7)  a? 2   ...

Which value a key has is drawn anew in each sequence, so that only what stands in the context can tell; a guess is right once in `VALUES` times. A
fresh, small model of the same contender learns it by the family's recipe, on equally many tokens and at one rate for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from etude.measure.contract import Items
from etude.models._train import descend
from etude.nn.surgery import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEYS = VALUES = PAIRS = 8
VOCABULARY = KEYS * VALUES + KEYS + VALUES  # pairs, then keys that ask, then values that answer
PARAMETERS = 60_000
TOKENS, BATCH, RATE = 230_400, 32, 2e-3  # 300 steps
JUDGED = 256  # sequences
CHANCE = 1 / VALUES
SILENT = -100  # a label that counts for nothing

# Dimensions: B sequences, P pairs, T = 3 P tokens.


def sequences(count: int, dice: torch.Generator) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Tokens and labels (transformers' form: the token itself where it is an answer, else `SILENT`) of so many sequences."""
    keys_BP = torch.rand(count, KEYS, generator=dice).argsort(1)[:, :PAIRS]
    values_BP = torch.randint(VALUES, (count, PAIRS), generator=dice)
    asked_BP = (torch.rand(count, PAIRS, generator=dice) * torch.arange(1, PAIRS + 1)).long()  # one of those stored so far
    asks_BP = KEYS * VALUES + keys_BP.gather(1, asked_BP)
    answers_BP = KEYS * VALUES + KEYS + values_BP.gather(1, asked_BP)
    ids_BT = torch.stack([keys_BP * VALUES + values_BP, asks_BP, answers_BP], 2).flatten(1)
    labels_BT = torch.full_like(ids_BT, SILENT)
    labels_BT[:, 2::3] = answers_BP
    return ids_BT, labels_BT


def learn(model: PreTrainedModel, tokens: int, seed: int, checkpoints: Path | None = None) -> list[float]:
    """Train a model on the task, on at most `TOKENS` tokens; the loss of every step, nats an answer."""

    def loss_of(step: int) -> Tensor:
        ids_BT, labels_BT = sequences(BATCH, torch.Generator().manual_seed(1_000_003 * seed + step))
        return model(input_ids=ids_BT.to(model.device), labels=labels_BT.to(model.device), use_cache=False).loss

    return descend(model, loss_of, max(1, min(tokens, TOKENS) // (BATCH * 3 * PAIRS)), RATE, seed, checkpoints)


def accuracy(model: PreTrainedModel) -> Items:
    """Share of the questions that are answered rightly among all tokens, one item a sequence; the sequences are no training ones."""
    ids_BT, labels_BT = sequences(JUDGED, torch.Generator().manual_seed(-1))
    with evaluating(model), torch.inference_mode():
        said_BT = model(input_ids=ids_BT.to(model.device), use_cache=False).logits[:, :-1].argmax(-1).cpu()
    right_B = ((said_BT == labels_BT[:, 1:]) & (labels_BT[:, 1:] != SILENT)).sum(1)
    return Items.of(range(JUDGED), right_B.tolist(), [PAIRS] * JUDGED)
