"""What magnitude pruning zeroes, and what it does not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.compress.baselines.magnitude import Magnitude, without_smallest
from etude.data.contract import Budget, Data, Split
from etude.nn.surgery import block_linears, weight_of
from etude.nn.tiny import tiny_gpt2, tiny_llama

NOTHING = Data(Split(), Split())


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), share=st.floats(0.01, 0.99), levels=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_exactly_the_share_goes_and_nothing_larger_than_what_stays(rows, columns, share, levels, seed):
    dice = torch.Generator().manual_seed(seed)
    weight = torch.randint(1, levels + 1, (rows, columns), generator=dice).float()  # ties in plenty
    pruned = without_smallest(weight, share)
    gone = pruned == 0
    assert int(gone.sum()) == int(share * weight.numel())
    assert torch.equal(pruned[~gone], weight[~gone])
    assert not gone.any() or gone.all() or weight[gone].max() <= weight[~gone].min()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_only_the_layers_of_the_blocks_are_pruned(make):
    model = Magnitude(share=0.25).compress(make(), NOTHING)
    layers = block_linears(model)
    assert all(int((weight_of(layer) == 0).sum()) == weight_of(layer).numel() // 4 for layer in layers.values())
    assert (model.get_input_embeddings().weight != 0).all()


def test_no_point_claims_to_save_bytes():
    model = tiny_llama()
    assert Magnitude().points(Budget("bytes", 50.0, 100.0), model) == [Magnitude()]
    assert [point.share for point in Magnitude(share=0.4).points(Budget("bytes", 100.0, 100.0), model)] == [0.2, 0.4]


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match="share must lie in"):
        Magnitude(share=share)
