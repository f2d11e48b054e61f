"""The family's verb: build a language model of a given size, untrained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from etude.data.contract import Budget


class Builder(Protocol):
    """A models contender."""

    def points(self, budget: Budget, subject: object) -> list[Self]:
        """Operating points for a budget, around the options the user set."""
        ...

    def build(self, vocabulary: int, parameters: int) -> PreTrainedModel:
        """An untrained decoder for so many tokens, its parameters within 2 % of what is asked (tied ones count once).

        The weights are drawn from torch's random state as it is, which is left as it was: seed it for another draw.

        Raises:
            ValueError: no width and depth comes near enough; the message names the nearest size.
        """
        ...
