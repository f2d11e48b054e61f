"""Fair tuning of one positive number, mostly the learning rate: the same number of trials for everyone, and a range that follows the optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from etude.measure.contract import NotFinite


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        rate: the best value.
        edge: the best value is the outermost that was tried, so that a better one may lie beyond.
        tried: (value, score) in the order of the trials.
    """

    rate: float
    edge: bool
    tried: tuple[tuple[float, float], ...]

    def words(self, name: str = "rate") -> str:
        """For the report: the value, and whether it is undertuned."""
        return f"{name} {self.rate:.3g}" + (" (undertuned: the edge of what was tried)" if self.edge else "")


def climb(start: float, score: Callable[[float], float], trials: int, factor: float = 3.0) -> Tuned:
    """Exactly `trials` scores (lower is better) along the ladder start * factor^k.

    The untried neighbours of the best value come first, the upper one before the lower; once both are known, the gaps beside the best are halved.
    A score that is no number, or that raises NotFinite, counts as infinitely bad (a diverged trial).

    Raises:
        ValueError: no trial gave a number.
    """
    if trials < 1 or factor <= 1 or start <= 0:
        raise ValueError(f"climbing needs trials of at least 1, a factor above 1 and a start above 0, got {trials}, {factor} and {start}")
    scores, order = dict[float, float](), list[float]()

    def best() -> float:
        return min(order, key=lambda place: (scores[place], abs(place)))

    for _ in range(trials):
        place = _next(best(), order) if order else 0.0
        try:
            value = score(start * factor**place)
        except NotFinite:
            value = math.inf
        scores[place] = value if math.isfinite(value) else math.inf
        order.append(place)
    found = best()
    if math.isinf(scores[found]):
        raise ValueError(f"none of {trials} trials from {start * factor ** min(order):.3g} to {start * factor ** max(order):.3g} gave a number")
    return Tuned(
        start * factor**found, trials > 1 and found in (min(order), max(order)), tuple((start * factor**place, scores[place]) for place in order)
    )


def _next(best: float, tried: list[float]) -> float:
    above = min((place for place in tried if place > best), default=None)
    below = max((place for place in tried if place < best), default=None)
    if above is None or below is None:
        return math.floor(best) + 1.0 if above is None else math.ceil(best) - 1.0
    return (best + above) / 2 if above - best >= best - below else (best + below) / 2
