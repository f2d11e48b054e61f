"""A base model whose linear layers are held in four bits while an adapter is trained on it: read, never changed, never stored.

A layer keeps its codes packed and decodes them when it is run, in the forward pass and once more in the backward pass, so that the dense weights
of one layer at a time are all that exists (as QLoRA does, arXiv 2305.14314, with integer codes on a group's own range instead of its NF4).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from etude.adapt._subject import remember
from etude.nn.packing import Codes, Grid, decode, fitted_grid, round_to_nearest, unpack
from etude.nn.surgery import block_linears, replace_module, weight_of

# Dimensions: O outputs, I inputs, G groups of a row.


class FourBitLinear(nn.Linear):
    """A linear layer of packed codes.

    Attributes:
        words, scale, zero: as `etude.nn.packing` packs them; zero is None on a symmetric grid.
    """

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.grid, (self.out_features, self.in_features) = codes.grid, codes.q_OI.shape
        packed = codes.packed()
        self.register_buffer("words", packed["weight_packed"], persistent=False)
        self.register_buffer("scale", packed["weight_scale"], persistent=False)
        self.register_buffer("zero", packed.get("weight_zero_point"), persistent=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The dense weight, decoded now: writing to it changes nothing."""
        q_OI = unpack(self.words, self.grid.bits, (self.out_features, self.in_features))
        zero_OG = None
        if self.zero is not None:
            zero_OG = unpack(self.zero, self.grid.bits, (self.out_features, self.scale.shape[1]), dim=0)
        return decode(q_OI, self.scale, zero_OG)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Decoded.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def unpacked(self) -> nn.Linear:
        """A dense layer of the same weights."""
        dense = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias=self.bias is not None, dtype=self.scale.dtype)
        dense.to(self.scale.device).weight = nn.Parameter(self.weight, requires_grad=False)
        if self.bias is not None:
            dense.bias = self.bias
        return dense


class _Decoded(torch.autograd.Function):
    """x W^T with a frozen W that is decoded anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        weight = layer.weight
        return x.to(weight.dtype) @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        weight = ctx.layer.weight
        return (grads[0].to(weight.dtype) @ weight).to(ctx.dtype), None


class FourBitLora(LoraLinear):
    """PEFT's LoRA around a packed layer: merging makes it a dense one first."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        base: Any = self.get_base_layer()
        if isinstance(base, FourBitLinear):
            self.base_layer = base.unpacked()
        super().merge(safe_merge, adapter_names)


def pack(model: PreTrainedModel, grid: dict[str, Any]) -> None:
    """Round the linear layers of the blocks to the nearest code and hold them packed, in place.

    Args:
        grid: {"bits", "group"}; where the group does not divide the rows a smaller one is used, and said.

    Raises:
        ValueError: no group of at least eight weights divides the rows.
    """
    layers = block_linears(model)
    fitted = fitted_grid(layers, Grid(grid["bits"], grid["group"]))
    for name, layer in layers.items():
        codes = round_to_nearest(weight_of(layer).detach(), fitted, weight_of(layer).dtype)
        bias: Any = layer.bias
        replace_module(model, name, FourBitLinear(codes, bias))
    remember(model, bits=dict(grid))


def packs(model: nn.Module) -> bool:
    """Whether layers of the model are held packed."""
    return any(isinstance(module, FourBitLinear) for module in model.modules())


def known_to(config: LoraConfig) -> LoraConfig:
    """The configuration, told what to put around a packed layer."""
    config._register_custom_module({FourBitLinear: FourBitLora})
    return config
