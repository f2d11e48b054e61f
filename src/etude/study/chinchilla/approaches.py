"""Approaches 1 (envelope of training curves) and 2 (IsoFLOP parabolas): the optimal size at each compute, and a line through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from etude.study._robust import bootstrap_weights
from etude.study._runs import Array, Rows, Runs, clusters
from etude.study.chinchilla.law import FRONTIER, Frontier

SAME_SIZE = 0.04  # sizes read off a plot differ by less than this share
SAME_BUDGET = 0.15  # the paper's budgets are hit to within 15 %

NO_FLOOR = "the loss along the frontier is a straight line in logs, without a floor: beyond the runs it is too low; approach 3 predicts losses"


@dataclass(frozen=True)
class Points:
    """Optimal points (C, N, L), and notes on what was left out."""

    compute: Array
    parameters: Array
    loss: Array
    notes: tuple[str, ...] = ()


def envelope(runs: Runs, curves: Sequence[str], grid: int = 1500) -> Points:
    """Approach 1: at `grid` log-spaced FLOP values, the curve of least loss among those that reach so far.

    Args:
        curves: which curve a row belongs to: its run, or, for finished runs only, its model size.

    Raises:
        ValueError: fewer than three curves have two points or more.
    """
    lines = _curves(runs, curves)
    if len(lines) < 3:
        raise ValueError(f"approach 1 needs at least 3 sizes with two horizons or more, the table has {len(lines)}: add runs, or take approach 3")
    at = np.linspace(min(c[0] for c, _, _ in lines), max(c[-1] for c, _, _ in lines), grid)
    losses = np.stack([np.interp(at, c, y, left=np.inf, right=np.inf) for c, _, y in lines])
    sizes = np.array([n for _, n, _ in lines])
    inner = _inside(losses, sizes)
    best = np.argmin(losses, 0)
    if inner.sum() < 2:
        raise ValueError("approach 1 found no compute at which the best size lies inside the sampled ones: add smaller and larger models")
    share = 1 - inner.mean()
    notes = (f"approach 1: {share:.0%} of the compute range was left out, the best curve there being the smallest or largest model",) if share else ()
    return Points(np.exp(at[inner]), sizes[best][inner], np.exp(losses.min(0)[inner]), notes)


def isoflop(runs: Runs, groups: Sequence[Rows], weights: Array | None = None) -> Points:
    """Approach 2: a parabola of loss in ln N at each budget; its vertex is the optimal size.

    A vertex outside the sampled sizes, or a parabola that opens downwards, is left out and noted.

    Raises:
        ValueError: fewer than two budgets have a vertex inside their sampled sizes.
    """
    found, notes = [], []
    for rows in groups:
        x, y, compute = np.log(runs.parameters[rows]), runs.loss[rows], float(np.exp(np.log(runs.compute[rows]).mean()))
        weight = np.ones(len(rows)) if weights is None else weights[rows]
        if len(clusters(runs.parameters[rows][weight > 0], SAME_SIZE)) < 4:
            notes.append(f"budget {compute:.3g} FLOP left out: fewer than 4 distinct sizes")
            continue
        centre = float(np.average(x, weights=weight))
        curve, slope, level = np.polyfit(x - centre, y, 2, w=np.sqrt(weight))
        vertex = centre - slope / (2 * curve) if curve > 0 else np.inf
        if not (curve > 0 and x.min() <= vertex <= x.max()):
            notes.append(f"budget {compute:.3g} FLOP left out: its parabola has no minimum inside the sampled sizes; sample further out")
            continue
        found.append((compute, float(np.exp(vertex)), float(level - slope**2 / (4 * curve))))
    if len(found) < 2:
        raise ValueError(f"approach 2 needs 2 budgets with a minimum inside their sizes, found {len(found)} ({'; '.join(notes) or 'no budgets'})")
    return Points(*np.array(found).T, tuple(notes))


def budgets_of(runs: Runs, nominal: Sequence[float] = (), least: int = 4) -> list[Rows]:
    """IsoFLOP groups: rows within 15 % of a nominal budget, or, when none are named, of the densest compute values in turn."""
    logs, radius = np.log(runs.compute), np.log1p(SAME_BUDGET)
    if nominal:
        groups = [np.flatnonzero(np.abs(runs.compute / budget - 1) <= SAME_BUDGET) for budget in nominal]
        return [rows for rows in groups if len(rows)]
    free, groups = np.ones(len(logs), dtype=bool), []
    while free.any():
        near = (np.abs(logs[:, None] - logs) <= radius) & free[:, None] & free
        best = int(np.argmax(near.sum(1)))
        rows = np.flatnonzero(near[best])
        if len(rows) < least:
            break
        free[rows] = False
        if len(clusters(runs.parameters[rows], SAME_SIZE)) >= 4:
            groups.append(rows)
    return sorted(groups, key=lambda rows: float(logs[rows].mean()))


def fit_frontier(points: Points) -> dict[str, float]:
    """Straight lines of ln N and ln L in ln C."""
    x = np.log(points.compute)
    if np.ptp(x) == 0:
        raise ValueError("all points lie at one compute: a line needs two budgets")
    exponent, level = np.polyfit(x, np.log(points.parameters), 1)
    fall, height = np.polyfit(x, np.log(points.loss), 1)
    return {"scale": float(np.exp(level)), "exponent": float(exponent), "loss_scale": float(np.exp(height)), "loss_exponent": float(-fall)}


def fit_envelope(runs: Runs, by_size: bool, draws: int, seed: int, about: dict) -> Frontier:
    """Approach 1 with a bootstrap over whole runs."""
    curves = _size_names(runs) if by_size else runs.run
    points = envelope(runs, curves)
    weights = bootstrap_weights(runs.run, draws, seed, curves if by_size else None)
    drawn = [np.flatnonzero(w) for w in weights]
    refits = [_attempt(partial(envelope, runs.at(rows), [curves[i] for i in rows])) for rows in drawn]
    return _frontier(points, refits, about)


def fit_isoflop(runs: Runs, nominal: Sequence[float], draws: int, seed: int, about: dict) -> Frontier:
    """Approach 2 with a bootstrap over runs within their budgets."""
    groups = budgets_of(runs, nominal)
    if not groups:
        raise ValueError("approach 2 found no budget with 4 runs or more within 15 % of it: name the budgets, or take approach 3")
    points = isoflop(runs, groups)
    rows = np.concatenate(groups)
    strata = np.concatenate([[k] * len(group) for k, group in enumerate(groups)])
    counts = np.zeros((draws, len(runs)))
    counts[:, rows] = bootstrap_weights([runs.run[i] for i in rows], draws, seed, list(strata))
    return _frontier(points, [_attempt(partial(isoflop, runs, groups, w)) for w in counts], about)


def _frontier(points: Points, refits: Sequence[dict[str, float] | None], about: dict) -> Frontier:
    good = [refit for refit in refits if refit is not None]
    notes = [*about.get("notes", []), *points.notes, NO_FLOOR]
    if len(good) < len(refits):
        notes.append(f"{len(refits) - len(good)} of {len(refits)} bootstrap draws had no fit and were left out: the intervals are too narrow")
    draws = {name: np.array([refit[name] for refit in good]) for name in FRONTIER} if good else {}
    thin = slice(None, None, max(1, len(points.compute) // 50))
    rows = list(zip(points.compute[thin].tolist(), points.parameters[thin].tolist(), points.loss[thin].tolist(), strict=True))
    return Frontier(**fit_frontier(points), draws=draws, points=rows, about={**about, "notes": notes})


def _attempt(make: Callable[[], Points]) -> dict[str, float] | None:
    try:
        return fit_frontier(make())
    except ValueError:  # this draw lost a budget or an end: counted by the caller
        return None


def _size_names(runs: Runs) -> list[str]:
    names = [""] * len(runs)
    for k, rows in enumerate(clusters(runs.parameters, SAME_SIZE)):
        for i in rows:
            names[i] = str(k)
    return names


def _curves(runs: Runs, curves: Sequence[str]) -> list[tuple[Array, float, Array]]:
    out, names = [], np.asarray(curves)
    for name in dict.fromkeys(curves):
        rows = np.flatnonzero(names == name)
        rows = rows[np.argsort(runs.compute[rows], kind="stable")]
        if len(rows) > 1:
            size = float(np.exp(np.log(runs.parameters[rows]).mean()))
            out.append((np.log(runs.compute[rows]), size, np.minimum.accumulate(np.log(runs.loss[rows]))))
    return out


def _inside(losses: Array, sizes: Array) -> NDArray[np.bool_]:
    """Where the best curve has both a smaller and a larger model that was trained as far."""
    best, there = np.argmin(losses, 0), np.isfinite(losses)
    mine = sizes[best]
    smaller = (there & (sizes[:, None] < mine)).any(0)
    larger = (there & (sizes[:, None] > mine)).any(0)
    return smaller & larger
