"""Causal attention over cached keys and values with padding: what every attention mixer of the family ends with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from etude.nn.decoder import Context

# Dimensions: B batch, H query heads, G key heads (G divides H), T tokens of this call, S tokens seen so far and now, K width of a head.


def attend(
    q_BHTK: Float[Tensor, "B H T K"], k_BGTK: Float[Tensor, "B G T K"], v_BGTK: Float[Tensor, "B G T K"], context: Context, layer: int
) -> Float[Tensor, "B T H*K"]:
    """softmax(q k^T / sqrt(K)) v over all earlier real tokens, the heads side by side; keys and values go into the layer's memory."""
    if context.cache is not None:
        k_BGTK, v_BGTK = context.cache.update(k_BGTK, v_BGTK, layer)
    mask_B1TS = context.once(f"causal mask {q_BHTK.device}", lambda: causal_mask(context, q_BHTK.shape[2], q_BHTK.device))
    shared, whole = q_BHTK.shape[1] != k_BGTK.shape[1], mask_B1TS is None and q_BHTK.shape[2] > 1
    out_BHTK = scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, mask_B1TS, is_causal=whole, enable_gqa=shared)
    return out_BHTK.transpose(1, 2).flatten(2)


def causal_mask(context: Context, tokens: int, device: torch.device) -> Bool[Tensor, "B 1 T S"] | None:
    """True where a token may look; None where plain causality says it all (nothing came before, or one token that may see everything)."""
    if context.mask_BS is None and (context.past == 0 or tokens == 1):
        return None
    seen = context.past + tokens
    place_T = torch.arange(context.past, seen, device=device)
    before_TS = place_T[:, None] >= torch.arange(seen, device=device)
    if context.mask_BS is None:
        return before_TS[None, None]
    itself_TS = place_T[:, None] == torch.arange(seen, device=device)  # padding looks at itself: a row without any key would give NaN
    return ((before_TS & context.mask_BS.to(device)[:, None, :]) | itself_TS)[:, None]


def heads_for(width: int) -> int:
    """Heads 128, 64, 32 or 16 wide, the widest that leaves at least four; where none divides the width, narrower ones."""
    fitting = [each for each in (128, 64, 32, 16, 8, 4, 2, 1) if width % each == 0]
    return width // next((each for each in fitting if width // each >= 4), fitting[-1])
