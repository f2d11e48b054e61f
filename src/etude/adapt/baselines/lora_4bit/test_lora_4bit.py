"""The base is held in four bits, exactly those of rounding to nearest; gradients pass through it; merging makes it dense."""

import pytest
import torch
from torch import nn

from etude.adapt import planted
from etude.adapt._cost import merged
from etude.adapt._folders import load, save
from etude.adapt._four_bit import FourBitLinear, packs
from etude.adapt._train import train
from etude.adapt.baselines.lora_4bit import Lora4bit
from etude.nn.packing import Grid, round_to_nearest
from etude.nn.surgery import block_linears, evaluating, weight_of

IDS = torch.arange(24)[None] * 5
KINDS = pytest.mark.parametrize("kind", ["encoder", "decoder", "gpt2"])


def packed_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, FourBitLinear)}


@KINDS
def test_the_blocks_hold_codes_only(kind):
    make, data = planted.tiny()[kind]
    dense = block_linears(make())
    made = Lora4bit(group=32).attach(make(), data)
    layers = packed_layers(made.get_base_model())
    assert len(layers) == len(dense)
    for (name, layer), before in zip(sorted(layers.items()), [dense[name] for name in sorted(dense)], strict=True):
        codes = round_to_nearest(weight_of(before).detach(), Grid(4, 32))
        assert torch.equal(layer.weight, codes.dense()), name
        held = sum(buffer.nbytes for buffer in layer.buffers()) + sum(p.nbytes for p in layer.parameters())
        assert held < 0.3 * (4 * weight_of(before).numel()) + (0 if before.bias is None else before.bias.nbytes)


def test_gradients_pass_as_through_the_dense_layer():
    dense = nn.Linear(64, 24)
    codes = round_to_nearest(dense.weight.detach(), Grid(4, 32))
    layer = FourBitLinear(codes, dense.bias)
    ours, theirs = (torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    y, z = layer(ours), nn.functional.linear(theirs, codes.dense(), dense.bias)
    torch.testing.assert_close(y, z)
    torch.autograd.backward((y.square().sum(), z.square().sum()))
    torch.testing.assert_close(ours.grad, theirs.grad)


@KINDS
def test_merged_is_unmerged_and_dense(kind):
    make, data = planted.tiny()[kind]
    made = Lora4bit(rank=2).attach(make(), data)
    train(made, data, 1e-2, steps=3)
    with evaluating(made), torch.no_grad():
        said = made(input_ids=IDS).logits
        plain = merged(made)
        torch.testing.assert_close(plain(input_ids=IDS).logits, said, atol=1e-4, rtol=1e-4)
    targets = [layer for name, layer in plain.named_modules() if name.endswith(("query", "q_proj", "c_attn"))]
    assert targets and not any(isinstance(layer, FourBitLinear) for layer in targets)


def test_the_base_is_rounded_alike_when_it_is_loaded(tmp_path):
    make, data = planted.tiny()["decoder"]
    made = Lora4bit(rank=2).attach(make(), data)
    train(made, data, 1e-2, steps=3)
    save(made, data.tokenizer, tmp_path)
    again = load(tmp_path)
    assert packs(again) and not any("words" in path.name for path in tmp_path.iterdir())
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, made(input_ids=IDS).logits)


def test_a_group_that_does_not_divide_gives_way_aloud():
    make, data = planted.tiny()["decoder"]
    with pytest.warns(UserWarning, match="group 128 does not divide"):
        Lora4bit(group=128).attach(make(), data)


def test_a_quantised_model_is_refused():
    make, data = planted.tiny()["decoder"]
    model = make()
    model.config.quantization_config = {"quant_method": "compressed-tensors"}
    with pytest.raises(ValueError, match="already stored"):
        Lora4bit().attach(model, data)
