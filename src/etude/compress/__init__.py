"""The family's verb: make a model smaller or faster at little loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from etude.data.contract import Budget, Data


class Compressor(Protocol):
    """A compress contender."""

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Operating points for a budget on this model, around the options the user set."""
        ...

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Compress `model` in place and return it."""
        ...
