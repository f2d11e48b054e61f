"""GPT-2's block against transformers' GPT-2."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from etude.models._size import TOLERANCE, count, made
from etude.models.baselines.gpt2_block import Gpt2Block

IDS = torch.arange(40).reshape(2, 20) * 7 % 64


def test_with_the_same_weights_it_answers_as_transformers_gpt2():
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.2)).eval()
    ours, state = made(Gpt2Block(layers=2, width=32, heads=4, context=32).shape(64)), theirs.state_dict()
    names = {"mixer_norm": "ln_1", "mixer.qkv_proj": "attn.c_attn", "mixer.o_proj": "attn.c_proj", "channel_mixer_norm": "ln_2"}
    names |= {"channel_mixer.up_proj": "mlp.c_fc", "channel_mixer.down_proj": "mlp.c_proj"}
    top = {
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "lm_head": "lm_head",
    }
    for name, parameter in ours.state_dict().items():
        stem, _, end = name.rpartition(".")
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        given = state[f"{top[stem]}.{end}" if stem in top else f"transformer.h.{layer}.{names[part]}.{end}"]
        parameter.copy_(given.T if stem not in top and given.ndim == 2 else given)  # their linear layers are stored transposed
    assert float((ours(IDS).logits - theirs(IDS).logits).detach().abs().max()) < 1e-5


def test_it_pays_for_no_position_it_never_uses():
    sizes = [count(Gpt2Block(layers=2, width=32, context=context).shape(64)) for context in (64, 65)]
    assert sizes[1] - sizes[0] == 32
    with pytest.raises(ValueError, match="20 tokens and the model 16 positions"):
        made(Gpt2Block(layers=1, width=32, context=16).shape(64))(IDS)


def test_projections_into_the_residual_stream_start_smaller():
    torch.manual_seed(0)
    block = made(Gpt2Block(layers=8, width=64, context=16).shape(64)).model.layers[0]
    for small in (block.mixer.o_proj, block.channel_mixer.down_proj):
        assert float(small.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.1) and not small.bias.any()
    assert float(block.mixer.qkv_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("parameters", [60_000, 400_000])
def test_a_size_that_is_asked_for_is_met_within_two_percent(parameters):
    model = Gpt2Block(context=128).build(256, parameters)
    assert abs(sum(p.numel() for p in model.parameters()) / parameters - 1) <= TOLERANCE


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 32}, "layers and width, or neither"),
        ({"context": 0}, "context must be at least 1"),
        ({"layers": 1, "width": 32, "heads": 5}, "5 heads do not"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Gpt2Block(**options).build(64, 30_000)
