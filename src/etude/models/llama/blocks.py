r"""The two fillings of a Llama block: attention with rotary positions, and SwiGLU.

$$ \mathrm{Attn}(x) = W_o\,\mathrm{softmax}\big(R(W_q x)\,R(W_k x)^\top / \sqrt{K}\big) W_v x, \qquad
\mathrm{SwiGLU}(x) = W_2\big(\mathrm{SiLU}(W_1 x) \odot W_3 x\big) $$

Names of the weights are Hugging Face's: gate is \(W_1\), up is \(W_3\), down is \(W_2\).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.models._attention import attend
from etude.models.llama.memory import causal_attention
from etude.models.llama.rope import LAYOUTS, angles, frequencies, rotate
from etude.nn.decoder import Context
from etude.nn.decoder_config import EtudeDecoderConfig

# Dimensions: B batch, T tokens, S tokens seen, H query heads, G key heads, K width of a head, D model width.


class Attention(nn.Module):
    """Causal self-attention with rotary positions.

    Args:
        config, layer: where it stands.
        heads: query heads H; they share the width unless `head_dim` says another.
        kv_heads: heads G of keys and values, a divisor of H (grouped queries); H when left out.
        head_dim: K; the width over H when left out.
        base, scaling: of the rotary frequencies (`etude.models.llama.rope`).
        layout: "halves" (Hugging Face) or "pairs" (Meta): what the rows of q and k are ordered by.
        attention: "fused" (torch's kernel) or "blocks" (by hand, without a T x T matrix: `etude.models.llama.memory`).
        bias: of the four linear layers.

    Raises:
        ValueError: heads do not divide the width, key heads do not divide heads, or a head's width is odd.
    """

    def __init__(
        self,
        config: EtudeDecoderConfig,
        layer: int,
        heads: int = 4,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        base: float = 10000.0,
        scaling: Mapping[str, Any] | None = None,
        layout: str = "halves",
        attention: str = "fused",
        bias: bool = False,
    ) -> None:
        super().__init__()
        width, kv_heads = config.hidden_size, heads if kv_heads is None else kv_heads
        if head_dim is None and width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}: give heads that do, or head_dim")
        if heads % kv_heads:
            raise ValueError(f"{kv_heads} key heads do not divide {heads} query heads")
        if layout not in LAYOUTS or attention not in ("fused", "blocks"):
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)} and attention one of fused, blocks, got {layout!r} and {attention!r}")
        self.layer, self.heads, self.kv_heads, self.head_dim = layer, heads, kv_heads, head_dim or width // heads
        self.base, self.scaling, self.layout, self.attention = base, scaling, layout, attention
        frequencies(self.head_dim, base, scaling)  # refuses what it cannot do
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=bias)

    def forward(self, x_BTD: Float[Tensor, "B T D"], context: Context) -> Float[Tensor, "B T D"]:
        q, k, v = (part(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        turn = context.once(f"angles {self.head_dim} {self.base} {self.scaling} {x_BTD.device}", lambda: self._angles(context, x_BTD.device))
        q, k = rotate(q, turn, self.layout), rotate(k, turn, self.layout)
        return self.o_proj(attend(q, k, v, context, self.layer) if self.attention == "fused" else self._in_blocks(q, k, v, context))

    def _angles(self, context: Context, device: torch.device) -> tuple[Tensor, Tensor]:
        return angles(context.positions_BT.to(device), frequencies(self.head_dim, self.base, self.scaling))

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.layer)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        return causal_attention(q, k, v, None if context.mask_BS is None else context.mask_BS.to(q.device)).transpose(1, 2).flatten(2)


def hidden_width(width: int, multiple: int = 256) -> int:
    """SwiGLU's hidden width: two thirds of 4 D, rounded up to a multiple (11,008 at 4,096)."""
    return -(-int(2 * 4 * width / 3) // multiple) * multiple


class SwiGLU(nn.Module):
    """W2(SiLU(W1 x) * W3 x), with `hidden` numbers between; in float16 the product may overflow, bfloat16 has the range.

    Args:
        hidden: `hidden_width(D, multiple)` when left out.
    """

    def __init__(self, config: EtudeDecoderConfig, hidden: int | None = None, multiple: int = 256, bias: bool = False) -> None:
        super().__init__()
        hidden = hidden_width(config.hidden_size, multiple) if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        self.gate_proj = nn.Linear(config.hidden_size, hidden, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, config.hidden_size, bias=bias)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(nn.functional.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
