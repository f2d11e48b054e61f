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
from functools import partial
from typing import Any

import numpy as np

from etude.study._fit import LogFit
from etude.study._law import Law
from etude.study._robust import Model
from etude.study._runs import Array, check, read

PAPER, ROLE, CLASS = "", "contender", "PowerLaw"
ENTERS = ("study",)
NEEDS = ("Table",)
TRAITS = ("parametric",)
FORMULA = "K / (N**p * D**q)"


@dataclass(frozen=True)
class PowerLaw(LogFit):
    """Options of the fit."""

    def fit(self, table: Any, data: Any = None) -> Law:
        """The law of a table of runs (parameters, loss, and tokens or compute)."""
        runs = read(table).finished()
        check(runs)
        x, y = np.log(runs.parameters), np.log(runs.tokens)
        design = np.stack([np.ones(len(runs)), x.mean() - x, y.mean() - y], 1)
        start = np.linalg.lstsq(design, np.log(runs.loss), rcond=None)[0][None]
        return self.law(FORMULA, runs, linear(design), start, partial(natural, x, y))


def linear(design: Array) -> Model:
    """design @ theta, whose second derivatives vanish."""

    def model(theta: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        width = theta.shape[1]
        return theta @ design.T, np.broadcast_to(design, (len(theta), *design.shape)), lambda psi: np.zeros((len(psi), width, width))

    return model


def natural(x: Array, y: Array, theta: Array) -> dict[str, Array]:
    """K, p, q from the centred coordinates."""
    level, p, q = theta.T
    with np.errstate(over="ignore"):
        return {"K": np.exp(level + p * x.mean() + q * y.mean()), "p": p, "q": q}
