"""The last layer alone is trained, saved and taken apart from the embedding."""

import pytest
import torch
from peft import PeftModel

from etude.adapt import planted
from etude.adapt._cost import merged
from etude.adapt._folders import save
from etude.adapt._train import train
from etude.adapt.baselines.head_only import HeadOnly, output_layer
from etude.nn.surgery import evaluating


def trained_names(made):
    return {name for name, weight in made.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("kind", "layer"), [("encoder", "classifier"), ("decoder", "lm_head"), ("gpt2", "lm_head")])
def test_only_the_last_layer_is_trained_and_saved(kind, layer, tmp_path):
    make, data = planted.tiny()[kind]
    made = HeadOnly().attach(make(), data)
    assert {name.split(".")[-4] for name in trained_names(made)} == {layer} and not made.training
    head = sum(weight.numel() for name, weight in made.named_parameters() if weight.requires_grad)
    save(made, None, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * head + 2000
    again = PeftModel.from_pretrained(make(), str(tmp_path))
    assert {name for name, _ in again.named_parameters()} == {name for name, _ in made.named_parameters()}


def test_the_embedding_stays_while_the_output_layer_learns():
    make, data = planted.tiny()["decoder"]
    model = make()
    assert output_layer(model) == "lm_head" and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = model.get_input_embeddings().weight.detach().clone()
    made = HeadOnly().attach(model, data)
    ids = torch.arange(20)[None]
    with evaluating(made), torch.no_grad():
        first = made(input_ids=ids).logits
    train(made, data, 1e-2, steps=3)
    assert torch.equal(made.get_base_model().get_input_embeddings().weight, before)
    with torch.no_grad():
        said = made(input_ids=ids).logits
        plain = merged(made)
        assert torch.equal(plain(input_ids=ids).logits, said) and not torch.equal(said, first)
    assert plain.config.tie_word_embeddings is False and torch.equal(plain.get_input_embeddings().weight, before)


def test_a_merged_decoder_saves_its_own_output_layer(tmp_path):
    make, data = planted.tiny()["decoder"]
    made = HeadOnly().attach(make(), data)
    train(made, data, 1e-2, steps=2)
    plain, ids = merged(made), torch.arange(20)[None]
    plain.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(type(plain).from_pretrained(tmp_path)(input_ids=ids).logits, plain(input_ids=ids).logits)
