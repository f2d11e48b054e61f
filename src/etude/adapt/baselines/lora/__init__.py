r"""LoRA: beside each frozen weight a product of two thin matrices is trained (arXiv 2106.09685, PEFT's own implementation).

$$ y = W x + \frac{\alpha}{r} B A x, \qquad A \in \mathbb{R}^{r \times d},\; B \in \mathbb{R}^{o \times r} $$

A is drawn, B is zero, so that training starts at the model as it was. Which layers: PEFT's own choice for the kind of model (query and value of
every block), or those that `targets` names. Saved as a PEFT folder; merged it costs nothing at inference.

Use it by default when many tasks share a model. Not when a kilobyte counts (tied_lora shares the pair between layers), nor at ranks of 64 and more
with a rate tuned at a small one: rslora scales for that.

    >>> from etude.adapt.baselines.lora import Lora
    >>> model = Lora(rank=8).attach(model, data)      # a PeftModel
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from peft import PeftModel
from transformers import PreTrainedModel

from etude.adapt._peft import check_lora, inject, lora_config, ranks_within
from etude.data.contract import Budget, Data

PAPER, ROLE, CLASS = "2106.09685", "contender", "Lora"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank")


@dataclass(frozen=True)
class Lora:
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
    start: ClassVar[float] = 1e-3  # where the search for a rate begins

    def __post_init__(self) -> None:
        check_lora(self.rank, self.alpha, self.dropout, self.rate)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """`rank`, and where a budget in bytes is smaller than that the largest power of two below it that fits."""
        return [replace(self, rank=rank) for rank in ranks_within(budget, subject, self.rank, self.targets)]

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        """Freeze `model` and put a pair beside each target layer.

        Raises:
            ValueError: a target matches no linear layer; the message lists the candidates.
        """
        return inject(model, lora_config(model, self.rank, self.alpha, self.dropout, self.targets), data.seed)
