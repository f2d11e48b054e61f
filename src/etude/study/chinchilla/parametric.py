"""Approach 3: the five constants of L = E + A / N^alpha + B / D^beta by a robust fit in log space.

Inside, theta = (a, alpha, b, beta, e) with sizes centred, ln L = LSE(a - alpha u, b - beta v, e), u = ln N - mean ln N, v alike: centring
takes most of the correlation between a and alpha away. Dimensions: S starts or draws, n rows, 5 constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from etude.study._robust import Model, bootstrap_weights, huber, minimise
from etude.study._runs import Array, Rows, Runs

NAMES = ("E", "A", "B", "alpha", "beta")
FORMULA = "E + A / N**alpha + B / D**beta"
PAPER = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
REPLICATION = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
REPLICATION_ERROR = {"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02}  # standard errors, arXiv 2404.10102


@dataclass(frozen=True)
class Fit:
    """The best of several starts.

    Attributes:
        constants: E, A, B, alpha, beta.
        objective: the summed Huber loss reached.
        theta: the same constants in the optimiser's coordinates.
        starts: how many starts were followed; share: how many of them, as a share, reached the optimum.
    """

    constants: dict[str, float]
    objective: float
    theta: Array
    starts: int
    share: float


def lse_model(u: Array, v: Array) -> Model:
    """ln L and its derivatives by theta (eq. 3 of the paper); never overflows, however large a is."""

    def model(theta: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        a, alpha, b, beta, e = (theta[:, k, None] for k in range(5))
        terms = np.stack(np.broadcast_arrays(a - alpha * u, b - beta * v, e), 0)
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        p, q, r = shares / total
        jacobian = np.stack([p, -u * p, q, -v * q, r], -1)

        def curvature(psi: Array) -> Array:
            out = -(np.swapaxes(jacobian * psi[..., None], 1, 2) @ jacobian)
            for first, share, x in ((0, p, u), (2, q, v)):
                s = psi * share
                out[:, first, first] += s.sum(1)
                out[:, first, first + 1] -= (s * x).sum(1)
                out[:, first + 1, first] -= (s * x).sum(1)
                out[:, first + 1, first + 1] += (s * x * x).sum(1)
            out[:, 4, 4] += (psi * r).sum(1)
            return out

        return top + np.log(total), jacobian, curvature

    return model


def objective(constants: Mapping[str, float], runs: Runs, delta: float = 1e-3) -> float:
    """Summed Huber loss of ln(predicted) - ln(observed)."""
    return float(huber(log_residuals(constants, runs), delta).sum())


def log_residuals(constants: Mapping[str, float], runs: Runs) -> Array:
    """ln(predicted) - ln(observed), run by run, by the log-sum-exp form."""
    a, b, e = (np.log(constants[name]) for name in ("A", "B", "E"))
    terms = np.stack(np.broadcast_arrays(a - constants["alpha"] * np.log(runs.parameters), b - constants["beta"] * np.log(runs.tokens), e), 0)
    return np.asarray(np.logaddexp.reduce(terms, 0) - np.log(runs.loss))


def fit_projection(runs: Runs, delta: float = 1e-3, nodes: int = 24, polish: int = 24) -> Fit:
    """Variable projection: search (alpha, beta) only, with E, A, B >= 0 solved for at every node; polish the best together.

    Given the exponents the law is linear in E, A, B: non-negative least squares on relative errors, reweighted for the Huber loss.
    """
    u, v, target = _centred(runs)
    exponents = np.geomspace(0.02, 3.0, nodes)
    grid = np.array(list(product(exponents, exponents)))
    basis = np.stack([np.ones((len(grid), len(u))), np.exp(-grid[:, :1] * u), np.exp(-grid[:, 1:] * v)], -1)
    linear = _nonnegative(basis / runs.loss[:, None], delta)
    values = huber(np.log(np.maximum((basis * linear[:, None]).sum(-1), 1e-300)) - target, delta).sum(1)
    best = _local_minima(values.reshape(nodes, nodes), polish)
    floor = np.maximum(linear[best], 1e-4 * float(np.median(runs.loss)))
    starts = np.stack([np.log(floor[:, 1]), grid[best, 0], np.log(floor[:, 2]), grid[best, 1], np.log(floor[:, 0])], 1)
    theta, reached = minimise(lse_model(u, v), starts, target, delta)
    return _best(theta, reached, runs)


def fit_grid(runs: Runs, delta: float = 1e-3, reduction: str = "sum", every: int = 1) -> Fit:
    """The paper's way: L-BFGS from every point of its grid of 4500 starts, the best kept (about a minute).

    The objective is scaled to order one and the tolerances are near rounding: with a mean of Huber values of about 4e-6 and default
    tolerances the optimiser stops early, which is how the published constants came about.

    Args:
        reduction: "sum" or "mean" over runs.
        every: follow each `every`-th start only.
    """
    from scipy.optimize import minimize

    x, y, target = np.log(runs.parameters), np.log(runs.tokens), np.log(runs.loss)
    model = lse_model(x, y)
    scale = 1 / delta**2 / (len(target) if reduction == "mean" else 1)

    def value(theta: Array) -> tuple[float, Array]:
        predicted, jacobian, _ = model(theta[None])
        residual = predicted[0] - target
        return scale * float(huber(residual, delta).sum()), scale * (np.clip(residual, -delta, delta) @ jacobian[0])

    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 3000, "maxfun": 5000, "maxcor": 20}
    ends = [minimize(value, np.array(start), jac=True, method="L-BFGS-B", options=options) for start in paper_starts()[::every]]
    theta = np.stack([end.x for end in ends])
    theta[:, 0] -= theta[:, 1] * x.mean()
    theta[:, 2] -= theta[:, 3] * y.mean()
    reached = np.array([end.fun for end in ends]) / scale
    share = float(np.mean(reached <= reached.min() * (1 + 1e-3)))
    fit = _best(*minimise(lse_model(*_centred(runs)[:2]), theta[np.argsort(reached)[:8]], target, delta), runs)
    return Fit(fit.constants, fit.objective, fit.theta, len(ends), share)


def paper_starts() -> list[tuple[float, ...]]:
    """The 4500 starts of the paper as (a, alpha, b, beta, e)."""
    scale, exponent, floor = (0, 5, 10, 15, 20, 25), (0, 0.5, 1, 1.5, 2), (-1, -0.5, 0, 0.5, 1)
    return [(a, alpha, b, beta, e) for a, alpha, b, beta, e in product(scale, exponent, scale, exponent, floor)]


def bootstrap(runs: Runs, fit: Fit, draws: int, seed: int, delta: float = 1e-3) -> dict[str, Array]:
    """Refits on `draws` tables of whole runs drawn with replacement, each warm-started from the full fit."""
    u, v, target = _centred(runs)
    weights = bootstrap_weights(runs.run, draws, seed)
    found, block = [], 250  # bounds the memory
    for first in range(0, draws, block):
        some = weights[first : first + block]
        theta, value = minimise(lse_model(u, v), np.repeat(fit.theta[None], len(some), 0), target, delta, some, steps=150, tolerance=1e-10)
        again, other = minimise(lse_model(u, v), _jittered(fit.theta, len(some), seed + first), target, delta, some, steps=150, tolerance=1e-10)
        found.append(np.where((other < value)[:, None], again, theta))
    natural = _natural(np.concatenate(found), runs)
    return {name: natural[name] for name in NAMES}


def _jittered(theta: Array, count: int, seed: int) -> Array:
    return theta + np.random.default_rng(seed).normal(0, 1, (count, 5)) * np.array([0.3, 0.08, 0.3, 0.08, 0.1])


def _centred(runs: Runs) -> tuple[Array, Array, Array]:
    x, y = np.log(runs.parameters), np.log(runs.tokens)
    return x - x.mean(), y - y.mean(), np.log(runs.loss)


def _natural(theta: Array, runs: Runs) -> dict[str, Array]:
    x, y = float(np.log(runs.parameters).mean()), float(np.log(runs.tokens).mean())
    a, alpha, b, beta, e = theta.T
    with np.errstate(over="ignore"):
        return {"E": np.exp(e), "A": np.exp(a + alpha * x), "B": np.exp(b + beta * y), "alpha": alpha, "beta": beta}


def _best(theta: Array, reached: Array, runs: Runs) -> Fit:
    at = int(np.nanargmin(reached))
    constants = {name: float(value[at]) for name, value in _natural(theta, runs).items()}
    share = float(np.mean(reached <= reached[at] * (1 + 1e-3) + 1e-20))
    return Fit(constants, float(reached[at]), theta[at], len(theta), share)


def _local_minima(values: Array, count: int) -> Rows:
    """Flat positions of the lowest nodes, those that no neighbour undercuts first."""
    padded = np.pad(values, 1, constant_values=np.inf)
    k, m = values.shape
    around = np.min([padded[1 + i : 1 + i + k, 1 + j : 1 + j + m] for i, j in product((-1, 0, 1), repeat=2) if i or j], axis=0)
    order = np.lexsort((values.ravel(), (values > around).ravel()))
    return np.unique(np.concatenate([order[: count // 2], np.argsort(values, axis=None)[: count - count // 2]]))


def _nonnegative(columns: Array, delta: float, rounds: int = 12) -> Array:
    """theta >= 0 with columns @ theta close to 1 in the Huber sense, for each of S designs (S, n, 3): reweighted NNLS over all supports."""
    weight = np.ones(columns.shape[:2])
    supports = [list(c) for size in (1, 2, 3) for c in combinations(range(3), size)]
    theta = np.zeros((len(columns), 3))
    for _ in range(rounds):
        gram = np.swapaxes(columns * weight[..., None], 1, 2) @ columns
        moment = (columns * weight[..., None]).sum(1)
        best = np.full(len(columns), np.inf)
        for support in supports:
            inner = gram[:, support][:, :, support]
            ridge = 1e-12 * np.einsum("spp->s", inner)[:, None, None] * np.eye(len(support))
            solved = np.zeros_like(theta)
            solved[:, support] = np.linalg.solve(inner + ridge, moment[:, support][..., None])[..., 0]
            loss = np.einsum("sp,spq,sq->s", solved, gram, solved) - 2 * (solved * moment).sum(1)
            take = (solved >= 0).all(1) & (loss < best)
            theta[take], best[take] = solved[take], loss[take]
        size = np.abs((columns * theta[:, None]).sum(-1) - 1)
        weight = delta / np.maximum(size, delta)
    return theta
