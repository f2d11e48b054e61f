r"""Kaplan's law: \(L(N, D) = \left[(N_c/N)^{\alpha_N/\alpha_D} + D_c/D\right]^{\alpha_D}\) (arXiv 2001.08361, eq. 1.5).

One bracket for capacity and data, no floor. Its authors' exponents put most of new compute into size (\(N_{opt} \propto C^{0.73}\)).
It is fitted here by the same robust loss on logs, from a grid of starts, with the same bootstrap over whole runs as the other laws.

Use it as the historical yardstick. Not for extrapolating towards the entropy of the text, which it does not know.

    >>> from etude.study.baselines.kaplan import Kaplan
    >>> law = Kaplan().fit(table)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from etude.study._fit import LogFit
from etude.study._law import Law
from etude.study._robust import Model
from etude.study._runs import Array, check, read

PAPER, ROLE, CLASS = "2001.08361", "contender", "Kaplan"
ENTERS = ("study",)
NEEDS = ("Table",)
TRAITS = ("parametric",)
FORMULA = "exp(q * log(exp(n - s * log(N)) + exp(d - log(D))))"  # n = s ln Nc, d = ln Dc, s = alpha_N / alpha_D, q = alpha_D


@dataclass(frozen=True)
class Kaplan(LogFit):
    """Options of the fit."""

    def fit(self, table: Any, data: Any = None) -> Law:
        """The law of a table of runs (parameters, loss, and tokens or compute)."""
        runs = read(table).finished()
        check(runs)
        x, y = np.log(runs.parameters), np.log(runs.tokens)
        model = bracket(x - x.mean(), y - y.mean())
        return self.law(FORMULA, runs, model, starts(float(np.median(np.log(runs.loss)))), partial(natural, x, y))


def bracket(u: Array, v: Array) -> Model:
    """ln L = q LSE(n - s u, d - v) with theta = (n, s, d, q), and its derivatives."""

    def model(theta: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        n, s, d, q = (theta[:, k, None] for k in range(4))
        left, right = np.broadcast_arrays(n - s * u, d - v)
        total = np.logaddexp(left, right)
        p, r = np.exp(left - total), np.exp(right - total)
        slope = np.stack([p, -u * p, r, np.zeros_like(p)], -1)  # of LSE in (n, s, d)
        jacobian = q[..., None] * slope
        jacobian[..., 3] = total

        def curvature(psi: Array) -> Array:
            out = -(np.swapaxes(slope * (psi * q)[..., None], 1, 2) @ slope)
            weight = psi * q * p
            out[:, 0, 0] += weight.sum(1)
            out[:, 0, 1] -= (weight * u).sum(1)
            out[:, 1, 0] -= (weight * u).sum(1)
            out[:, 1, 1] += (weight * u * u).sum(1)
            out[:, 2, 2] += (psi * q * r).sum(1)
            cross = (psi[..., None] * slope).sum(1)
            out[:, 3] += cross
            out[:, :, 3] += cross
            return out

        return q * total, jacobian, curvature

    return model


def starts(level: float) -> Array:
    """A grid over s, q and the balance of the two terms, each at the median loss."""
    grid = []
    for s, q, balance in product((0.3, 0.6, 1.0, 1.6), (0.05, 0.1, 0.2, 0.4, 0.8), (-4.0, -2.0, 0.0, 2.0, 4.0)):
        total = level / q
        lift = total - np.logaddexp(balance / 2, -balance / 2)
        grid.append((lift + balance / 2, s, lift - balance / 2, q))
    return np.array(grid)


def natural(x: Array, y: Array, theta: Array) -> dict[str, Array]:
    """The constants of the formula from the centred coordinates."""
    n, s, d, q = theta.T
    return {"n": n + s * x.mean(), "s": s, "d": d + y.mean(), "q": q}
