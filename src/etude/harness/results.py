"""The record of a contest: `results.json`, which report, `verify` and `apply --from` read."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from etude.harness.machine import versions
from etude.harness.referee import TIMED_THREADS, Measured, Referee
from etude.harness.request import Entrant
from etude.harness.store import identity
from etude.measure.contract import Items, Metrics, number

SCHEMA = 1
SEARCHED = "its search chose"  # told by the build that searched, on the seed that chooses


def assemble(
    referee: Referee,
    entrants: list[Entrant],
    tried: dict[str, list[Measured]],
    seeds: dict[str, list[Measured]],
    again: Measured,
    floor: float | None,
    samples: dict[str, list[str]] | None,
) -> dict[str, Any]:
    """Everything that was done and found, but the recommendation, as plain JSON."""
    request, contest, quality = referee.request, referee.contest, referee.inputs.quality
    reference = entrants[0]
    once = seeds[reference.label][0].metrics
    said = seeds[reference.label][0].probe
    noise = abs(getattr(once, quality) - getattr(again.metrics, quality)) if not again.error and quality in once else 0.0
    contenders = [
        contender(referee, entrant, tried.get(entrant.label, []), seeds.get(entrant.label, []), None if entrant is reference else said)
        for entrant in entrants
    ]
    failures = [
        {"name": entrant.label, "seed": one.seed, "step": one.step, "error": one.error}
        for entrant in entrants
        for one in [*tried.get(entrant.label, []), *seeds.get(entrant.label, [])]
        if one.error
    ] + [{"name": entrant.label, "seed": 0, "step": "points", "error": entrant.error} for entrant in entrants if entrant.error]
    axes = {name: {"unit": axis.unit, "better": axis.better, "title": axis.title or name} for name, axis in contest.axes.items()}
    if referee.inputs.metric:
        axes = {quality: {"unit": "", "better": "higher", "title": f"{quality} (your metric)"}} | axes
    results = {
        "etude": versions()["etude"],
        "schema": SCHEMA,
        "contest": f"{contest.family}/{contest.name}",
        "title": contest.title,
        "command": request.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings(referee, once),
        "quality": quality,
        "main_axis": contest.costs[0],
        "axes": axes,
        "model": referee.inputs.about.get("model", {}) | referee.facts,
        "data": referee.inputs.about["data"],
        "machine": referee.machine,
        "versions": versions(),
        "contenders": contenders,
        "reference": reference.label,
        "noise": noise,
        "floor": {
            "value": floor,
            "what": f"what a model that knows nothing reaches in {quality}" if floor is not None else "unknown for a metric of your own",
        },
        "openings": 0 if request.dev else 1,
        "failures": failures,
    }
    return results | ({"samples": samples} if samples is not None else {})


def settings(referee: Referee, reference: Metrics) -> dict[str, Any]:
    """What was asked, with every limit resolved to its axis's unit."""
    request, limits = referee.request, list[dict[str, Any]]()
    for limit in referee.limits:
        base = float(referee.reference_cost or 0.0) if limit["axis"] == referee.contest.costs[0] else 0.0
        base = base or (getattr(reference, limit["axis"]) if limit["axis"] in reference else math.nan)
        value = limit["amount"] * (base if limit["form"] in ("share", "faster") else 1.0)
        at_least = limit["form"] == "faster"
        limits.append({"text": limit["text"], "axis": limit["axis"], "limit": value, "reference": base, "at_least": at_least})
    return {
        "budget": limits,
        "max_loss": referee.max_loss,
        "prefer": request.prefer,
        "seeds": referee.seeds,
        "jobs": referee.runner.jobs,
        "dev": request.dev,
        "trials": referee.contest.trials,
        "threads": {"quality": 1, "timed": TIMED_THREADS},
        "dtype": referee.dtype,
        "device": request.device,
        "reference_cost": referee.reference_cost,
    }


def contender(referee: Referee, entrant: Entrant, tried: list[Measured], seeds: list[Measured], said: str | None) -> dict[str, Any]:
    """One row of the table, with all that lies behind it; `said` is the probe of the reference, None for itself."""
    good = [one for one in seeds if not one.error]
    chosen = tried[entrant.chosen] if entrant.chosen >= 0 else None
    records = [record for one in [*tried, *seeds] for record in one.records]
    summary = summarise([one.metrics for one in good])
    errors = [entrant.error, entrant.left_out, *(one.error for one in [*seeds, *tried] if one.error)] if not good else [""]
    entry = entrant.entry
    return {
        "name": entrant.label,
        "title": entry.title,
        "paper": entry.paper,
        "role": entry.role,
        "source": entry.source,
        "licence": entry.licence,
        "traits": list(entry.traits),
        "mark": referee.contest.marks(referee.facts, entry.traits),
        "deterministic": bool(good and chosen and good[0].probe == chosen.probe),
        "options": chosen.options | chosen.settled if chosen else entrant.options,
        "error": next((error for error in errors if error), None),
        "unchanged": bool(good and good[0].probe == said),
        "describe": {key: text for key, text in chosen.describe.items() if key == SEARCHED} | good[0].describe if good and chosen else {},
        "points": [
            {"options": one.options, "metrics": numbers(one.metrics), "error": one.error or None, "chosen": i == entrant.chosen}
            for i, one in enumerate(tried)
        ],
        "tuning": [trial for one in tried if one is chosen for trial in one.tuning],
        "seeds": [{"seed": one.seed, "built": one.built, "metrics": one.metrics.to_json(), "error": one.error or None} for one in seeds],
        "summary": summary,
        "run_ids": [identity(record.run)[:16] for record in records],
        "wall": sum(record.wall for record in records),
        "memory": max((float(record.memory.get("rss_anon") or record.memory.get("hwm") or 0.0) for record in records if record.memory), default=0.0),
    }


def numbers(metrics: Metrics) -> dict[str, float]:
    """The plain numbers, curves left out."""
    return {key: number(value) for key, value in metrics.items() if not isinstance(value, list)}


def summarise(runs: list[Metrics]) -> dict[str, dict[str, float]]:
    """Each metric's mean over seeds with its 95 % interval: over seeds where there are several, else over items."""
    from etude.harness.intervals import interval_items, interval_t

    found = dict[str, dict[str, float]]()
    for key in runs[0] if runs else ():
        values = [run[key] for run in runs if key in run and not isinstance(run[key], list)]
        if not values:
            continue
        plain = [number(value) for value in values]
        mean = sum(plain) / len(plain)
        first = values[0]
        if isinstance(first, Items):
            low, high = interval_items([value for value in values if isinstance(value, Items)])
        elif len(plain) > 1:
            low, high = interval_t(plain)
        else:
            low = high = mean
        found[key] = {"value": mean, "low": low, "high": high}
    return found
