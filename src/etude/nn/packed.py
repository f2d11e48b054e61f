"""A quantised linear layer as it lies on disk, where stock transformers cannot read it (Conv1D, several grids in one model).

While loading it stands in the layer's place; after loading `unpacked` gives the dense layer, which keeps its codes and so is saved small again.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import nn

from etude.nn.packing import Codes, Grid, install, unpack


class PackedLinear(nn.Module):
    """The words, scales and zero points of a layer; `weight` holds the words.

    Attributes:
        weight: (out, in * bits / 32) words of 32 bits.
        weight_scale: (out, groups).
        weight_zero_point: (out * bits / 32, groups) words, or None on a symmetric grid.
        bias: (out,) or None.
    """

    def __init__(self, in_features: int, out_features: int, grid: Grid, bias: bool, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        if in_features % grid.group:
            raise ValueError(f"group {grid.group} does not divide rows of {in_features} weights")
        self.in_features, self.out_features, self.grid = in_features, out_features, grid
        groups = in_features // grid.group

        def words(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=torch.int32, device=device), requires_grad=False)

        self.weight = words(out_features, ceil(in_features * grid.bits / 32))
        self.weight_scale = nn.Parameter(torch.empty(out_features, groups, dtype=dtype, device=device), requires_grad=False)
        self.register_parameter("weight_zero_point", None if grid.symmetric else words(ceil(out_features * grid.bits / 32), groups))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, dtype=dtype, device=device)) if bias else None)

    def unpacked(self) -> nn.Linear:
        """The dense layer with these codes."""
        q_OI = unpack(self.weight, self.grid.bits, (self.out_features, self.in_features)).contiguous()
        zero_OG = None
        if self.weight_zero_point is not None:
            groups = self.weight_scale.shape[1]
            zero_OG = unpack(self.weight_zero_point, self.grid.bits, (self.out_features, groups), dim=0)
        about = {"device": self.weight_scale.device, "dtype": self.weight_scale.dtype}
        dense = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias=self.bias is not None, **about)
        install(dense, Codes(self.grid, q_OI, self.weight_scale.detach(), zero_OG))
        dense.weight.requires_grad_(False)
        if self.bias is not None:
            dense.bias = self.bias
        return dense
