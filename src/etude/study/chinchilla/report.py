"""What is written beside `fit.json`: a summary to read, the plans as CSV, the rows that were used, the plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etude.study._runs import Runs

if TYPE_CHECKING:
    from etude.study.chinchilla.law import ChinchillaLaw, Frontier, Plan

COLUMNS = ("parameters", "tokens", "loss", "compute")


def write(law: ChinchillaLaw | Frontier, plans: Sequence[Plan], folder: Path) -> None:
    """`plan.csv`, `summary.md`, `runs.csv` and `fit.png`."""
    with (folder / "plan.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["compute", *(f"{name}{end}" for name in COLUMNS[:3] for end in ("", "_low", "_high")), "tokens_per_parameter", "note"])
        for plan in plans:
            numbers = [*plan.parameters, *plan.tokens, *plan.loss, plan.tokens_per_parameter]
            out.writerow([f"{plan.compute:.6g}", *("" if np.isnan(x) else f"{x:.6g}" for x in numbers), plan.note])
    (folder / "summary.md").write_text(summary(law, plans))
    with (folder / "runs.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        out.writerows(zip(*(law.about.get("runs", {}).get(name, []) for name in COLUMNS), strict=True))
    figure = law.plot()
    figure.savefig(folder / "fit.png", dpi=130)


def read_runs(path: Path) -> dict[str, list[float]]:
    """The columns of `runs.csv`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in COLUMNS}


def write_json(data: dict[str, Any], folder: Path) -> None:
    """`fit.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fit.json").write_text(json.dumps(data, indent=1) + "\n")


def summary(law: ChinchillaLaw | Frontier, plans: Sequence[Plan]) -> str:
    """The fit in words: constants with intervals, plans, warnings."""
    about = law.about
    lines = [f"# Scaling law of {about.get('rows')} runs (approach {about.get('approach')})", ""]
    if hasattr(law, "formula"):
        lines += [f"L(N, D) = {law.formula}", ""]
    values = getattr(law, "parameters", None) or {name: getattr(law, name) for name in law.interval()}
    lines += ["| constant | value | 95 % low | high |", "| --- | --- | --- | --- |"]
    rows = [(name, values[name], *span) for name, span in law.interval().items()] + [(name, *span) for name, span in law.exponents().items()]
    lines += [f"| {name} | {value:.5g} | {low:.5g} | {high:.5g} |" for name, value, low, high in rows]
    lines += [
        "",
        "N_opt grows as C^a, D_opt as C^b.",
        "",
        "| compute (FLOP) | parameters | tokens | tokens a parameter | loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for p in plans:
        cells = [f"{v:.4g} ({low:.4g} to {high:.4g})" for v, low, high in (p.parameters, p.tokens)]
        loss = f"{p.loss[0]:.4g} ({p.loss[1]:.4g} to {p.loss[2]:.4g})"
        lines.append(f"| {p.compute:.4g} | {cells[0]} | {cells[1]} | {p.tokens_per_parameter:.3g} | {loss} |")
    notes = [*about.get("notes", []), *(f"plan for {p.compute:.3g} FLOP: {p.note}" for p in plans if p.note)]
    lines += ["", "## To be read with care" if notes else "No warnings.", ""] + [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


def law_figure(law: ChinchillaLaw) -> Any:
    """Three panels: loss against size by budget, optimal size against compute, residuals."""
    figure, (left, middle, right) = _panels(3)
    runs = _runs(law)
    if runs is not None:
        shades = _shade(left, runs.parameters, runs.loss, runs.compute)
        figure.colorbar(shades, ax=left, label="log10 FLOP")
        for compute in np.geomspace(runs.compute.min(), runs.compute.max(), 5):
            n = np.geomspace(runs.parameters.min(), runs.parameters.max(), 100)
            d = compute / (law.flops * n)
            inside = (d >= runs.tokens.min() / 2) & (d <= 2 * runs.tokens.max())
            left.plot(n[inside], law.predict(n, d)[inside], lw=1, color=shades.to_rgba(np.log10(compute)))
        right.scatter(runs.tokens / runs.parameters, 100 * law.residuals, s=10)
        _frontier(middle, law, float(runs.compute.min()), 10 * float(runs.compute.max()))
    left.set(xscale="log", xlabel="parameters N", ylabel="loss", title="runs, and the law at five budgets")
    right.axhline(0, lw=0.8, color="grey")
    right.set(xscale="log", xlabel="tokens a parameter", ylabel="predicted over observed, %", title="residuals")
    return figure


def frontier_figure(law: Frontier) -> Any:
    """Optimal size and loss against compute."""
    figure, (left, right) = _panels(2)
    points = np.array(law.points)
    low, high = float(points[:, 0].min()), float(points[:, 0].max())
    _frontier(left, law, low, 10 * high)
    left.scatter(points[:, 0], points[:, 1], s=12)
    right.scatter(points[:, 0], points[:, 2], s=12)
    c = np.geomspace(low, 10 * high, 50)
    right.plot(c, law.loss_scale * c**-law.loss_exponent, lw=1)
    right.set(xscale="log", yscale="log", xlabel="compute (FLOP)", ylabel="loss", title="loss on the frontier")
    return figure


def _frontier(axis: Any, law: ChinchillaLaw | Frontier, low: float, high: float) -> None:
    compute = np.geomspace(low, high, 30)
    plans = [law.plan(float(c)).parameters for c in compute]
    values = np.array(plans)
    axis.plot(compute, values[:, 0], lw=1.5)
    axis.fill_between(compute, values[:, 1], values[:, 2], alpha=0.25, lw=0)
    a, low, high = law.exponents()["a"]
    axis.set(xscale="log", yscale="log", xlabel="compute (FLOP)", ylabel="optimal parameters", title=f"N_opt ~ C^{a:.3f} ({low:.3f} to {high:.3f})")


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    return figure, figure.subplots(1, count)


def _shade(axis: Any, x: Any, y: Any, compute: Any) -> Any:
    return axis.scatter(x, y, c=np.log10(compute), s=10, cmap="viridis")


def _runs(law: ChinchillaLaw) -> Runs | None:
    rows = law.about.get("runs")
    if not rows or len(rows["loss"]) != len(law.residuals):
        return None
    columns = [np.array(rows[name], float) for name in COLUMNS]
    return Runs(*columns, run=tuple(map(str, range(len(columns[0])))))
