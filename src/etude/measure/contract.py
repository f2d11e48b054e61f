"""What a measurement is: numbers recorded item by item, so that claims can be resampled and arms paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class NotFinite(ValueError):
    """A loss, or what a model answers, is no finite number: a rate was too high, or weights are broken."""


@dataclass(frozen=True)
class Items:
    """Per-item records; the number they stand for is `sum(top) / sum(bottom)`.

    Attributes:
        ids: names of the items; two arms are paired by them.
        top: numerators (bits, hits, absolute errors), one an item.
        bottom: denominators (bytes, trials, ones), one an item.
    """

    ids: tuple[str, ...]
    top: tuple[float, ...]
    bottom: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.top) == len(self.bottom):
            raise ValueError(f"items need equal lengths, got {len(self.ids)} ids, {len(self.top)} tops, {len(self.bottom)} bottoms")

    @classmethod
    def of(cls, ids: Sequence[object], top: Sequence[float], bottom: Sequence[float] | None = None) -> Items:
        """Items from any sequences; without `bottom` each item counts one."""
        return cls(tuple(map(str, ids)), tuple(map(float, top)), tuple(map(float, bottom)) if bottom is not None else (1.0,) * len(top))

    def at(self, picks: Sequence[int]) -> Items:
        """The items at these positions, repeats allowed."""
        return Items(tuple(self.ids[i] for i in picks), tuple(self.top[i] for i in picks), tuple(self.bottom[i] for i in picks))


Value = float | Items | list[float]  # a number, a number that can be resampled, a curve for the plot


def number(value: Value) -> float:
    """The one number that a recorded value stands for."""
    if isinstance(value, Items):
        return sum(value.top) / sum(value.bottom)
    if isinstance(value, list):
        raise TypeError("a curve has no single number")
    return float(value)


class Metrics(dict[str, Value]):
    """What one run measured by name: `m.kl` is the number, `m["kl"]` what was recorded."""

    def __getattr__(self, name: str) -> float:
        if name not in self:
            raise AttributeError(f"no metric {name!r} was recorded; there are {', '.join(self) or 'none'}")
        return number(self[name])

    def resample(self, picks: Sequence[int]) -> Metrics:
        """The metrics with their items drawn anew; numbers and curves stay."""
        return Metrics({key: value.at(picks) if isinstance(value, Items) else value for key, value in self.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: items as {"ids", "top", "bottom"}."""
        return {
            key: {"ids": list(value.ids), "top": list(value.top), "bottom": list(value.bottom)} if isinstance(value, Items) else value
            for key, value in self.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Metrics:
        """The inverse of `to_json`; numbers may stand there as integers, infinite and undefined ones as words ("nan")."""
        return cls({key: _value(value) for key, value in data.items()})


def _value(value: Any) -> Value:
    if isinstance(value, Mapping):
        return Items.of(value["ids"], **{key: [float(x) for x in value[key]] for key in ("top", "bottom") if key in value})
    return [float(x) for x in value] if isinstance(value, list) else float(value)
