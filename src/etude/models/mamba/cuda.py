"""The selective scan on a GPU, in Triton: discretisation, scan and the product with C in one kernel, the state in registers.

A program takes one sequence and `BLOCK` channels and goes through the chunks of `TILE` steps: inside a chunk the steps are scanned in parallel with
(a1, b1) ∘ (a2, b2) = (a1 a2, a2 b1 + b2), from chunk to chunk the state (BLOCK, N) is carried. Nothing of size (B, L, E, N) is written; the backward
pass computes each chunk's states anew from the one before it (arXiv 2312.00752, section 3.3.2 and appendix D). Shares of dB and dC go to a buffer of
their own for each block of channels and are added up afterwards: no atomics, so that two runs agree in every bit.

With TRITON_INTERPRET=1 in the environment when this module is imported the same kernels run on the CPU, for tests.
"""

from __future__ import annotations

import os
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

# Dimensions: B batch, L length, E channels, N state (P: the next power of 2), K chunks, T steps of a tile, M blocks of W channels.
TILE, BLOCK, WARPS = 16, 8, 4  # for N = 16 the largest tile whose adjoints fit the registers of sm_90
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@triton.jit
@no_type_check
def _after(a1, b1, a2, b2):
    """Two affine maps h -> a h + b, the left one first."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
@no_type_check
def _vector(base, t, e, length, channels, inside):
    """A tile (T, W) of a (L, E) matrix: rows t, columns e; 0 outside."""
    return tl.load(base + t[:, None] * channels + e[None, :], mask=inside & (t < length)[:, None] & (e < channels)[None, :], other=0.0)


@triton.jit
@no_type_check
def _forward(x, delta, A, B, C, first, y, states, last, length, channels, size, chunks, T: tl.constexpr, W: tl.constexpr, P: tl.constexpr):
    """y and the states before each chunk of T steps; grid (sequences, blocks of W channels)."""
    b, m = tl.program_id(0).to(tl.int64), tl.program_id(1)
    e, n, row = m * W + tl.arange(0, W), tl.arange(0, P), tl.arange(0, T)
    there = (e < channels)[:, None] & (n < size)[None, :]
    place = e[:, None] * size + n[None, :]
    decay = tl.load(A + place, mask=there, other=0.0)
    h = tl.load(first + b * channels * size + place, mask=there, other=0.0)
    for k in range(chunks):
        tl.store(states + (b * chunks + k) * channels * size + place, h, mask=there)
        t = k * T + row
        step = _vector(delta + b * length * channels, t, e, length, channels, True)
        drive = step * _vector(x + b * length * channels, t, e, length, channels, True)
        b_TP, c_TP = _vector(B + b * length * size, t, n, length, size, True), _vector(C + b * length * size, t, n, length, size, True)
        kept, added = tl.associative_scan((tl.exp(step[:, :, None] * decay[None, :, :]), drive[:, :, None] * b_TP[:, None, :]), 0, _after)
        h_TWP = kept * h[None, :, :] + added
        out = tl.sum(h_TWP * c_TP[:, None, :], 2)
        tl.store(y + b * length * channels + t[:, None] * channels + e[None, :], out, mask=(t < length)[:, None] & (e < channels)[None, :])
        h = tl.sum(tl.where((row == T - 1)[:, None, None], h_TWP, 0.0), 0)  # past the end the step size is 0: the state stays
    tl.store(last + b * channels * size + place, h, mask=there)


@triton.jit
@no_type_check
def _backward(
    x, delta, A, B, C, states, dy, dlast, dx, ddelta, dA, dB, dC, dfirst, batch, length, channels, size, chunks,
    T: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The adjoint g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, chunk by chunk from the end; the same grid."""
    b, m = tl.program_id(0).to(tl.int64), tl.program_id(1)
    e, n, row = m * W + tl.arange(0, W), tl.arange(0, P), tl.arange(0, T)
    there = (e < channels)[:, None] & (n < size)[None, :]
    place = e[:, None] * size + n[None, :]
    decay = tl.load(A + place, mask=there, other=0.0)
    g = tl.load(dlast + b * channels * size + place, mask=there, other=0.0)  # of the first state after the chunk, through its decay
    dA_WP = tl.zeros((W, P), decay.dtype)
    vectors, matrices = b * length * channels, b * length * size
    for back in range(chunks):
        k = chunks - 1 - back
        t = k * T + row
        h = tl.load(states + (b * chunks + k) * channels * size + place, mask=there, other=0.0)
        step, value = _vector(delta + vectors, t, e, length, channels, True), _vector(x + vectors, t, e, length, channels, True)
        out = _vector(dy + vectors, t, e, length, channels, True)
        b_TP, c_TP = _vector(B + matrices, t, n, length, size, True), _vector(C + matrices, t, n, length, size, True)
        # states before each step: the same scan one step late, with nothing at its start
        late = (row > 0)[:, None]
        step_late = _vector(delta + vectors, t - 1, e, length, channels, late)
        drive_late = step_late * _vector(x + vectors, t - 1, e, length, channels, late)
        b_late = _vector(B + matrices, t - 1, n, length, size, late)
        kept, added = tl.associative_scan((tl.exp(step_late[:, :, None] * decay[None, :, :]), drive_late[:, :, None] * b_late[:, None, :]), 0, _after)
        before = kept * h[None, :, :] + added
        a_TWP = tl.exp(step[:, :, None] * decay[None, :, :])
        now = a_TWP * before + (step * value)[:, :, None] * b_TP[:, None, :]
        # adjoints, from the last step on; the decay of the chunk's last step is in g already
        step_next = _vector(delta + vectors, t + 1, e, length, channels, (row < T - 1)[:, None])
        kept, added = tl.associative_scan(
            (tl.exp(step_next[:, :, None] * decay[None, :, :]), out[:, :, None] * c_TP[:, None, :]), 0, _after, reverse=True
        )
        g_TWP = kept * g[None, :, :] + added
        through = g_TWP * a_TWP
        ddrive = tl.sum(g_TWP * b_TP[:, None, :], 2)
        dstep = tl.sum(through * before * decay[None, :, :], 2) + ddrive * value
        dA_WP += tl.sum(through * before * step[:, :, None], 0)
        inside = (t < length)[:, None] & (e < channels)[None, :]
        tl.store(dx + vectors + t[:, None] * channels + e[None, :], ddrive * step, mask=inside)
        tl.store(ddelta + vectors + t[:, None] * channels + e[None, :], dstep, mask=inside)
        share = (m * batch + b) * length * size + t[:, None] * size + n[None, :]
        inside = (t < length)[:, None] & (n < size)[None, :]
        tl.store(dB + share, tl.sum(g_TWP * (step * value)[:, :, None], 1), mask=inside)
        tl.store(dC + share, tl.sum(now * out[:, :, None], 1), mask=inside)
        g = tl.sum(tl.where((row == 0)[:, None, None], through, 0.0), 0)
    tl.store(dfirst + b * channels * size + place, g, mask=there)
    tl.store(dA + b * channels * size + place, dA_WP, mask=there)


# ---- calls, as `etude.models.mamba.scan` makes them ----


def forward(x_BLE: Tensor, delta_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor, h_BEN: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scan over contiguous tensors of one type; `chunk` is the kernels' own, TILE steps.

    Returns:
        y (B, L, E), the states before each tile (B, K, E, N) for `backward`, and the last state (B, E, N).
    """
    (batch, length, channels), size = x_BLE.shape, A_EN.shape[1]
    chunks = triton.cdiv(length, TILE)
    y_BLE, last_BEN = torch.empty_like(x_BLE), torch.empty_like(h_BEN, memory_format=torch.contiguous_format)
    states_BKEN = x_BLE.new_empty(batch, chunks, channels, size)
    given = (x_BLE, delta_BLE, A_EN, B_BLN, C_BLN, h_BEN.contiguous(), y_BLE, states_BKEN, last_BEN, length, channels, size, chunks)
    _forward[batch, triton.cdiv(channels, BLOCK)](*given, TILE, BLOCK, triton.next_power_of_2(size), num_warps=WARPS)
    return y_BLE, states_BKEN, last_BEN


def backward(
    x_BLE: Tensor,
    delta_BLE: Tensor,
    A_EN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    states_BKEN: Tensor,
    dy_BLE: Tensor,
    dlast_BEN: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, A, B, C and the first state from those of y and of the last state."""
    (batch, length, channels), size = x_BLE.shape, A_EN.shape[1]
    blocks = triton.cdiv(channels, BLOCK)
    dx_BLE, ddelta_BLE = torch.empty_like(x_BLE), torch.empty_like(x_BLE)
    dA_BEN, dfirst_BEN = x_BLE.new_empty(batch, channels, size), x_BLE.new_empty(batch, channels, size)
    dB_MBLN, dC_MBLN = x_BLE.new_empty(blocks, batch, length, size), x_BLE.new_empty(blocks, batch, length, size)
    given = (x_BLE, delta_BLE, A_EN, B_BLN, C_BLN, states_BKEN, dy_BLE, dlast_BEN.contiguous())
    made = (dx_BLE, ddelta_BLE, dA_BEN, dB_MBLN, dC_MBLN, dfirst_BEN)
    sizes = (batch, length, channels, size, states_BKEN.shape[1], TILE, BLOCK, triton.next_power_of_2(size))
    _backward[batch, blocks](*given, *made, *sizes, num_warps=WARPS)
    return dx_BLE, ddelta_BLE, dA_BEN.sum(0), dB_MBLN.sum(0), dC_MBLN.sum(0), dfirst_BEN
