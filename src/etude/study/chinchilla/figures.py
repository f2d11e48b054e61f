"""The plots of the études."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from etude.measure.contract import Items, Metrics, number
from etude.study._runs import Rows, Runs
from etude.study.chinchilla.approaches import fit_frontier, isoflop

Recorded = Mapping[tuple[str, int], Metrics]


def by_cut(runs: Recorded, arms: Sequence[str], limit: float) -> Any:
    """Error on larger runs by cut, one dot a seed."""
    figure, axis = _axes("error on runs of 8 times the compute and more")
    for k, arm in enumerate(arms):
        found = [metrics for (name, _), metrics in runs.items() if name == arm]
        cuts = [key for key, value in found[0].items() if isinstance(value, Items)] if found else []
        for metrics in found:
            axis.plot(np.arange(len(cuts)) + 0.12 * (k - 1), [number(metrics[cut]) for cut in cuts], "o", color=f"C{k}", alpha=0.6)
        axis.plot([], [], "o", color=f"C{k}", label=arm)
        axis.set_xticks(range(len(cuts)), [cut.removeprefix("error_") for cut in cuts])
    axis.axhline(limit, lw=0.8, color="grey", ls="--")
    axis.set(xlabel="fitted below, FLOP", ylabel="mean absolute log error")
    axis.legend()
    return figure


def parabolas(runs: Runs, groups_of: Callable[[Runs], list[Rows]]) -> Any:
    """Loss against size at each budget with its parabola, and the line through the vertices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = groups_of(runs)
    for k, rows in enumerate(groups):
        x, y = np.log(runs.parameters[rows]), runs.loss[rows]
        curve = np.polyfit(x, y, 2)
        line = np.linspace(x.min(), x.max(), 60)
        left.plot(np.exp(x), y, "o", ms=3, color=f"C{k}", label=f"{runs.compute[rows].mean():.1e}")
        left.plot(np.exp(line), np.polyval(curve, line), lw=1, color=f"C{k}")
    left.set(xscale="log", xlabel="parameters", ylabel="loss", title="IsoFLOP groups")
    left.legend(title="FLOP", fontsize=7)
    points = isoflop(runs, groups)
    fit = fit_frontier(points)
    right.plot(points.compute, points.parameters, "o")
    line = np.geomspace(points.compute.min(), points.compute.max(), 20)
    right.plot(line, fit["scale"] * line ** fit["exponent"], lw=1, label=f"C^{fit['exponent']:.3f}")
    right.plot(line, points.parameters[0] * (line / points.compute[0]) ** 0.73, lw=1, ls=":", color="grey", label="Kaplan, C^0.73")
    right.set(xscale="log", yscale="log", xlabel="compute (FLOP)", ylabel="optimal parameters", title="vertices")
    right.legend()
    return figure


def residuals(arms: Mapping[str, Metrics]) -> Any:
    """Predicted over observed against tokens a parameter."""
    figure, axis = _axes("residuals of refit and printed constants")
    for k, (arm, metrics) in enumerate(arms.items()):
        values = 100 * np.array(metrics["residuals"])
        axis.plot(metrics["ratio"], values, "o", ms=3, color=f"C{k}", label=f"{arm}: {metrics.tokens_per_parameter:.0f} tokens a parameter at 5.8e23")
    axis.axhline(0, lw=0.8, color="grey")
    axis.set(xscale="log", xlabel="tokens a parameter", ylabel="predicted over observed, %")
    axis.legend()
    return figure


def ladder(runs: Recorded, arms: Sequence[str]) -> Any:
    """Predicted against observed losses of the larger runs."""
    figure, axis = _axes("larger runs of the ladder")
    for k, arm in enumerate(arms):
        found = [metrics for (name, _), metrics in runs.items() if name == arm]
        for metrics in found:
            axis.plot(metrics["observed"], metrics["predicted"], "o", ms=4, color=f"C{k}", alpha=0.6)
        if found:
            axis.plot([], [], "o", color=f"C{k}", label=f"{arm}: error {np.mean([m.error for m in found]):.3f}")
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], lw=0.8, color="grey")
    axis.set(xlabel="observed loss, nats a symbol", ylabel="predicted loss")
    axis.legend()
    return figure


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title)
    return figure, axis
