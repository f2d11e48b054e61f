"""Untouched: the model as it was brought, saved and measured like every other contender.

It is the reference that losses and budgets refer to. Measured twice, it shows how large a difference between two runs is noise.
Not a compressor: take it when nothing else stays within the loss you accept.

    >>> from etude.compress.baselines.untouched import Untouched
    >>> model = Untouched().compress(model, data)
"""

from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedModel

from etude.data.contract import Budget, Data

PAPER, ROLE, CLASS = "", "contender", "Untouched"
ENTERS = ("compress",)
NEEDS = ()
TRAITS = ()


@dataclass(frozen=True)
class Untouched:
    """There is nothing to choose."""

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """One point, whatever the budget."""
        return [self]

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Return the model as it is."""
        return model
