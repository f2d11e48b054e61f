r"""Training in less memory: attention without the T x T matrix, and a checkpoint policy that keeps what linear layers made.

Attention is computed block by block with a running softmax (Rabe and Staats; Dao et al.): per row only the output and the logarithm of the sum
\(\ell_i = \log \sum_j e^{s_{ij}}\) are kept. The backward pass is written by hand: it makes each block's probabilities anew,
\(p_{ij} = e^{s_{ij} - \ell_i}\), and with \(\delta_i = \langle do_i, o_i\rangle\)

$$ dv_j = \sum_i p_{ij}\, do_i, \quad ds_{ij} = p_{ij}(\langle do_i, v_j\rangle - \delta_i), \quad dq_i = \tfrac{1}{\sqrt K}\sum_j ds_{ij} k_j, \quad
dk_j = \tfrac{1}{\sqrt K}\sum_i ds_{ij} q_i $$

Blocks wholly in the future are never touched, which halves the work. Torch's own fused attention does the same in C++ and is faster; this one is
for devices and dtypes where torch falls back to the full matrix, and to read.

The policy: in a checkpointed block the outputs of its matrix products are kept, all else (norms, rotations, SiLU, attention) is computed again:

    >>> model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": keep_linear_outputs})
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

# Dimensions: B batch, H heads, T queries, S keys (the last T of them are the queries' own), K width of a head; Q and J: a block of queries, of keys.


def causal_attention(
    q_BHTK: Float[Tensor, "B H T K"],
    k_BHSK: Float[Tensor, "B H S K"],
    v_BHSK: Float[Tensor, "B H S K"],
    real_BS: Bool[Tensor, "B S"] | None = None,
    block: int = 128,
) -> Float[Tensor, "B H T K"]:
    """softmax(q k^T / sqrt(K)) v over earlier real keys, without a T x S matrix; a query that sees no key answers 0."""
    return _CausalAttention.apply(q_BHTK, k_BHSK, v_BHSK, real_BS, block)


class _CausalAttention(torch.autograd.Function):
    """Forward by a running softmax, backward from q, k, v, the output and the log-sums."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, real_BS: Tensor | None, block: int) -> Tensor:
        out, logsum = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        for rows in _spans(q.shape[2], block):
            top = torch.full_like(logsum[..., rows], -math.inf)
            total, weighted = torch.zeros_like(top), torch.zeros(*top.shape, q.shape[-1], device=q.device)
            for columns in _spans(k.shape[2] - q.shape[2] + rows.stop, block):
                scores = _scores(q, k, real_BS, rows, columns)
                new = torch.maximum(top, scores.amax(-1))
                safe = new.masked_fill(new == -math.inf, 0.0)
                fade, weights = torch.exp(top - safe), torch.exp(scores - safe[..., None])
                total = total * fade + weights.sum(-1)
                weighted = weighted * fade[..., None] + weights @ v[:, :, columns].float()
                top = new
            seen = total > 0
            out[:, :, rows] = torch.where(seen[..., None], weighted / total.clamp(min=1e-30)[..., None], 0.0).to(q.dtype)
            logsum[..., rows] = torch.where(seen, top.masked_fill(~seen, 0.0) + total.clamp(min=1e-30).log(), math.inf)
        ctx.save_for_backward(q, k, v, out, logsum, real_BS)
        ctx.block = block
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsum, real_BS = ctx.saved_tensors
        dq, dk, dv = (torch.zeros(part.shape, dtype=torch.float32, device=part.device) for part in (q, k, v))
        delta = (grad.float() * out.float()).sum(-1)
        for rows in _spans(q.shape[2], ctx.block):
            grad_Q, q_Q = grad[:, :, rows].float(), q[:, :, rows].float()
            for columns in _spans(k.shape[2] - q.shape[2] + rows.stop, ctx.block):
                p_QJ = torch.exp(_scores(q, k, real_BS, rows, columns) - logsum[..., rows, None])
                dv[:, :, columns] += p_QJ.mT @ grad_Q
                ds_QJ = p_QJ * (grad_Q @ v[:, :, columns].float().mT - delta[..., rows, None]) / math.sqrt(q.shape[-1])
                dq[:, :, rows] += ds_QJ @ k[:, :, columns].float()
                dk[:, :, columns] += ds_QJ.mT @ q_Q
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _spans(length: int, block: int) -> Iterator[slice]:
    for start in range(0, length, block):
        yield slice(start, min(start + block, length))


def _scores(q: Tensor, k: Tensor, real_BS: Tensor | None, rows: slice, columns: slice) -> Tensor:
    """One block of q k^T / sqrt(K) in float32, minus infinity where a key is in the future or is padding."""
    scores = q[:, :, rows].float() @ k[:, :, columns].float().mT / math.sqrt(q.shape[-1])
    before = k.shape[2] - q.shape[2]
    if columns.stop > before + rows.start + 1:
        place = torch.arange(rows.start, rows.stop, device=q.device)[:, None] + before
        scores = scores.masked_fill(torch.arange(columns.start, columns.stop, device=q.device) > place, -math.inf)
    if real_BS is not None:
        scores = scores.masked_fill(~real_BS[:, None, None, columns], -math.inf)
    return scores


def keep_linear_outputs() -> tuple[Any, Any]:
    """For `torch.utils.checkpoint`'s `context_fn`: matrix products are kept, all else is computed again."""
    return create_selective_checkpoint_contexts(_policy)


LINEAR = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default}


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in LINEAR else CheckpointPolicy.PREFER_RECOMPUTE
