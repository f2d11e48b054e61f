"""Études of the compute-optimal law: does it extrapolate, do size and data scale alike, do the published constants fit, does a tiny ladder do?"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.corpora import Piece, fetch, file_of
from etude.harness.contract import Claim, Experiment, Figure, Run
from etude.harness.verdict import above, all_of, below, contains, exact, log_ratio
from etude.measure.contract import Items, Metrics
from etude.study._law import Law
from etude.study._robust import bootstrap_weights, huber, minimise
from etude.study._runs import Array, Rows, Runs, read
from etude.study._synthetic import csv_text, isoflop_table
from etude.study.baselines.kaplan import Kaplan
from etude.study.baselines.power_law import PowerLaw
from etude.study.chinchilla import Chinchilla, figures
from etude.study.chinchilla.approaches import budgets_of, fit_frontier, isoflop
from etude.study.chinchilla.law import optimum
from etude.study.chinchilla.parametric import PAPER, REPLICATION, REPLICATION_ERROR, fit_projection, log_residuals, lse_model

FIGURE4 = Piece(
    "scaling/chinchilla_figure4.csv",
    "https://raw.githubusercontent.com/epoch-research/analyzing-chinchilla/main/data/svg_extracted_data.csv",
    "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
)
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # the paper's IsoFLOP budgets
DELTA = 1e-3
ROLES = ("parameters", "tokens", "loss", "compute")
LAWS = {"chinchilla": Chinchilla, "kaplan": Kaplan, "power_law": PowerLaw}


@dataclass(frozen=True)
class Scale:
    """Size of the studies of the paper's own runs.

    Attributes:
        source: "figure4", the runs read off the paper's Figure 4, or "synthetic", runs made up from known constants.
        cuts: largest compute that is fitted; judged on runs of at least 8 times as much.
        drop: how many of the highest losses are left out.
    """

    source: str = "figure4"
    cuts: tuple[float, ...] = (3e19, 1e20, 3e20)
    drop: int = 5
    budgets: tuple[float, ...] = BUDGETS


SYNTHETIC = Scale("synthetic", (3e19, 1e20), 0, tuple(1e18 * 3.0**k for k in range(8)))
TABLES = {"smoke": SYNTHETIC, "desk": Scale(), "gpu": Scale()}


def write_runs(run: Run, scale: Scale, folder: Path) -> None:
    """`runs.csv`: the table of the scale, the same for all arms and seeds."""
    if scale.source == "synthetic":
        (folder / "runs.csv").write_text(csv_text(isoflop_table(seed=4)))
    else:
        (folder / "runs.csv").write_bytes(fetch(FIGURE4, say=lambda line: None).read_bytes())


def load_runs(path: Path, drop: int = 0) -> Runs:
    """The runs of a CSV file without its `drop` highest losses."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return read({name: [row[name] for row in rows] for name in rows[0]}).without_highest_losses(drop)


def columns(runs: Runs, weights: Array | None = None) -> dict[str, Any]:
    """The runs as a table, each row repeated as often as it was drawn."""
    rows = np.arange(len(runs)) if weights is None else np.repeat(np.arange(len(runs)), weights.astype(int))
    return {name: getattr(runs, name)[rows] for name in ROLES}


def named(runs: Runs, values: Any) -> Items:
    """One item a run."""
    return Items.of([f"run {name}" for name in runs.run], np.asarray(values, float).tolist())


# ---- claim 1 ----


class Extrapolation(Experiment[Scale]):
    """Fitted on small compute, judged at 8 times as much and more. A seed is a bootstrap draw of the fitted runs, as in the sheet."""

    seeds = 5
    scales = TABLES
    claims = (
        Claim(
            "the parametric law predicts runs of 8 times the compute and more: mean absolute log error at most 0.02 at every cut",
            lambda m: max(getattr(m["chinchilla"], name) for name in m["chinchilla"]),
            below(0.02),
            row="1",
        ),
        Claim(
            "its error is at most 0.6 times that of Kaplan's law at every cut (log ratio below log 0.6)",
            lambda m: max(log_ratio(getattr(m["chinchilla"], name), getattr(m["kaplan"], name)) for name in m["chinchilla"]),
            below(math.log(0.6)),
            row="1",
        ),
    )

    def prepare(self, run: Run, scale: Scale, folder: Path) -> None:
        write_runs(run, scale, folder)

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        return {name: partial(extrapolate, name) for name in LAWS}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        return figures.by_cut(runs, tuple(LAWS), limit=0.02)


def extrapolate(law: str, run: Run, scale: Scale) -> Metrics:
    """Errors of one law on the held-out runs of every cut."""
    runs = load_runs(run.path("prepared") / "runs.csv", scale.drop)
    metrics = Metrics()
    for cut in scale.cuts:
        small, large = runs.at(runs.compute < cut), runs.at(runs.compute >= 8 * cut)
        weights = bootstrap_weights(small.run, 1, seed=run.seed)[0]
        fitted = LAWS[law](bootstrap=0).fit(columns(small, weights))
        metrics[f"error_{cut:.0e}"] = named(large, np.abs(np.log(fitted.predict(large.parameters, large.tokens) / large.loss)))
    return metrics


# ---- claim 2 ----


class EqualScaling(Experiment[Scale]):
    """The exponent a of N_opt(C) by approaches 2 and 3; the interval is a bootstrap over runs that fits every draw anew."""

    deterministic = True
    scales = TABLES
    claims = (
        Claim(
            "IsoFLOP parabolas: the interval of a contains 0.5 and excludes 0.6 and Kaplan's 0.73",
            lambda m: isoflop_exponent(rows_of(m["isoflop"])),
            all_of(contains(0.5), below(0.6)),
            over="items",
            row="2",
        ),
        Claim(
            "parametric law: the interval of a contains 0.5 and excludes 0.6 and Kaplan's 0.73",
            lambda m: parametric_exponent(rows_of(m["parametric"])),
            all_of(contains(0.5), below(0.6)),
            over="items",
            row="2",
        ),
    )

    def prepare(self, run: Run, scale: Scale, folder: Path) -> None:
        write_runs(run, scale, folder)

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        return {"isoflop": partial(scaling, True), "parametric": partial(scaling, False)}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        return figures.parabolas(rows_of(runs["isoflop", 0]), isoflop_groups)


def scaling(grouped: bool, run: Run, scale: Scale) -> Metrics:
    """The rows that the exponent is fitted to, as items, and the exponent with the technique's own interval."""
    runs = load_runs(run.path("prepared") / "runs.csv", scale.drop)
    law = Chinchilla(approach=2 if grouped else 3, budgets=scale.budgets if grouped else ()).fit(columns(runs))
    a, low, high = law.exponents()["a"]
    if grouped:
        runs = runs.at(np.sort(np.concatenate(budgets_of(runs, scale.budgets))))
    rows = {f"{name} {law.about['approach']}": named(runs, getattr(runs, name)) for name in ROLES}  # the arms fit other rows, so other names
    return Metrics(a=a, a_low=low, a_high=high, **rows)


def rows_of(metrics: Metrics) -> Runs:
    """The runs that an arm recorded, as drawn."""
    items = [next(metrics[key] for key in metrics if key.startswith(role)) for role in ROLES]
    return Runs(*(np.array(item.top) for item in items), run=items[0].ids)


def isoflop_groups(runs: Runs) -> list[Rows]:
    """Rows within 15 % of one of the budgets of either scale."""
    groups = budgets_of(runs, BUDGETS)
    return groups if len(np.unique(np.concatenate(groups))) == len(runs) else budgets_of(runs, SYNTHETIC.budgets)


def isoflop_exponent(runs: Runs) -> float:
    """a by approach 2."""
    return fit_frontier(isoflop(runs, isoflop_groups(runs)))["exponent"]


def parametric_exponent(runs: Runs) -> float:
    """a by approach 3, started at the replication's constants (on the whole table the same optimum as the full search; a test holds it so)."""
    x, y = np.log(runs.parameters), np.log(runs.tokens)
    c = REPLICATION
    start = [math.log(c["A"]) - c["alpha"] * x.mean(), c["alpha"], math.log(c["B"]) - c["beta"] * y.mean(), c["beta"], math.log(c["E"])]
    theta, _ = minimise(lse_model(x - x.mean(), y - y.mean()), np.array([start]), np.log(runs.loss), DELTA, steps=150, tolerance=1e-10)
    return float(theta[0, 3] / (theta[0, 1] + theta[0, 3]))


# ---- claim 3 ----


class PublishedConstants(Experiment[Scale]):
    """The constants as printed in the paper against a refit of the paper's runs; items are runs."""

    deterministic = True
    scales = TABLES
    claims = (
        Claim(
            "the printed constants' Huber objective is at least 3 times the refit's",
            lambda m: m["published"].huber / m["refit"].huber,
            above(3.0),
            over="items",
            row="3",
        ),
        Claim(
            "likelihood ratio test of the printed constants: p below 1e-10 (log10 p below -10)",
            lambda m: log10_p(m["refit"]["likelihood"], m["published"]["likelihood"]),
            below(-10.0),
            over="items",
            row="3",
        ),
        Claim(
            "the refit lies within the 95 % intervals of the replication (arXiv 2404.10102) in all five constants",
            lambda m: float(all(abs(getattr(m["refit"], name) - REPLICATION[name]) <= 1.96 * REPLICATION_ERROR[name] for name in REPLICATION)),
            exact(1.0, 0.0),
            over="none",
            row="3",
        ),
    )

    def prepare(self, run: Run, scale: Scale, folder: Path) -> None:
        write_runs(run, scale, folder)

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        return {"refit": partial(constants_fit, None), "published": partial(constants_fit, PAPER)}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        return figures.residuals({arm: metrics for (arm, _), metrics in runs.items()})


def constants_fit(constants: Mapping[str, float] | None, run: Run, scale: Scale) -> Metrics:
    """How well constants fit: Huber values, log likelihoods under the density that belongs to them, tokens a parameter at Gopher's compute."""
    runs = load_runs(run.path("prepared") / "runs.csv", scale.drop)
    found = fit_projection(runs, DELTA).constants if constants is None else constants
    residuals = log_residuals(found, runs)
    n, d = optimum(found, 5.76e23 / 6)
    metrics = Metrics({name: float(value) for name, value in found.items()})
    metrics |= {"huber": named(runs, huber(residuals, DELTA)), "likelihood": named(runs, log_likelihood(residuals))}
    return Metrics(
        metrics | {"tokens_per_parameter": float(d / n), "residuals": residuals.tolist(), "ratio": (runs.tokens / runs.parameters).tolist()}
    )


def log_likelihood(residuals: Array) -> Array:
    """ln of the density exp(-Huber(r) / t) / Z(t) at each residual, its temperature t at the maximum of the likelihood."""
    from scipy.optimize import minimize_scalar

    values, grid = huber(residuals, DELTA), np.linspace(-1, 1, 200_001)
    shape = huber(grid, DELTA)

    def norm(temperature: float) -> float:
        return math.log(float(np.trapezoid(np.exp(-shape / temperature), grid)))

    best = minimize_scalar(
        lambda log_t: float(values.sum()) / math.exp(log_t) + len(values) * norm(math.exp(log_t)), bounds=(-18, 0), method="bounded"
    )
    temperature = math.exp(float(best.x))
    return -values / temperature - norm(temperature)


def log10_p(free: Items, fixed: Items) -> float:
    """log10 of the p value of twice the difference of log likelihoods at five degrees of freedom."""
    from scipy.stats import chi2

    ratio = 2 * (sum(free.top) - sum(fixed.top))
    tail = float(chi2.logsf(max(ratio, 0.0), 5))
    if not math.isfinite(tail):  # far out in the tail: its leading term
        tail = 1.5 * math.log(ratio / 2) - ratio / 2 - math.lgamma(2.5)
    return tail / math.log(10)


# ---- claim 4 ----


@dataclass(frozen=True)
class Steps:
    """Size of the ladder.

    Attributes:
        widths, horizons: of the models, and tokens each is trained on; every pair is one run.
        fit_below, judge_from: FLOP up to which runs are fitted, and from which they are judged.
        text: a corpus by name; empty for a made-up text.
    """

    widths: tuple[int, ...]
    horizons: tuple[int, ...]
    fit_below: float
    judge_from: float
    text: str = "wikitext2"


class OwnLadder(Experiment[Steps]):
    """54 runs of tiny byte-level models on WikiText-2: the smaller ones predict the larger ones. Exponents here need not be 0.5.

    The arm `planned` trains the planned size and the ladder's largest model at four times the fitted compute (recorded, no claim). Kaplan's form is
    fitted as well: on these tiny models, far above the floor, it predicts better than the law. The gpu scale is a wider ladder of the same models on
    the same text (more tokens would repeat it); a ladder of 1M to 50M parameters is not here.
    """

    scales = {
        "smoke": Steps((2, 3, 4, 6), (2**9, 2**10, 2**11, 2**12), 6e6, 1.2e7, ""),
        "desk": Steps((2, 3, 4, 6, 8, 12, 16, 24, 32), tuple(2**k for k in range(16, 22)), 8e9, 64e9),
        "gpu": Steps((2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96), tuple(2**k for k in range(16, 22)), 1.6e10, 1.28e11),
    }
    claims = (
        Claim(
            "the law's mean absolute log error on runs of 8 times the compute and more is at most 0.09",
            lambda m: m["chinchilla"].error,
            below(0.09),
            row="4",
        ),
        Claim(
            "the law's error is below the power law's over seeds (log ratio below 0)",
            lambda m: log_ratio(m["chinchilla"].error, m["power_law"].error),
            below(0.0),
            row="4",
        ),
    )

    def prepare(self, run: Run, scale: Steps, folder: Path) -> None:
        text = file_of(scale.text, say=lambda line: None).read_bytes() if scale.text else made_up_text()
        (folder / "text").write_bytes(text)

    def prepare_seed(self, run: Run, scale: Steps, folder: Path) -> None:
        from etude.study.chinchilla.tiny_models import ladder, symbols

        ids = symbols((run.path("prepared") / "text").read_bytes())
        rows = ["parameters,tokens,loss,compute"]
        rows += [f"{r.parameters},{r.tokens},{r.loss:.6f},{r.compute:.0f}" for r in ladder(scale.widths, scale.horizons, ids, run.seed)]
        (folder / "runs.csv").write_text("\n".join(rows) + "\n")

    def arms(self, scale: Steps) -> Mapping[str, Callable[[Run, Steps], Metrics]]:
        return {**{name: partial(climb, name) for name in LAWS}, "planned": planned}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        return figures.ladder(runs, tuple(LAWS))


def small_and_large(run: Run, scale: Steps) -> tuple[Runs, Runs]:
    """The fitted and the judged runs of a seed's ladder."""
    runs = load_runs(run.path("seed") / "runs.csv")
    return runs.at(runs.compute < scale.fit_below), runs.at(runs.compute >= scale.judge_from)


def climb(law: str, run: Run, scale: Steps) -> Metrics:
    """Errors of one law on the larger runs, and what the plot shows."""
    small, large = small_and_large(run, scale)
    fitted: Law = LAWS[law](bootstrap=0).fit(columns(small))
    predicted = fitted.predict(large.parameters, large.tokens)
    out = Metrics(error=named(large, np.abs(np.log(predicted / large.loss))), predicted=list(map(float, predicted)), observed=large.loss.tolist())
    constants = {name: float(value) for name, value in fitted.parameters.items()}
    return Metrics(out | constants | ({"a": fitted.exponent} if law == "chinchilla" else {}))


def planned(run: Run, scale: Steps) -> Metrics:
    """Train the planned size and the ladder's largest at four times the fitted compute, and compare their losses."""
    from etude.study.chinchilla.tiny_models import size_of, symbols, train, width_for

    small, _ = small_and_large(run, scale)
    law = Chinchilla(bootstrap=0).fit(columns(small))
    compute = 4 * scale.fit_below
    ids = symbols((run.path("prepared") / "text").read_bytes())
    found = {}
    for name, width in (("planned", width_for(law.optimum(compute)[0])), ("largest", max(scale.widths))):
        done = train(width, round(compute / (6 * size_of(width))), ids, 1000 * run.seed + 999)
        found |= {f"{name}_loss": done.loss, f"{name}_parameters": float(done.parameters), f"{name}_tokens": float(done.tokens)}
        if name == "planned":
            found["predicted_loss"] = float(law.predict(done.parameters, done.tokens))
    return Metrics(found)


def made_up_text(length: int = 60_000) -> bytes:
    """Words from a small grammar, for smoke runs."""
    dice = np.random.default_rng(0)
    words = [bytes(dice.integers(97, 123, size).tolist()) for size in dice.integers(2, 8, 300)]
    share = 1 / np.arange(1, 301)
    return b" ".join(words[i] for i in dice.choice(300, size=length // 5, p=share / share.sum()))


EXPERIMENTS = (Extrapolation, EqualScaling, PublishedConstants, OwnLadder)
