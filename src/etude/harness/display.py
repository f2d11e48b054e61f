"""What a contest's results mean to a reader: rows, marks, fronts and readable numbers, shared by the report and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.harness.formulas import untex

Results = Mapping[str, Any]
SCALES = {
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")),
    "s": ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")),
    "share": ((1e-2, "%"),),
}
UNITS = {"seconds": "s", "second": "s", "byte": "bytes", "fraction": "share"}


@dataclass(frozen=True)
class Value:
    """A measured number with its interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        values: metric -> value; on the test split, or on the choice split where the test split was not opened.
        marks: what a reader must know of it, in words, the most important first.
        tested: whether the values are of the test split.
        kind: "paper", "baseline" or "own" (a file of the user's, another package).
    """

    name: str
    title: str
    kind: str
    values: Mapping[str, Value]
    marks: tuple[str, ...]
    error: str
    tested: bool


def finite(value: object) -> float | None:
    """The number that a recorded value stands for: a plain one, or the ratio of items; None where there is none."""
    if isinstance(value, Mapping):
        top, bottom = sum(value.get("top") or ()), sum(value.get("bottom") or ())
        value = top / bottom if bottom else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def axis(results: Results, metric: str) -> dict[str, str]:
    """Unit, direction and title of a metric."""
    known = dict((results.get("axes") or {}).get(metric) or {})
    unit = str(known.get("unit") or "")
    title = str(known.get("title") or metric.replace("_", " "))
    return {"unit": UNITS.get(unit, unit), "better": str(known.get("better") or "lower"), "title": title[:1].upper() + title[1:]}


def unit(results: Results, metric: str) -> str:
    """The unit that a heading names: none where the cells carry it or the title says it already."""
    about = axis(results, metric)
    told = about["unit"].replace("/", " per ") in about["title"].lower()
    return "" if told or about["unit"] in SCALES else about["unit"]


def scale(values: Sequence[float], unit: str) -> tuple[float, str]:
    """The divisor and the unit in which the largest of these values reads well."""
    steps = SCALES.get(unit)
    if not steps:
        return 1.0, unit
    largest = max((abs(value) for value in values), default=0.0)
    return next(((size, name) for size, name in steps if largest >= size), steps[-1])


def digits(value: float, places: int = 3) -> str:
    """A number with so many significant digits, never in a form that hides its size."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 7:
        return f"{value:.{max(0, places - 1 - size)}f}"
    return f"{value:.{places - 1}e}"


def shown(value: float | None, unit: str = "", places: int = 3) -> str:
    """A number with the unit it reads best in: 112900000 bytes is "113 MB"."""
    if value is None:
        return "-"
    divisor, name = scale([value], unit)
    return f"{digits(value / divisor, places)}{' ' + name if unit in SCALES else ''}"


def places(low: float, high: float) -> int:
    """Decimals that an interval's width supports: two significant digits of its half."""
    width = (high - low) / 2
    return 4 if width <= 0 or not math.isfinite(width) else min(6, max(0, 1 - math.floor(math.log10(width))))


def parts(value: Value, unit: str = "") -> tuple[str, str]:
    """A number and its interval, to the digits that the interval's width supports; the interval is empty where there is none."""
    low, high = value.low, value.high
    if low is None or high is None or low == high:
        return shown(value.value, unit, 4), ""
    divisor, name = scale([value.value], unit)
    count = places(low / divisor, high / divisor)
    middle, below, above = (f"{number / divisor:.{count}f}" for number in (value.value, low, high))
    return middle + (f" {name}" if unit in SCALES else ""), f"[{below}, {above}]"


def interval(value: Value, unit: str = "") -> str:
    """A number with its interval in one text."""
    return " ".join(filter(None, parts(value, unit)))


def plain(text: object) -> str:
    """One line of text without control characters, which could rewrite a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text)).strip()


def kind(contender: Results) -> str:
    """Whether a contender is a paper's, one of the field's baselines, or the user's own."""
    source = str(contender.get("source") or "")
    return source if source in ("paper", "baseline") else "own" if source else "paper" if contender.get("paper") else "baseline"


def values(contender: Results) -> tuple[dict[str, Value], bool]:
    """What a contender's row shows, and whether it is of the test split."""
    found = {}
    for metric, entry in (contender.get("summary") or {}).items():
        number = finite(entry.get("value"))
        if number is not None:
            found[metric] = Value(number, finite(entry.get("low")), finite(entry.get("high")))
    if found:
        return found, True
    points = [point for point in contender.get("points") or () if not point.get("error")]
    point = next((point for point in points if point.get("chosen")), points[0] if len(points) == 1 else None)
    numbers = {metric: finite(value) for metric, value in ((point or {}).get("metrics") or {}).items()}
    return {metric: Value(number) for metric, number in numbers.items() if number is not None}, False


def failures(results: Results) -> dict[str, str]:
    """Each failed contender's errors, also of those that are not listed as contenders."""
    errors: dict[str, list[str]] = {}
    for contender in results.get("contenders") or ():
        if contender.get("error"):
            errors.setdefault(str(contender["name"]), []).append(str(contender["error"]))
    for failure in results.get("failures") or ():
        text = str(failure.get("error") or "failed without a message")
        known = errors.setdefault(str(failure.get("name")), [])
        if not any(text in other or other in text for other in known):
            known.append(f"{failure.get('step') or 'run'}, seed {failure.get('seed', 0)}: {text}")
    return {name: "; ".join(texts) for name, texts in errors.items()}


def marks(results: Results, contender: Results, tested: bool) -> tuple[str, ...]:
    """What must be said of a contender beside its numbers."""
    name, chosen = contender.get("name"), results.get("recommendation") or {}
    found = []
    if name == chosen.get("name") and chosen.get("status") in ("recommended", "close"):
        found.append("recommended" if chosen["status"] == "recommended" else "taken: cheapest of those too close to call")
    elif name in (chosen.get("close") or ()):
        found.append("too close to call")
    if name == results.get("reference"):
        found.append("reference")
    if contender.get("reached") is False and not contender.get("error"):
        found.append("not within budget")
    if contender.get("unchanged"):
        found.append("changed nothing")
    if contender.get("mark"):
        found.append(str(contender["mark"]))
    if not tested and not contender.get("error"):
        found.append("measured on the choice split only")
    return tuple(found)


def limits(results: Results) -> str:
    """What the user allowed, in the user's words."""
    settings = results.get("settings") or {}
    texts = [str(limit.get("text") or "") for limit in settings.get("budget") or () if isinstance(limit, Mapping)]
    loss = finite(settings.get("max_loss"))
    texts += [f"loss at most {100 * loss:.3g} %"] if loss is not None else []
    return ", ".join(filter(None, texts))


def rows(results: Results) -> list[Row]:
    """The table: best quality first, failures last; nothing that ran or failed is left out."""
    errors, found = failures(results), []
    for contender in results.get("contenders") or ():
        numbers, tested = values(contender)
        error = errors.pop(str(contender["name"]), "")
        title = untex(str(contender.get("title") or ""))
        found.append(Row(str(contender["name"]), title, kind(contender), numbers, marks(results, contender, tested), error, tested))
    found += [Row(name, "", "own", {}, (), error, False) for name, error in errors.items()]
    quality = str(results.get("quality") or "")
    sign = -1.0 if axis(results, quality)["better"] == "higher" else 1.0

    def order(row: Row) -> tuple[bool, float, str]:
        number = row.values.get(quality)
        return number is None, sign * number.value if number else 0.0, row.name

    return sorted(found, key=order)


def metrics(results: Results) -> list[str]:
    """The metrics that were measured, the deciding one first, the main cost axis second."""
    seen = {metric for row in rows(results) for metric in row.values}
    for contender in results.get("contenders") or ():
        seen |= {m for point in contender.get("points") or () for m, v in (point.get("metrics") or {}).items() if finite(v) is not None}
    first = [str(results.get(key)) for key in ("quality", "main_axis") if results.get(key)]
    order = [*first, *(metric for metric in results.get("axes") or () if metric not in first)]
    return [metric for metric in order if metric in seen]


def front(results: Results, metric: str) -> list[str]:
    """The contenders on the Pareto front of quality against this metric, cheapest first.

    The report draws it; of two equal ones both stand on it.
    """
    quality = str(results.get("quality") or "")
    signs = [-1.0 if axis(results, name)["better"] == "higher" else 1.0 for name in (metric, quality)]
    points = [
        (signs[0] * row.values[metric].value, signs[1] * row.values[quality].value, row.name)
        for row in rows(results)
        if metric in row.values and quality in row.values
    ]

    def dominated(cost: float, loss: float) -> bool:
        return any(c <= cost and q <= loss and (c < cost or q < loss) for c, q, _ in points)

    return [name for cost, loss, name in sorted(points) if not dominated(cost, loss)]


def leader(results: Results) -> str:
    """The contender that the comparisons set against every other."""
    chosen = results.get("recommendation") or {}
    return str(chosen.get("winner") or chosen.get("name") or "the winner")
