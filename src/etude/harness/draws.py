"""A claim's number on items drawn anew: arms are paired by the items' ids, and one draw serves all arms and seeds alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etude.harness.intervals import DRAWS, picks_of
from etude.measure.contract import Items, Metrics, Value

Formula = Callable[[Mapping[str, Metrics]], float]


class _Drawn(Metrics):
    """Metrics whose items are drawn anew when they are read."""

    picks: dict[frozenset[str], Sequence[int]]

    def __getitem__(self, key: str) -> Value:
        value = super().__getitem__(key)
        return value.at(self.picks[frozenset(value.ids)]) if isinstance(value, Items) else value

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def items(self) -> Any:
        return [(key, self[key]) for key in self]

    def values(self) -> Any:
        return [self[key] for key in self]


def align(runs: Mapping[tuple[str, int], Metrics]) -> tuple[dict[tuple[str, int], Metrics], dict[frozenset[str], int]]:
    """The runs with items of the same ids in the same order, and the pools of ids to draw from.

    Raises:
        ValueError: within a seed two arms recorded a metric on items that overlap only in part, so that they cannot be paired.
    """
    order: dict[frozenset[str], tuple[str, ...]] = {}
    seen: dict[tuple[str, int], dict[frozenset[str], str]] = {}
    out: dict[tuple[str, int], Metrics] = {}
    for (arm, seed), metrics in runs.items():
        out[arm, seed] = Metrics(metrics)
        for key, value in metrics.items():
            if not isinstance(value, Items):
                continue
            pool = frozenset(value.ids)
            for other, holder in seen.setdefault((key, seed), {}).items():
                if other != pool and other & pool:
                    raise ValueError(f"arms {holder!r} and {arm!r} recorded {key!r} on different items: pair them by measuring the same ones")
            seen[key, seed][pool] = arm
            if value.ids != order.setdefault(pool, value.ids):
                place = {name: i for i, name in enumerate(value.ids)}
                out[arm, seed][key] = value.at([place[name] for name in order[pool]])
    return out, {pool: len(ids) for pool, ids in order.items()}


def over_items(value: Formula, seeds: Mapping[int, Mapping[str, Metrics]], pools: Mapping[frozenset[str], int]) -> list[float]:
    """The mean over seeds of the claim's number, for every draw of the items."""
    drawn = {pool: picks_of(n, DRAWS, k) for k, (pool, n) in enumerate(pools.items())}
    copies = {seed: {arm: _Drawn(metrics) for arm, metrics in arms.items()} for seed, arms in seeds.items()}
    values = []
    for draw in range(DRAWS):
        picks: dict[frozenset[str], Sequence[int]] = {pool: rows[draw] for pool, rows in drawn.items()}
        for arms in copies.values():
            for metrics in arms.values():
                metrics.picks = picks  # an attribute of the instance, not an entry
        found = [number_of(value, arms) for arms in copies.values()]
        values.append(sum(found) / len(found))
    return values


def number_of(value: Formula, arms: Mapping[str, Metrics]) -> float:
    """The claim's number; not a number where it is not defined (a division by zero, the logarithm of zero)."""
    try:
        return float(value(arms))
    except (ArithmeticError, ValueError):
        return math.nan
