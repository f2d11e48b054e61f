r"""The selective scan: h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_t and y_t = C_t · h_t, a state of N numbers for each channel (2312.00752, algorithm 2).

Ā = exp(ΔA) is the exact zero-order hold, B̄ = ΔB its first-order form, as in the paper's code. The state is kept in float32 (bfloat16 diverges),
in float64 where the inputs are. Four kernels compute the same:

- `scan_sequential`: one step after the other, as the formula reads. The reference: it keeps all states of all steps for its backward pass.
- `scan_doubling`: chunks, inside each the parallel scan with (a1, b1) ∘ (a2, b2) = (a1 a2, a2 b1 + b2) in log2 T rounds. Plain torch on any device.
- `etude.models.mamba.cpu` (numba) and `etude.models.mamba.cuda` (Triton): fused, with a backward pass of their own.

All but the first keep only the states at the chunks' boundaries for the backward pass and compute the others anew: O(L E + L/T E N) numbers.
No kernel divides by a product of decays: over long chunks it underflows, and its logarithm is of no use.

Where Δ, B and C do not depend on the token the system is linear and time-invariant, and the scan is a convolution: `impulse` and `convolve`.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Dimensions: B batch, L length, E channels, N state, T steps of a chunk.
CHUNK = 64
TRITON = find_spec("triton") is not None
KERNELS = ("auto", "sequential", "doubling", "numba", "triton")
Matrix = Float[Tensor, "B L N"] | Float[Tensor, "E N"]  # of each token, or the same for all


def selective_scan(
    x_BLE: Float[Tensor, "B L E"],
    delta_BLE: Float[Tensor, "B L E"],
    A_EN: Float[Tensor, "E N"],
    B_BLN: Float[Tensor, "B L N"],
    C_BLN: Float[Tensor, "B L N"],
    h_BEN: Float[Tensor, "B E N"] | None = None,
    kernel: str = "auto",
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]:
    """y (B, L, E) and the last state (B, E, N), by the fastest kernel that the device has; differentiable in all inputs.

    Args:
        delta_BLE: step sizes, not negative; 0 leaves the state as it is.
        A_EN: negative.
        h_BEN: the state before the first token; 0 where left out.
        kernel: one of KERNELS.
        chunk: steps between two states that are kept for the backward pass.

    Raises:
        ValueError: an empty sequence or chunk, an unknown kernel, or one that the device does not have.
    """
    if not x_BLE.shape[1]:
        raise ValueError(f"the sequence is empty: x has shape {tuple(x_BLE.shape)}; give at least one token")
    if chunk < 1:
        raise ValueError(f"a chunk has at least 1 step, got {chunk}")
    if kernel == "auto":
        kernel = "numba" if x_BLE.device.type == "cpu" else "triton" if x_BLE.is_cuda and TRITON else "doubling"
    dtype = torch.float64 if x_BLE.dtype == torch.float64 else torch.float32
    h_BEN = x_BLE.new_zeros(x_BLE.shape[0], *A_EN.shape, dtype=dtype) if h_BEN is None else h_BEN
    given = [tensor.to(dtype) for tensor in (x_BLE, delta_BLE, A_EN, B_BLN, C_BLN, h_BEN)]
    if kernel == "sequential":
        return scan_sequential(*given)
    if kernel == "doubling":
        return scan_doubling(*given, chunk)
    return _fused(_kernels(kernel, x_BLE.device), *given, chunk)


def scan_sequential(
    x_BLE: Float[Tensor, "B L E"],
    delta_BLE: Float[Tensor, "B L E"],
    A_EN: Float[Tensor, "E N"],
    B: Matrix,
    C: Matrix,
    h_BEN: Float[Tensor, "B E N"],
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]:
    """The reference: one token after the other."""
    outputs = []
    for t in range(x_BLE.shape[1]):
        y_BE, h_BEN = selective_step(x_BLE[:, t], delta_BLE[:, t], A_EN, _at(B, t), _at(C, t), h_BEN)
        outputs.append(y_BE)
    return torch.stack(outputs, 1), h_BEN


def selective_step(
    x_BE: Float[Tensor, "B E"],
    delta_BE: Float[Tensor, "B E"],
    A_EN: Float[Tensor, "E N"],
    B: Float[Tensor, "B 1 N"] | Float[Tensor, "E N"],
    C: Float[Tensor, "B 1 N"] | Float[Tensor, "E N"],
    h_BEN: Float[Tensor, "B E N"],
) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E N"]]:
    """One token: y (B, E) and the new state (B, E, N)."""
    decay_BEN = torch.exp(delta_BE[..., None] * A_EN)
    h_BEN = decay_BEN * h_BEN + (delta_BE * x_BE)[..., None] * B
    return (h_BEN * C).sum(-1), h_BEN


def scan_doubling(
    x_BLE: Float[Tensor, "B L E"],
    delta_BLE: Float[Tensor, "B L E"],
    A_EN: Float[Tensor, "E N"],
    B: Matrix,
    C: Matrix,
    h_BEN: Float[Tensor, "B E N"],
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]:
    """Chunk by chunk, each by recursive doubling; the backward pass computes a chunk's states anew."""
    outputs = []
    for start in range(0, x_BLE.shape[1], chunk):
        span = slice(start, start + chunk)
        given = (x_BLE[:, span], delta_BLE[:, span], A_EN, _span(B, span), _span(C, span), h_BEN)
        again = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
        y_BTE, h_BEN = checkpoint(_doubled, *given, use_reentrant=False, preserve_rng_state=False) if again else _doubled(*given)
        outputs.append(y_BTE)
    return torch.cat(outputs, 1), h_BEN


def _doubled(x_BTE: Tensor, delta_BTE: Tensor, A_EN: Tensor, B: Tensor, C: Tensor, h_BEN: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds s = 1, 2, 4...: (a, b)_t becomes (a, b)_{t-s} ∘ (a, b)_t; then a_t h_0 + b_t is the state after t."""
    a_BTEN = torch.exp(delta_BTE[..., None] * A_EN)
    b_BTEN = (delta_BTE * x_BTE)[..., None] * _wide(B)
    reach = 1
    while reach < x_BTE.shape[1]:
        a_new, b_new = a_BTEN[:, reach:] * a_BTEN[:, :-reach], a_BTEN[:, reach:] * b_BTEN[:, :-reach] + b_BTEN[:, reach:]
        a_BTEN, b_BTEN = torch.cat([a_BTEN[:, :reach], a_new], 1), torch.cat([b_BTEN[:, :reach], b_new], 1)
        reach *= 2
    h_BTEN = a_BTEN * h_BEN[:, None] + b_BTEN
    return (h_BTEN * _wide(C)).sum(-1), h_BTEN[:, -1].clone()  # a view would keep the whole chunk's states alive


def _at(matrix: Tensor, t: int) -> Tensor:
    return matrix[:, t, None] if matrix.ndim == 3 else matrix


def _span(matrix: Tensor, span: slice) -> Tensor:
    return matrix[:, span] if matrix.ndim == 3 else matrix


def _wide(matrix: Tensor) -> Tensor:
    return matrix[:, :, None] if matrix.ndim == 3 else matrix


# ---- fused kernels ----


def _kernels(kernel: str, device: torch.device) -> ModuleType:
    if kernel == "numba" and device.type == "cpu":
        from etude.models.mamba import cpu

        return cpu
    if kernel == "triton":
        if not TRITON:
            raise ValueError('triton is not installed here: pip install triton, or take kernel="doubling"')
        from etude.models.mamba import cuda

        if device.type == "cuda" or cuda.INTERPRETED:
            return cuda
    raise ValueError(f"no kernel {kernel!r} for tensors on {device}: kernels are {', '.join(KERNELS)}; numba is for the CPU, triton for CUDA")


@torch.compiler.disable
def _fused(kernels: ModuleType, *given: Any) -> tuple[Tensor, Tensor]:
    return _Fused.apply(kernels, *given)


@no_type_check
class _Fused(torch.autograd.Function):
    """forward and backward of `etude.models.mamba.cpu` or `.cuda`; what is saved is the inputs and the states at the chunks' boundaries."""

    @staticmethod
    def forward(ctx, kernels, x_BLE, delta_BLE, A_EN, B_BLN, C_BLN, h_BEN, chunk):
        given = [tensor.detach().contiguous() for tensor in (x_BLE, delta_BLE, A_EN, B_BLN, C_BLN)]
        y_BLE, states, last_BEN = kernels.forward(*given, h_BEN.detach(), chunk)
        ctx.save_for_backward(*given, states)
        ctx.kernels, ctx.chunk = kernels, chunk
        return y_BLE, last_BEN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_BLE, dlast_BEN):
        gradients = ctx.kernels.backward(*ctx.saved_tensors, dy_BLE.contiguous(), dlast_BEN, ctx.chunk)
        return None, *gradients, None


# ---- the time-invariant system ----


def impulse(
    delta_E: Float[Tensor, " E"], A_EN: Float[Tensor, "E N"], B_EN: Float[Tensor, "E N"], C_EN: Float[Tensor, "E N"], length: int
) -> Float[Tensor, "E L"]:
    """The response to a single 1: K_j = C · Ā^j B̄ with Ā = exp(ΔA) and B̄ = ΔB (section 2, equation 3)."""
    steps_L = torch.arange(length, device=A_EN.device, dtype=A_EN.dtype)
    decay_EN, weight_EN = delta_E[:, None] * A_EN, delta_E[:, None] * B_EN * C_EN
    terms = (weight_EN[:, n, None] * torch.exp(decay_EN[:, n, None] * steps_L) for n in range(A_EN.shape[1]))
    return sum(terms)


def convolve(x_BLE: Float[Tensor, "B L E"], kernel_EL: Float[Tensor, "E L"]) -> Float[Tensor, "B L E"]:
    """y_t = sum_j K_j x_{t-j}, by the fast Fourier transform over twice the length (the past must not wrap around)."""
    length = x_BLE.shape[1]
    spectrum = torch.fft.rfft(x_BLE.transpose(1, 2), 2 * length) * torch.fft.rfft(kernel_EL, 2 * length)
    return torch.fft.irfft(spectrum, 2 * length)[..., :length].transpose(1, 2)
