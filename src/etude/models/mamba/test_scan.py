"""The selective scan: every kernel against the reference, bit by bit where it must be, and where it must stop."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import no_type_check

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import softplus

from etude.models.mamba import cpu
from etude.models.mamba.scan import convolve, impulse, scan_doubling, scan_sequential, selective_scan

few = settings(max_examples=12, deadline=None)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 3, 64, 70]), st.integers(1, 5))


def draw(batch: int, length: int, channels: int, state: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """x, delta, A, B, C and a first state."""
    dice = torch.Generator().manual_seed(seed)
    x, delta, B, C, h = (
        torch.randn(shape, generator=dice, dtype=dtype)
        for shape in [(batch, length, channels)] * 2 + [(batch, length, state)] * 2 + [(batch, channels, state)]
    )
    A = -torch.exp(torch.randn(channels, state, generator=dice, dtype=dtype))
    return [x, softplus(delta - 2), A, B, C, h]


def outcome(kernel: str, given_: list[torch.Tensor], chunk: int = 8) -> list[torch.Tensor]:
    """Outputs, last state, and the gradients of all inputs under fixed weights."""
    leaves = [tensor.clone().requires_grad_() for tensor in given_]
    y, last = selective_scan(*leaves, kernel=kernel, chunk=chunk)
    weights = torch.Generator().manual_seed(1)
    loss = sum((out * torch.randn(out.shape, generator=weights, dtype=out.dtype)).sum() for out in (y, last))
    return [y.detach(), last.detach(), *torch.autograd.grad(loss, leaves)]


def worst(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference, over the largest number of each tensor."""
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(found, wanted, strict=True))


# ---- kernels against the reference ----


@few
@given(sizes, st.sampled_from([1, 3, 8, 64]))
@example((2, 17, 70, 3), 8)  # no multiple of the chunk, nor of the block of channels
def test_kernels_agree_with_the_reference_in_values_and_gradients(size, chunk):
    wanted = outcome("sequential", draw(*size))
    for kernel in ("doubling", "numba"):
        assert worst(outcome(kernel, draw(*size), chunk), wanted) < 1e-12
    single = draw(*size, dtype=torch.float32)
    assert worst(outcome("numba", single, chunk), outcome("sequential", single)) < 1e-4


@pytest.mark.parametrize("kernel", ["sequential", "doubling", "numba"])
def test_gradients_are_those_of_finite_differences(kernel):
    leaves = [tensor.requires_grad_() for tensor in draw(2, 5, 3, 2)]
    assert torch.autograd.gradcheck(lambda *given_: selective_scan(*given_, kernel=kernel, chunk=2), leaves)


INTERPRETED = """
from etude.models.mamba import cuda
from etude.models.mamba.test_scan import draw, outcome, worst
cuda.TILE, cuda.BLOCK = 4, 2
size = (1, 5, 3, 3)  # each of them leaves a rest
print(worst(outcome("triton", draw(*size)), outcome("sequential", draw(*size))))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernels_agree_when_interpreted():
    """In a process of its own: triton decides at its import."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-12


def test_transformers_reference_scan_agrees():
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    x, delta, A, B, C, _ = draw(2, 9, 6, 4, dtype=torch.float32)
    y, last = selective_scan(x, delta, A, B, C)
    theirs, state = mamba_selective_scan(x.mT, delta.mT, A, B.mT, C.mT, return_last_state=True)
    assert worst([y, last], [theirs.mT, state]) < 1e-4


# ---- what the mathematics promises ----


@few
@given(st.integers(1, 20), st.data())
def test_the_future_changes_no_bit_of_the_past(length, data):
    place = data.draw(st.integers(0, length - 1))
    given_ = draw(2, length, 5, 3, dtype=torch.float32)
    y, _ = selective_scan(*given_)
    for tensor in (*given_[:2], *given_[3:5]):
        tensor[:, place:] += 1
    assert torch.equal(selective_scan(*given_)[0][:, :place], y[:, :place])


@pytest.mark.parametrize("kernel", ["sequential", "doubling", "numba"])
def test_a_step_of_size_0_leaves_every_bit_of_the_state(kernel):
    x, _, A, B, C, h = draw(2, 11, 5, 3, dtype=torch.float32)
    assert torch.equal(selective_scan(x, torch.zeros_like(x), A, B, C, h, kernel=kernel)[1], h)


def test_two_halves_are_the_whole():
    x, delta, A, B, C, h = draw(2, 21, 6, 4)
    y, last = selective_scan(x, delta, A, B, C, h)
    first, between = selective_scan(x[:, :8], delta[:, :8], A, B[:, :8], C[:, :8], h)
    second, end = selective_scan(x[:, 8:], delta[:, 8:], A, B[:, 8:], C[:, 8:], between)
    assert worst([torch.cat([first, second], 1), end], [y, last]) < 1e-12


def test_one_state_and_the_exact_hold_are_a_gate():
    """Theorem 1: with N = 1, A = -1 and B̄ = 1 - exp(-Δ) the state is (1 - g) h + g x, g the sigmoid of what Δ is the softplus of."""
    x, s = torch.randn(2, 12, 3, dtype=torch.float64), torch.randn(2, 12, 3, dtype=torch.float64)
    delta, ones = softplus(s), torch.ones(2, 12, 1, dtype=torch.float64)
    held = -torch.expm1(-delta) / delta  # turns Δ B x into the exact hold
    y, _ = selective_scan(x * held, delta, -torch.ones(3, 1, dtype=torch.float64), ones, ones)
    h, gate = torch.zeros(2, 3, dtype=torch.float64), torch.sigmoid(s)
    for t in range(12):
        h = (1 - gate[:, t]) * h + gate[:, t] * x[:, t]
        assert torch.allclose(y[:, t], h)


@few
@given(st.integers(1, 30), st.integers(1, 4))
def test_the_same_system_for_all_tokens_is_a_convolution(length, state):
    x, delta, A, _, _, h = draw(2, length, 5, state)
    B, C = h[0], h[1]
    kernel = impulse(delta[0, 0], A, B, C, length)
    direct = torch.stack([sum(kernel[:, j] * x[:, t - j] for j in range(t + 1)) for t in range(length)], 1)
    constant = delta[:1, :1].expand_as(x)
    for scan in (scan_sequential, scan_doubling):
        assert worst([scan(x, constant, A, B, C, torch.zeros_like(h))[0]], [direct]) < 1e-12
    assert worst([convolve(x, kernel)], [direct]) < 1e-10


# ---- numbers at their limits ----


def test_the_compiled_exp_is_within_two_units_in_the_last_place():
    from numba import njit

    exp = cpu.exp

    @njit
    @no_type_check
    def all_of(x, out):
        for i in range(len(x)):
            out[i] = exp(x[i])

    x = np.concatenate([-np.geomspace(1e-8, 86.9, 5000), np.linspace(0, 87, 500), [-1e4, 89, np.nan, np.inf]]).astype(np.float32)
    out, exact = np.empty_like(x), np.exp(x[:-4].astype(np.float64)).astype(np.float32)
    all_of(x, out)
    assert np.max(np.abs(out[:-4] - exact) / np.spacing(exact)) <= 2
    assert out[-4] == 0 and out[-3] == np.inf and np.isnan(out[-2]) and out[-1] == np.inf


@pytest.mark.parametrize("kernel", ["sequential", "doubling", "numba"])
def test_decays_that_underflow_stay_finite(kernel):
    given_ = draw(1, 200, 4, 3, dtype=torch.float32)
    given_[1] += 50.0  # sums of ΔA go far beyond -80
    found = outcome(kernel, given_, chunk=64)
    assert all(bool(tensor.isfinite().all()) for tensor in found) and worst(found[:2], outcome("sequential", given_)[:2]) < 1e-5


@pytest.mark.parametrize("kernel", ["sequential", "doubling", "numba"])
def test_what_is_no_number_reaches_its_channel_from_there_on(kernel):
    given_ = draw(2, 9, 5, 3, dtype=torch.float32)
    given_[0][0, 4, 2] = float("nan")
    y, last = selective_scan(*given_, kernel=kernel)
    wrong = torch.zeros_like(y, dtype=torch.bool)
    wrong[0, 4:, 2] = True
    assert torch.equal(y.isnan(), wrong) and bool(last[0, 2].isnan().all())


def test_half_precision_is_scanned_in_float32():
    given_ = draw(2, 9, 5, 3, dtype=torch.float32)
    y, last = selective_scan(*(tensor.bfloat16() for tensor in given_[:5]))
    exact, _ = selective_scan(*(tensor.bfloat16().float() for tensor in given_[:5]))
    assert y.dtype == last.dtype == torch.float32 and torch.equal(y, exact)


# ---- memory ----


@pytest.mark.parametrize("kernel", ["doubling", "numba"])
@pytest.mark.parametrize("length", [64, 256])
def test_the_backward_pass_keeps_inputs_and_boundary_states_only(kernel, length):
    batch, channels, state, chunk, kept = 2, 32, 16, 16, {}
    given_ = [tensor.requires_grad_() for tensor in draw(batch, length, channels, state, dtype=torch.float32)]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan(*given_, kernel=kernel, chunk=chunk)[0].sum()
    inputs = 4 * (batch * length * (2 * channels + 2 * state) + channels * state)
    boundaries = 4 * batch * (length // chunk) * channels * state
    assert sum(kept.values()) == inputs + boundaries < 4 * batch * length * channels * state / 3


# ---- threads and processes ----


def both_passes() -> list[torch.Tensor]:
    """Without torch's autograd, which refuses to run in a forked process."""
    x, delta, A, B, C, h = draw(4, 120, 200, 8, dtype=torch.float32)
    y, states, last = cpu.forward(x, delta, A, B, C, h, 32)
    return [tensor.contiguous() for tensor in (y, last, *cpu.backward(x, delta, A, B, C, states, y, last, 32))]


def test_the_number_of_threads_changes_no_bit_and_a_process_may_fork_afterwards(monkeypatch, tmp_path):
    one, started, found = both_passes(), [], tmp_path / "found"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # torch's own threads stay as they are: they do not survive a fork
    monkeypatch.setattr(cpu, "ThreadPoolExecutor", lambda count: started.append(count) or ThreadPoolExecutor(count))
    assert all(map(torch.equal, one, both_passes())) and started == [2, 2]
    child = multiprocessing.get_context("fork").Process(target=lambda: save_file(dict(zip("abcdefgh", both_passes(), strict=True)), found))
    child.start()
    child.join(60)
    assert child.exitcode == 0, "the child hung or fell"
    assert all(map(torch.equal, one, load_file(found).values()))


def test_several_threads_may_scan_at_once():
    wanted = both_passes()
    with ThreadPoolExecutor(3) as pool:
        found = [future.result() for future in [pool.submit(both_passes) for _ in range(6)]]
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, wanted, strict=True))


# ---- refused ----


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (0, {}, r"the sequence is empty: x has shape \(2, 0, 3\)"),
        (4, {"chunk": 0}, "a chunk has at least 1 step, got 0"),
        (4, {"kernel": "cupy"}, "no kernel 'cupy' for tensors on cpu: kernels are auto, sequential"),
        (4, {"kernel": "triton"}, "triton"),
    ],
)
def test_refused_with_the_value_and_the_way_out(length, options, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(*draw(2, length, 3, 2), **options)
