"""From recorded runs to verdicts: intervals, rules, paired differences, corrections for many comparisons.

Intervals hold 95 %. Which one is used is fixed beforehand:
- over seeds, below ten: Student's t on the seeds' values; from ten on a bootstrap whose percentile levels are widened so that on normal data it
  agrees with Student's t (Hesterberg 2015, "expanded percentile");
- over items or blocks: the same bootstrap over items; arms are paired by id, one draw of items serves all arms and seeds.
  Where several seeds disagree, the half-width of Student's t over them is added in quadrature;
- none: the number itself. Zero width counts only for `exact`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from etude.harness.contract import Claim, Rule
from etude.harness.draws import align, number_of, over_items, pools_read
from etude.harness.intervals import DRAWS, bootstrap, interval_t, mean_sd, t_quantile, widened
from etude.measure.contract import Metrics, number

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
MOST_SEEDS = 10


# ---- rules ----


@dataclass(frozen=True)
class Above:
    """The interval lies above `margin`; with `effect` the estimate must reach that as well."""

    margin: float
    effect: float | None = None

    def __call__(self, low: float, estimate: float, high: float, /) -> str:
        if high < (self.margin if self.effect is None else max(self.margin, self.effect)):
            return NOT_REPRODUCED
        return REPRODUCED if low > self.margin and (self.effect is None or estimate >= self.effect) else INCONCLUSIVE

    def __str__(self) -> str:
        return f"above {self.margin:g}" + ("" if self.effect is None else f", estimate at least {self.effect:g}")


@dataclass(frozen=True)
class Below:
    """The interval lies below `margin`; with `effect` the estimate must be as low as that as well."""

    margin: float
    effect: float | None = None

    def __call__(self, low: float, estimate: float, high: float, /) -> str:
        return Above(-self.margin, None if self.effect is None else -self.effect)(-high, -estimate, -low)

    def __str__(self) -> str:
        return f"below {self.margin:g}" + ("" if self.effect is None else f", estimate at most {self.effect:g}")


@dataclass(frozen=True)
class Within:
    """Equivalence: the interval lies wholly inside."""

    least: float
    most: float

    def __call__(self, low: float, estimate: float, high: float, /) -> str:
        if high < self.least or low > self.most:
            return NOT_REPRODUCED
        return REPRODUCED if self.least <= low and high <= self.most else INCONCLUSIVE

    def __str__(self) -> str:
        return f"interval inside {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Contains:
    """The interval holds the value."""

    value: float

    def __call__(self, low: float, estimate: float, high: float, /) -> str:
        return REPRODUCED if low <= self.value <= high else NOT_REPRODUCED

    def __str__(self) -> str:
        return f"interval contains {self.value:g}"


@dataclass(frozen=True)
class Exact:
    """The value itself, up to rounding: the one rule for which zero width counts."""

    value: float
    tolerance: float

    def __call__(self, low: float, estimate: float, high: float, /) -> str:
        return Within(self.value - self.tolerance, self.value + self.tolerance)(low, estimate, high)

    def __str__(self) -> str:
        return f"equal to {self.value:g} up to {self.tolerance:g}"


@dataclass(frozen=True)
class AllOf:
    """Every rule holds of the same interval."""

    rules: tuple[Rule, ...]

    def __call__(self, low: float, estimate: float, high: float, /) -> str:
        found = {rule(low, estimate, high) for rule in self.rules}
        return next((status for status in (NOT_REPRODUCED, INCONCLUSIVE) if status in found), REPRODUCED)

    def __str__(self) -> str:
        return " and ".join(map(str, self.rules))


def above(x: float, effect: float | None = None) -> Above:
    """The interval above `x`; `above(0, effect=e)` is a sheet's "at least e, interval above 0"."""
    return Above(x, effect)


def below(x: float, effect: float | None = None) -> Below:
    """The interval below `x`, and the estimate at most `effect`."""
    return Below(x, effect)


def within(lo: float, hi: float) -> Within:
    """The interval wholly inside `lo` to `hi`."""
    return Within(lo, hi)


def contains(x: float) -> Contains:
    """The interval contains `x`."""
    return Contains(x)


def exact(x: float, tolerance: float) -> Exact:
    """Equal to `x` up to `tolerance`, all through the interval."""
    return Exact(x, tolerance)


def all_of(*rules: Rule) -> AllOf:
    """All the rules together."""
    return AllOf(rules)


def _takes_zero_width(rule: Rule) -> bool:
    return isinstance(rule, Exact) or (isinstance(rule, AllOf) and all(map(_takes_zero_width, rule.rules)))


def log_ratio(a: float, b: float) -> float:
    """log(a / b): the scale on which ratios are averaged and their intervals made.

    Raises:
        ValueError: a or b is not positive, so that the ratio has no logarithm.
    """
    if not (a > 0 and b > 0):
        raise ValueError(f"log_ratio needs two positive numbers, got {a:g} and {b:g}")
    return math.log(a / b)


def beats(
    a: str,
    b: str,
    metric: str,
    by: float = 0.0,
    over: Literal["seeds", "items", "blocks", "none"] = "seeds",
    better: Literal["lower", "higher"] = "lower",
    row: str = "",
) -> Claim:
    """Arm `a` beats arm `b` in `metric`: the interval of the gain lies above 0 and the gain reaches `by`.

    A negative `by` is a loss that is allowed: then the interval must lie above it ("within 1.5 points of LoRA": `by=-1.5`).
    """
    sign = 1.0 if better == "lower" else -1.0
    title = f"{a} beats {b} in {metric}" + (f" by at least {by:g}" if by > 0 else "") if by >= 0 else f"{a} loses less than {-by:g} {metric} to {b}"
    rule = above(0.0, effect=by or None) if by >= 0 else above(by)
    return Claim(title, lambda m: sign * (number(m[b][metric]) - number(m[a][metric])), rule, over, row)


# ---- verdicts ----


@dataclass(frozen=True)
class Verdict:
    """A claim judged.

    Attributes:
        estimate, low, high: the number and its 95 % interval, infinite where there is none.
        margin: the rule in words.
        seeds: how many seeds it rests on; units: how many items or blocks.
        needed: seeds (or items, blocks) that would decide an inconclusive claim, at this estimate and spread.
        half_width: the interval's, where inconclusive.
        reason: why it is inconclusive, in words.
        p: against the claim not holding; None where the rule has no test.
    """

    title: str
    row: str
    status: str
    estimate: float
    low: float
    high: float
    over: str
    margin: str
    seeds: int
    units: int = 0
    needed: int | None = None
    half_width: float | None = None
    reason: str = ""
    p: float | None = None
    values: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of six significant digits; infinite and undefined numbers are null."""
        numbers = ("estimate", "low", "high", "half_width", "p")
        return {
            **{key: value for key, value in vars(self).items() if key not in (*numbers, "values")},
            **{key: plain(getattr(self, key)) for key in numbers},
            "values": [plain(value) for value in self.values],
        }


def plain(x: float | None) -> float | None:
    """Six significant digits; None for what is infinite or undefined."""
    return float(f"{x:.6g}") if x is not None and math.isfinite(x) else None


def judge(claim: Claim, runs: Mapping[tuple[str, int], Metrics], draws: int = DRAWS) -> Verdict:
    """The verdict of a claim on the recorded runs; seeds in which an arm is missing are left out.

    Args:
        draws: of a bootstrap over items or blocks.

    Raises:
        ValueError: arms were measured on items that cannot be paired.
    """
    seeds, values, missing = dict[int, dict[str, Metrics]](), list[float](), set[str]()
    aligned, pools = align(runs)
    for seed in sorted({seed for _, seed in runs}):
        arms = {arm: metrics for (arm, at), metrics in aligned.items() if at == seed}
        try:
            values.append(number_of(claim.value, arms))
            seeds[seed] = arms
        except (KeyError, AttributeError) as error:
            missing.add(str(error).strip("'\""))
    if not values or not all(map(math.isfinite, values)):
        gone = f"an arm or metric is missing: {', '.join(sorted(missing))}" if not values else "the number is not defined on every seed"
        return _verdict(claim, INCONCLUSIVE, values, math.nan, -math.inf, math.inf, 0, gone)
    estimate, (low, high), units, reason = sum(values) / len(values), (-math.inf, math.inf), 0, ""
    if claim.over == "none":
        low, high = min(values), max(values)
    elif claim.over == "seeds" and len(values) > 1:
        wide = len(values) < MOST_SEEDS or claim.overlap > 0
        low, high = interval_t(values, claim.overlap) if wide else bootstrap(values)
    elif claim.over == "seeds":
        low, high, reason = (
            (estimate, estimate, "") if _takes_zero_width(claim.holds) else (low, high, "one seed has no interval: run at least three")
        )
    else:
        used = pools_read(claim.value, seeds, pools)
        units = min(used.values(), default=0)
        low, high, reason = _items_interval(claim, seeds, used, values, estimate, draws)
    return _decide(claim, values, estimate, low, high, units, reason)


def _items_interval(
    claim: Claim,
    seeds: Mapping[int, Mapping[str, Metrics]],
    pools: Mapping[frozenset[str], int],
    values: Sequence[float],
    estimate: float,
    draws: int,
) -> tuple[float, float, str]:
    if min(pools.values(), default=0) < 2:
        return -math.inf, math.inf, f"fewer than two {claim.over} were recorded"
    kept = [v for v in over_items(claim.value, seeds, pools, draws) if math.isfinite(v)]
    if len(kept) < 0.95 * draws:
        return -math.inf, math.inf, f"the number is not defined on {draws - len(kept)} of {draws} draws of {claim.over}"
    low, high = widened(kept, min(pools.values()))
    between = 0.0 if len(set(values)) < 2 else (interval_t(values, claim.overlap)[1] - estimate)
    return estimate - math.hypot(max(0.0, estimate - low), between), estimate + math.hypot(max(0.0, high - estimate), between), ""


def _decide(claim: Claim, values: Sequence[float], estimate: float, low: float, high: float, units: int, reason: str) -> Verdict:
    if not math.isfinite(high - low):
        return _verdict(claim, INCONCLUSIVE, values, estimate, low, high, units, reason)
    if high - low <= 1e-12 * max(1.0, abs(estimate)) and not _takes_zero_width(claim.holds):
        over = "one number without an interval" if claim.over == "none" else f"the interval over {claim.over} has zero width (nothing varied)"
        return _verdict(claim, INCONCLUSIVE, values, estimate, low, high, units, f"{over}, which counts only for exact(...)")
    return _verdict(claim, claim.holds(low, estimate, high), values, estimate, low, high, units, reason)


def _verdict(claim: Claim, status: str, values: Sequence[float], estimate: float, low: float, high: float, units: int, reason: str) -> Verdict:
    half, needed, p = (high - low) / 2, None, None
    if math.isfinite(half) and half > 0:
        deciding = _deciding_half_width(claim.holds, estimate, half)
        if status == INCONCLUSIVE:
            reason = reason or f"the interval's half-width of {half:.3g} does not decide; {deciding:.3g} would"
            needed = _needed(claim, values, units, half, deciding)
        p = _p_value(claim, values, units, estimate, half)
    width = half if status == INCONCLUSIVE and math.isfinite(half) else None
    seeds = len(values)
    return Verdict(
        claim.title, claim.row, status, estimate, low, high, claim.over, str(claim.holds), seeds, units, needed, width, reason, p, tuple(values)
    )


def _deciding_half_width(rule: Rule, estimate: float, start: float) -> float:
    """The largest half-width at which the rule decides, at this estimate; 0 when none does."""
    low, high = 0.0, start
    while rule(estimate - high, estimate, estimate + high) != INCONCLUSIVE and high < 1e6 * start:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rule(estimate - middle, estimate, estimate + middle) == INCONCLUSIVE else (middle, high)
    return low


def _needed(claim: Claim, values: Sequence[float], units: int, half: float, deciding: float) -> int | None:
    if deciding <= 1e-6 * half:
        return None  # the estimate lies on the margin: no amount decides
    if claim.over != "seeds":
        return math.ceil(units * (half / deciding) ** 2)
    _, sd = mean_sd(values)
    fits = (n for n in range(len(values) + 1, 10001) if t_quantile(n - 1) * sd * math.sqrt(1 / n + claim.overlap) <= deciding)
    return next(fits, None)


def _p_value(claim: Claim, values: Sequence[float], units: int, estimate: float, half: float) -> float | None:
    if not isinstance(claim.holds, Above | Below | Within):
        return None
    if claim.holds(estimate, estimate, estimate) != REPRODUCED:
        return 1.0
    from scipy.special import stdtr

    df = max(1, (len(values) if claim.over == "seeds" else units) - 1)
    margin = claim.holds if isinstance(claim.holds, Within) else type(claim.holds)(claim.holds.margin)
    deciding = _deciding_half_width(margin, estimate, half)
    return min(1.0, 2 * float(stdtr(df, -deciding / (half / t_quantile(df)))))


def seeds_to_add(verdicts: Iterable[Verdict], seeds: int, seconds_left: float, seconds_a_seed: float) -> int:
    """How many seeds to add, decided once, after the first seeds: the fixed rule.

    Nothing is added when every claim over seeds is decided. Else as many as the time allows, up to ten in all, and all of them run before the
    claims are judged again: there is one look, not one a seed.
    """
    if not any(v.over == "seeds" and v.status == INCONCLUSIVE and len(set(v.values)) > 1 for v in verdicts):
        return 0
    return max(0, min(MOST_SEEDS - seeds, int(seconds_left / max(seconds_a_seed, 1e-9))))
