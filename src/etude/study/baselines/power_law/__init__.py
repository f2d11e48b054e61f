r"""Log-linear power law: \(\ln L = c - p \ln N - q \ln D\), the line that everyone draws first.

It has no floor: far enough out it promises losses below the entropy of the text. It is fitted by the same robust loss on logs and the
same bootstrap over whole runs as the other laws.

Use it as the yardstick that a law must beat, or where all losses are far above the floor. Not for planning: with no floor and no
trade-off between N and D it has no optimum at all.

    >>> from etude.study.baselines.power_law import PowerLaw
    >>> law = PowerLaw().fit(table)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from etude.study._law import Law
from etude.study._robust import Model, bootstrap_weights, minimise
from etude.study._runs import Array, check, read

PAPER, ROLE, CLASS = "", "contender", "PowerLaw"
ENTERS = ("study",)
NEEDS = ("Table",)
TRAITS = ("parametric",)
FORMULA = "K / (N**p * D**q)"


@dataclass(frozen=True)
class PowerLaw:
    """Options of the fit.

    Attributes:
        delta: Huber threshold on ln L.
        bootstrap: draws of whole runs for the intervals; 0 for none.
        seed: of the bootstrap.
    """

    delta: float = 1e-3
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta is a positive Huber threshold on ln L, got {self.delta}")
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap is a count and cannot be negative, got {self.bootstrap}")

    def points(self, budget: Any, subject: Any) -> list[Self]:
        """One operating point: a fit costs next to nothing."""
        return [self]

    def fit(self, table: Any, data: Any = None) -> Law:
        """The law of a table of runs (parameters, loss, and tokens or compute)."""
        runs = read(table).finished()
        check(runs)
        x, y, target = np.log(runs.parameters), np.log(runs.tokens), np.log(runs.loss)
        u, v = x - x.mean(), y - y.mean()
        design = np.stack([np.ones(len(u)), -u, -v], 1)
        start = np.linalg.lstsq(design, target, rcond=None)[0][None]
        theta, _ = minimise(linear(design), start, target, self.delta)
        draws = {}
        if self.bootstrap:
            weights = bootstrap_weights(runs.run, self.bootstrap, self.seed)
            draws = natural(minimise(linear(design), np.repeat(theta, len(weights), 0), target, self.delta, weights, tolerance=1e-10)[0], x, y)
        constants = {name: float(value[0]) for name, value in natural(theta, x, y).items()}
        about = {"rows": len(runs), "flops": runs.flops, "compute": [float(runs.compute.min()), float(runs.compute.max())]}
        return Law(FORMULA, constants, draws, design @ theta[0] - target, about)


def linear(design: Array) -> Model:
    """design @ theta, whose second derivatives vanish."""

    def model(theta: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        width = theta.shape[1]
        return theta @ design.T, np.broadcast_to(design, (len(theta), *design.shape)), lambda psi: np.zeros((len(psi), width, width))

    return model


def natural(theta: Array, x: Array, y: Array) -> dict[str, Array]:
    """K, p, q from the centred coordinates."""
    level, p, q = theta.T
    with np.errstate(over="ignore"):
        return {"K": np.exp(level + p * x.mean() + q * y.mean()), "p": p, "q": q}
