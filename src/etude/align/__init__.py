"""The family's verb: train a policy on preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from etude.data.contract import Budget, Data


class Aligner(Protocol):
    """An align contender."""

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Operating points on this model, around the options the user set: where a strength trades preferences against distance, a sweep of it."""
        ...

    def train(self, policy: PreTrainedModel, data: Data) -> PreTrainedModel | PeftModel:
        """Train `policy` on the preferences of `data.train` and return it, or a PEFT model around it, in evaluation mode."""
        ...
