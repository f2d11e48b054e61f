"""Bounds and invariances of rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.compress.baselines.round_to_nearest import RoundToNearest
from etude.data.contract import Budget, Data, Split
from etude.nn.packing import Grid, codes_of, round_to_nearest
from etude.nn.saving import save
from etude.nn.surgery import block_linears
from etude.nn.tiny import tiny_gpt2, tiny_llama

NOTHING = Data(Split(), Split())
BITS, SYMMETRIC = st.sampled_from([2, 3, 4, 8]), st.booleans()


def folder_bytes(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


@given(bits=BITS, symmetric=SYMMETRIC, group=st.sampled_from([8, 16, 32]), scale=st.floats(1e-4, 1e4), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_the_error_is_at_most_half_a_step(bits, symmetric, group, scale, seed):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed)) * scale
    codes = round_to_nearest(weight, Grid(bits, group, symmetric))
    step = codes.scale_OG.repeat_interleave(group, dim=1)
    assert ((codes.dense() - weight).abs() <= step * 0.5001).all()
    assert int(codes.q_OI.min()) >= -(1 << bits - 1) and int(codes.q_OI.max()) < 1 << bits - 1


@given(bits=BITS, symmetric=SYMMETRIC, factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_codes_do_not_depend_on_the_scale_of_a_group(bits, symmetric, factor, seed):
    weight, grid = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)), Grid(bits, 16, symmetric)
    assert torch.equal(round_to_nearest(weight * factor, grid).q_OI, round_to_nearest(weight, grid).q_OI)


@given(bits=BITS, symmetric=SYMMETRIC, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_zeros_stay_zeros_and_rounding_twice_is_rounding_once(bits, symmetric, seed):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
    weight[:, :16], weight[0, 20] = 0, 0
    once = round_to_nearest(weight, Grid(bits, 16, symmetric))
    assert (once.dense()[weight == 0] == 0).all()
    if not symmetric or bits > 2:
        torch.testing.assert_close(round_to_nearest(once.dense(), once.grid).dense(), once.dense())


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_folder_really_shrinks(make, bits, tmp_path):
    save(make(), None, tmp_path / "dense")
    model = RoundToNearest(bits=bits).compress(make(), NOTHING)
    save(model, None, tmp_path / "small")
    layers = block_linears(model)
    saved = sum(layer.weight.numel() for layer in layers.values()) * (4 - Grid(bits, 64).bits_per_weight(torch.float32) / 8)
    assert folder_bytes(tmp_path / "dense") - folder_bytes(tmp_path / "small") == pytest.approx(saved, rel=0.05)
    assert all(codes_of(layer) is not None for layer in layers.values())


def test_a_group_that_does_not_divide_gives_way_aloud_or_is_refused():
    with pytest.warns(UserWarning, match="group 128 does not divide .*64, 128.*: 64 is used"):
        RoundToNearest(group=128).compress(tiny_llama(), NOTHING)
    assert Grid(4, 128).fitted({576, 1536}).group == 64
    assert Grid(4, 64).fitted({24}).group == 24
    with pytest.raises(ValueError, match="no group of 8 to 64"):
        Grid(4, 64).fitted({34, 50})


def test_points_are_8_and_4_bits_as_far_as_they_meet_the_budget():
    model = tiny_llama()
    size = float(sum(weight.nbytes for weight in model.parameters()))

    def bits(share):
        return [point.bits for point in RoundToNearest().points(Budget("bytes", share * size, size), model)]

    assert bits(1.0) == [8, 4] and bits(0.5) == [8, 4] and bits(0.3) == [4] and bits(0.01) == [4]
    assert [point.bits for point in RoundToNearest().points(Budget("seconds", 1.0, 2.0), model)] == [8, 4]


def test_what_cannot_be_done_is_refused_by_name():
    with pytest.raises(ValueError, match="bits must be"):
        RoundToNearest(bits=5)
    with pytest.raises(ValueError, match="group counts"):
        RoundToNearest(group=0)
    broken = tiny_llama()
    broken.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        RoundToNearest().compress(broken, NOTHING)
    stored = tiny_llama()
    stored.config.quantization_config = {"quant_method": "compressed-tensors"}
    with pytest.raises(ValueError, match="already stored by compressed-tensors"):
        RoundToNearest().compress(stored, NOTHING)
