"""Few-shot prompt: nothing is trained; a few of the training rows go before every question.

The rows are drawn by the seed, of labelled ones each label in turn, and rendered as earlier turns of the chat (or lines, without a chat template).
What is saved is the list of them. Every answer costs reading them again, unless the server caches the prefix.

Use it to know what the model can do untrained, and where there are only a handful of rows. Not on models too small to learn in context (those of
a hundred million parameters hardly do), nor where many short questions must be answered cheaply.

    >>> from etude.adapt.baselines.few_shot_prompt import FewShotPrompt
    >>> model = FewShotPrompt(shots=4).attach(model, data)      # the model, with the rows in its configuration
"""

import random
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedModel

from etude.adapt._rows import dialogues
from etude.adapt._subject import labels_of, remember
from etude.adapt._train import head_names
from etude.data.contract import Budget, Data, Rows

PAPER, ROLE, CLASS = "2005.14165", "contender", "FewShotPrompt"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("prompts",)


@dataclass(frozen=True)
class FewShotPrompt:
    """Options of the prompt.

    Attributes:
        shots: how many training rows are shown.
        longest: characters of a row that may be shown: longer ones are passed over while there are shorter ones.
    """

    shots: int = 4
    longest: int = 600

    def __post_init__(self) -> None:
        if self.shots < 1 or self.longest < 1:
            raise ValueError(f"shots and longest are counts of at least 1, got {self.shots} and {self.longest}")

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """One point, whatever the budget."""
        return [self]

    def attach(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Freeze `model` and write the rows into its configuration.

        Raises:
            ValueError: the model is an encoder: it reads no prompt.
        """
        if head_names(model):
            raise ValueError(f"{type(model).__name__} has a label head and reads no prompt: bring a decoder")
        model.requires_grad_(False)
        rows = data.train[Rows]
        told = [turn for place in self.drawn(rows, data.seed, bool(labels_of(model))) for turn in shown(rows.take([place]))]
        remember(model, shots=told)
        return model

    def drawn(self, rows: Rows, seed: int, labelled: bool) -> list[int]:
        """The places of the rows that are shown."""
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        short = [place for place in order[: 50 * self.shots] if sum(len(turn["content"]) for turn in shown(rows.take([place]))) <= self.longest]
        order = [*short, *(place for place in order if place not in set(short))]
        if not labelled:
            return order[: self.shots]
        labels = [str(label) for label in rows.take(order[: 50 * self.shots]).column("label")]
        taken, rank = dict[str, int](), dict[int, int]()
        for place, label in zip(order, labels, strict=False):
            rank[place] = taken[label] = taken.get(label, -1) + 1
        return sorted(rank, key=lambda place: rank[place])[: self.shots]


def shown(rows: Rows) -> list[dict[str, str]]:
    """The turns of the rows, without what the system says."""
    return [{"role": turn.role, "content": turn.content} for dialogue in dialogues(rows) for turn in dialogue if turn.role != "system"]
