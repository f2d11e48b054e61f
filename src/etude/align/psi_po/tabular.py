"""The whole theory on a table of A actions: optimum of the objective for any Psi, and the exact minimiser of the IPO loss on observed pairs.

Numbers in parentheses are equations of arXiv 2310.12036. Everything is float64 and takes leading batch dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Dimensions: A actions, N pairs; p_AA[y, y'] is p*(y > y'), wins_AA[y, y'] the weight with which y was preferred to y'.
Psi = Callable[[Tensor], Tensor]  # non-decreasing on [0, 1], elementwise; may be infinite at the ends
PSIS: dict[str, Psi] = {"identity": lambda q: q, "logit": torch.logit}
TOLERANCE = 1e-6


def psi_named(psi: str | Psi) -> Psi:
    """The function behind a name; a function is returned as it is.

    Raises:
        ValueError: no Psi has this name.
    """
    if isinstance(psi, str) and psi not in PSIS:
        raise ValueError(f"psi is {' or '.join(PSIS)}, or a function of your own, got {psi!r}")
    return PSIS[psi] if isinstance(psi, str) else psi


def psi_po(
    p_AA: Float[Tensor, "*batch A A"],
    pi_ref_A: Float[Tensor, "*batch A"],
    mu_A: Float[Tensor, "*batch A"],
    tau: float,
    psi: str | Psi = "identity",
) -> Float[Tensor, "*batch A"]:
    r"""The policy that maximises the objective (6): pi*(y) = pi_ref(y) exp(E_{y'~mu} Psi(p*(y > y')) / tau) / Z, as (7) for a general Psi.

    Where Psi is infinite (the logit at 0 and 1) this is the limit: all mass goes to the actions whose expectation diverges fastest, whatever tau.

    Args:
        p_AA: preference probabilities in [0, 1], with p + p^T = 1 and 1/2 on the diagonal.
        pi_ref_A, mu_A: the reference and the behaviour policy that made the pairs.
        tau: weight of KL(pi || pi_ref); infinite gives pi_ref.
        psi: "identity" (IPO), "logit" (RLHF and DPO under Bradley-Terry), or a function.

    Raises:
        ValueError: tau is not positive, p is no preference, pi_ref or mu no distribution, or their supports differ (the minimiser of a loss on
            pairs drawn from mu is unique only where they agree: section 5.1).
    """
    check_tau(tau)
    _check_preference(p_AA)
    for name, policy_A in (("pi_ref", pi_ref_A), ("mu", mu_A)):
        _check_policy(policy_A, name)
    if not torch.equal(pi_ref_A > 0, mu_A > 0):
        raise ValueError("mu and pi_ref have different supports: pairs drawn from mu then do not determine the policy; draw them from all of pi_ref")
    value_AA, mu_A = psi_named(psi)(p_AA.double()), mu_A.double()
    weight_AA = mu_A.unsqueeze(-2).expand_as(value_AA)
    finite_A = (weight_AA * value_AA.nan_to_num(posinf=0.0, neginf=0.0)).sum(-1)
    speed_A = (weight_AA * (value_AA.isposinf().double() - value_AA.isneginf().double())).sum(-1)  # of divergence
    alive_A = speed_A.masked_fill(pi_ref_A == 0, -math.inf)
    leads_A = alive_A >= alive_A.amax(-1, keepdim=True) - TOLERANCE
    return torch.softmax((pi_ref_A.double().log() + finite_A / tau).masked_fill(~leads_A, -math.inf), -1)


def preference_over(p_AA: Float[Tensor, "*batch A A"], mu_A: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
    """p*(y > mu): how often each action is preferred to one that mu draws."""
    return (p_AA * mu_A.unsqueeze(-2)).sum(-1)


def bradley_terry(reward_A: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A A"]:
    """p(y > y') = sigmoid(r(y) - r(y')) (1)."""
    return torch.sigmoid(reward_A.unsqueeze(-1) - reward_A.unsqueeze(-2))


def rlhf(reward_A: Float[Tensor, "*batch A"], pi_ref_A: Float[Tensor, "*batch A"], tau: float) -> Float[Tensor, "*batch A"]:
    """The optimum of E r - tau KL(pi || pi_ref): pi_ref exp(r / tau) / Z (4)."""
    check_tau(tau)
    return torch.softmax(pi_ref_A.log() + reward_A / tau, -1)


def wins_of(
    pairs_N2: Int[Tensor, "N 2"], actions: int, rate_N: Float[Tensor, " N"] | None = None, weight_N: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "A A"]:
    """Pairs (winner, loser) as a table of wins: all that a pairwise loss sees of them.

    Args:
        rate_N: share of the annotators that agree with the order of the pair; the rest counts as a win of the other side.
        weight_N: how often each pair counts.

    Raises:
        ValueError: a rate outside [0, 1], an action outside the table, or a pair of equals.
    """
    if len(pairs_N2) and (int(pairs_N2.min()) < 0 or int(pairs_N2.max()) >= actions):
        raise ValueError(f"pairs name actions {int(pairs_N2.min())} to {int(pairs_N2.max())}, there are 0 to {actions - 1}")
    if (same := (pairs_N2[:, 0] == pairs_N2[:, 1]).nonzero()).numel():
        raise ValueError(f"pair {int(same[0])} compares action {int(pairs_N2[same[0, 0], 0])} with itself: leave it out")
    rate_N = torch.ones(len(pairs_N2), dtype=torch.float64) if rate_N is None else rate_N.double()
    check_rate(rate_N)
    weight_N = torch.ones_like(rate_N) if weight_N is None else weight_N.double()
    wins_AA = torch.zeros(actions, actions, dtype=torch.float64)
    wins_AA.index_put_((pairs_N2[:, 0], pairs_N2[:, 1]), rate_N * weight_N, accumulate=True)
    wins_AA.index_put_((pairs_N2[:, 1], pairs_N2[:, 0]), (1 - rate_N) * weight_N, accumulate=True)
    return wins_AA


def ipo_minimiser(wins_AA: Float[Tensor, "*batch A A"], pi_ref_A: Float[Tensor, "*batch A"], tau: float) -> Float[Tensor, "*batch A"]:
    """The policy with the least IPO loss (17) on observed pairs, exactly: weighted least squares on log-ratios s = log(pi / pi_ref).

    The loss is sum wins[w, l] (s_w - s_l - 1 / (2 tau))^2, a quadratic whose matrix is the Laplacian of the graph of compared actions. It leaves
    one constant free for each part of the graph that no pair joins to the rest; then this is where gradient descent from pi_ref ends (the solution
    of least norm: each part keeps the mean of its log-ratios, actions in no pair keep theirs).

    Raises:
        ValueError: tau is not positive, a win is negative, pi_ref no distribution, or a pair names an action that pi_ref never takes.
    """
    check_tau(tau)
    _check_policy(pi_ref_A, "pi_ref")
    seen_AA = (wins_AA + wins_AA.mT).double()
    if (wins_AA < 0).any():
        raise ValueError(f"wins hold a negative weight ({float(wins_AA.min()):g}): weights count how often a pair was seen")
    if ((seen_AA.sum(-1) > 0) & (pi_ref_A == 0)).any():
        raise ValueError("a pair names an action that pi_ref never takes: its log-ratio is infinite; leave the pair out")
    laplacian_AA = torch.diag_embed(seen_AA.sum(-1)) - seen_AA
    push_A = (wins_AA - wins_AA.mT).double().sum(-1) / (2 * tau)
    ratio_A = (torch.linalg.pinv(laplacian_AA, hermitian=True) @ push_A.unsqueeze(-1)).squeeze(-1)
    return torch.softmax(pi_ref_A.double().log() + ratio_A, -1)


def kl(pi_A: Float[Tensor, "*batch A"], ref_A: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """KL(pi || ref) in nats."""
    return (torch.special.xlogy(pi_A, pi_A) - torch.special.xlogy(pi_A, ref_A)).sum(-1)


def total_variation(pi_A: Float[Tensor, "*batch A"], other_A: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """Half the sum of absolute differences: the most that the probabilities of any event differ by."""
    return (pi_A - other_A).abs().sum(-1) / 2


# ---- what is refused ----


def check_tau(tau: float) -> None:
    """Raises ValueError unless tau is positive."""
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}: it weighs the KL to the reference, and 1 / (2 tau) nats is what a pair asks for")


def check_rate(rate: Tensor) -> None:
    """Raises ValueError, with the value, unless all rates lie in [0, 1]."""
    outside = ~((rate >= 0) & (rate <= 1))
    if outside.any():
        raise ValueError(f"rate must lie in [0, 1], got {float(rate[outside][0]):g}: it is the share of annotators that prefer the chosen reply")


def _check_preference(p_AA: Tensor) -> None:
    check_rate(p_AA)
    if not torch.allclose(p_AA + p_AA.mT, torch.ones_like(p_AA), atol=TOLERANCE):
        raise ValueError("p is no preference: p(y > y') + p(y' > y) must be 1 for every pair, and 1/2 on the diagonal")


def _check_policy(policy_A: Tensor, name: str) -> None:
    if not (policy_A >= 0).all() or not torch.allclose(policy_A.sum(-1), policy_A.new_tensor(1.0), atol=TOLERANCE):
        raise ValueError(f"{name} is no distribution: its probabilities must be at least 0 and sum to 1, got sums {policy_A.sum(-1).tolist()}")
