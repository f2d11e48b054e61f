r"""LoRA on a 4-bit base: the frozen weights are held in four bits while the pair is trained.

The idea is QLoRA's. Each weight is rounded to the nearest of 16 values of its group's range (`etude.nn.packing`: asymmetric integers; QLoRA has
the NF4 codes of bitsandbytes, which is for CUDA). A layer is decoded when it is run, forwards and backwards, and never kept dense. The adapter learns
on the rounded weights, and partly against the rounding. Saved is the adapter alone: `etude` rounds the base alike when it loads it, plain PEFT puts
the adapter on the dense base.

Use it when the base in 16 bits does not fit the memory that there is. Not otherwise: decoding costs time in every step, rounding costs quality.

    >>> from etude.adapt.baselines.lora_4bit import Lora4bit
    >>> model = Lora4bit(rank=8).attach(model, data)      # a PeftModel
"""

from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel

from etude.adapt._four_bit import known_to, pack
from etude.adapt._peft import Pairs, inject, lora_config, targets_of
from etude.data.contract import Data
from etude.nn.packing import Grid
from etude.nn.surgery import refuse_quantised

PAPER, ROLE, CLASS = "2305.14314", "contender", "Lora4bit"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank", "quantises")


@dataclass(frozen=True)
class Lora4bit(Pairs):
    """Options of LoRA on a 4-bit base.

    Attributes:
        rank: r, columns of the two matrices.
        alpha: the product is scaled by alpha / rank.
        dropout: on the input of A, in training.
        targets: ends of the names of the layers that get a pair ("query", "value"); none takes PEFT's choice for the model.
        group: weights of the base that share a scale; where it does not divide the model's rows the next smaller one that does is used, and said.
        rate: peak learning rate; null lets the contest tune it.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    group: int = 64
    rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Grid(4, self.group)

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        """Pack the linear layers of `model`'s blocks in place, and put a pair beside each target layer.

        Raises:
            ValueError: the model is quantised already, or a target matches no linear layer; the message lists the candidates.
        """
        refuse_quantised(model)
        ends = targets_of(model, self.targets)
        pack(model, {"bits": 4, "group": self.group})
        return inject(model, known_to(lora_config(model, self.rank, self.alpha, self.dropout, ends)), data.seed)
