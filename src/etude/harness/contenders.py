"""Each contender's part of the report: settings, traits, licence, tuning curve, runs, memory and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from etude.harness.display import Results, axis, digits, failures, finite, kind, metrics, shown, unit
from etude.harness.formulas import untex
from etude.harness.page import Child, Markup, code, facts, h, table

WIDE, HIGH, LEFT, LOW = 320, 150, 52, 34  # the small plot and its margins
KINDS = {"paper": "a paper's method", "baseline": "baseline of the field", "own": "the user's own or another package's"}


def section(results: Results, contender: Results) -> Markup:
    """All that is known of one contender, folded."""
    name, error = str(contender["name"]), failures(results).get(str(contender["name"]))
    paper, licence = contender.get("paper"), contender.get("licence") or contender.get("license")
    parts: list[Child] = [
        h("p", "Failed: " + error, class_="error") if error else None,
        facts(
            [
                ("what", untex(str(contender.get("title") or ""))),
                ("kind", KINDS[kind(contender)] + (f" ({contender['role']})" if contender.get("role") else "")),
                ("paper", f"arXiv {paper}" if paper else None),
                ("licence", ", ".join(map(str, licence)) if isinstance(licence, list | tuple) else str(licence) if licence else "not stated"),
                ("traits", ", ".join(map(str, contender.get("traits") or ())) or "none"),
                ("budget", "not within budget" if contender.get("reached") is False and not error else None),
                ("mark", str(contender["mark"]) if contender.get("mark") else None),
                ("deterministic", None if error else determined(contender.get("deterministic"))),
                ("settings", code(contender.get("options") or {})),
                *described(contender.get("describe")),
                ("time", amounts(contender.get("wall"), "s")),
                ("memory", amounts(contender.get("memory"), "bytes")),
                ("runs", h("span", [h("code", str(run), class_="run") for run in identifiers(contender.get("run_ids"))])),
            ]
        ),
        points(results, contender.get("points") or ()),
        tuning(results, contender.get("tuning") or ()),
        seeds(results, contender.get("seeds") or ()),
    ]
    return h("details", h("summary", h("strong", name), h("span", " failed", class_="badge care") if error else None), *parts, id=identity(name))


def identity(name: str) -> str:
    """The id of a contender's section, safe as a fragment."""
    return "c-" + "".join(c if c.isalnum() and c.isascii() else f"_{ord(c):x}" for c in name)


def determined(value: object) -> str | None:
    """What was found of a contender's determinism."""
    return None if value is None else "yes: the first two seeds gave bit-equal answers" if value else "no: every seed was run"


def described(value: Any) -> list[tuple[str, Child]]:
    """What the contest says of the saved folder."""
    if isinstance(value, dict):
        return [(str(key).replace("_", " "), part if isinstance(part, str) else code(part)) for key, part in value.items()]
    return [("saved as", str(value))] if value else []


def identifiers(runs: Any) -> list[str]:
    """Run ids, whether they are listed or named."""
    return [f"{name}: {run}" for name, run in runs.items()] if isinstance(runs, dict) else [str(run) for run in runs or ()]


def amounts(value: Any, of: str) -> str | None:
    """Seconds or bytes, one number or several by name."""
    if isinstance(value, dict):
        parts = [f"{str(key).replace('_', ' ')} {shown(finite(part), of)}" for key, part in value.items() if finite(part) is not None]
        return ", ".join(parts) or None
    return None if finite(value) is None else shown(finite(value), of)


def points(results: Results, listed: Sequence[Any]) -> Markup | None:
    """The operating points, as measured on the choice split."""
    if not listed:
        return None
    names, lines = measured(results, listed), []
    for point in listed:
        said: Child = h("span", "Failed: " + str(point["error"]), class_="error") if point.get("error") else "chosen" if point.get("chosen") else ""
        lines.append([code(point.get("options") or {}), *numbers(results, point, names), said])
    return h("div", h("h4", "Operating points, on the choice split"), table(("Settings", *heads(results, names), ""), lines, "runs"))


def measured(results: Results, listed: Sequence[Any]) -> list[str]:
    """The metrics that any of these runs measured, in the table's order."""
    return [name for name in metrics(results) if any(finite((run.get("metrics") or {}).get(name)) is not None for run in listed)]


def heads(results: Results, names: list[str]) -> list[str]:
    """Headings with their units."""
    return [axis(results, name)["title"] + (f" ({unit(results, name)})" if unit(results, name) else "") for name in names]


def numbers(results: Results, run: Results, names: list[str]) -> list[str]:
    """One run's numbers as texts."""
    return [shown(finite((run.get("metrics") or {}).get(name)), axis(results, name)["unit"], 5) for name in names]


def seeds(results: Results, listed: Sequence[Any]) -> Markup | None:
    """What each seed measured on the test split."""
    names = measured(results, listed)
    if not names and not any(run.get("error") for run in listed):
        return None
    lines: list[list[Child]] = []
    for run in listed:
        error = h("span", "Failed: " + str(run["error"]), class_="error") if run.get("error") else ""
        lines.append([str(run.get("seed")), *numbers(results, run, names), error])
    return h("div", h("h4", "Seeds, on the test split"), table(("Seed", *heads(results, names), ""), lines, "runs"))


def tuning(results: Results, listed: Sequence[Any]) -> Markup | None:
    """The tuning curve and the trials behind it."""
    trials = [trial for trial in listed if finite(trial.get("score")) is not None]
    if not listed:
        return None
    lines = [[str(place + 1), code(trial.get("options") or {}), shown(finite(trial.get("score")), "", 5)] for place, trial in enumerate(listed)]
    trial_table = h("details", h("summary", f"{len(listed)} trials"), table(("Trial", "Settings", "Score"), lines))
    return h("div", h("h4", "Tuning, on the validation split"), curve(trials) if trials else None, trial_table)


def varied(trials: Sequence[Any]) -> tuple[str, list[float]]:
    """The one numeric option that was tuned, with its values; else the order of the trials."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.get("options") or {}))
    moving = [key for key in keys if len({str((trial.get("options") or {}).get(key)) for trial in trials}) > 1]
    if len(moving) == 1:
        numbers = [finite((trial.get("options") or {}).get(moving[0])) for trial in trials]
        if all(number is not None for number in numbers):
            return moving[0], [number for number in numbers if number is not None]
    return "trial", [float(place + 1) for place in range(len(trials))]


def curve(trials: Sequence[Any]) -> Markup:
    """Score (lower is better) against the tuned option, or in the order of trials with the best so far."""
    label, xs = varied(trials)
    ys = [float(trial["score"]) for trial in trials]
    log = label != "trial" and min(xs) > 0 and max(xs) / min(xs) > 10
    best = min(range(len(ys)), key=lambda i: ys[i])

    def place(value: float, low: float, high: float, start: float, end: float) -> float:
        return (start + end) / 2 if high == low else start + (end - start) * (value - low) / (high - low)

    at = [math.log(x) if log else x for x in xs]
    px = [place(x, min(at), max(at), LEFT + 8, WIDE - 12) for x in at]
    py = [place(y, min(ys), max(ys), HIGH - LOW - 6, 12) for y in ys]
    order = sorted(range(len(xs)), key=lambda i: xs[i])
    if label == "trial":
        heights = [max(py[: i + 1]) for i in range(len(py))]
        steps = " ".join(f"{'M' if i == 0 else f'H{px[i]:.1f} V'}{f'{px[i]:.1f} ' if i == 0 else ''}{heights[i]:.1f}" for i in order)
    else:
        steps = "M" + " L".join(f"{px[i]:.1f} {py[i]:.1f}" for i in order)
    dots = [
        h(
            "circle",
            h("title", f"{label} {xs[i]:.4g}: {digits(ys[i], 5)}"),
            cx=f"{px[i]:.1f}",
            cy=f"{py[i]:.1f}",
            r=5 if i == best else 3,
            class_="best" if i == best else "trial",
        )
        for i in range(len(ys))
    ]
    texts = [
        h("text", digits(max(ys), 4), x=LEFT - 4, y=16, text_anchor="end"),
        h("text", digits(min(ys), 4), x=LEFT - 4, y=HIGH - LOW - 2, text_anchor="end") if max(ys) > min(ys) else "",
        h("text", f"{min(xs):.4g}", x=LEFT + 8, y=HIGH - LOW + 14, text_anchor="middle"),
        h("text", f"{max(xs):.4g}", x=WIDE - 12, y=HIGH - LOW + 14, text_anchor="end") if max(xs) > min(xs) else "",
        h("text", label + (" (log scale)" if log else ""), x=(LEFT + WIDE) / 2, y=HIGH - 4, text_anchor="middle"),
        h("text", "score", x=12, y=(HIGH - LOW) / 2, text_anchor="middle", transform=f"rotate(-90 12 {(HIGH - LOW) / 2})"),
    ]
    frame = h("path", d=f"M{LEFT} 6V{HIGH - LOW}H{WIDE}", class_="frame")
    said = f"Tuning curve: score against {label}; the best is {digits(ys[best], 5)} at {xs[best]:.4g}"
    return h(
        "svg", frame, h("path", d=steps, class_="steps"), *dots, *texts, viewBox=f"0 0 {WIDE} {HIGH}", class_="tuning", role="img", aria_label=said
    )
