r"""The Mamba block as a mixer of `etude.nn.decoder`: projection, short causal convolution, selective scan, gate, projection (section 3.4, figure 3).

$$ (x, z) = W_{in} u, \quad x \leftarrow \mathrm{SiLU}(\mathrm{conv}(x)), \quad (\delta, B, C) = W_x x, \quad
\Delta = \mathrm{softplus}(W_\Delta \delta + b_\Delta), \quad y = \mathrm{scan}(x; \Delta, A, B, C) + D x, \quad
\mathrm{out} = W_{out}(y \cdot \mathrm{SiLU}(z)) $$

With `selective=False` Δ, B and C are parameters instead of functions of the token (S4D): the system is time-invariant and the scan a convolution.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu, softplus
from transformers import initialization as init

from etude.models.mamba.scan import CHUNK, KERNELS, convolve, impulse, scan_doubling, selective_scan, selective_step
from etude.nn.cache import LayerState
from etude.nn.decoder import Context

# Dimensions: B batch, L length, D model width, E channels (expand * D), N state, R rank of the step size, K kernel.
MEANINGS = {
    "state": "it is how many numbers a channel remembers",
    "kernel": "it is how many tokens the convolution sees",
    "expand": "it is channels over model width",
    "rank": "it is of the projection that gives the step sizes; left out, a sixteenth of the model's width",
    "chunk": "it is how many steps lie between two states that are kept for the backward pass",
}
FASTEST, SLOWEST, FLOOR = 0.1, 1e-3, 1e-4  # step sizes at the start: drawn between the first two, none below the third


def check(**sizes: int | None) -> None:
    """Refuse sizes below 1.

    Raises:
        ValueError: names the size, its value and what it is.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}: {MEANINGS[name]}")


class MambaMixer(nn.Module):
    """The block without its norm and residual: (B, L, D) -> (B, L, D).

    Its memory in a cache is `conv` (B, E, K), the last inputs of the convolution, and `ssm` (B, E, N), the state: fixed sizes, whatever the context.

    Args:
        width: D.
        layer: its number, under which the cache keeps its memory.
        layers: how many there are; the last projection starts smaller by the root of it.
        state, kernel, expand: N, K and E / D.
        rank: R; left out, a sixteenth of the model's width.
        selective: step sizes, B and C depend on the token.
        bias, conv_bias: whether the outer projections and the convolution have biases.
        scan: which kernel runs (`etude.models.mamba.scan.KERNELS`); chunk: steps between two states that are kept for the backward pass.

    Raises:
        ValueError: a size below 1, or an unknown kernel.
    """

    keep_float32 = ("mixer.A_log", "mixer.D")  # a rounded time scale is another one

    def __init__(
        self,
        width: int,
        layer: int = 0,
        layers: int = 1,
        *,
        state: int = 16,
        kernel: int = 4,
        expand: int = 2,
        rank: int | None = None,
        selective: bool = True,
        bias: bool = False,
        conv_bias: bool = True,
        scan: str = "auto",
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        check(state=state, kernel=kernel, expand=expand, rank=rank, chunk=chunk)
        if scan not in KERNELS:
            raise ValueError(f"scan is one of {', '.join(KERNELS)}, got {scan!r}")
        self.layer, self.layers, self.channels, self.rank = layer, layers, expand * width, rank or math.ceil(width / 16)
        self.state, self.kernel, self.selective, self.scan, self.chunk = state, kernel, selective, scan, chunk
        self.in_proj = nn.Linear(width, 2 * self.channels, bias=bias)
        self.conv1d = nn.Conv1d(self.channels, self.channels, kernel, groups=self.channels, bias=conv_bias)
        if selective:
            self.x_proj = nn.Linear(self.channels, self.rank + 2 * state, bias=False)
            self.dt_proj = nn.Linear(self.rank, self.channels)
        else:
            self.dt_bias = nn.Parameter(torch.empty(self.channels))
            self.B = nn.Parameter(torch.empty(self.channels, state))
            self.C = nn.Parameter(torch.empty(self.channels, state))
        self.A_log = nn.Parameter(torch.empty(self.channels, state))
        self.D = nn.Parameter(torch.empty(self.channels))
        self.out_proj = nn.Linear(self.channels, width, bias=bias)
        self.no_decay = ("A_log", "D", *(() if selective else ("B", "C")))  # it would drag the time scales towards 1
        self.init_weights()

    @property
    def step_bias(self) -> nn.Parameter:
        """softplus of it is the step size of a token that says nothing."""
        return self.dt_proj.bias if self.selective else self.dt_bias

    @torch.no_grad()
    def init_weights(self) -> None:
        """The paper's start (section 3.6): A = -(1..N), D = 1, step sizes log-uniform in [0.001, 0.1], the last projection over sqrt(layers)."""
        steps = torch.arange(1, self.state + 1, dtype=torch.float32, device=self.A_log.device)
        init.copy_(self.A_log, steps.log().expand_as(self.A_log))
        init.ones_(self.D)
        drawn = torch.rand(self.channels, device=self.A_log.device) * math.log(FASTEST / SLOWEST) + math.log(SLOWEST)
        delta = drawn.exp().clamp(min=FLOOR)
        init.copy_(self.step_bias, delta + torch.log(-torch.expm1(-delta)))  # softplus^-1
        fans = {self.in_proj: self.in_proj.in_features, self.conv1d: self.kernel, self.out_proj: self.channels * self.layers}
        if self.selective:
            fans |= {self.x_proj: self.channels}
            init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        else:
            init.ones_(self.B)
            init.normal_(self.C)
        for module, fan in fans.items():
            init.uniform_(module.weight, -(fan**-0.5), fan**-0.5)
        if self.conv1d.bias is not None:
            init.uniform_(self.conv1d.bias, -(self.kernel**-0.5), self.kernel**-0.5)

    def forward(self, u_BLD: Float[Tensor, "B L D"], context: Context | None = None) -> Float[Tensor, "B L D"]:
        """All tokens at once, or a decode step where the context's cache holds the past and one token comes.

        Padding neither enters the convolution nor moves the state: both are 0 there, and so is the step size.

        Raises:
            ValueError: no token, or a cache of another batch.
        """
        state = None if context is None else context.state(self.layer)
        self._check(u_BLD, state)
        real_BL1 = None if context is None or context.real_BT is None else context.real_BT[..., None]
        if state is not None and "ssm" in state and u_BLD.shape[1] == 1 and real_BL1 is None:
            return self.step(u_BLD, state)
        masked = (lambda tensor: tensor) if real_BL1 is None else (lambda tensor: tensor * real_BL1)
        x_BLE, z_BLE = self.in_proj(masked(u_BLD)).chunk(2, -1)
        x_BLE = masked(silu(self._convolved(masked(x_BLE), state)))
        y_BLE = self._scanned(x_BLE, real_BL1, state)
        return self._out(y_BLE, x_BLE, z_BLE)

    def step(self, u_B1D: Float[Tensor, "B L D"], state: LayerState) -> Float[Tensor, "B L D"]:
        """One token after those that `state` remembers, which then remembers it too: the same time and memory however many they were.

        Raises:
            ValueError: not exactly one token, a state of another batch, or one that was never written.
        """
        self._check(u_B1D, state)
        if u_B1D.shape[1] != 1:
            raise ValueError(f"a step takes one token, got {u_B1D.shape[1]}: call the block itself for several")
        if "ssm" not in state:
            raise ValueError("this cache has seen nothing yet: run the prompt through the block first")
        x_B1E, z_B1E = self.in_proj(u_B1D).chunk(2, -1)
        x_B1E = silu(self._convolved(x_B1E, state))
        delta_BLE, B, C = self._system(x_B1E)
        x_BE, delta_BE = _wide(x_B1E[:, 0]), delta_BLE[:, 0].expand(len(u_B1D), -1)
        y_BE, state["ssm"] = selective_step(x_BE, delta_BE, self.A_EN, B, C, state["ssm"])
        return self._out(y_BE[:, None], x_B1E, z_B1E)

    @property
    def A_EN(self) -> Float[Tensor, "E N"]:
        """-exp(A_log), at least in float32."""
        return -torch.exp(_wide(self.A_log))

    def _check(self, u_BLD: Tensor, state: LayerState | None) -> None:
        if not u_BLD.shape[1]:
            raise ValueError(f"the sequence is empty: the block's input has shape {tuple(u_BLD.shape)}; give at least one token")
        if state is not None and "conv" in state and state["conv"].shape[0] != u_BLD.shape[0]:
            held, come = state["conv"].shape[0], u_BLD.shape[0]
            raise ValueError(f"the cache remembers {held} sequences and {come} come: start a new cache, or reorder this one (reorder_cache)")

    def _convolved(self, x_BLE: Tensor, state: LayerState | None) -> Tensor:
        """The depthwise convolution as a sum over its taps; the window reaches back over the cache or zeros, never ahead."""
        K, length = self.kernel, x_BLE.shape[1]
        if state is None or "conv" not in state:
            window = pad(x_BLE, (0, 0, K, 0))
        else:
            window = torch.cat([state["conv"].transpose(1, 2).to(x_BLE.dtype), x_BLE], 1)
        if state is not None:
            state["conv"] = window[:, -K:].transpose(1, 2).contiguous()
        weight_EK = self.conv1d.weight[:, 0]
        y_BLE = x_BLE.new_zeros(()) if self.conv1d.bias is None else self.conv1d.bias
        for k in range(K):
            y_BLE = torch.addcmul(y_BLE, window[:, k + 1 : k + 1 + length], weight_EK[:, k])
        return y_BLE

    def _system(self, x_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes (B, L, E), B and C (B, L, N), of the token; or (1, 1, E) and (E, N), the same for all."""
        if not self.selective:
            return softplus(_wide(self.dt_bias))[None, None], _wide(self.B), _wide(self.C)
        low_BLR, B_BLN, C_BLN = self.x_proj(x_BLE).split([self.rank, self.state, self.state], -1)
        delta_BLE = softplus(_wide(linear(low_BLR, self.dt_proj.weight)) + _wide(self.dt_proj.bias))  # the bias is added once, in full precision
        return delta_BLE, _wide(B_BLN), _wide(C_BLN)

    def _scanned(self, x_BLE: Tensor, real_BL1: Bool[Tensor, "B L 1"] | None, state: LayerState | None) -> Tensor:
        delta_BLE, B, C = self._system(x_BLE)
        if not self.selective and state is None:
            return convolve(_wide(x_BLE), impulse(delta_BLE[0, 0], self.A_EN, B, C, x_BLE.shape[1]))
        delta_BLE = delta_BLE.expand(x_BLE.shape) if real_BL1 is None else delta_BLE * real_BL1
        h_BEN = state["ssm"] if state is not None and "ssm" in state else None
        if self.selective:
            y_BLE, last_BEN = selective_scan(x_BLE, delta_BLE, self.A_EN, B, C, h_BEN, self.scan, self.chunk)
        else:
            h_BEN = B.new_zeros(len(x_BLE), *B.shape) if h_BEN is None else h_BEN
            y_BLE, last_BEN = scan_doubling(_wide(x_BLE), delta_BLE, self.A_EN, B, C, h_BEN, self.chunk)
        if state is not None:
            state["ssm"] = last_BEN
        return y_BLE

    def _out(self, y_BLE: Tensor, x_BLE: Tensor, z_BLE: Tensor) -> Tensor:
        """The skip, the gate and the last projection."""
        y_BLE = torch.addcmul(y_BLE, _wide(x_BLE), _wide(self.D))
        return self.out_proj((y_BLE * silu(_wide(z_BLE))).to(x_BLE.dtype))


def _wide(tensor: Tensor) -> Tensor:
    """In float32, where it is narrower."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
