r"""Chinchilla: from a table of training runs to the best model size and token count for a compute budget.

A run trains \(N\) parameters on \(D\) tokens, costs \(C = 6ND\) FLOP and ends at a loss. Approach 3 of the paper fits

$$ L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}} $$

(\(E\): entropy of the text; the second term: finite capacity; the third: finite data and steps) by a Huber loss on \(\ln L\), and has
the optimum in closed form: \(N_{opt} = G (C/6)^{a}\), \(D_{opt} = G^{-1} (C/6)^{b}\), \(a = \beta/(\alpha+\beta)\), \(b = 1 - a\),
\(G = (\alpha A/\beta B)^{1/(\alpha+\beta)}\). Approach 1 takes the lower envelope of training curves, approach 2 the vertex of a
parabola of loss in \(\ln N\) at each budget; both then draw a line \(N_{opt} \propto C^a\) and know no loss off it.

The fit is not the paper's: its grid of 4500 starts takes about a minute (`search="grid"` does it); here only \((\alpha, \beta)\) are
searched, \(E, A, B \ge 0\) being solved for at each node, and the best nodes are polished together: the same optimum in a tenth of a
second. The Huber loss is summed and followed to stationarity. (The published constants, \(E = 1.69\), \(\alpha = 0.34\),
\(\beta = 0.28\), came from a mean that stopped early; a refit of the paper's own runs gives 1.82, 0.35, 0.37: arXiv 2404.10102.)
Intervals are percentiles of a bootstrap over whole runs.

Use it with a dozen runs or more that spread N and D apart over two decades of compute, each with a learning-rate cycle as long as its
own training. Not with one size, one ratio D/N, several epochs over the same data, or intermediate losses of decaying schedules: those
are no losses of shorter runs, and are dropped unless `schedule` says otherwise. Far beyond the largest run it is a guess: `plan`
warns above ten times. For the smallest models it matters whether N counts embeddings; `counts` keeps what was counted with the law.

    >>> from etude.study.chinchilla import Chinchilla
    >>> law = Chinchilla().fit(table)             # Table, DataFrame or dict with parameters, loss, and tokens or compute
    >>> law.plan(1e21).parameters                 # (value, low, high)
    >>> law.save("fit")                           # fit.json, plan.csv, summary.md, fit.png

No runs yet? `etude.study.chinchilla.planner.ladder(largest=1e17)` lists cheap ones and their cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from etude.study._robust import huber
from etude.study._runs import Array, Runs, check, read
from etude.study.chinchilla.approaches import fit_envelope, fit_isoflop
from etude.study.chinchilla.law import ChinchillaLaw, Frontier
from etude.study.chinchilla.parametric import FORMULA, NAMES, Fit, bootstrap, fit_grid, fit_projection, log_residuals

PAPER, ROLE, CLASS = "2203.15556", "contender", "Chinchilla"
ENTERS = ("study",)
NEEDS = ("Table",)
TRAITS = ("parametric",)


@dataclass(frozen=True)
class Chinchilla:
    """Options of the fit.

    Attributes:
        approach: 1 envelope of curves, 2 IsoFLOP parabolas, 3 parametric law.
        delta: Huber threshold on ln L (approach 3).
        bootstrap: draws of whole runs for the intervals; 0 for none.
        drop_highest_losses: how many of the highest losses to leave out; the fit with them is reported beside.
        search: "projection" (variable projection) or "grid" (the paper's 4500 starts, about a minute).
        schedule: "cosine" (or any decay: only the last row of a run counts), "constant" or "wsd" (every row counts).
        budgets: nominal IsoFLOP budgets in FLOP for approach 2; found in the table when empty.
        plan_for: compute budgets in FLOP that are planned in the saved files; 1, 3 and 10 times the largest run when empty.
        flops: FLOP a parameter spends on a token; None takes the table's median where it has N, D and C, else 6.
        counts: what N counts: "total", "non-embedding" or "unknown"; kept with the law.
        seed: of the bootstrap.
    """

    approach: int = 3
    delta: float = 1e-3
    bootstrap: int = 1000
    drop_highest_losses: int = 0
    search: Literal["projection", "grid"] = "projection"
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    budgets: tuple[float, ...] = ()
    plan_for: tuple[float, ...] = ()
    flops: float | None = None
    counts: Literal["unknown", "total", "non-embedding"] = "unknown"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.approach not in (1, 2, 3):
            raise ValueError(f"approach is 1 (envelope), 2 (IsoFLOP) or 3 (parametric), got {self.approach}")
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta is a positive Huber threshold on ln L, got {self.delta}")
        if self.bootstrap < 0 or self.drop_highest_losses < 0:
            name = "bootstrap" if self.bootstrap < 0 else "drop_highest_losses"
            raise ValueError(f"{name} is a count and cannot be negative, got {getattr(self, name)}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("budgets", "plan_for"):
            if any(not (np.isfinite(value) and value > 0) for value in getattr(self, name)):
                raise ValueError(f"{name} holds FLOP counts, each positive, got {getattr(self, name)}")
        if self.flops is not None and not (np.isfinite(self.flops) and self.flops > 0):
            raise ValueError(f"flops is a positive number of FLOP a parameter and token (6 is usual), got {self.flops}")

    def points(self, budget: Any, subject: Any) -> list[Self]:
        """One operating point: a fit costs next to nothing."""
        return [self]

    def fit(self, table: Any, data: Any = None) -> ChinchillaLaw | Frontier:
        """The law of a table of runs.

        Args:
            table: a `Table` part, a DataFrame or a mapping of columns: parameters, loss, and tokens or compute; a run column
                tells which rows are checkpoints of one run.
            data: what a contest hands over besides; not used.

        Raises:
            ValueError: the table cannot identify a law; the message says why and the way out.
        """
        everything = read(table, self.flops)
        ends = everything.finished()
        every_row = self.schedule != "cosine"
        check(ends if not every_row else everything, 6)
        if len(set(everything.run)) < 6 and every_row:
            raise ValueError(f"the table holds {len(set(everything.run))} runs, a law needs at least 6: checkpoints of one run are no further runs")
        whole = everything if every_row else ends
        runs = whole.without_highest_losses(self.drop_highest_losses)
        check(runs)
        notes = [] if len(whole) == len(everything) else [unfinished_note(len(everything) - len(whole))]
        about = self._about(runs, notes)
        if self.approach == 3:
            return self._parametric(runs, whole, about)
        if self.approach == 1:
            return fit_envelope(runs, not every_row, self.bootstrap, self.seed, about)
        return fit_isoflop(runs, self.budgets, self.bootstrap, self.seed, about)

    def _about(self, runs: Runs, notes: list[str]) -> dict[str, Any]:
        if len(runs) < 12:
            notes = [*notes, f"{len(runs)} runs for five constants: the intervals say little below a dozen"]
        spans = {name: [float(getattr(runs, name).min()), float(getattr(runs, name).max())] for name in ("parameters", "tokens", "compute", "loss")}
        rows = {name: getattr(runs, name).tolist() for name in ("parameters", "tokens", "loss", "compute")}
        options = {"delta": self.delta, "bootstrap": self.bootstrap, "drop_highest_losses": self.drop_highest_losses, "seed": self.seed}
        about = {"approach": self.approach, "rows": len(runs), "flops": runs.flops, "counts": self.counts, "notes": notes, **spans}
        return about | {"options": options, "plan_for": list(self.plan_for), "runs": rows}

    def _parametric(self, runs: Runs, whole: Runs, about: dict[str, Any]) -> ChinchillaLaw:
        fit = self._search(runs)
        draws = bootstrap(runs, fit, self.bootstrap, self.seed, self.delta) if self.bootstrap else {}
        residuals = log_residuals(fit.constants, runs)
        notes = about["notes"] + cautions(fit, runs, residuals, self.drop_highest_losses)
        about = about | {"objective": fit.objective, "starts": fit.starts, "starts_at_optimum": fit.share, "notes": notes}
        if len(whole) > len(runs):
            other = fit_projection(whole, self.delta)
            about["without_dropping"] = other.constants
            with_them, without = (", ".join(f"{name} {c[name]:.3f}" for name in ("alpha", "beta", "E")) for c in (other.constants, fit.constants))
            notes.append(f"{len(whole) - len(runs)} highest losses left out; with them {with_them} instead of {without}")
        about["diagnostics"] = diagnostics(runs, residuals, self.delta)
        return ChinchillaLaw(FORMULA, {name: fit.constants[name] for name in NAMES}, draws, residuals, about)

    def _search(self, runs: Runs) -> Fit:
        return fit_grid(runs, self.delta) if self.search == "grid" else fit_projection(runs, self.delta)


CHOICES = {"search": ("projection", "grid"), "schedule": ("cosine", "constant", "wsd"), "counts": ("unknown", "total", "non-embedding")}


def cautions(fit: Fit, runs: Runs, residuals: Array, dropped: int) -> list[str]:
    """What a reader of the fit must know: terms that vanish, outliers, starts that disagree."""
    c, out = fit.constants, []
    level = float(np.median(runs.loss))
    terms = {"E": c["E"], "A": c["A"] * runs.parameters.min() ** -c["alpha"], "B": c["B"] * runs.tokens.min() ** -c["beta"]}
    for name, size in terms.items():
        if size < 2e-3 * level:
            out.append(f"the {name} term is {size:.2g} of a loss of {level:.3g}: {name} is not identified by this table")
    for name in ("alpha", "beta"):
        if not 0.02 < c[name] < 3:
            out.append(f"{name} is {c[name]:.3g}, at the edge of what is searched: the term is constant or a step, not a power")
    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    wild = int((np.abs(residuals) > 6 * max(spread, 1e-9)).sum()) if spread > 1e-7 else 0
    if wild:
        out.append(
            f"{wild} of {len(runs)} runs lie more than 6 robust deviations off the law: look at them; "
            f"drop_highest_losses ({dropped} now) can leave some out"
        )
    if np.log10(runs.compute.max() / runs.compute.min()) < 1:
        out.append("the runs span less than a decade of compute: exponents are poorly determined")
    return out


def diagnostics(runs: Runs, residuals: Array, delta: float) -> dict[str, Any]:
    """Trends of the residuals, and the error on the largest runs when the law is fitted without them."""
    from scipy.stats import spearmanr

    out: dict[str, Any] = {"mean_abs_log_error": float(np.abs(residuals).mean())}
    if residuals.std() > 1e-9:
        for name, against in (("compute", runs.compute), ("tokens_per_parameter", runs.tokens / runs.parameters)):
            out[f"residual_trend_{name}"] = float(spearmanr(residuals, against).statistic)
    small = runs.compute < np.quantile(runs.compute, 0.8)
    try:
        check(runs.at(small))
    except ValueError:
        return out  # too few runs remain to fit a law without the largest
    fit = fit_projection(runs.at(small), delta)
    out["largest_fifth_left_out"] = {
        "mean_abs_log_error": float(np.abs(log_residuals(fit.constants, runs.at(~small))).mean()),
        "huber": float(huber(log_residuals(fit.constants, runs.at(~small)), delta).sum()),
    }
    return out


def unfinished_note(count: int) -> str:
    """What was left out of the checkpoints, and how to keep them."""
    return f'{count} intermediate rows left out: under a decaying schedule they are no losses of shorter runs; with schedule="constant" they count'
