r"""Rotary positions: a query and a key are turned by angles that grow with their positions, so that their product knows the distance alone.

Pair \(j\) of a head of width \(K\) turns by \(\theta_j = t \cdot b^{-2j/K}\) at position \(t\). Which two numbers form a pair is a matter of layout,
and mixing the two gives text that is plausible and wrong:

- "pairs" (Meta's files, llama.cpp): \((x_{2j}, x_{2j+1})\)
- "halves" (Hugging Face): \((x_j, x_{j+K/2})\)

`pairs_to_halves` and `halves_to_pairs` move the rows of a query's or key's weight from one to the other; they are inverses to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

LAYOUTS = ("halves", "pairs")

# Dimensions: B batch, T tokens, H heads, K width of a head, R = K/2 angles, D model width.


def frequencies(width: int, base: float = 10000.0, scaling: Mapping[str, Any] | None = None) -> Float[Tensor, " R"]:
    """b^(-2j/K) in float32, made anew where it is used: kept in a buffer it would be cast with the weights.

    Args:
        scaling: how later models stretch the context, as Hugging Face writes it: rope_type "default", "linear" (factor) or "llama3".

    Raises:
        ValueError: the width is odd, or the scaling is another.
    """
    if width % 2:
        raise ValueError(f"rotary positions turn pairs: the width of a head must be even, got {width}")
    plain_R = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    kind = (scaling or {}).get("rope_type", "default")
    if scaling is None or kind == "default":
        return plain_R
    if kind == "linear":
        return plain_R / scaling["factor"]
    if kind != "llama3":
        raise ValueError(f"rotary scaling {kind!r} is not built here: default, linear and llama3 are")
    length, low, high = scaling["original_max_position_embeddings"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend_R = ((length * plain_R / (2 * math.pi) - low) / (high - low)).clamp(0, 1)  # 0: a turn longer than the old context, 1: many turns in it
    return plain_R * (blend_R + (1 - blend_R) / scaling["factor"])


def angles(positions_BT: Int[Tensor, "B T"], frequencies_R: Float[Tensor, " R"]) -> tuple[Float[Tensor, "B 1 T R"], Float[Tensor, "B 1 T R"]]:
    """Cosines and sines in float32, one row of R a token, the same for all heads."""
    turns_B1TR = positions_BT[:, None, :, None].float() * frequencies_R.to(positions_BT.device)
    return turns_B1TR.cos(), turns_B1TR.sin()


def rotate(
    x_BHTK: Float[Tensor, "B H T K"], turn: tuple[Float[Tensor, "b 1 T R"], Float[Tensor, "b 1 T R"]], layout: str = "halves"
) -> Float[Tensor, "B H T K"]:
    """Each pair (x, y) becomes (x cos - y sin, y cos + x sin)."""
    cos, sin = (part.to(x_BHTK.dtype) for part in turn)
    if layout == "halves":
        x, y = x_BHTK.chunk(2, -1)
        return torch.cat([x * cos - y * sin, y * cos + x * sin], -1)
    x, y = x_BHTK[..., 0::2], x_BHTK[..., 1::2]
    return torch.stack([x * cos - y * sin, y * cos + x * sin], -1).flatten(-2)


def pairs_to_halves(weight: Float[Tensor, "rows ..."], heads: int) -> Float[Tensor, "rows ..."]:
    """Rows of W_q or W_k (or their bias) from Meta's order into Hugging Face's."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def halves_to_pairs(weight: Float[Tensor, "rows ..."], heads: int) -> Float[Tensor, "rows ..."]:
    """Rows of W_q or W_k (or their bias) from Hugging Face's order into Meta's."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
