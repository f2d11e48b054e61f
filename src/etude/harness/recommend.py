"""The recommendation of a contest: a pure function of what `results.json` records.

Two questions are told apart. With a budget, the best quality inside it wins. Without one, or with `--prefer`, the cheapest contender within the
allowed loss against the reference wins; then "within" is itself a test, because the loss has an interval. In both the winner is compared with every
other eligible contender by paired intervals over seeds and evaluation blocks (`etude.harness.intervals.pair`), Holm-corrected, and no difference
below the noise of the reference measured twice counts. Costs that differ by less than `COST_TIE` are ties, which quality decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from etude.harness.intervals import Paired, holm, level_of, pair
from etude.harness.verdict import plain
from etude.measure.contract import Items, Metrics, number

ALPHA, DEFAULT_LOSS = 0.05, 0.02
QUIET = 0.25  # cores that others may use while something is timed
COST_TIE = {"size": 0.01, "speed": 0.05}  # shares: a folder's bytes are exact but for its small files, timings are not


@dataclass(frozen=True)
class Competitor:
    """A contender that was measured: its quality by seed and its costs."""

    name: str
    options: Mapping[str, Any]
    mark: str
    deterministic: bool
    quality: tuple[Items, ...]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Test:
    """The winner against one other: what was tested, and how it came out before Holm's correction."""

    against: str
    what: str
    gain: Paired  # in quality, positive where the winner is better
    p: float
    counts: bool  # the direction is right and the difference above the noise
    more: str


class Case:
    """What the results say, read once."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results, self.settings = results, results["settings"]
        self.metric = str(results["quality"])
        axes = results["axes"]
        self.sign = 1.0 if axes.get(self.metric, {"better": "lower"})["better"] == "lower" else -1.0
        self.limits = [limit for limit in self.settings.get("budget") or () if isinstance(limit, Mapping)]
        self.prefer = self.settings.get("prefer")
        asked = self.settings.get("max_loss")
        self.cheapest = self.prefer in ("size", "speed") or (not self.settings.get("budget") and asked is not None)
        self.max_loss = float(asked) if asked is not None else DEFAULT_LOSS if self.cheapest else math.inf
        self.main = str(results["main_axis"])
        self.cost = speed_axis(axes, self.main) if self.prefer == "speed" else self.main
        self.noise = float(results.get("noise") or 0.0)
        self.measured = [c for c in map(self.competitor, results["contenders"]) if c]
        self.reference = next((c for c in self.measured if c.name == results["reference"]), None)

    def competitor(self, row: Mapping[str, Any]) -> Competitor | None:
        """A row of the results, or None where nothing was measured."""
        runs = [Metrics.from_json(seed["metrics"]) for seed in row.get("seeds") or () if not seed.get("error") and seed.get("metrics")]
        found = [run[self.metric] for run in runs if self.metric in run]
        quality = tuple(v if isinstance(v, Items) else Items.of(["all"], [number(v)]) for v in found)
        if row.get("error") or not quality or not all(math.isfinite(number(q)) for q in quality):
            return None
        numbers = {key: mean([number(run[key]) for run in runs if key in run]) for key, v in runs[0].items() if not isinstance(v, list)}
        return Competitor(row["name"], row.get("options") or {}, row.get("mark") or "", bool(row.get("deterministic")), quality, numbers)

    def title(self, axis: str) -> str:
        """An axis as it is called in a sentence."""
        return str(self.results["axes"].get(axis, {}).get("title") or axis)

    def lower_is_better(self, axis: str) -> bool:
        """Whether less of an axis is better; costs are, unless the axis says otherwise."""
        return bool(self.results["axes"].get(axis, {}).get("better", "lower") == "lower")

    def price(self, c: Competitor, axis: str) -> float:
        """The cost on an axis, turned so that less is better; infinite where it was not measured."""
        value = c.numbers.get(axis, math.nan)
        return math.inf if math.isnan(value) else value if self.lower_is_better(axis) else -value

    def affordable(self, c: Competitor) -> bool:
        """Whether every budget is kept."""
        for limit in self.limits:
            value, bound = c.numbers.get(limit["axis"], math.nan), limit["limit"]
            if bound is None or math.isnan(value) or not (value >= bound if limit.get("at_least") else value <= bound):
                return False
        return True

    def reached(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the results keeps every limit, by what was measured on held-out data."""
        one = self.competitor(row)
        if one is None or not self.affordable(one):
            return False
        if math.isinf(self.max_loss) or self.reference is None or number(self.reference.quality[0]) == 0:
            return True
        return self.loss(one).difference <= self.max_loss

    def gain(self, winner: Competitor, other: Competitor) -> Paired:
        """Quality of the winner over the other's, positive where it is better."""
        found = pair(other.quality, winner.quality)
        return replace(found, difference=self.sign * found.difference + 0.0)  # + 0.0: nothing has no sign

    def loss(self, c: Competitor) -> Paired:
        """Quality lost against the reference, as a share of the reference's."""
        if self.reference is None:
            raise ValueError("the reference was not measured")
        if c is self.reference:
            return Paired(0.0, 2, 2, 0.0, 0.0)
        found = pair(c.quality, self.reference.quality, relative=True)
        return replace(found, difference=self.sign * found.difference + 0.0)  # + 0.0: nothing has no sign

    @cached_property
    def able(self) -> list[Competitor]:
        """Those that beat the floor."""
        floor = (self.results.get("floor") or {}).get("value")
        if floor is None or not math.isfinite(floor):
            return self.measured
        levels = [level_of(c.quality) for c in self.measured]
        raw = [level.p(floor) for level in levels]
        others = iter(holm([p for c, p in zip(self.measured, raw, strict=True) if c is not self.reference]))
        ps = [p if c is self.reference else next(others) for c, p in zip(self.measured, raw, strict=True)]  # the model itself is asked first
        return [c for c, level, p in zip(self.measured, levels, ps, strict=True) if p < ALPHA and self.sign * (floor - level.difference) > self.noise]

    def tied(self, a: Competitor, b: Competitor) -> bool:
        """Whether two cost the same."""
        left, right = abs(a.numbers.get(self.cost, math.nan)), abs(b.numbers.get(self.cost, math.nan))
        return bool(left == right or abs(left - right) <= COST_TIE["speed" if self.prefer == "speed" else "size"] * max(left, right))


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return math.fsum(values) / len(values)


def speed_axis(axes: Mapping[str, Mapping[str, Any]], main: str) -> str:
    """The axis that `--prefer speed` means: the last throughput of the table (decoding), else the first time."""
    rates = [name for name, axis in axes.items() if str(axis.get("unit", "")).endswith("/s")]
    times = [name for name, axis in axes.items() if axis.get("unit") in ("s", "ms", "seconds")]
    return (rates[-1:] or times[:1] or [main])[0]


def recommend(results: Mapping[str, Any]) -> dict[str, Any]:
    """The `recommendation` of results.json."""
    case = Case(results)
    refusal, eligible = entitled(case)
    if refusal:
        return nothing(case, refusal)
    winner = cheapest_inside(case, eligible) if case.cheapest else min(eligible, key=lambda c: case.sign * mean([number(q) for q in c.quality]))
    others = [c for c in eligible if c is not winner]
    tests = [against_cheapest(case, winner, c) if case.cheapest else against_best(case, winner, c) for c in others]
    ps = holm([test.p for test in tests])
    close = [c for c, test, p in zip(others, tests, ps, strict=True) if not (p < ALPHA and test.counts)]
    takes = [winner, *(c for c in close if math.isinf(case.max_loss) or case.loss(c).difference <= case.max_loss)]
    chosen = min(takes, key=lambda c: case.price(c, case.cost if case.cheapest else case.main))
    names = [c.name for c in close]
    return {
        "line": line(case, winner, chosen, names),
        "status": "close" if close else "recommended",
        "name": chosen.name,
        "options": dict(chosen.options),
        "winner": winner.name,
        "close": [name for name in [winner.name, *names] if name != chosen.name] if close else [],
        "sentence": given_up(case, chosen),
        "command": command(case),
        "comparisons": [comparison(test, p) for test, p in zip(tests, ps, strict=True)],
        "more": grouped((test.more, test.against) for test in tests if test.against in names),
        "provisional": provisional(case, [winner, chosen, *close]),
    }


def entitled(case: Case) -> tuple[str, list[Competitor]]:
    """Who may be recommended; or why nobody may."""
    if not case.measured:
        return "no contender was measured; each one's error is in the report", []
    if not case.able:
        floor = case.results["floor"]
        return f"no contender beats {floor['what']} ({floor['value']:.4g}): the model cannot do the task", []
    inside = [c for c in case.able if case.affordable(c)] if case.limits else case.able
    if not inside:
        texts = ", ".join(str(limit.get("text") or f"{limit['axis']} {limit['limit']:.4g}") for limit in case.limits)
        near = min(case.able, key=lambda c: case.price(c, case.limits[0]["axis"]))
        axis = case.limits[0]["axis"]
        return f"no contender keeps the budget ({texts}); {near.name} comes nearest with {amount(case, axis, near.numbers.get(axis, math.nan))}", []
    if math.isinf(case.max_loss):
        return "", inside
    if case.reference is None:
        return f"the reference {case.results['reference']} was not measured, so that the loss against it is unknown", []
    if number(case.reference.quality[0]) == 0:
        return f"the reference's {case.metric} is 0, so that no share of it can be lost", []
    if not any(case.loss(c).difference <= case.max_loss for c in inside):
        best = min(inside, key=lambda c: case.loss(c).difference)
        return f"no contender stays within {percent(case.max_loss)} of {case.reference.name}; {best.name} comes nearest: {loss_text(case, best)}", []
    return "", inside if case.cheapest else [c for c in inside if case.loss(c).difference <= case.max_loss]


def cheapest_inside(case: Case, eligible: Sequence[Competitor]) -> Competitor:
    """The cheapest within the loss; of those that cost the same, the best."""
    inside = [c for c in eligible if case.loss(c).difference <= case.max_loss]
    least = min(inside, key=lambda c: case.price(c, case.cost))
    return min((c for c in inside if case.tied(c, least)), key=lambda c: case.loss(c).difference)


def against_best(case: Case, winner: Competitor, other: Competitor) -> Test:
    """Is the winner's quality better?"""
    gain = case.gain(winner, other)
    return Test(other.name, f"better {case.metric}", gain, gain.p(), gain.difference > case.noise, gain.more())


def against_cheapest(case: Case, winner: Competitor, other: Competitor) -> Test:
    """Is the winner the better answer to "the cheapest within the loss"?"""
    if case.tied(winner, other):
        return replace(against_best(case, winner, other), what=f"same {case.cost}, better {case.metric}")
    base = abs(number(case.reference.quality[0])) if case.reference else 1.0
    mine, theirs, gain = case.loss(winner), case.loss(other), case.gain(winner, other)
    p_in = 0.0 if winner is case.reference else mine.p(case.max_loss)
    counts_in = winner is case.reference or (case.max_loss - mine.difference) * base > case.noise
    p_out, counts_out = theirs.p(case.max_loss), (theirs.difference - case.max_loss) * base > case.noise
    limit = percent(case.max_loss)
    outside = Test(other.name, f"{other.name} is outside {limit}", gain, p_out, counts_out, theirs.more(case.max_loss))
    if case.price(other, case.cost) < case.price(winner, case.cost):
        return outside
    inside = Test(other.name, f"less {case.cost} and within {limit}", gain, p_in, counts_in, mine.more(case.max_loss))
    return outside if counts_out and (p_out < p_in or not counts_in) else inside


# ---- words ----


def grouped(said: Iterable[tuple[str, str]]) -> str:
    """What is said of several by the same words, said once: "a, b: words; c: other words"."""
    names = dict[str, list[str]]()
    for words, name in said:
        names.setdefault(words, []).append(name)
    return "; ".join(f"{', '.join(each)}: {words}" for words, each in names.items())


def percent(share: float) -> str:
    """0.02 as "2 %"."""
    return f"{100 * share:.3g} %"


def amount(case: Case, axis: str, value: float) -> str:
    """A number with its axis's unit."""
    unit = case.results["axes"].get(axis, {}).get("unit", "")
    return f"{value / 1e6:.4g} MB" if unit in ("bytes", "B") else f"{value:.4g} {unit or axis}".strip()


def loss_text(case: Case, c: Competitor) -> str:
    """The loss with its interval, in words."""
    loss = case.loss(c)
    low, high = loss.interval()
    verb = "loses"
    if loss.difference < 0:
        verb, low, high = "gains", -high, -low
    span = f" (95 % interval {100 * low:.3g} to {100 * high:.3g} %)" if math.isfinite(high) else " (no interval: one number was recorded)"
    return f"{verb} {percent(abs(loss.difference))}{span}"


def line(case: Case, winner: Competitor, chosen: Competitor, close: Sequence[str]) -> str:
    """The line that every reader sees first."""
    axis = case.cost if case.cheapest else case.main
    cost = f", {amount(case, axis, chosen.numbers[axis])}" if axis in chosen.numbers else ""
    known = case.reference is not None and chosen is not case.reference and number(case.reference.quality[0]) != 0
    loss = f", {loss_text(case, chosen)} against {case.reference.name}" if known and case.reference else ""
    title = {"size": "smallest", "speed": "fastest"}.get(str(case.prefer), "smallest" if case.cost == "bytes" else "cheapest")
    asked = f"the {title} within {percent(case.max_loss)} of {case.results['reference']}" if case.cheapest else f"the best {case.title(case.metric)}"
    asked += " inside the budget" if case.limits else ""
    if close:
        everyone = [winner.name, *close]
        both = f"{', '.join(everyone[:-1])} and {everyone[-1]}"
        axis_title = case.title(axis)
        return f"Too close to call: {both} for {asked}; {chosen.name} is taken, best in {axis_title} of those that qualify{cost}{loss}"
    return f"Recommended: {chosen.name}, {asked}{cost}{loss}"


def given_up(case: Case, c: Competitor) -> str:
    """What the user gives up, in one sentence."""
    if case.reference is None:
        return f"What is given up is unknown: the reference {case.results['reference']} was not measured."
    if c is case.reference:
        return f"Nothing is given up, and nothing is gained: {c.name} is the reference itself."
    name = case.reference.name
    title = case.title(case.metric)
    lost = f"{c.name} {loss_text(case, c)} in {title} against {name}" if number(case.reference.quality[0]) else f"{c.name} is taken"
    main = case.title(case.main)
    mine, base = c.numbers.get(case.main, math.nan), case.reference.numbers.get(case.main, math.nan)
    return f"{lost}, for {mine / base:.3g} times its {main}." if math.isfinite(mine) and base else f"{lost}."


def command(case: Case) -> str:
    """The command that hands over what was measured."""
    folder = case.settings.get("out")
    return f"etude apply --from {folder + '/' if folder else ''}results.json --out DIR"


def provisional(case: Case, involved: Sequence[Competitor]) -> str:
    """Why the recommendation is to be read with care; empty when it is not."""
    marked = list(dict.fromkeys((c.mark, c.name) for c in involved if c.mark))
    reasons = [grouped(marked)] if marked else []
    grid = (case.results.get("model") or {}).get("grid")
    if grid:
        reasons.append(f"the model's weights lie on a quantisation grid ({grid})")
    if case.settings.get("dev"):
        reasons.append("--dev: measured on the data that chose the operating points, the test part was not opened")
    if busy := busiest(case, involved):
        reasons.append(f"other programs used up to {busy:.1f} cores while it was timed: speeds are too low, and not comparable")
    single = sorted({c.name for c in involved if not c.deterministic and len(c.quality) < 2})
    if single:
        reasons.append(f"{', '.join(single)} ran with one seed: what differs between seeds is not counted")
    return f"Provisional: {'; '.join(reasons)}." if reasons else ""


def busiest(case: Case, involved: Sequence[Competitor]) -> float:
    """Cores that others used while what decides was timed; 0 where nothing timed decides, or the machine was quiet."""
    timed = {
        axis for axis, about in case.results["axes"].items() if str(about.get("unit", "")) in ("s", "ms", "seconds") or "/s" in str(about.get("unit"))
    }
    if not timed & {case.cost, *(limit["axis"] for limit in case.limits)}:
        return 0.0
    most = max((c.numbers.get("other_load", 0.0) for c in involved), default=0.0)
    return most if most > QUIET else 0.0


def comparison(test: Test, p: float) -> dict[str, Any]:
    """One comparison as plain JSON, its p-value Holm-corrected."""
    low, high = test.gain.interval()
    numbers = {"difference": plain(test.gain.difference), "low": plain(low), "high": plain(high), "p": plain(p)}
    return {"against": test.against, **numbers, "beats": bool(p < ALPHA and test.counts), "test": test.what}


def nothing(case: Case, why: str) -> dict[str, Any]:
    """A recommendation of nothing, with the reason."""
    empty: dict[str, Any] = {"name": None, "options": {}, "winner": None, "close": [], "sentence": "", "command": "", "comparisons": [], "more": ""}
    return {"line": f"No recommendation: {why}", "status": "none", **empty, "provisional": ""}
