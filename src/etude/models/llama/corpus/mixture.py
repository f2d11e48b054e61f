r"""Drawing from several sources by weight: which draw takes what follows from the seed and its number alone.

A source's share of the draws is its weight \(w\); with budget \(B\) and size \(S\) it is gone through \(w B / S\) times. Within a source each epoch
is a new permutation, so that nothing comes twice before all came once. To resume, start the stream at the number of the next draw.

    >>> mixture = Mixture({"web": web_windows, "books": book_windows}, {"web": 0.8, "books": 0.2}, seed=0)
    >>> for name, window in mixture.stream(start=1000): ...
    >>> mixture.report(draws=100_000)             # shares, sizes, epochs
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 4096  # draws whose sources are decided together
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Share:
    """One source of a mixture: its weight, its size in the unit of the draws, and how often it is gone through."""

    name: str
    weight: float
    size: float
    epochs: float


PAPER = {  # sampling share, epochs at 1.4 trillion tokens, terabytes on disk
    "CommonCrawl": (0.670, 1.10, 3.3),
    "C4": (0.150, 1.06, 0.783),
    "GitHub": (0.045, 0.64, 0.328),
    "Wikipedia": (0.045, 2.45, 0.083),
    "Books": (0.045, 2.23, 0.085),
    "ArXiv": (0.025, 1.06, 0.092),
    "StackExchange": (0.020, 1.03, 0.078),
}


class Mixture:
    """Sources of equally long windows and their weights.

    Args:
        sources: name -> windows (anything with a length and items).
        weights: name -> share of the draws; they sum to 1. A weight of 0 leaves a source out.

    Raises:
        ValueError: names differ, a weight is negative, they do not sum to 1, or a source is empty.
    """

    def __init__(self, sources: Mapping[str, Any], weights: Mapping[str, float], seed: int = 0) -> None:
        check_weights(weights, {name: len(source) for name, source in sources.items()})
        self.sources, self.weights, self.seed = dict(sources), {name: float(weights[name]) for name in sources}, seed
        self.names = list(self.sources)
        self._edges = np.cumsum([self.weights[name] for name in self.names])
        self._before = [np.zeros(len(self.names), dtype=np.int64)]  # how often each source was drawn before a block
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def at(self, draw: int) -> tuple[str, int]:
        """The source and the place in it that a draw takes.

        Raises:
            ValueError: the number is negative.
        """
        if draw < 0:
            raise ValueError(f"draws are counted from 0, got {draw}")
        block, within = divmod(draw, BLOCK)
        sources, turns = self._block(block)
        source = int(sources[within])
        epoch, place = divmod(int(turns[within]), len(self.sources[self.names[source]]))
        return self.names[source], int(self._order(source, epoch)[place])

    def stream(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        """(source, window) from draw `start` on, without end."""
        draw = start
        while True:
            name, place = self.at(draw)
            yield name, self.sources[name][place]
            draw += 1

    def report(self, draws: float) -> list[Share]:
        """What so many draws mean for each source."""
        return epochs(self.weights, {name: len(source) for name, source in self.sources.items()}, draws)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each draw of a block its source, and how often that one was drawn before; the last block is kept."""
        if self._last is None or self._last[0] != block:
            while len(self._before) <= block:
                counts = np.bincount(self._picked(len(self._before) - 1), minlength=len(self.names))
                self._before.append(self._before[-1] + counts)
            picked, turns = self._picked(block), np.empty(BLOCK, dtype=np.int64)
            for source in range(len(self.names)):
                mine = picked == source
                turns[mine] = self._before[block][source] + np.arange(np.count_nonzero(mine))
            self._last = block, picked, turns
        return self._last[1:]

    def _picked(self, block: int) -> np.ndarray:
        """The sources of a block's draws."""
        uniform = np.random.default_rng([self.seed, 0, block]).random(BLOCK)
        last = int(np.flatnonzero([self.weights[name] for name in self.names])[-1])  # the sum of the weights may fall short of 1 by rounding
        return np.minimum(np.searchsorted(self._edges, uniform, side="right"), last)

    def _order(self, source: int, epoch: int) -> np.ndarray:
        """The permutation of a source in an epoch; the last one of each source is kept."""
        kept = self._orders.get(source)
        if kept is None or kept[0] != epoch:
            size = len(self.sources[self.names[source]])
            kept = epoch, np.random.default_rng([self.seed, 1 + source, epoch]).permutation(size)
            self._orders[source] = kept
        return kept[1]


def epochs(weights: Mapping[str, float], sizes: Mapping[str, float], budget: float) -> list[Share]:
    """Weight times budget over size, source by source; sizes and budget in one unit (tokens, windows).

    Raises:
        ValueError: as for a `Mixture`.
    """
    check_weights(weights, sizes)
    return [Share(name, weights[name], sizes[name], weights[name] * budget / sizes[name]) for name in sizes]


def check_weights(weights: Mapping[str, float], sizes: Mapping[str, float]) -> None:
    """Refuse what cannot be mixed.

    Raises:
        ValueError: names differ, a weight is negative or no number, they do not sum to 1, or a source is empty.
    """
    if weights.keys() != sizes.keys():
        raise ValueError(f"weights and sources differ in {', '.join(sorted(weights.keys() ^ sizes.keys()))}: give each source one weight")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name} must be a number of at least 0, got {weight}")
        if not sizes[name]:
            raise ValueError(f"the source {name} is empty: leave it out, and share its weight among the others")
    total = math.fsum(weights.values())
    if abs(total - 1) > TOLERANCE:
        raise ValueError(f"the weights sum to {total:g} instead of 1: divide each by {total:g}")


def windows(texts: Iterable[Sequence[int]], length: int, end: int | None = None) -> np.ndarray:
    """Token lists joined, each followed by `end`, and cut into whole windows (N, length).

    Raises:
        ValueError: they do not fill one window.
    """
    flat = np.concatenate([np.asarray([*ids, end] if end is not None else ids, dtype=np.int64) for ids in texts] or [np.empty(0, dtype=np.int64)])
    if len(flat) < length:
        raise ValueError(f"the texts hold {len(flat)} tokens, less than one window of {length}: bring more text")
    return flat[: len(flat) // length * length].reshape(-1, length)
