"""Training a softmax policy over a few actions on observed pairs: DPO, cDPO, IPO, and RLHF with a fitted Bradley-Terry reward (section 5.4).

Several tables of pairs and several tau are trained at once, as one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from etude.align.psi_po.tabular import check_tau

# Dimensions: G tables of pairs, T values of tau, A actions, P = A * A ordered pairs, B pairs of a batch.
Loss = Callable[[Tensor, Tensor], Tensor]  # of the log-ratio difference h (G, T, ...) of (winner, loser) and tau (T, 1)
FLIPPED = 0.1  # share of labels that cDPO takes for wrong


def dpo_loss(h: Tensor, tau: Tensor) -> Tensor:
    """-log sigmoid(tau h) (10)."""
    return -logsigmoid(tau * h)


def cdpo_loss(h: Tensor, tau: Tensor) -> Tensor:
    """DPO on labels of which a share FLIPPED is taken for wrong (conservative DPO)."""
    return -(1 - FLIPPED) * logsigmoid(tau * h) - FLIPPED * logsigmoid(-tau * h)


def ipo_loss(h: Tensor, tau: Tensor) -> Tensor:
    """(h - 1 / (2 tau))^2 (17)."""
    return (h - 1 / (2 * tau)).square()


def reward_loss(h: Tensor, tau: Tensor) -> Tensor:
    """-log sigmoid(r_w - r_l): the likelihood of a Bradley-Terry reward (2); tau plays no part."""
    return -logsigmoid(h)


LOSSES: dict[str, Loss] = {"dpo": dpo_loss, "cdpo": cdpo_loss, "ipo": ipo_loss, "rlhf": reward_loss}


def train_bandit(
    loss: str,
    wins_GAA: Float[Tensor, "G A A"],
    pi_ref_A: Float[Tensor, " A"],
    taus: Sequence[float],
    steps: int = 18_000,
    rate: float = 0.01,
    batch: int | None = 9,
    seed: int = 0,
    tail: int = 1,
) -> Float[Tensor, "G T A"]:
    """Policies after training with Adam from pi_ref, one a table and tau; the defaults are the paper's.

    A policy is pi_ref times exp(s) with free s, so that h = s_w - s_l. "rlhf" fits s as a reward by the same steps, and takes the exact optimum
    pi_ref exp(s / tau) / Z: what regularises it is that a reward is never fitted to the end.

    Args:
        loss: "dpo", "cdpo", "ipo" or "rlhf".
        wins_GAA: weight with which y was preferred to y' (`etude.align.psi_po.tabular.wins_of`); batches are drawn by it, with replacement.
        batch: pairs a step; None takes the whole table every step.
        tail: s is the mean over so many last steps; at a constant rate that is free of most of the noise of small batches (Polyak and Ruppert).

    Raises:
        ValueError: an unknown loss, a tau that is not positive, or a table without a pair.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, got {loss!r}")
    if not 1 <= tail <= steps:
        raise ValueError(f"tail must lie in 1..steps ({steps}), got {tail}: it is how many last steps are averaged")
    for tau in taus:
        check_tau(tau)
    shares_GP = wins_GAA.flatten(1).float()
    if not (shares_GP.sum(-1) > 0).all():
        raise ValueError("a table holds no pair: bring at least one comparison")
    shares_GP = shares_GP / shares_GP.sum(-1, keepdim=True)
    dice, actions = torch.Generator().manual_seed(seed), len(pi_ref_A)
    eye_AA = torch.eye(actions)
    sides_PA = (eye_AA[:, None] - eye_AA[None]).flatten(0, 1)  # a row for (w, l): its product with s is h
    tau_T1 = torch.tensor(taus, dtype=torch.float32)[:, None]
    s_GTA = torch.zeros(len(wins_GAA), len(taus), actions, requires_grad=True)
    optimizer, settled_GTA = torch.optim.Adam([s_GTA], lr=rate), torch.zeros_like(s_GTA)
    with torch.enable_grad():
        for step in range(steps):
            if batch is None:
                total = (shares_GP[:, None] * LOSSES[loss](s_GTA @ sides_PA.T, tau_T1)).sum()
            else:
                drawn_GB = torch.multinomial(shares_GP, batch, replacement=True, generator=dice)
                h_GTB = s_GTA @ sides_PA[drawn_GB].mT
                total = LOSSES[loss](h_GTB, tau_T1).mean(-1).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if step >= steps - tail:
                settled_GTA = settled_GTA + s_GTA.detach() / tail
    scale = tau_T1 if loss == "rlhf" else torch.ones_like(tau_T1)
    return torch.softmax(pi_ref_A.log() + settled_GTA.detach() / scale, -1)
