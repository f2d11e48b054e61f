r"""Losses of PsiPO for language models, on the log-probabilities of whole replies: (h - target)^2 for any form of h and of the target.

$$ h_\pi(y_w, y_l) = \log \frac{\pi(y_w | x)}{\pi_{ref}(y_w | x)} - \log \frac{\pi(y_l | x)}{\pi_{ref}(y_l | x)}, \qquad
\text{target} = \frac{\Psi(q) - \Psi(1 - q)}{2 \tau} $$

with q the share of annotators who prefer y_w. For the identity and a single label (q = 1) this is 1 / (2 tau), the loss (17) of arXiv 2310.12036.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from etude.align._train import Batch, Loss
from etude.align.psi_po.tabular import Psi, check_rate, check_tau, psi_named

# Dimensions: P pairs of a batch.
REDUCTIONS = ("mean", "sum")


def target_of(rate_P: Float[Tensor, " P"], tau: float, psi: str | Psi = "identity", smoothing: float = 0.0) -> Float[Tensor, " P"]:
    r"""The log-ratio that each pair asks for, \((\Psi(q) - \Psi(1 - q)) / (2 \tau)\) with q = (1 - smoothing) rate + smoothing (1 - rate).

    Regressing h on it over pairs drawn from mu leads to the optimum of the objective as long as \(\Psi(q) + \Psi(1 - q)\) is the same for every q,
    as it is for the identity and the logit: the target's mean over y' is then E Psi(p*(y > y')) / tau up to a constant.

    Args:
        rate_P: share of annotators who prefer the chosen reply; 1 is a plain label, 1/2 a tie, whose target is 0.
        smoothing: share of the labels that is taken for wrong.

    Raises:
        ValueError: tau is not positive, a rate or the smoothing out of range, a target that is infinite (the logit of a unanimous pair), or a Psi
            for which no target of one pair exists.
    """
    check_tau(tau)
    check_rate(rate_P)
    check_smoothing(smoothing)
    function, grid = psi_named(psi), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    sums = function(grid) + function(1 - grid)
    if not torch.allclose(sums, sums[:1], atol=1e-6):
        raise ValueError("no loss on single pairs leads to this psi: psi(q) + psi(1 - q) must not depend on q; solve a table with psi_po instead")
    q_P = (smoothing + (1 - 2 * smoothing) * rate_P.double()).clamp(0, 1)
    target_P = (function(q_P) - function(1 - q_P)) / (2 * tau)
    if not torch.isfinite(target_P).all():
        raise ValueError(
            f"psi asks for an infinite log-ratio where all annotators agree, whatever tau (rate {float(rate_P[~torch.isfinite(target_P)][0]):g}): "
            "give rates inside (0, 1), a smoothing above 0, or take the identity"
        )
    return target_P.to(rate_P.dtype)


def ratio_of(batch: Batch, reduction: str = "mean") -> Float[Tensor, " P"]:
    """h of each pair: of log-ratios summed over a reply's tokens, or averaged over them, each reply over its own number, end token included."""
    check_reduction(reduction)
    return batch.ratio if reduction == "sum" else batch.mean_ratio


def psi_po_loss(tau: float, reduction: str = "mean", psi: str | Psi = "identity", smoothing: float = 0.0, mean_weight: float = 1.0) -> Loss:
    """The loss of a batch, pair by pair, for the family's trainer: weight (h - target)^2.

    Args:
        mean_weight: of the whole data set: weights count relative to it, so that a pair of weight 2 does what two copies of it do.

    Raises:
        ValueError: an option out of its range, at once.
    """
    check_reduction(reduction)
    target_of(torch.full((1,), 0.5), tau, psi, smoothing)

    def loss(batch: Batch) -> Float[Tensor, " P"]:
        target_P = target_of(batch.rate, tau, psi, smoothing)
        return batch.weight / mean_weight * (ratio_of(batch, reduction) - target_P).square()

    return loss


def check_reduction(reduction: str) -> None:
    """Raises ValueError unless it is one of the two."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {' or '.join(REDUCTIONS)}, got {reduction!r}: tau means nats a token under mean, nats a reply under sum")


def check_smoothing(smoothing: float) -> None:
    """Raises ValueError unless it lies in [0, 1/2)."""
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing must lie in [0, 0.5), got {smoothing}: it is the share of labels that is taken for wrong")
