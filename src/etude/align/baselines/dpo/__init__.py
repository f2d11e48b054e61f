r"""DPO: the policy is its own reward model, so that preferences are learned by classifying pairs, without reinforcement learning.

Where preferences follow Bradley and Terry's model, the policy that maximises reward less \(\beta\,\mathrm{KL}\) to the reference is
\(\pi \propto \pi_{ref}\, e^{r / \beta}\), and the reward can be read off it. That gives the loss (Rafailov et al., arXiv 2305.18290, equation 7)

$$ L = -\log \sigma\big(\beta\, h_\pi(y_w, y_l)\big), \qquad
   h_\pi(y_w, y_l) = \log \frac{\pi(y_w | x)}{\pi_{ref}(y_w | x)} - \log \frac{\pi(y_l | x)}{\pi_{ref}(y_l | x)} $$

with log-probabilities summed over a completion's tokens. It is TRL's own (`loss_type="sigmoid"`), trained by the family's trainer.

Use it where preferences are noisy and pairs are many. Not where every pair was seen once and the same answer always wins: then the optimum lies
at infinite h for any \(\beta\), and only early stopping keeps the policy near the reference (psi_po's IPO has a finite one). Columns `weight`
and `rate` are not read.

    >>> from etude.align.baselines.dpo import DPO
    >>> policy = DPO(beta=0.1).train(policy, data)
"""

from dataclasses import dataclass, replace
from typing import Self

from peft import PeftModel
from transformers import PreTrainedModel

from etude.align._train import Settings, train
from etude.data.contract import Budget, Data

PAPER, ROLE, CLASS = "2305.18290", "contender", "DPO"
ENTERS = ("align",)
NEEDS = ("Preferences",)
TRAITS = ("trains", "searches", "hard labels")


@dataclass(frozen=True)
class DPO:
    """Options of DPO.

    Attributes:
        beta: how strongly the policy is held to the reference, above 0, in 1/nats.
        rate: peak learning rate; null tunes it on validation pairs.
        epochs: passes over the pairs.
        batch: pairs of a step.
        rank: of the LoRA adapter; 0 trains all weights.
    """

    beta: float = 0.1
    rate: float | None = None
    epochs: int = 2
    batch: int = 4
    rank: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be above 0, got {self.beta}: it holds the policy to the reference")
        self.settings()

    def settings(self) -> Settings:
        """What the family's trainer is told."""
        return Settings(rate=self.rate, epochs=self.epochs, batch=self.batch, rank=self.rank)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """`beta`, and three and ten times as strong a hold: places on the front of accuracy against divergence."""
        return [replace(self, beta=float(f"{times * self.beta:.6g}")) for times in (1, 3, 10)]

    def train(self, policy: PreTrainedModel, data: Data) -> PreTrainedModel | PeftModel:
        """Train on the pairs and return the policy: a PEFT model around it, or itself where `rank` is 0.

        Raises:
            ValueError: TRL is missing, the data holds no preferences, or the loss is no number at some step.
        """
        return train(policy, data, self.settings(), loss_type=["sigmoid"], beta=self.beta)
