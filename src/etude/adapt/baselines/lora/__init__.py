r"""LoRA: beside each frozen weight a product of two thin matrices is trained.

$$ y = W x + \frac{\alpha}{r} B A x, \qquad A \in \mathbb{R}^{r \times d},\; B \in \mathbb{R}^{o \times r} $$

This is PEFT's own implementation. A is drawn, B is zero, so that training starts at the model as it was. Which layers: PEFT's own choice for
the kind of model (query and value of every block), or those that `targets` names. Saved as a PEFT folder; merged it costs nothing at inference.

Use it by default when many tasks share a model. Not when a kilobyte counts (tied_lora shares the pair between layers), nor at ranks of 64 and more
with a rate tuned at a small one: rslora scales for that.

    >>> from etude.adapt.baselines.lora import Lora
    >>> model = Lora(rank=8).attach(model, data)      # a PeftModel
"""

from dataclasses import dataclass, replace
from typing import Self

from transformers import PreTrainedModel

from etude.adapt._peft import Pairs, ranks_within
from etude.data.contract import Budget

PAPER, ROLE, CLASS = "2106.09685", "contender", "Lora"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank")


@dataclass(frozen=True)
class Lora(Pairs):
    """Options of LoRA.

    Attributes:
        rank: r, columns of the two matrices.
        alpha: the product is scaled by alpha / rank.
        dropout: on the input of A, in training.
        targets: ends of the names of the layers that get a pair ("query", "value"); none takes PEFT's choice for the model.
        rate: peak learning rate; null lets the contest tune it.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rate: float | None = None

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """A quarter of the rank and the rank, as far as a budget in bytes allows: where bytes are the cost, LoRA's own small ranks compete first."""
        (most,) = ranks_within(budget, subject, self.rank, self.targets)
        return [replace(self, rank=rank) for rank in sorted({max(1, most // 4), most})]
