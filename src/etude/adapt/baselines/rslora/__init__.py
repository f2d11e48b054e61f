r"""rsLoRA: LoRA whose product is scaled so that its gradient neither dies nor grows with the rank.

$$ y = W x + \frac{\alpha}{\sqrt{r}} B A x $$

This is PEFT's own implementation. With LoRA's \(\alpha / r\) a larger rank learns more slowly at the same rate; with \(\alpha / \sqrt r\) it
learns alike. At one fixed rank it is LoRA with another scale, and a tuned rate takes most of the difference away.

Use it where ranks of 32 and more are compared or needed. Not instead of tuning the rate at a small rank.

    >>> from etude.adapt.baselines.rslora import RsLora
    >>> model = RsLora(rank=32).attach(model, data)      # a PeftModel
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from etude.adapt._peft import Pairs

PAPER, ROLE, CLASS = "2312.03732", "contender", "RsLora"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank")


@dataclass(frozen=True)
class RsLora(Pairs):
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
    kind: ClassVar[Mapping[str, Any]] = {"use_rslora": True}
