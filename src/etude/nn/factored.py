r"""A linear layer as the product of two thin matrices: \(y = A (B x) + b\), with A (out, r) and B (r, in).

It is smaller than the dense layer where r (out + in) < out in. The inner matrix is stored under the name `weight`: a reader that does
not know of factors then meets a shape it does not expect and stops, where a missing name would be filled with random numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.surgery import features


class FactoredLinear(nn.Module):
    """y = x B^T A^T + bias.

    Attributes:
        weight: B, (rank, in).
        up: A, (out, rank).
        bias: (out,) or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < rank <= min(in_features, out_features):
            raise ValueError(f"rank must lie in 1..{min(in_features, out_features)} for a {out_features} x {in_features} layer, got {rank}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return nn.functional.linear(nn.functional.linear(x, self.weight), self.up, self.bias)

    def dense(self) -> Float[Tensor, "out in"]:
        """The product A B."""
        return self.up @ self.weight

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, bias={self.bias is not None}"


def factorize(linear: nn.Module, A: Float[Tensor, "out r"], B: Float[Tensor, "r in"]) -> FactoredLinear:
    """The layer that computes `A B x + bias` with the bias, device and dtype of `linear` (Linear or Conv1D).

    Raises:
        ValueError: the shapes do not fit the layer.
    """
    out, width = features(linear)
    if A.shape[0] != out or B.shape[1] != width or A.shape[1] != B.shape[0]:
        raise ValueError(f"factors {tuple(A.shape)} x {tuple(B.shape)} do not make a {out} x {width} layer")
    old = linear.weight
    new = FactoredLinear(width, out, A.shape[1], linear.bias is not None, old.device, old.dtype)
    with torch.no_grad():
        new.up.copy_(A)
        new.weight.copy_(B)
        if linear.bias is not None:
            new.bias.copy_(linear.bias)
    for new_weight, old_weight in ((new.up, old), (new.weight, old), (new.bias, linear.bias)):
        if new_weight is not None:
            new_weight.requires_grad_(old_weight.requires_grad)
    return new


def saves(out: int, width: int, rank: int) -> bool:
    """Whether the two factors hold fewer numbers than the dense matrix."""
    return rank * (out + width) < out * width
