r"""DoRA: LoRA turns each output's row of weights, a trained number sets its length (arXiv 2402.09353, PEFT's implementation).

$$ W' = m \odot \frac{W + \frac{\alpha}{r} B A}{\lVert W + \frac{\alpha}{r} B A \rVert} $$

with the norm of each row, taken as a constant in the backward pass, and m that norm at the start. One number an output more
than LoRA; merged it costs nothing at inference.

Use it at low ranks, where it is said to come nearer to full fine-tuning than LoRA does. Not when training time counts: the norm of every adapted
weight is computed anew in each step.

    >>> from etude.adapt.baselines.dora import Dora
    >>> model = Dora(rank=8).attach(model, data)      # a PeftModel
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from peft import PeftModel
from transformers import PreTrainedModel

from etude.adapt._peft import check_lora, inject, lora_config, ranks_within
from etude.data.contract import Budget, Data

PAPER, ROLE, CLASS = "2402.09353", "contender", "Dora"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank")


@dataclass(frozen=True)
class Dora:
    """Options of DoRA.

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
        return inject(model, lora_config(model, self.rank, self.alpha, self.dropout, self.targets, use_dora=True), data.seed)
