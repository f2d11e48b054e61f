"""A claim's number on items drawn anew: arms are paired by the items' ids, and one draw serves all arms and seeds alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from etude.harness.intervals import DRAWS, picks_of
from etude.measure.contract import Items, Metrics, Value

Formula = Callable[[Mapping[str, Metrics]], float]
Pick = Callable[[Sequence[Any]], tuple[Any, ...]]  # one draw of a pool's items


class _Drawn(Metrics):
    """Metrics whose items are drawn anew when they are read."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self.pools = {key: frozenset(value.ids) for key, value in metrics.items() if isinstance(value, Items)}
        self.draw: Mapping[frozenset[str], Pick] = {}
        self.read: set[frozenset[str]] = set()

    def __getitem__(self, key: str) -> Value:
        value = super().__getitem__(key)
        if not isinstance(value, Items):
            return value
        self.read.add(self.pools[key])
        pick = self.draw.get(self.pools[key])
        return value if pick is None else Items(pick(value.ids), pick(value.top), pick(value.bottom))

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
            if len(pool) < len(value.ids):
                raise ValueError(f"arm {arm!r} recorded {key!r} with an item twice: every item needs an id of its own")
            for other, holder in seen.setdefault((key, seed), {}).items():
                if other != pool and other & pool:
                    raise ValueError(f"arms {holder!r} and {arm!r} recorded {key!r} on different items: pair them by measuring the same ones")
            seen[key, seed][pool] = arm
            if value.ids != order.setdefault(pool, value.ids):
                place = {name: i for i, name in enumerate(value.ids)}
                out[arm, seed][key] = value.at([place[name] for name in order[pool]])
    return out, {pool: len(ids) for pool, ids in order.items()}


def pools_read(value: Formula, seeds: Mapping[int, Mapping[str, Metrics]], pools: Mapping[frozenset[str], int]) -> dict[frozenset[str], int]:
    """The pools of items that the claim's number rests on."""
    copies = [{arm: _Drawn(metrics) for arm, metrics in arms.items()} for arms in seeds.values()]
    for arms in copies:
        number_of(value, arms)
    read = {pool for arms in copies for metrics in arms.values() for pool in metrics.read}
    return {pool: n for pool, n in pools.items() if pool in read}


def over_items(value: Formula, seeds: Mapping[int, Mapping[str, Metrics]], pools: Mapping[frozenset[str], int], draws: int = DRAWS) -> list[float]:
    """The mean over seeds of the claim's number, for every draw of the items of these pools (of two items at least)."""
    drawn = {pool: picks_of(n, draws, k) for k, (pool, n) in enumerate(pools.items())}
    copies = [{arm: _Drawn(metrics) for arm, metrics in arms.items()} for arms in seeds.values()]
    values = []
    for i in range(draws):
        draw: dict[frozenset[str], Pick] = {pool: itemgetter(*rows[i]) for pool, rows in drawn.items()}
        for arms in copies:
            for metrics in arms.values():
                metrics.draw = draw
        found = [number_of(value, arms) for arms in copies]
        values.append(sum(found) / len(found))
    return values


def number_of(value: Formula, arms: Mapping[str, Metrics]) -> float:
    """The claim's number; not a number where it is not defined (a division by zero, the logarithm of zero)."""
    try:
        return float(value(arms))
    except (ArithmeticError, ValueError):
        return math.nan
