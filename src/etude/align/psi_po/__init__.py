r"""PsiPO, and IPO: learn from preferences with a regulariser that still holds where the preferences are deterministic.

RLHF and DPO maximise, over policies \(\pi\), one case of a general objective (arXiv 2310.12036, equation 6): \(\Psi\) non-decreasing, \(\mu\) the
policy that made the pairs,

$$ \max_\pi\; \mathbb{E}_{x,\; y \sim \pi,\; y' \sim \mu}\big[ \Psi\big(p^*(y \succ y' | x)\big) \big] - \tau\, \mathrm{KL}(\pi \,\|\, \pi_{ref}),
\qquad \pi^*(y) \propto \pi_{ref}(y)\, \exp\!\Big( \tfrac{1}{\tau}\, \mathbb{E}_{y' \sim \mu}\, \Psi\big(p^*(y \succ y')\big) \Big) . $$

With \(\Psi(q) = \log \frac{q}{1 - q}\) and Bradley-Terry preferences this is the optimum of RLHF and of DPO alike. As \(p^* \to 1\) the logit
goes to infinity and \(\tau\) regularises nothing: the loser's probability goes to 0 at *any* \(\tau\). With few data nearly every pair was seen in
one order only, which is just that case. **IPO** takes \(\Psi(q) = q\), which is bounded. Its optimum is the one policy with
\(h_\pi(y, y') = \frac{1}{\tau} \big( p^*(y \succ \mu) - p^*(y' \succ \mu) \big)\), found by least squares on single labels (17):

$$ L_{IPO} = \mathbb{E}_{(y_w, y_l) \sim D} \Big[ \Big( h_\pi(y_w, y_l) - \frac{1}{2 \tau} \Big)^2 \Big], \qquad
h_\pi(y_w, y_l) = \log \pi(y_w) - \log \pi_{ref}(y_w) - \big( \log \pi(y_l) - \log \pi_{ref}(y_l) \big) . $$

A pair is pushed until its log-ratio is \(1 / (2\tau)\), and then no further. With the share q of annotators who agree (column `rate`) the target is
\((2q - 1) / (2\tau)\), so that a tie asks for nothing; other \(\Psi\) ask for \((\Psi(q) - \Psi(1 - q)) / (2\tau)\).

**tau means two different things.** A reply has many tokens, and the paper's formula does not say how their log-ratios are joined.
`reduction="mean"` averages them over each reply's own tokens (what TRL has, and what the paper's authors told its maintainers that they ran):
\(1 / (2\tau)\) is in *nats a token*. `reduction="sum"` is the formula as printed: \(1 / (2\tau)\) is in *nats a reply*, some twenty to two hundred
times as large for the same policy. So never carry a tau from one form to the other, nor DPO's beta to either. TRL's default of 0.1 asks for 5 nats
a token in the mean form: no policy gets there, and IPO then behaves like DPO without a bound. Leave tau out and say in nats what you want:
`target` is 1 nat a token unless you say otherwise, which is tau 0.5 in the mean form; what was taken is told.

Use it when pairs are few or clear-cut, when DPO drifts far from the reference on them, or when you know how many annotators agreed.
Not when you want the reward itself (it learns none), not to push as hard as possible towards the chosen replies (DPO does that), not on pairs
that were drawn from a policy far from the reference (the optimum is found only where both can answer the same), and not with a tau that was never
tuned: compare it with DPO each at its own tau. `saturation` (in `etude.align.psi_po.saturation`) tells whether a policy has run away on its pairs.

    >>> from etude.align.psi_po import PsiPO
    >>> policy = PsiPO().train(policy, data)                                # IPO through TRL, 1 nat a token, rate tuned on validation pairs
    >>> policy = PsiPO(tau=0.02, reduction="sum", rate=3e-4).train(policy, data)
    >>> policy = PsiPO(psi="logit", smoothing=0.1).train(policy, data)      # what DPO aims at, with bounded targets

Tables and bandits, where all of this can be checked against closed forms, are in `tabular` and `bandit`. Peers: TRL's DPOTrainer (sigmoid, ipo,
robust and others), which does the training here too; there is no code by the authors.
Source: Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", arXiv 2310.12036.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import PreTrainedModel

from etude.align._pairs import encode
from etude.align._train import Loss, Settings, train
from etude.align.psi_po.losses import check_reduction, check_smoothing, psi_po_loss, target_of
from etude.align.psi_po.tabular import PSIS, check_rate, check_tau
from etude.data.contract import Budget, Data, Preferences
from etude.measure.quality import context_of

if TYPE_CHECKING:
    from peft import PeftModel

PAPER, ROLE, CLASS = "2310.12036", "contender", "PsiPO"
ENTERS = ("align",)
NEEDS = ("Preferences",)
TRAITS = ("trains", "searches")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PsiPO:
    """Options of PsiPO; as they stand they are IPO.

    Attributes:
        tau: weight of the KL to the reference; left out, it follows from `target`. Its unit depends on `reduction`.
        target: nats a token that a unanimous pair asks for, where tau is left out: 0.5 to 1 is usual.
        reduction: "mean" (log-ratios averaged over a reply's tokens) or "sum" (the paper's formula).
        psi: "identity" (IPO) or "logit" (the objective of RLHF and DPO; wants smoothing or rates inside (0, 1)).
        smoothing: share of the labels that is taken for wrong, in [0, 0.5).
        lora: train a LoRA adapter on every linear layer; False trains all weights.
        rank: of the adapter.
        rate: peak learning rate; left out, it is tuned on validation pairs.
        trials: how many rates are tried.
        epochs: passes over the pairs.
        batch: pairs of a step.
    """

    tau: float | None = None
    target: float = 1.0
    reduction: str = "mean"
    psi: str = "identity"
    smoothing: float = 0.0
    lora: bool = True
    rank: int = 8
    rate: float | None = None
    trials: int = 3
    epochs: int = 2
    batch: int = 4

    def __post_init__(self) -> None:
        if self.tau is not None:
            check_tau(self.tau)
        if not 0 < self.target < float("inf"):
            raise ValueError(f"target must be positive, got {self.target}: it is what a pair asks for, in nats a token")
        check_reduction(self.reduction)
        if self.psi not in PSIS:
            raise ValueError(f"psi is {' or '.join(PSIS)}, got {self.psi!r}")
        check_smoothing(self.smoothing)
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}: with lora=False all weights are trained")
        if self.tau is None and self.psi == "logit" and not self.smoothing:
            raise ValueError("the logit asks for infinitely much where all agree, so no tau follows from a target: give tau, or a smoothing above 0")
        self._settings()

    def _settings(self) -> Settings:
        return Settings(rate=self.rate, trials=self.trials, epochs=self.epochs, batch=self.batch, rank=self.rank if self.lora else 0)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """The target and a quarter of it, two places on the front of accuracy against divergence; where tau is given, that alone."""
        return [self] if self.tau is not None else [self, replace(self, target=self.target / 4)]

    def train(self, policy: PreTrainedModel, data: Data) -> PreTrainedModel | PeftModel:
        """Train `policy` on the pairs of `data.train` and return it: a PEFT model around it, or itself where `lora` is False.

        TRL's own IPO loss serves wherever it is the one that is asked for; the other forms go through the same trainer.

        Raises:
            ValueError: there are no pairs or no tokenizer, a reply is empty or both replies are the same, a rate lies outside [0, 1], a weight is
                negative, or the loss stops being a number.
        """
        part = data.train[Preferences]
        check_rows(part)
        tau = self.tau if self.tau is not None else self._suggested(policy, data)
        told = said(tau, self.reduction, float(target_of(torch.ones(1), tau, self.psi, self.smoothing)) if self._bounded else None)
        log.info(told)
        if self._in_trl(part):
            made = train(policy, data, self._settings(), loss_type=["ipo"], beta=tau)
        else:
            made = train(policy, data, self._settings(), self.loss(tau, part))
        data.journal.chosen = ", ".join(filter(None, (told, data.journal.chosen)))
        return made

    def loss(self, tau: float, part: Preferences) -> Loss:
        """Our own form of the loss on these rows."""
        weights = [float(weight) for weight in part.column("weight")] if "weight" in part.roles else [1.0]
        return psi_po_loss(tau, self.reduction, self.psi, self.smoothing, mean_weight=sum(weights) / len(weights))

    @property
    def _bounded(self) -> bool:
        return self.psi == "identity" or self.smoothing > 0

    def _in_trl(self, part: Preferences) -> bool:
        """Whether TRL has the form: mean log-ratios, single labels of equal weight, the identity."""
        plain = self.reduction == "mean" and self.psi == "identity" and not self.smoothing
        return plain and "rate" not in part.roles and "weight" not in part.roles

    def _suggested(self, policy: PreTrainedModel, data: Data) -> float:
        """The tau with which a unanimous pair asks for `target` nats a token; under "sum" for as many a reply as one of average length has tokens."""
        unit, tokens = float(target_of(torch.ones(1), 1.0, self.psi, self.smoothing)), 1.0
        if self.reduction == "sum" and data.tokenizer is not None:
            pairs = encode(data.tokenizer, data.train[Preferences], context_of(policy, 1 << 30), tokens=None).pairs
            tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs) / (2 * len(pairs))
        return unit / (self.target * tokens)


IPO = PsiPO  # the name by which its default is known


def said(tau: float, reduction: str, target: float | None) -> str:
    """What tau asks for, in words.

    >>> said(0.1, "mean", 5.0)
    'tau 0.1 asks a unanimous pair for 5 nats a token: more than policies usually reach, take tau 0.5 to 1'
    """
    if target is None:
        return f"tau {tau:.3g}, without a bound where all annotators agree"
    asked = f"tau {tau:.3g} asks a unanimous pair for {target:.3g} nats a {'token' if reduction == 'mean' else 'reply'}"
    return asked + (": more than policies usually reach, take tau 0.5 to 1" if reduction == "mean" and target > 2 else "")


def check_rows(part: Preferences) -> None:
    """Raises ValueError, with the number of the row, where a row is no preference."""
    for row, (chosen, rejected) in enumerate(zip(part.column("chosen"), part.column("rejected"), strict=True)):
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            if not text_of(side).strip():
                raise ValueError(f"row {row} has an empty {name} reply: leave the row out")
        if text_of(chosen) == text_of(rejected):
            raise ValueError(f"row {row} prefers a reply to itself (chosen and rejected are the same): leave the row out")
    if "rate" in part.roles:
        check_rate(torch.tensor([float(rate) for rate in part.column("rate")]))
    if "weight" in part.roles:
        weights = [float(weight) for weight in part.column("weight")]
        if min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"weights must be at least 0 and not all 0, the least is {min(weights):g}: a weight says how often a pair counts")


def text_of(side: str | Sequence[Any]) -> str:
    """The text of a reply, or of all messages of one."""
    return side if isinstance(side, str) else "\n".join(str(message["content"] or "") for message in side)
