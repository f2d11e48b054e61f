"""Where the pairs stand, that they start at nothing, and which ranks a budget leaves."""

import pytest
import torch

from etude.adapt import planted
from etude.adapt._folders import save, weights_bytes
from etude.adapt.baselines.lora import Lora
from etude.data.contract import Budget
from etude.nn.surgery import evaluating, linear_layers

IDS = torch.arange(24)[None] * 5


def logits(model):
    with evaluating(model), torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(("kind", "ends"), [("encoder", {"query", "value"}), ("decoder", {"q_proj", "v_proj"}), ("gpt2", {"c_attn"})])
def test_pairs_stand_where_peft_puts_them_and_start_at_nothing(kind, ends):
    make, data = planted.tiny()[kind]
    made = Lora().attach(make(), data)
    names = {name for name, weight in made.named_parameters() if weight.requires_grad and "lora_" in name}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == ends
    assert torch.equal(logits(made), logits(make()))


def test_the_seed_alone_says_how_a_pair_starts():
    make, data = planted.tiny()["decoder"]
    first, second = (dict(Lora().attach(make(), data).named_parameters()) for _ in range(2))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize("kind", ["encoder", "decoder", "gpt2"])
def test_targets_that_match_nothing_list_the_candidates(kind):
    make, data = planted.tiny()[kind]
    model = make()
    with pytest.raises(ValueError, match=r"no linear layer matches 'nowhere'; this model has .*(query|q_proj|c_attn)"):
        Lora(targets=("nowhere",)).attach(model, data)


def test_named_targets_are_taken():
    make, data = planted.tiny()["decoder"]
    made = Lora(targets=("down_proj",), rank=3).attach(make(), data)
    layers = linear_layers(make(), "down_proj")
    count = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
    assert count == sum(3 * sum(layer.weight.shape) for layer in layers.values())


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_rank_falls_until_the_budget_is_met(kind, tmp_path):
    make, data = planted.tiny()[kind]
    model = make()

    def ranks(limit):
        return [point.rank for point in Lora(rank=16).points(Budget("bytes", limit, 1e9), model)]

    assert ranks(1e9) == [4, 16] and ranks(1.0) == [1]
    tight = 0
    for limit in (2e4, 4e4, 8e4):
        rank = ranks(limit)[-1]
        folder = tmp_path / str(rank)
        folder.mkdir(exist_ok=True)
        if not any(folder.iterdir()):
            save(Lora(rank=rank).attach(make(), data), None, folder)
        tight += rank < 16
        assert rank == 1 or (folder / "adapter_model.safetensors").stat().st_size <= limit + 5000
        assert weights_bytes(folder) > 0
    assert tight


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"rate": -1.0}])
def test_options_that_make_no_adapter_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Lora(**options)
