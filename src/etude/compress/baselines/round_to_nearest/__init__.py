r"""Round to nearest: store each weight as the nearest of \(2^b\) values of its group's range.

A group of g neighbours along the input shares a scale s and, asymmetric, a zero point z (`etude.nn.packing` has the formulas):

$$ \hat w = (q - z)\, s, \qquad q = \mathrm{clamp}(\mathrm{round}(w / s) + z), \qquad |\hat w - w| \le s / 2 $$

Only linear layers of the blocks are stored so; embeddings, head and norms stay as they are. No data is needed and it takes seconds.
Saved as compressed-tensors `pack-quantized`, which transformers and vLLM read; layers of Conv1D (GPT-2) load after `import etude`.

Use it at 8 bits, where it costs next to nothing. Not below 4 bits, and at 4 bits only where no calibration text can be had: gptq is
better there at the same bytes.

    >>> from etude.compress.baselines.round_to_nearest import RoundToNearest
    >>> model = RoundToNearest(bits=8).compress(model, data)
"""

from dataclasses import dataclass, replace
from typing import Self

from transformers import PreTrainedModel

from etude.compress._budget import left_for_blocks
from etude.data.contract import Budget, Data
from etude.nn.packing import Grid, fitted_grid, install, round_to_nearest
from etude.nn.surgery import block_linears, refuse_quantised, weight_of

PAPER, ROLE, CLASS = "", "contender", "RoundToNearest"
ENTERS = ("compress",)
NEEDS = ()
TRAITS = ("quantises",)


@dataclass(frozen=True)
class RoundToNearest:
    """Options of rounding to nearest.

    Attributes:
        bits: bits a weight: 2, 3, 4 or 8 (vLLM reads 4 and 8).
        group: weights that share a scale; where it does not divide the model's rows the next smaller one that does is used, and said.
        symmetric: without zero points: a little smaller, and worse at 4 bits and below.
    """

    bits: int = 4
    group: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        Grid(self.bits, self.group, self.symmetric)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """8 bits and `bits`, as far as they meet the budget; the smaller of them when none does."""
        left = left_for_blocks(budget, subject)
        points = [replace(self, bits=bits) for bits in sorted({8, self.bits}, reverse=True)]
        return [p for p in points if Grid(p.bits, p.group, p.symmetric).share_of(subject.dtype) <= left] or points[-1:]

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Round every linear layer of the blocks, in place, and return the model.

        Raises:
            ValueError: the model is quantised already, or no group of at least eight weights divides its rows.
        """
        refuse_quantised(model)
        layers = block_linears(model)
        grid = fitted_grid(layers, Grid(self.bits, self.group, self.symmetric))
        for layer in layers.values():
            install(layer, round_to_nearest(weight_of(layer).detach(), grid, weight_of(layer).dtype))
        return model
