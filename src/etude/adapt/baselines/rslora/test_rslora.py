"""The product is scaled by alpha / sqrt(rank)."""

import math

import pytest
import torch
from peft.tuners.lora import LoraLayer

from etude.adapt import planted
from etude.adapt.baselines.lora import Lora
from etude.adapt.baselines.rslora import RsLora


@pytest.mark.parametrize("kind", ["encoder", "decoder", "gpt2"])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_the_scale_is_that_of_the_paper(kind, rank):
    make, data = planted.tiny()[kind]
    made = RsLora(rank=rank, alpha=16.0).attach(make(), data)
    scales = {layer.scaling["default"] for layer in made.modules() if isinstance(layer, LoraLayer)}
    assert scales == {16.0 / math.sqrt(rank)}


def test_at_rank_one_it_is_lora():
    make, data = planted.tiny()["decoder"]
    ours, theirs = RsLora(rank=1).attach(make(), data), Lora(rank=1).attach(make(), data)
    for made in (ours, theirs):
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.01)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
