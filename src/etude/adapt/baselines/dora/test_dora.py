"""Each row's length is a trained number, which starts at the row's norm."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from etude.adapt import planted
from etude.adapt._cost import merged
from etude.adapt._train import train
from etude.adapt.baselines.dora import Dora
from etude.nn.surgery import weight_of

IDS = torch.arange(24)[None] * 5


@pytest.mark.parametrize("kind", ["encoder", "decoder", "gpt2"])
def test_lengths_start_as_the_norms_of_the_rows_and_the_model_as_it_was(kind):
    make, data = planted.tiny()[kind]
    made = Dora().attach(make(), data)
    for layer in made.modules():
        if isinstance(layer, LoraLayer):
            lengths = layer.lora_magnitude_vector["default"].weight
            torch.testing.assert_close(lengths.flatten(), weight_of(layer.get_base_layer()).norm(dim=1))
    with torch.no_grad():
        torch.testing.assert_close(made(input_ids=IDS).logits, make()(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "gpt2"])
def test_merged_is_unmerged(kind):
    make, data = planted.tiny()[kind]
    made = Dora(rank=2).attach(make(), data)
    train(made, data, 1e-2, steps=3)
    with torch.no_grad():
        said = made(input_ids=IDS).logits
        torch.testing.assert_close(merged(made)(input_ids=IDS).logits, said, atol=1e-4, rtol=1e-4)
