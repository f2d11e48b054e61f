"""The selective scan on a CPU: compiled forward and backward, the vector lanes run over channels.

What the CUDA kernels of the paper do in SRAM happens here in the first two cache levels: a work item is one sequence and `BLOCK` channels, its state
(N, BLOCK) stays in L1 while time runs, and nothing of size (B, L, E, N) exists. The forward pass keeps the states at the chunks' boundaries; the
backward pass goes through the chunks from the last to the first and computes each one's states anew (arXiv 2312.00752, section 3.3.2).

Work items are shared out to plain threads that live as long as one call: they follow `torch.get_num_threads()`, a process may fork at any moment, and
several threads may call at once, which numba's own threads do not allow. Sums over channels and sequences are made item by item in a fixed order, so
that the number of threads changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, no_type_check

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

# Dimensions: B batch, L length, E channels, N state, K chunks of a sequence, M blocks of channels.
BLOCK = 64  # channels of a work item: four vectors of 16 floats, the state of N = 16 takes 4 KiB
WORTH = 1 << 18  # products of length, channels and state that are worth a thread of their own
REORDER = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity stay what they are


def compiled(function: Callable[..., None]) -> Any:
    """The function compiled at its first call, without the interpreter's lock; kept on disk where a folder for it can be written."""
    try:
        return njit(nogil=True, cache=True, fastmath=REORDER)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        return njit(nogil=True, fastmath=REORDER)(function)


# ---- exp ----


@no_type_check
def exp(x):
    """e^x; compiled, float32 takes a polynomial that the compiler can vectorise, float64 the library's."""
    return math.exp(x)


@overload(exp, jit_options={"fastmath": {"contract"}})  # reordering would cancel the rounding to a whole number
@no_type_check
def _exp(x):
    return _exp32 if x == types.float32 else (lambda x: math.exp(x))


@no_type_check
def _exp32(x):
    """2^k e^r with k = round(x / ln 2) and a polynomial of degree 7 for |r| <= ln 2 / 2 (Cephes): within 2 units in the last place.

    0 below -87 (the smallest normal number), infinity above 88; NaN stays.
    """
    bits = x * np.float32(1.4426950408889634) + np.float32(12582912.0)  # adding 1.5 * 2^23 rounds; k stands in the lowest bits
    k = bits - np.float32(12582912.0)
    r = (x - k * np.float32(0.693359375)) - k * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = (p * r * r + r) + np.float32(1.0)
    power = np.int32((np.float32(bits).view(np.int32) << 23) + 0x3F800000).view(np.float32)
    inside = p * power if x > np.float32(-87.0) else np.float32(0.0) * x
    return np.float32(np.inf) if x > np.float32(88.0) else inside


# ---- kernels: work items low..high-1 of B * ceil(E / BLOCK) ----


@compiled
@no_type_check
def _forward(x_BLE, delta_BLE, A_NE, B_BLN, C_BLN, chunk, h_BNE, y_BLE, states_BKNE, low, high):
    """h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t and y_t = C_t . h_t; `h_BNE` holds the first state and receives the last."""
    length, channels, size = x_BLE.shape[1], x_BLE.shape[2], A_NE.shape[0]
    blocks = (channels + BLOCK - 1) // BLOCK
    h, A = np.empty((size, BLOCK), x_BLE.dtype), np.empty((size, BLOCK), x_BLE.dtype)
    delta, drive, y = np.empty(BLOCK, x_BLE.dtype), np.empty(BLOCK, x_BLE.dtype), np.empty(BLOCK, x_BLE.dtype)
    for item in range(low, high):
        b, first = item // blocks, item % blocks * BLOCK
        wide = min(BLOCK, channels - first)
        for n in range(size):
            for e in range(wide):
                h[n, e], A[n, e] = h_BNE[b, n, first + e], A_NE[n, first + e]
        for t in range(length):
            if t % chunk == 0:
                for n in range(size):
                    for e in range(wide):
                        states_BKNE[b, t // chunk, n, first + e] = h[n, e]
            for e in range(wide):
                delta[e] = delta_BLE[b, t, first + e]
                drive[e] = delta[e] * x_BLE[b, t, first + e]
                y[e] = 0
            for n in range(size):
                b_n, c_n = B_BLN[b, t, n], C_BLN[b, t, n]
                for e in range(wide):
                    state = exp(delta[e] * A[n, e]) * h[n, e] + drive[e] * b_n
                    h[n, e] = state
                    y[e] += c_n * state
            for e in range(wide):
                y_BLE[b, t, first + e] = y[e]
        for n in range(size):
            for e in range(wide):
                h_BNE[b, n, first + e] = h[n, e]


@compiled
@no_type_check
def _backward(x_BLE, delta_BLE, A_NE, B_BLN, C_BLN, chunk, states_BKNE, dy_BLE, g_BNE, dx_BLE, ddelta_BLE, dA_BNE, dB_MBLN, dC_MBLN, low, high):
    """The adjoint g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}; `g_BNE` holds the last state's gradient and receives the first one's.

    Each block of channels writes its own share of dB and dC.
    """
    length, channels, size, kind = x_BLE.shape[1], x_BLE.shape[2], A_NE.shape[0], x_BLE.dtype
    blocks = (channels + BLOCK - 1) // BLOCK
    h, decay = np.empty((chunk + 1, size, BLOCK), kind), np.empty((chunk, size, BLOCK), kind)
    delta, drive = np.empty((chunk, BLOCK), kind), np.empty((chunk, BLOCK), kind)
    g, A, dA = np.empty((size, BLOCK), kind), np.empty((size, BLOCK), kind), np.empty((size, BLOCK), kind)
    dy, ddrive, ddelta = np.empty(BLOCK, kind), np.empty(BLOCK, kind), np.empty(BLOCK, kind)
    for item in range(low, high):
        b, m, first = item // blocks, item % blocks, item % blocks * BLOCK
        wide = min(BLOCK, channels - first)
        for n in range(size):
            for e in range(wide):
                g[n, e], A[n, e], dA[n, e] = g_BNE[b, n, first + e], A_NE[n, first + e], 0
        for k in range((length + chunk - 1) // chunk - 1, -1, -1):
            start = k * chunk
            steps = min(chunk, length - start)
            for n in range(size):
                for e in range(wide):
                    h[0, n, e] = states_BKNE[b, k, n, first + e]
            for t in range(steps):
                for e in range(wide):
                    delta[t, e] = delta_BLE[b, start + t, first + e]
                    drive[t, e] = delta[t, e] * x_BLE[b, start + t, first + e]
                for n in range(size):
                    b_n = B_BLN[b, start + t, n]
                    for e in range(wide):
                        decay[t, n, e] = exp(delta[t, e] * A[n, e])
                        h[t + 1, n, e] = decay[t, n, e] * h[t, n, e] + drive[t, e] * b_n
            for t in range(steps - 1, -1, -1):
                for e in range(wide):
                    dy[e], ddrive[e], ddelta[e] = dy_BLE[b, start + t, first + e], 0, 0
                for n in range(size):
                    b_n, c_n = B_BLN[b, start + t, n], C_BLN[b, start + t, n]
                    db, dc = kind.type(0), kind.type(0)
                    for e in range(wide):
                        adjoint = g[n, e] + c_n * dy[e]
                        passed = adjoint * decay[t, n, e]
                        kept = passed * h[t, n, e]  # dĀ Ā
                        dc += dy[e] * h[t + 1, n, e]
                        db += adjoint * drive[t, e]
                        ddrive[e] += adjoint * b_n
                        ddelta[e] += kept * A[n, e]
                        dA[n, e] += kept * delta[t, e]
                        g[n, e] = passed
                    dB_MBLN[m, b, start + t, n], dC_MBLN[m, b, start + t, n] = db, dc
                for e in range(wide):
                    dx_BLE[b, start + t, first + e] = ddrive[e] * delta[t, e]
                    ddelta_BLE[b, start + t, first + e] = ddelta[e] + ddrive[e] * x_BLE[b, start + t, first + e]
        for n in range(size):
            for e in range(wide):
                g_BNE[b, n, first + e], dA_BNE[b, n, first + e] = g[n, e], dA[n, e]


# ---- calls, as `etude.models.mamba.scan` makes them ----


def forward(x_BLE: Tensor, delta_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor, h_BEN: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scan over contiguous tensors of one type.

    Args:
        h_BEN: the first state.
        chunk: time steps between two states that are kept.

    Returns:
        y (B, L, E), the states before each chunk (B, K, N, E) for `backward`, and the last state (B, E, N).
    """
    (batch, length, channels), A_NE, h_BNE = x_BLE.shape, A_EN.t().contiguous(), _states_first(h_BEN)
    y_BLE, states_BKNE = torch.empty_like(x_BLE), x_BLE.new_empty(batch, -(-length // chunk), *A_NE.shape)
    _share(_forward, (batch, channels, length * len(A_NE)), x_BLE, delta_BLE, A_NE, B_BLN, C_BLN, chunk, h_BNE, y_BLE, states_BKNE)
    return y_BLE, states_BKNE, h_BNE.transpose(1, 2).contiguous()


def backward(
    x_BLE: Tensor,
    delta_BLE: Tensor,
    A_EN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    states_BKNE: Tensor,
    dy_BLE: Tensor,
    dlast_BEN: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, A, B, C and the first state from those of y and of the last state."""
    (batch, length, channels), A_NE, g_BNE = x_BLE.shape, A_EN.t().contiguous(), _states_first(dlast_BEN)
    dx_BLE, ddelta_BLE, dA_BNE = torch.empty_like(x_BLE), torch.empty_like(x_BLE), torch.empty_like(g_BNE)
    dB_MBLN = x_BLE.new_empty(-(-channels // BLOCK), *B_BLN.shape)
    dC_MBLN = torch.empty_like(dB_MBLN)
    given = (x_BLE, delta_BLE, A_NE, B_BLN, C_BLN, chunk, states_BKNE, dy_BLE, g_BNE, dx_BLE, ddelta_BLE, dA_BNE, dB_MBLN, dC_MBLN)
    _share(_backward, (batch, channels, length * len(A_NE)), *given)
    return dx_BLE, ddelta_BLE, dA_BNE.sum(0).t(), dB_MBLN.sum(0), dC_MBLN.sum(0), g_BNE.transpose(1, 2)


def _states_first(h_BEN: Tensor) -> Tensor:
    """A copy of the states in the kernels' order (B, N, E)."""
    return h_BEN.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _share(kernel: Callable[..., None], size: tuple[int, int, int], *given: Any) -> None:
    """Run all work items of (sequences, channels, work a channel), on several threads where there is work for them."""
    batch, channels, work = size
    items, arrays = batch * -(-channels // BLOCK), [one.numpy() if isinstance(one, Tensor) else one for one in given]
    threads = max(1, min(torch.get_num_threads(), items, batch * channels * work // WORTH))
    if threads == 1:
        kernel(*arrays, 0, items)
        return
    edges = [items * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *arrays, low, high) for low, high in pairwise(edges)]:
            done.result()
