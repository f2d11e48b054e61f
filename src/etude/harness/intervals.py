"""The statistics under the verdicts: intervals of 95 %, paired differences, corrections for many comparisons.

- Seeds: Student's t; or a bootstrap whose percentile levels are widened so that on normal data it agrees with Student's t (Hesterberg 2015,
  "expanded percentile").
- Two contenders: the difference of their ratios of sums, paired by seed and by block. Its error has two parts, between seeds and between blocks, each
  with its own Student quantile, and the half-width is the root of the sum of squares of the two (Banerjee 1960: such an interval covers at least 95 %
  whatever the sizes of the parts). Contiguous blocks of one text go by Student's t on the blocks' linearised differences, not by a bootstrap:
  it is the same to a few percent at 32 blocks, is exact to recompute, and combines with the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from etude.measure.contract import Items

LEVEL, DRAWS = 0.95, 1000
HOPELESS = "not even a thousand times the data"


def t_quantile(df: float, level: float = LEVEL) -> float:
    """The two-sided Student quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + level) / 2))


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.inf


def interval_t(values: Sequence[float], overlap: float = 0.0, level: float = LEVEL) -> tuple[float, float]:
    """Student's interval of the mean.

    Arguments:
        overlap: test rows over training rows, where the values come from overlapping random splits (Nadeau and Bengio 2003).
    """
    mean, sd = mean_sd(values)
    if len(values) < 2:
        return -math.inf, math.inf
    half = t_quantile(len(values) - 1, level) * sd * math.sqrt(1 / len(values) + overlap)
    return mean - half, mean + half


def picks_of(n: int, draws: int, seed: int = 0) -> list[list[int]]:
    from numpy.random import RandomState

    # RandomState's stream is frozen for good: a verdict can be recomputed with any later numpy
    rows: list[list[int]] = RandomState(seed).randint(0, n, (draws, n)).tolist()
    return rows


def widened(values: Sequence[float], n: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentiles of bootstrap values over `n` units, at levels that agree with Student's t on normal data."""
    from scipy.special import ndtr

    ranked, tail = sorted(values), float(ndtr(-math.sqrt(n / (n - 1)) * t_quantile(n - 1, level)))

    def at(share: float) -> float:
        place = share * (len(ranked) - 1)
        left = math.floor(place)
        return ranked[left] + (place - left) * (ranked[min(left + 1, len(ranked) - 1)] - ranked[left])

    return at(tail), at(1 - tail)


def bootstrap(values: Sequence[float], draws: int = DRAWS, level: float = LEVEL) -> tuple[float, float]:
    """The widened percentile bootstrap interval of the mean."""
    if len(values) < 2:
        return -math.inf, math.inf
    return widened([sum(values[i] for i in picks) / len(values) for picks in picks_of(len(values), draws)], len(values), level)


# ---- two contenders ----


class Difference(NamedTuple):
    """A paired difference with its 95 % interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Paired:
    """A difference and the two parts of its error.

    Attributes:
        difference: mean over seeds.
        seeds, blocks: how many of each it rests on.
        seed_error, block_error: standard errors of the mean; 0 where there is only one of them.
    """

    difference: float
    seeds: int
    blocks: int
    seed_error: float
    block_error: float

    def half_width(self, level: float = LEVEL, seeds: int = 0, blocks: int = 0) -> float:
        """Of the interval, or of what it would be with that many seeds or blocks."""
        if self.seeds < 2 and self.blocks < 2:
            return math.inf
        parts = ((self.seed_error, self.seeds, seeds or self.seeds), (self.block_error, self.blocks, blocks or self.blocks))
        return math.hypot(*(t_quantile(then - 1, level) * error * math.sqrt(now / then) if error else 0.0 for error, now, then in parts))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval of the difference."""
        half = self.half_width(level)
        return self.difference - half, self.difference + half

    def p(self, against: float = 0.0) -> float:
        """Two-sided p-value of the difference being `against`: one minus the level whose interval just reaches it."""
        away = abs(self.difference - against)
        if away == 0 or math.isinf(self.half_width()):
            return 1.0
        if self.seed_error == 0 and self.block_error == 0:
            return min(1.0, 2.0 ** (1 - max(self.blocks, self.seeds)))  # all alike: the sign test is what is left
        low, high = -36.0, 0.0  # log p
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if self.half_width(-math.expm1(middle)) < away else (middle, high)
        return math.exp(high)

    def more(self, against: float = 0.0, items: str = "test blocks") -> str:
        """How much more data would tell the two apart, were the difference and the spread to stay."""
        away = abs(self.difference - against)
        for seeds in range(self.seeds + 1, 101) if self.seed_error else ():
            if self.half_width(seeds=seeds) < away:
                return f"about {seeds} seeds (now {self.seeds})"
        if away == 0 or math.isinf(self.half_width()):
            return "no amount of such data"
        factor = math.ceil(10 * (self.half_width() / away) ** 2) / 10
        if self.seed_error == 0:
            return f"about {math.ceil(self.blocks * factor)} {items} (now {self.blocks})" if factor < 1000 else HOPELESS
        return f"about {factor:.3g} times the seeds and {items}" if factor < 1000 else HOPELESS


def pair(a_by_seed: Sequence[Items], b_by_seed: Sequence[Items], relative: bool = False) -> Paired:
    """The difference a - b over seeds and blocks; `relative`: as a share of b.

    A list of one stands for a deterministic contender and pairs with every seed of the other.

    Raises:
        ValueError: nothing was recorded, the two share no items, or b is zero where a share of it is asked for.
    """
    if not a_by_seed or not b_by_seed:
        raise ValueError("a paired difference needs at least one recorded seed of each contender")
    n = min(len(s) for s in (a_by_seed, b_by_seed) if len(s) > 1) if max(len(a_by_seed), len(b_by_seed)) > 1 else 1
    differences, influences = list[float](), list[list[float]]()
    for seed in range(n):
        a, b = _matched(a_by_seed[seed % len(a_by_seed)], b_by_seed[seed % len(b_by_seed)])
        (rate_a, pull_a), (rate_b, pull_b) = _linearised(a), _linearised(b)
        if relative and rate_b == 0:
            raise ValueError("a share of the reference needs a reference whose quality is not zero")
        scale, factor = (abs(rate_b), rate_a / rate_b) if relative else (1.0, 1.0)
        differences.append((rate_a - rate_b) / scale)
        influences.append([(x - factor * y) / scale for x, y in zip(pull_a, pull_b, strict=True)])
    blocks = len(influences[0])
    if any(len(row) != blocks for row in influences):
        means, blocks = [0.0], 1  # other items for every seed: the seeds carry it all
    else:
        means = [math.fsum(column) / n for column in zip(*influences, strict=True)]
    mean, seed_sd = mean_sd(differences)
    block_sd = mean_sd(means)[1]
    return Paired(mean, n, blocks, seed_sd / math.sqrt(n) if n > 1 else 0.0, block_sd / math.sqrt(blocks) if blocks > 1 else 0.0)


def _matched(a: Items, b: Items) -> tuple[Items, Items]:
    if a.ids == b.ids:
        return a, b
    at_a, at_b = ({name: i for i, name in enumerate(items.ids)} for items in (a, b))
    if at_a.keys() != at_b.keys():
        raise ValueError(f"the two were measured on different items ({len(at_a.keys() - at_b.keys())} of {len(at_a)} have no partner)")
    return a, b.at([at_b[name] for name in a.ids])


def _linearised(items: Items) -> tuple[float, list[float]]:
    """A ratio of sums, and each item's pull on it: (top - ratio x bottom) / mean bottom."""
    bottom = math.fsum(items.bottom)
    rate, mean = math.fsum(items.top) / bottom, bottom / len(items.bottom)
    return rate, [(top - rate * weight) / mean for top, weight in zip(items.top, items.bottom, strict=True)]


def level_of(by_seed: Sequence[Items]) -> Paired:
    """One contender's own number over seeds and blocks: its difference from nothing."""
    return pair(by_seed, [Items(items.ids, (0.0,) * len(items.ids), items.bottom) for items in by_seed])


def interval_items(by_seed: Sequence[Items]) -> tuple[float, float]:
    """The interval of one contender's number over seeds and items."""
    return level_of(by_seed).interval()


def paired_difference(a_by_seed: Sequence[Items], b_by_seed: Sequence[Items]) -> Difference:
    """The difference a - b with its interval over seeds and blocks, and its two-sided p-value (module docstring; `pair` has the parts)."""
    found = pair(a_by_seed, b_by_seed)
    return Difference(found.difference, *found.interval(), found.p())


# ---- many comparisons ----


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below 0.05, the error of any of them is below 5 %."""
    order, out, worst = sorted(range(len(ps)), key=lambda i: ps[i]), [1.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = worst
    return out


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values: of those below 0.05, at most 5 % are false in the mean."""
    order, out, least = sorted(range(len(ps)), key=lambda i: -ps[i]), [1.0] * len(ps), 1.0
    for place, i in enumerate(order):
        least = min(least, ps[i] * len(ps) / (len(ps) - place))
        out[i] = least
    return out
