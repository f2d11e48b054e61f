"""The family's verb: make a model one's own with few trained parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from etude.data.contract import Budget, Data


class Adapter(Protocol):
    """An adapt contender.

    Attributes:
        rate: the peak learning rate; None lets the contest tune it, as for every other contender.
    """

    rate: float | None

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Operating points for a budget on this model, around the options the user set."""
        ...

    def attach(self, model: PreTrainedModel, data: Data) -> PreTrainedModel | PeftModel:
        """Prepare `model` in place, with what is to be trained unfrozen and nothing else; the contest trains it."""
        ...
