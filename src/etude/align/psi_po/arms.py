"""What the arms of the études do on bandits: the losses against each other, on deterministic and on noisy preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from etude.align.psi_po.bandit import train_bandit
from etude.align.psi_po.tabular import ipo_minimiser, kl, psi_po, total_variation, wins_of
from etude.measure.contract import Metrics

if TYPE_CHECKING:
    from etude.harness.contract import Run

# Dimensions: R trainings of a table, T values of tau, A actions, P ordered pairs, N observed pairs.
TABLES = {  # the paper's data sets over three actions, as (winner, loser): a total order, and one in which the last action never wins
    "order": ((0, 1), (1, 2), (0, 2)),
    "never": ((0, 1), (1, 0), (0, 2), (1, 2)),
}


@dataclass(frozen=True)
class Bandits:
    """Size of the bandits with deterministic preferences.

    Attributes:
        taus: trained side by side.
        steps, batch: of Adam at rate 0.01, pairs drawn with replacement; the policy is the mean over the last `tail` steps.
        trainings: a seed's numbers are means over so many, each with draws of its own.
    """

    taus: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
    steps: int = 6000
    batch: int = 9
    tail: int = 1000
    trainings: int = 16


def deterministic(loss: str, run: Run, scale: Bandits) -> Metrics:
    """One loss on both data sets: by tau, the distance to IPO's closed form, the worst action's probability, the KL."""
    even_A, metrics = torch.full((3,), 1 / 3, dtype=torch.float64), Metrics()
    wins_AA = {name: wins_of(torch.tensor(pairs), 3) for name, pairs in TABLES.items()}
    stacked_GAA = torch.cat([table.expand(scale.trainings, 3, 3) for table in wins_AA.values()])

    def policies(tail: int) -> tuple[Tensor, ...]:
        options = dict(steps=scale.steps, batch=scale.batch, seed=run.seed, tail=tail)
        return train_bandit(loss, stacked_GAA, even_A.float(), scale.taus, **options).double().split(scale.trainings)

    for (name, table), pi_RTA, last_RTA in zip(wins_AA.items(), policies(scale.tail), policies(1), strict=True):
        closed_RTA = torch.stack([ipo_minimiser(table, even_A, tau) for tau in scale.taus]).expand_as(pi_RTA)
        metrics[f"{name}_far"] = total_variation(pi_RTA, closed_RTA).mean(0).tolist()
        metrics[f"{name}_far_last"] = total_variation(last_RTA, closed_RTA).mean(0).tolist()
        metrics[f"{name}_worst"] = pi_RTA[..., 2].mean(0).tolist()
        metrics[f"{name}_least"] = pi_RTA.amin(-1).mean(0).tolist()
        metrics[f"{name}_kl"] = kl(pi_RTA, even_A.expand_as(pi_RTA)).mean(0).tolist()
    metrics["taus"] = list(scale.taus)
    return metrics


@dataclass(frozen=True)
class Noise:
    """Size of the bandit with noisy labels.

    Attributes:
        actions: with preferences drawn anew each seed, neither Bradley-Terry nor transitive.
        pairs: labelled ones.
        tau: of IPO; the other losses are also given its multiples `times`, and the best of them counts.
        sizes: numbers of pairs over which the error must shrink.
        steps: of Adam at rate 0.01 over all pairs.
        trainings: a seed's numbers are means over so many draws of the labels.
    """

    actions: int = 8
    pairs: int = 2000
    tau: float = 0.5
    times: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    sizes: tuple[int, ...] = (500, 1000, 2000, 4000, 8000, 16000)
    steps: int = 3000
    trainings: int = 16


def noisy(loss: str, run: Run, scale: Noise) -> Metrics:
    """One loss on labels drawn from known preferences: distance to the population optimum with psi = identity, at the best multiple of tau."""
    dice = torch.Generator().manual_seed(run.seed)
    p_AA, even_A = preferences(scale.actions, dice), torch.full((scale.actions,), 1 / scale.actions, dtype=torch.float64)
    best_A = psi_po(p_AA, even_A, even_A, scale.tau)
    wins_RAA = labelled(p_AA, scale.pairs, scale.trainings, dice)
    taus = [scale.tau * times for times in (scale.times if loss != "ipo" else (1.0,))]
    pi_RTA = train_bandit(loss, wins_RAA, even_A.float(), taus, scale.steps, batch=None, seed=run.seed).double()
    far_T = total_variation(pi_RTA, best_A.expand_as(pi_RTA)).mean(0)
    metrics = Metrics(far=float(far_T.min()), same_tau=float(far_T[0]), tau=taus[int(far_T.argmin())])
    if loss == "ipo":
        metrics["sizes"] = [float(size) for size in scale.sizes]
        metrics["far_by_size"] = [
            float(total_variation(ipo_minimiser(wins, even_A.expand(len(wins), -1), scale.tau), best_A.expand(len(wins), -1)).mean())
            for wins in (labelled(p_AA, size, 4 * scale.trainings, dice) for size in scale.sizes)
        ]
    return metrics


def preferences(actions: int, dice: torch.Generator) -> Float[Tensor, "A A"]:
    """Known preferences: the logits of a quality of each action, and of a whim of each pair."""
    quality_A = 1.5 * torch.randn(actions, generator=dice, dtype=torch.float64)
    whim_AA = torch.randn(actions, actions, generator=dice, dtype=torch.float64)
    return torch.sigmoid(quality_A[:, None] - quality_A[None] + (whim_AA - whim_AA.T) / 2**0.5)


def labelled(p_AA: Float[Tensor, "A A"], pairs: int, draws: int, dice: torch.Generator) -> Float[Tensor, "R A A"]:
    """Tables of wins of `pairs` random pairs of different actions, each labelled once by a draw from p."""
    actions = len(p_AA)
    unequal_P = (1 - torch.eye(actions)).flatten()
    asked_RN = torch.multinomial(unequal_P.expand(draws, -1), pairs, replacement=True, generator=dice)
    first_RN = torch.rand(draws, pairs, generator=dice, dtype=torch.float64) < p_AA.flatten()[asked_RN]
    turned_RN = asked_RN % actions * actions + asked_RN // actions
    wins_RP = torch.zeros(draws, actions * actions, dtype=torch.float64)
    wins_RP.scatter_add_(1, torch.where(first_RN, asked_RN, turned_RN), torch.ones_like(first_RN, dtype=torch.float64))
    return wins_RP.view(draws, actions, actions)
