"""What the known-answer tests of the contests share: running a planted contest, and contests resampled from its stored runs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from etude.harness.compete import compete
from etude.harness.request import Request
from etude.measure.contract import Items, Metrics

Results = dict[str, Any]
CONTESTS, MOST = 200, 18  # resampled ones, and how many of them may name a winner between twins


def planted_contest(planted: ModuleType, classes: str, room: Path, **asked: Any) -> Results:
    """The results of a contest of the planted `classes` on what `planted.plant` makes."""
    request = Request(out=room / "out", with_file=f"{planted.__file__}:{classes}", brought=planted.plant(room), **asked)
    compete(request, lambda line: None)
    results: Results = json.loads((room / "out" / "results.json").read_text())
    return results


def contender(results: Results, name: str) -> Results:
    """One row of the results."""
    row: Results = next(one for one in results["contenders"] if one["name"] == name)
    return row


def runs_of(results: Results, name: str) -> list[Any]:
    """What decides, as each seed of a contender measured it."""
    return [Metrics.from_json(seed["metrics"])[results["quality"]] for seed in contender(results, name)["seeds"]]


def named_between_twins(results: Results, twins: Sequence[str], seeds: int, told: Callable[[list[Results]], Results]) -> int:
    """In how many of `CONTESTS` contests, resampled from the twins' stored runs, seeds and items drawn anew, a winner is named.

    Args:
        told: the recommendation among these rows: the reference's and the twins'.
    """
    stored, dice, named = [run for name in twins for run in runs_of(results, name)], random.Random(seeds), 0
    rows = [contender(results, name) for name in (results["reference"], *twins)]
    base, count = runs_of(results, results["reference"])[:seeds], len(stored[0].ids)
    for _ in range(CONTESTS):
        drawn, places = dice.sample(stored, 2 * seeds), dice.choices(range(count), k=count)
        runs = (base, drawn[:seeds], drawn[seeds:])
        recommendation = told([_with_runs(row, of_row, places, results["quality"]) for row, of_row in zip(rows, runs, strict=True)])
        named += recommendation["status"] == "recommended" and recommendation["name"] in twins
    return named


def _with_runs(row: Results, runs: Sequence[Any], places: Sequence[int], quality: str) -> Results:
    """A contender whose seeds gave these runs, each with its items drawn again."""
    seeds = []
    for run in runs:
        drawn = Items.of(range(len(places)), [run.top[i] for i in places], [run.bottom[i] for i in places])
        seeds.append(row["seeds"][0] | {"metrics": row["seeds"][0]["metrics"] | Metrics({quality: drawn}).to_json()})
    return row | {"seeds": seeds}
