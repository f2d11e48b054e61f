"""The family's one trainer: every contender is trained from scratch on equally many tokens, drawn alike by the seed, its rate tuned alike for all.

AdamW, cosine to a tenth of the peak, one tenth of the steps to warm up, gradients clipped at 1, decay 0.1 of matrices. Half of the choice of a
learning rate is the size: the search starts at 6e-4 (125e6 / N)^(1/3), a cube root through the rates of GPT-3's table.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from jaxtyping import Int
from torch import Tensor

from etude.data import arrow
from etude.data.contract import Data, Part, Text
from etude.fit.loop import Recipe, fit
from etude.fit.tune import climb
from etude.measure.quality import bits_per_byte

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEP = 1024  # tokens of an optimizer step; more where the training would take over `STEPS` steps
STEPS = 20_000
EVERY = 25  # steps between checkpoints
DECAY, BETAS, FINAL, WARMUP = 0.1, (0.9, 0.95), 0.1, 0.1
JUDGED = 16_384  # validation tokens that judge a rate at most

# Dimensions: B windows of a batch, T tokens of a window.


@dataclass(frozen=True)
class Terms:
    """What all contenders get alike.

    Attributes:
        vocabulary: tokens that are told apart.
        parameters: of the model, tied ones counted once.
        tokens: that it is trained on.
        context: tokens of a training window, and of a window that is judged.
        device: where it is trained.
    """

    vocabulary: int
    parameters: int
    tokens: int
    context: int
    device: str = "cpu"

    @property
    def batch(self) -> int:
        """Windows of an optimizer step."""
        return max(1, round(max(STEP, self.tokens / STEPS) / self.context))

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.tokens / (self.batch * self.context)))


class Stream:
    """Windows of tokens from random places of a text of any size: every byte is as likely to be a beginning, and only what is drawn is read.

    Args:
        part: documents, or the pieces of a running text.
        length: tokens of a window, T.

    Raises:
        ValueError: the text is empty.
    """

    def __init__(self, part: Part, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        sizes = [pc.fill_null(pc.binary_length(texts), 0).to_numpy() for (texts,) in arrow.columns(part.dataset, [part.roles["text"]])]
        self.ends = np.cumsum(np.concatenate(sizes)) if sizes else np.zeros(0, np.int64)
        if not len(self.ends) or not self.ends[-1]:
            raise ValueError("the training text is empty: bring more")
        self.texts, self.glue, self.tokenizer, self.length = part.column("text"), "" if part.running else "\n\n", tokenizer, length

    def batch(self, count: int, dice: random.Random) -> Int[Tensor, "B T"]:
        """So many windows.

        Raises:
            ValueError: the whole text holds fewer tokens than one window.
        """
        return torch.tensor([self.window(dice.randrange(int(self.ends[-1]))) for _ in range(count)])

    def window(self, place: int) -> list[int]:
        """The tokens from a byte of the text on; behind its end it begins again."""
        row = int(np.searchsorted(self.ends, place, side="right"))
        start = int(self.ends[row - 1]) if row else 0
        text = self.texts[row]
        text, read, wanted = text[int(len(text) * (place - start) / (int(self.ends[row]) - start)) :], 1, 2 * self.length
        while True:
            while len(text) < wanted and read <= len(self.ends):
                text += self.glue + (self.texts[(row + read) % len(self.ends)] or "")
                read += 1
            ids: list[int] = self.tokenizer(text[:wanted], add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) > self.length:  # one more than asked for: the last one might melt with what follows
                return ids[: self.length]
            if len(text) < wanted:
                raise ValueError(f"the training text holds {len(ids)} tokens, no more than one window of {self.length}: bring more text")
            wanted *= 2


def train(model: PreTrainedModel, terms: Terms, data: Data, rate: float, checkpoints: Path | None = None) -> list[float]:
    """Train a model in place, on from the checkpoint where one lies in `checkpoints`.

    Returns:
        The loss of every step, nats a token.

    Raises:
        NotFinite: the loss is no number: the step is named, the last checkpoint stays.
        ValueError: the text is shorter than a window.
    """
    assert data.tokenizer is not None
    stream = Stream(data.train[Text], data.tokenizer, terms.context)

    def loss_of(step: int) -> Tensor:
        ids_BT = stream.batch(terms.batch, random.Random(f"{data.seed} {step}")).to(model.device)
        return model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    return descend(model, loss_of, terms.steps, rate, data.seed, checkpoints)


def descend(model: PreTrainedModel, loss_of: Callable[[int], Tensor], steps: int, rate: float, seed: int, checkpoints: Path | None) -> list[float]:
    """The recipe, on any loss."""
    recipe = Recipe(steps, rate, warmup=WARMUP, final=FINAL, decay=DECAY, betas=BETAS, every=EVERY)
    losses = fit(model, loss_of, recipe, seed, checkpoints=checkpoints)
    model.eval()
    return losses


def usual_rate(parameters: int) -> float:
    """Where the search for a peak rate starts."""
    return rounded(6e-4 * (125e6 / parameters) ** (1 / 3))


def rounded(rate: float) -> float:
    """A rate as reports write it, which is also the one that is used."""
    return float(f"{rate:.3g}")


def tune(make: Callable[[], PreTrainedModel], terms: Terms, data: Data, trials: int, settle: bool = True) -> float:
    """The rate, of `trials` tried, after which the validation text takes the fewest bits a byte.

    Each trial is a whole training, remembered in `data.journal` with its last checkpoint, so that `trained` need not repeat the best one.

    Args:
        make: an untrained model, the same at each call.
        settle: whether further seeds take over what is found here.
    """

    def score(rate: float) -> float:
        return data.journal.once({"rate": rounded(rate)}, lambda: judged(trained(make, terms, data, rounded(rate)), terms, data))

    found = climb(usual_rate(terms.parameters), score, trials)
    if settle:
        data.journal.settle(rate=rounded(found.rate))
    data.journal.chosen = found.words()
    return rounded(found.rate)


def trained(make: Callable[[], PreTrainedModel], terms: Terms, data: Data, rate: float) -> PreTrainedModel:
    """A model that was trained at this rate, from its last checkpoint if there is one."""
    model = make()
    train(model, terms, data, rate, data.journal.room({"rate": rate}))
    return model


def judged(model: PreTrainedModel, terms: Terms, data: Data) -> float:
    """Bits per byte of the validation text.

    Raises:
        NotFinite: the model answers NaN.
        ValueError: the text is shorter than a window.
    """
    assert data.tokenizer is not None
    found: Any = bits_per_byte(model, data.tokenizer, data.validation[Text], tokens=JUDGED, window=terms.context)
    return sum(found.top) / sum(found.bottom)
