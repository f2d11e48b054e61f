r"""rsLoRA: LoRA whose product is scaled so that its gradient neither dies nor grows with the rank (arXiv 2312.03732, PEFT's implementation).

$$ y = W x + \frac{\alpha}{\sqrt{r}} B A x $$

With LoRA's \(\alpha / r\) a larger rank learns more slowly at the same rate; with \(\alpha / \sqrt r\) it learns alike. At one fixed rank it is
LoRA with another scale, and a tuned rate takes most of the difference away.

Use it where ranks of 32 and more are compared or needed. Not instead of tuning the rate at a small rank.

    >>> from etude.adapt.baselines.rslora import RsLora
    >>> model = RsLora(rank=32).attach(model, data)      # a PeftModel
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from peft import PeftModel
from transformers import PreTrainedModel

from etude.adapt._peft import check_lora, inject, lora_config, ranks_within
from etude.data.contract import Budget, Data

PAPER, ROLE, CLASS = "2312.03732", "contender", "RsLora"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank")


@dataclass(frozen=True)
class RsLora:
    """Options of rank-stabilised LoRA.

    Attributes:
        rank: r, columns of the two matrices.
        alpha: the product is scaled by alpha / sqrt(rank).
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
        return inject(model, lora_config(model, self.rank, self.alpha, self.dropout, self.targets, use_rslora=True), data.seed)
