"""Head only: the model is frozen, and a last linear layer is trained on what it says.

For a model with a label head that head is trained (a linear probe), for a decoder its output layer, which is taken apart from the embedding where
the two are one. It is saved as a PEFT folder that holds this layer alone, which `PeftModel.from_pretrained` reads.

Use it first: on a good encoder it is hard to beat at a few kilobytes a task, it forgets nothing, and features may be computed once for all tasks.
Not when the task needs features that the model lacks, nor on a decoder with a large vocabulary: its output layer is a fifth of a small model.

    >>> from etude.adapt.baselines.head_only import HeadOnly
    >>> model = HeadOnly().attach(model, data)
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from peft import LoraConfig, PeftModel
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import PreTrainedModel

from etude.adapt._peft import check_rate, inject, task_of
from etude.adapt._train import head_names
from etude.data.contract import Budget, Data

PAPER, ROLE, CLASS = "", "contender", "HeadOnly"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains",)


@dataclass(frozen=True)
class HeadOnly:
    """Options of training the head.

    Attributes:
        rate: peak learning rate, of a label head as a twentieth of its own (the contest's `HEAD`); null lets the contest tune it.
    """

    rate: float | None = None
    start: ClassVar[float] = 1e-3  # where the search for a rate begins

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """One point, whatever the budget."""
        return [self]

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        """Freeze `model` and put a trainable copy of its last layer in that layer's place.

        Raises:
            ValueError: the model has no last linear layer.
        """
        heads = head_names(model) or [output_layer(model)]
        model.config.tie_word_embeddings = False
        config = LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=heads, task_type=task_of(model))
        return inject(model, config, data.seed)


def output_layer(model: PreTrainedModel) -> str:
    """The name of a decoder's output layer."""
    layer = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is layer), "") if layer is not None else ""
    if not name:
        raise ValueError(f"{type(model).__name__} has neither a label head nor an output layer to train")
    return name
