"""Everything is trained, and nothing else happens."""

import pytest
import torch

from etude.adapt import planted
from etude.adapt.baselines.full import Full
from etude.data.contract import Budget


@pytest.mark.parametrize("kind", ["encoder", "decoder", "gpt2"])
def test_every_weight_requires_a_gradient_and_is_as_it_was(kind):
    make, data = planted.tiny()[kind]
    model, same = make(), make()
    made = Full().attach(model, data)
    assert made is model and all(weight.requires_grad for weight in made.parameters()) and not made.training
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), same.parameters(), strict=True))
    assert Full().points(Budget("bytes", 1.0, 2.0), model) == [Full()]


def test_quantised_weights_and_bad_rates_are_refused():
    make, data = planted.tiny()["decoder"]
    model = make()
    model.config.quantization_config = {"quant_method": "compressed-tensors"}
    with pytest.raises(ValueError, match="already stored by compressed-tensors"):
        Full().attach(model, data)
    with pytest.raises(ValueError, match="rate must be above 0"):
        Full(rate=0.0)
