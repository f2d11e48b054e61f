"""Optimality of the factors, ranks, and the cache of dear results."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.compress.baselines import svd
from etude.compress.baselines.svd import SVD, factorise, rank_at, root_of
from etude.data.contract import Budget, Data, Split
from etude.nn.factored import FactoredLinear
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_text

DATA = Data(Split(tiny_text()), Split(), 0, byte_tokenizer())
SMALL = {"tokens": 256, "length": 64}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))


@given(out=st.integers(2, 12), width=st.integers(2, 12), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_loss_is_that_of_the_dropped_singular_values(out, width, seed):
    dice = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(out, width, generator=dice), torch.randn(30, width, generator=dice)
    root = root_of(x.T @ x / 30, 1e-6)
    values = torch.linalg.svdvals(weight.double() @ root)
    for rank in range(1, min(out, width) + 1):
        A, B = factorise(weight, root, rank)
        left = ((weight.double() - A @ B) @ root).square().sum()
        torch.testing.assert_close(left, values[rank:].square().sum(), atol=1e-5, rtol=1e-4)


@given(out=st.integers(2, 400), width=st.integers(2, 400), keep=st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_factors_are_never_larger_than_the_layer(out, width, keep):
    rank = rank_at(out, width, keep)
    assert rank == 1 or rank * (out + width) <= keep * out * width
    assert rank <= min(out, width)


def test_directions_that_no_input_excites_cost_nothing():
    weight, x = torch.randn(8, 8), torch.randn(50, 8)
    x[:, 3:] = 0
    A, B = factorise(weight, root_of(x.T @ x / 50, 1e-8), 3)
    torch.testing.assert_close(x.double() @ (A @ B).T, x.double() @ weight.double().T, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_more_rank_is_nearer_and_the_dear_part_is_done_once(make, monkeypatch):
    ids = (torch.arange(40)[None] * 7) % 256
    dense, calls, real = make()(ids).logits, [], svd.all_factors
    monkeypatch.setattr(svd, "all_factors", lambda *args: calls.append(1) or real(*args))
    distance = []
    for keep in (0.3, 0.6, 0.95):
        model = SVD(keep=keep, **SMALL).compress(make(), DATA)
        assert any(isinstance(module, FactoredLinear) for module in model.modules())
        distance.append(float((model(ids).logits - dense).norm()))
    assert distance[0] > distance[1] > distance[2] and len(calls) == 1
    SVD(keep=0.5, tokens=128, length=64).compress(make(), DATA)
    assert len(calls) == 2  # another draw is another result


def test_points_meet_the_budget():
    model = tiny_llama()
    size = float(sum(weight.nbytes for weight in model.parameters()))
    for share in (0.9, 0.6):
        points = SVD().points(Budget("bytes", share * size, size), model)
        assert points[0].keep > points[1].keep
        small = SVD(keep=points[1].keep, **SMALL).compress(tiny_llama(), DATA)
        assert sum(weight.nbytes for weight in small.parameters()) <= share * size * 1.001
    assert [point.keep for point in SVD().points(Budget("bytes", size, size), model)] == [0.9, 0.8]


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.0}, {"damping": 0.0}, {"length": 0}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SVD(**options)
