r"""SFT on the chosen answers: imitate what was preferred, forget what was not.

$$ L = - \frac{\sum_n \log \pi(y_{w,n} \mid x_n)}{\sum_n T_n} $$

over the \(T_n\) tokens of the chosen completions of a batch; the rejected ones are never read, so that a step costs half. It stands in the field
because a method that uses both answers must at least beat the one that uses one.

Use it where the chosen answers are good in themselves, as a first stage. Not to learn a difference: what chosen and rejected answers have in
common is reinforced as much as what sets them apart, and the accuracy on pairs rises little. Columns `weight` and `rate` are not read.

    >>> from etude.align.baselines.sft import SFT
    >>> policy = SFT().train(policy, data)
"""

from dataclasses import dataclass
from typing import Self

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from etude.align._train import Batch, Settings, train
from etude.data.contract import Budget, Data

PAPER, ROLE, CLASS = "", "contender", "SFT"
ENTERS = ("align",)
NEEDS = ("Preferences",)
TRAITS = ("trains", "searches", "hard labels")


@dataclass(frozen=True)
class SFT:
    """Options of SFT.

    Attributes:
        rate: peak learning rate; null tunes it on validation pairs.
        epochs: passes over the chosen answers.
        batch: answers of a step.
        rank: of the LoRA adapter; 0 trains all weights.
    """

    rate: float | None = None
    epochs: int = 2
    batch: int = 4
    rank: int = 8

    def __post_init__(self) -> None:
        self.settings()

    def settings(self) -> Settings:
        """What the family's trainer is told."""
        return Settings(rate=self.rate, epochs=self.epochs, batch=self.batch, rank=self.rank)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """One point: nothing here trades preferences against distance."""
        return [self]

    def train(self, policy: PreTrainedModel, data: Data) -> PreTrainedModel | PeftModel:
        """Train on the chosen answers and return the policy: a PEFT model around it, or itself where `rank` is 0.

        Raises:
            ValueError: TRL is missing, the data holds no preferences, or the loss is no number at some step.
        """
        return train(policy, data, self.settings(), negative_log_likelihood, chosen_only=True)


def negative_log_likelihood(batch: Batch) -> Float[Tensor, ""]:
    """Nats a token of the chosen completions."""
    return -batch.chosen.sum() / batch.chosen_tokens.sum()
