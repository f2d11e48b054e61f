r"""DoRA: LoRA turns each output's row of weights, a trained number sets its length.

$$ W' = m \odot \frac{W + \frac{\alpha}{r} B A}{\lVert W + \frac{\alpha}{r} B A \rVert} $$

with the norm of each row, taken as a constant in the backward pass, and m that norm at the start. One number an output more
than LoRA; merged it costs nothing at inference. This is PEFT's own implementation.

Use it at low ranks, where it is said to come nearer to full fine-tuning than LoRA does. Not when training time counts: the norm of every adapted
weight is computed anew in each step.

    >>> from etude.adapt.baselines.dora import Dora
    >>> model = Dora(rank=8).attach(model, data)      # a PeftModel
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from etude.adapt._peft import Pairs

PAPER, ROLE, CLASS = "2402.09353", "contender", "Dora"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank")


@dataclass(frozen=True)
class Dora(Pairs):
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
    kind: ClassVar[Mapping[str, Any]] = {"use_dora": True}
