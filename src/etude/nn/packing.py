r"""Integer grids for weights, and their codes as compressed-tensors stores them (`pack-quantized`, which transformers and vLLM read).

A group of `group` neighbours along the input shares one scale s and one zero point z; its codes q are signed integers of b bits:

$$ \hat w = (q - z)\, s, \qquad q = \mathrm{clamp}(\mathrm{round}(w / s) + z,\; -2^{b-1},\; 2^{b-1} - 1) $$

symmetric: \(s = \max|w| / (2^{b-1} - 1)\), z = 0. Asymmetric, with \(l = \min(w, 0)\) and \(h = \max(w, 0)\):
\(s = (h - l) / (2^b - 1)\), \(z = \mathrm{round}(-l / s) - 2^{b-1}\). An all-zero group has s = 1.

Scales are rounded to the layer's dtype before the codes are taken, so that what is stored decodes to the very weights in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from jaxtyping import Float, Int, Int8, Int32
from torch import Tensor, nn

from etude.nn.surgery import set_weight, weight_of

# Dimensions: O outputs, I inputs, G groups of a row.
SMALLEST_GROUP = 8


@dataclass(frozen=True)
class Grid:
    """Bits a code, weights a group, and whether zero is a code of its own without a zero point."""

    bits: int
    group: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"bits must be 2, 3, 4 or 8, got {self.bits}")
        if self.group < 1:
            raise ValueError(f"group counts weights that share a scale, got {self.group}: 32, 64 and 128 are usual")

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def fitted(self, widths: Iterable[int]) -> Grid:
        """The same grid with the largest group, not above its own, that divides rows of all these widths; powers of two come first.

        Raises:
            ValueError: that group would have fewer than eight weights.
        """
        common = gcd(*widths)
        divisors = [g for g in range(1, min(self.group, common) + 1) if common % g == 0]
        if self.group in divisors:
            return self
        usual = [g for g in divisors if g >= 2 * SMALLEST_GROUP and g & (g - 1) == 0]
        group = max(usual or divisors)
        if group < SMALLEST_GROUP:
            raise ValueError(f"no group of {SMALLEST_GROUP} to {self.group} weights divides this model's rows ({_listed(widths)} weights)")
        return Grid(self.bits, group, self.symmetric)

    def bits_per_weight(self, dtype: torch.dtype) -> float:
        """Stored bits a weight, scales and zero points included."""
        return self.bits + (dtype.itemsize * 8 + (0 if self.symmetric else self.bits)) / self.group

    def share_of(self, dtype: torch.dtype) -> float:
        """Stored bits as a share of those of dense weights in `dtype`."""
        return self.bits_per_weight(dtype) / (8 * dtype.itemsize)


@dataclass(frozen=True)
class Codes:
    """A quantised weight: signed codes with a scale and (asymmetric) a zero point a group."""

    grid: Grid
    q_OI: Int8[Tensor, "O I"]
    scale_OG: Float[Tensor, "O G"]
    zero_OG: Int8[Tensor, "O G"] | None

    def dense(self) -> Float[Tensor, "O I"]:
        """The weights that the codes stand for, computed as compressed-tensors does."""
        return decode(self.q_OI, self.scale_OG, self.zero_OG)

    def packed(self) -> dict[str, Tensor]:
        """The tensors of compressed-tensors' `pack-quantized`, by the end of their names."""
        tensors = {
            "weight_packed": pack(self.q_OI, self.grid.bits),
            "weight_scale": self.scale_OG.contiguous(),
            "weight_shape": torch.tensor(self.q_OI.shape, dtype=torch.int64),
        }
        if self.zero_OG is not None:
            tensors["weight_zero_point"] = pack(self.zero_OG, self.grid.bits, dim=0)
        return tensors


def decode(q_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None) -> Tensor:
    """(q - z) s, group by group, in the scale's dtype."""
    q_OGg = q_OI.unflatten(1, (scale_OG.shape[1], -1)).to(scale_OG.dtype)
    if zero_OG is not None:
        q_OGg = q_OGg - zero_OG[..., None].to(scale_OG.dtype)
    return (q_OGg * scale_OG[..., None]).flatten(1)


def find_grid(
    weight_OI: Float[Tensor, "O I"], grid: Grid, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "O G"], Int8[Tensor, "O G"] | None]:
    """Scale and zero point of every group of the rows; the scale is rounded to `dtype`.

    Raises:
        ValueError: the group does not divide the row, or a weight is not finite.
    """
    if weight_OI.shape[1] % grid.group:
        raise ValueError(f"group {grid.group} does not divide rows of {weight_OI.shape[1]} weights")
    if not torch.isfinite(weight_OI).all():
        raise ValueError("a weight is NaN or infinite: the model is broken")
    groups_OGg = weight_OI.float().unflatten(1, (-1, grid.group))
    if grid.symmetric:
        scale_OG = _stored(groups_OGg.abs().amax(-1) / grid.high, dtype)
        return scale_OG, None
    low_OG, high_OG = groups_OGg.amin(-1).clamp(max=0), groups_OGg.amax(-1).clamp(min=0)
    scale_OG = _stored((high_OG - low_OG) / (grid.high - grid.low), dtype)
    zero_OG = (-low_OG / scale_OG.float()).round() + grid.low
    return scale_OG, zero_OG.clamp(grid.low, grid.high).to(torch.int8)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    scale = scale.to(dtype)
    return torch.where(scale < torch.finfo(dtype).tiny, torch.ones_like(scale), scale)


def encode(weight_OI: Float[Tensor, "O I"], scale_OG: Float[Tensor, "O G"], zero_OG: Int8[Tensor, "O G"] | None, grid: Grid) -> Codes:
    """The nearest codes of the weights on a given grid."""
    q_OGg = (weight_OI.float().unflatten(1, (-1, grid.group)) / scale_OG[..., None].float()).round_()
    if zero_OG is not None:
        q_OGg += zero_OG[..., None].float()
    return Codes(grid, q_OGg.clamp_(grid.low, grid.high).to(torch.int8).flatten(1), scale_OG, zero_OG)


def round_to_nearest(weight_OI: Float[Tensor, "O I"], grid: Grid, dtype: torch.dtype = torch.float32) -> Codes:
    """The nearest codes on the grid that spans each group's own range."""
    return encode(weight_OI, *find_grid(weight_OI, grid, dtype), grid)


def pack(values: Int8[Tensor, "rows columns"], bits: int, dim: Literal[0, 1] = 1) -> Int32[Tensor, "_rows _columns"]:
    """Signed codes of `bits` bits, densely packed into 32-bit words along `dim`; codes may straddle words."""
    return pack_to_int32(values.contiguous(), bits, packed_dim=dim)


def unpack(words: Int32[Tensor, "rows columns"], bits: int, shape: tuple[int, int], dim: Literal[0, 1] = 1) -> Int[Tensor, "_rows _columns"]:
    """The inverse of `pack`."""
    if dim == 0:  # turned here: the library fails on a transposed single row
        return unpack(words.T.clone(memory_format=torch.contiguous_format), bits, (shape[1], shape[0])).T.contiguous()
    return unpack_from_int32(words, bits, torch.Size(shape), packed_dim=1)


def install(module: nn.Module, codes: Codes) -> None:
    """Give a linear layer the weights of its codes, and the codes themselves for `etude.nn.saving`."""
    set_weight(module, codes.dense())
    module.codes = codes


def codes_of(module: nn.Module) -> Codes | None:
    """The codes that a layer carries.

    Raises:
        ValueError: the weights were changed after they were quantised.
    """
    codes = getattr(module, "codes", None)
    if codes is not None and not torch.equal(codes.dense().to(module.weight), weight_of(module)):
        raise ValueError("a layer was changed after it was quantised: quantise last")
    return codes


def fitted_grid(layers: Mapping[str, nn.Module], grid: Grid) -> Grid:
    """One grid for all layers, as stock readers want it; says aloud where the wanted group does not divide their rows."""
    widths = {weight_of(module).shape[1] for module in layers.values()}
    fitted = grid.fitted(widths)
    if fitted != grid:
        warnings.warn(f"group {grid.group} does not divide this model's rows ({_listed(widths)} weights): {fitted.group} is used", stacklevel=3)
    return fitted


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(widths))))
