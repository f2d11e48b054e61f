"""GPTQ against rounding, against a plain reference, and in a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.compress._walk import by_block
from etude.compress.baselines.gptq import GPTQ, inverse_factor, quantise
from etude.data.contract import Budget, Data, Split
from etude.nn.packing import Grid, codes_of, encode, round_to_nearest
from etude.nn.surgery import block_linears, weight_of
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_text

DATA = Data(Split(tiny_text()), Split(), 0, byte_tokenizer())
SMALL = {"tokens": 256, "length": 64, "group": 32}


def layer(seed, out=24, width=64):
    """Weights, and the second moment of strongly correlated inputs."""
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(400, width // 4, generator=dice) @ torch.randn(width // 4, width, generator=dice) + 0.3 * torch.randn(400, width, generator=dice)
    return torch.randn(out, width, generator=dice), x.T @ x / 400


def loss(codes, weight, moment):
    error = codes.dense() - weight
    return float((error @ moment * error).sum())


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    group=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_the_output_error_is_below_that_of_rounding(bits, symmetric, act_order, group, seed):
    weight, moment = layer(seed)
    grid = Grid(bits, group, symmetric)
    assert loss(quantise(weight, moment, grid, act_order=act_order), weight, moment) <= loss(round_to_nearest(weight, grid), weight, moment)


@given(act_order=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_uncorrelated_inputs_leave_nothing_to_make_up_for(act_order, seed):
    weight, _ = layer(seed)
    codes = quantise(weight, torch.diag(torch.rand(64) + 0.1), Grid(4, 16), act_order=act_order)
    assert torch.equal(codes.q_OI, round_to_nearest(weight, Grid(4, 16)).q_OI)


def test_blocks_of_columns_change_nothing_against_one_column_at_a_time():
    weight, moment = layer(3, out=8, width=320)  # two and a half blocks
    grid = Grid(4, 32)
    codes = quantise(weight, moment, grid, act_order=True)
    order = moment.diagonal().argsort(descending=True, stable=True)
    upper, W = inverse_factor(moment[order][:, order], 0.01), weight[:, order].clone()
    scale, zero = codes.scale_OG[:, order // 32], codes.zero_OG[:, order // 32].float()
    for i in range(320):
        q = (W[:, i] / scale[:, i] + zero[:, i]).round().clamp(-8, 7)
        error = (W[:, i] - (q - zero[:, i]) * scale[:, i]) / upper[i, i]
        W[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
        W[:, i] = q
    assert (codes.q_OI[:, order].float() == W).float().mean() > 0.995  # a sum in another order may tip a tie


def test_the_inverse_factor_is_the_cholesky_factor_of_the_inverse():
    _, moment = layer(1)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(64)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    torch.testing.assert_close(inverse_factor(moment, 0.01).double(), expected, atol=1e-3, rtol=1e-3)
    assert torch.isfinite(inverse_factor(torch.zeros(4, 4), 0.01)).all()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_every_layer_is_rounded_and_the_model_answers_nearer_than_rounding(make):
    ids = torch.tensor([byte_tokenizer()(DATA.train.parts[type(tiny_text())].column("text")[7])["input_ids"]])
    dense = make()(ids).logits
    model = GPTQ(bits=4, **SMALL).compress(make(), DATA)
    assert all(codes_of(each).grid == Grid(4, 32) for each in block_linears(model).values())
    rounded = make()
    for each in block_linears(rounded).values():
        each.weight.data.copy_(round_to_nearest(each.weight.data, Grid(4, 32)).dense())
    assert (model(ids).logits - dense).norm() < 1.5 * (rounded(ids).logits - dense).norm()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("through_changed", [True, False])
def test_moments_block_by_block_are_those_of_a_whole_pass(make, through_changed):
    model, whole = make(), {}
    batches = list(DATA.calibration(tokens=256, length=64, batch=3))
    hooks = [
        each.register_forward_pre_hook(lambda module, args, name=name: whole.setdefault(name, []).append(args[0].flatten(0, -2)))
        for name, each in block_linears(model).items()
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    seen = {}
    by_block(model, batches, seen.update, through_changed)
    assert seen.keys() == whole.keys()
    for name, inputs in whole.items():
        x = torch.cat(inputs)
        torch.testing.assert_close(seen[name], x.T @ x / len(x), atol=1e-4, rtol=1e-3)


def test_padding_and_dropout_change_nothing_and_the_mode_is_restored():
    model = tiny_gpt2()
    batches = list(DATA.calibration(tokens=128, length=32))
    padded = [{key: torch.nn.functional.pad(value, (0, 5)) for key, value in batch.items()} for batch in batches]
    plain, other = {}, {}
    by_block(model, batches, plain.update)
    by_block(model.train(), padded, other.update)
    assert model.training
    for name, moment in plain.items():
        torch.testing.assert_close(other[name], moment, atol=1e-4, rtol=1e-3)


def test_three_bits_are_offered_only_where_four_are_too_large():
    model = tiny_llama()
    size = float(sum(weight.nbytes for weight in model.parameters()))
    assert [point.bits for point in GPTQ().points(Budget("bytes", size, size), model)] == [4]
    assert [point.bits for point in GPTQ().points(Budget("bytes", 0.01 * size, size), model)] == [4, 3]


@pytest.mark.parametrize("options", [{"bits": 5}, {"group": 0}, {"damping": 0.0}, {"length": 0}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GPTQ(**options)


def test_an_empty_draw_is_refused():
    class Empty(Data):
        def calibration(self, tokens, length, batch=4):
            yield {"input_ids": torch.zeros(1, 4, dtype=torch.long), "attention_mask": torch.zeros(1, 4, dtype=torch.long)}

    with pytest.raises(ValueError, match="no tokens"):
        GPTQ(**SMALL).compress(tiny_llama(), Empty(Split(), Split()))


def test_codes_of_a_weight_on_the_grid_are_its_own():
    weight, _ = layer(5)
    once = round_to_nearest(weight, Grid(4, 32))
    again = encode(once.dense(), once.scale_OG, once.zero_OG, once.grid)
    assert torch.equal(again.q_OI, once.q_OI)
    assert weight_of(torch.nn.Linear(4, 3)).shape == (3, 4)
