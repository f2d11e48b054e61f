"""Full fine-tuning: every weight is trained.

It is the reference that losses and budgets refer to: what adapters save is measured against it. The whole model is saved anew for every task, and
training holds the weights, their gradients and two moments in float32: 16 bytes a parameter.

Take it when there is one task, much data and the memory for it. Not when many tasks share one model, nor with few rows: all weights move, and what
the model knew besides is forgotten first (the contest's column "forgetting").

    >>> from etude.adapt.baselines.full import Full
    >>> model = Full().attach(model, data)      # in place: everything requires a gradient
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from transformers import PreTrainedModel

from etude.adapt._peft import check_rate
from etude.data.contract import Budget, Data
from etude.nn.surgery import refuse_quantised

PAPER, ROLE, CLASS = "", "contender", "Full"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains",)


@dataclass(frozen=True)
class Full:
    """Options of full fine-tuning.

    Attributes:
        rate: peak learning rate; null lets the contest tune it.
    """

    rate: float | None = None
    start: ClassVar[float] = 1e-4  # where the search for a rate begins

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """One point, whatever the budget."""
        return [self]

    def attach(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Unfreeze every weight of `model` and return it.

        Raises:
            ValueError: the weights are stored quantised.
        """
        refuse_quantised(model)
        model.requires_grad_(True)
        return model
