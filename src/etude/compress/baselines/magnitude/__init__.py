r"""Magnitude pruning: set the smallest weights of every layer to zero.

In each linear layer of the blocks the share s of the weights with the smallest magnitude goes (Han et al., arXiv 1506.02626, without
the retraining):

$$ W_{oi} \leftarrow W_{oi}\,[\,|W_{oi}| > \tau\,], \qquad \tau = \text{the } \lfloor s \cdot O I \rfloor \text{-th smallest of } |W| $$

**The folder does not get smaller and the model not faster**: zeros are stored and multiplied like any number, and the report says so.
It stands in the field because a method that claims to find unimportant weights must at least beat this one.
Not when you want bytes: take round_to_nearest or gptq. Not above half of the weights: quality collapses without retraining.

    >>> from etude.compress.baselines.magnitude import Magnitude
    >>> model = Magnitude(share=0.3).compress(model, data)
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from etude.data.contract import Budget, Data
from etude.nn.surgery import block_linears, refuse_quantised, set_weight, weight_of

PAPER, ROLE, CLASS = "", "contender", "Magnitude"
ENTERS = ("compress",)
NEEDS = ()
TRAITS = ("unstructured", "same bytes on disk")


@dataclass(frozen=True)
class Magnitude:
    """Options of magnitude pruning.

    Attributes:
        share: share of the weights of each layer that become zero, in (0, 1).
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), got {self.share}: it is the share of the weights that become zero")

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Half of the share and all of it; under a limit of bytes only the point itself, since none saves bytes."""
        return [replace(self, share=self.share / 2), self] if budget.share == 1 else [self]

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Zero the smallest weights of every linear layer of the blocks, in place, and return the model."""
        refuse_quantised(model)
        for layer in block_linears(model).values():
            set_weight(layer, without_smallest(weight_of(layer).detach(), self.share))
        return model


def without_smallest(weight: Float[Tensor, "out in"], share: float) -> Float[Tensor, "out in"]:
    """The weights with the `share` of smallest magnitude set to zero; among equals the first go, so that the count is exact."""
    count = int(share * weight.numel())
    if count == 0:
        return weight
    size = weight.abs().flatten()
    threshold = size.float().kthvalue(count).values.to(size.dtype)
    keep = size > threshold
    equal = (size == threshold).nonzero().flatten()
    keep[equal[count - int((size < threshold).sum()) :]] = True
    return torch.where(keep.view_as(weight), weight, torch.zeros_like(weight))
