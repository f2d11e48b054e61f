"""Robust least squares for laws: the Huber loss on logs, one batched optimiser for many starts or bootstrap draws, draws of whole runs.

Dimensions: S starts or draws, n rows, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from etude.study._runs import Array

# theta (S, P) -> log prediction (S, n), its Jacobian (S, n, P), and psi (S, n) -> sum_i psi_i Hessian_i (S, P, P)
Model = Callable[[Array], tuple[Array, Array, Callable[[Array], Array]]]


def huber(residual: Array, delta: float) -> Array:
    """Half the square up to `delta`, linear beyond it."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def minimise(
    model: Model, starts: Array, target: Array, delta: float, weights: Array | None = None, steps: int = 400, tolerance: float = 1e-14
) -> tuple[Array, Array]:
    """Minimise sum_i w_i Huber(model_i(theta) - target_i) from every start at once.

    Newton's method with the exact Hessian, damped by the curvature of the quadratic that touches the Huber loss from above, so that
    points on its linear part count as well. The sum is minimised, never the mean: stopping rules are relative to it.

    Args:
        starts: (S, P).
        weights: (S, n) or (n,); ones when left out.

    Returns:
        The parameters (S, P) and objectives (S,) reached.
    """
    theta = np.array(starts, dtype=float)
    weight = np.broadcast_to(np.ones(len(target)) if weights is None else weights, (len(theta), len(target)))
    value = _objective(model, theta, target, delta, weight)
    damping, calm = np.ones(len(theta)), np.zeros(len(theta), dtype=int)
    alive = np.flatnonzero(np.isfinite(value))
    for _ in range(steps):
        if not len(alive):
            break
        trial = theta[alive] + _step(model, theta[alive], target, delta, weight[alive], damping[alive])
        reached = _objective(model, trial, target, delta, weight[alive])
        better = reached < value[alive]
        small = np.abs(value[alive] - reached) <= tolerance * np.abs(value[alive])
        theta[alive[better]], value[alive[better]] = trial[better], reached[better]
        damping[alive] = np.where(better, np.maximum(damping[alive] * 0.2, 1e-9), damping[alive] * 5)
        calm[alive] = np.where(small, calm[alive] + 1, np.where(better, 0, calm[alive]))
        alive = alive[(calm[alive] < 4) & (damping[alive] < 1e12) & (value[alive] > 1e-26)]
    return theta, value


def bootstrap_weights(groups: Sequence[str], draws: int, seed: int, strata: Sequence[object] | None = None) -> Array:
    """How often each row is drawn, (draws, n): whole groups are drawn with replacement, within strata where given."""
    dice = np.random.default_rng(seed)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    first = np.array([int(np.flatnonzero(member == g)[0]) for g in range(len(names))])
    labels = np.zeros(len(names), dtype=int) if strata is None else np.unique([str(s) for s in strata], return_inverse=True)[1][first]
    counts = np.zeros((draws, len(names)))
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        counts[:, inside] = dice.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=draws)
    return counts[:, member]


def _objective(model: Model, theta: Array, target: Array, delta: float, weight: Array) -> Array:
    with np.errstate(all="ignore"):
        value = (weight * huber(model(theta)[0] - target, delta)).sum(1)
    return np.where(np.isfinite(value), value, np.inf)


def _step(model: Model, theta: Array, target: Array, delta: float, weight: Array, damping: Array) -> Array:
    predicted, jacobian, curvature = model(theta)
    residual = predicted - target
    size = np.abs(residual)
    psi = weight * np.clip(residual, -delta, delta)
    gradient = (jacobian * psi[..., None]).sum(1)
    inner = weight * (size <= delta)
    outer = weight * delta / np.maximum(size, delta)
    curve = np.swapaxes(jacobian * (inner + damping[:, None] * outer)[..., None], 1, 2) @ jacobian + curvature(psi)
    scale = np.einsum("spp->sp", curve)
    curve = curve + np.eye(theta.shape[1]) * (1e-12 + 1e-10 * damping[:, None] * np.abs(scale).max(1, keepdims=True))[..., None]
    try:
        step = -np.linalg.solve(curve, gradient[..., None])[..., 0]
    except np.linalg.LinAlgError:
        step = -(np.linalg.pinv(curve) @ gradient[..., None])[..., 0]
    return np.clip(step, -3, 3)
