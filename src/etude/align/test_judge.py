"""Own samples against the reference, and what lies on disk."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from etude.align import _folders
from etude.align._judge import judge, reference_length, sample
from etude.align._tiny import data_of, saved
from etude.align._train import Settings, train
from etude.nn.loading import load_decoder
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama

PROMPTS = [[10, 20, 30], [40], [50, 60, 70, 80, 90]]


def shaken(model, size):
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * weight.std().nan_to_num() * torch.randn(weight.shape, generator=dice)
    return model


def adapted(model):
    policy = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    return shaken(policy, 0.0)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_policy_is_as_far_from_its_reference_as_it_was_shaken(make):
    far = [judge(shaken(make(), size), PROMPTS, 12, [], make()) for size in (0.0, 0.1, 0.4)]
    kl = [sum(one.divergence.top) / sum(one.divergence.bottom) for one in far]
    assert kl[0] == 0.0 < kl[1] < kl[2] and far[0].length.top == (12.0, 12.0, 12.0)


def test_the_base_of_an_adapter_is_its_reference():
    policy = adapted(tiny_llama())
    assert sum(judge(policy, PROMPTS, 8, []).divergence.top) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight += 0.05
    assert sum(judge(policy, PROMPTS, 8, []).divergence.top) > 1e-3


def test_a_policy_that_is_no_language_model_any_more_is_refused():
    loud = tiny_gpt2()
    with torch.no_grad():
        loud.transformer.wte.weight *= 1000
    with pytest.raises(ValueError, match=r"no language model any more: .* nats a token from its reference .* the limit is 2.77"):
        judge(loud, PROMPTS, 8, [], tiny_gpt2())


def test_answers_end_at_an_end_token_and_leave_the_dice_alone():
    torch.manual_seed(3)
    before, model = torch.get_rng_state(), tiny_llama()
    first = sample(model, PROMPTS, 30, [])
    assert first == sample(model, PROMPTS, 30, []) != sample(model, PROMPTS, 30, [], seed=1)
    end = first[0][4]
    cut = sample(model, PROMPTS, 30, [end])
    assert cut[0][-1] == end and end not in cut[0][:-1] and all(1 <= len(answer) <= 30 for answer in cut)
    torch.manual_seed(3)
    assert torch.equal(before, torch.get_rng_state()) and model.generation_config is not None


def test_the_models_own_generation_defaults_do_not_mix_in():
    model = tiny_llama()
    plain = sample(model, PROMPTS, 12, [])
    model.generation_config.temperature, model.generation_config.repetition_penalty = 0.01, 9.0
    assert sample(model, PROMPTS, 12, []) == plain and model.generation_config.temperature == 0.01


def test_the_references_lengths_are_drawn_once(monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    length = reference_length(tiny_llama(), PROMPTS, 9, [], "key")
    assert length == 9.0 == reference_length(None, PROMPTS, 9, [], "key")


# --- on disk --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained adapter's folder."""
    place = tmp_path_factory.mktemp("adapter")
    policy = load_decoder(saved(lambda: tiny_llama(layers=2)))
    made = train(policy, data_of(12), Settings(rate=3e-3, epochs=1, rank=4), loss_type=["sigmoid"], beta=0.1)
    _folders.save(made, byte_tokenizer(), place)
    with torch.inference_mode():
        return place, made(torch.tensor([[5, 6, 7]])).logits


def test_an_adapter_reloads_here_and_with_plain_peft(folder):
    from peft import PeftModel

    place, logits = folder
    there = json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = PeftModel.from_pretrained(load_decoder(saved(lambda: tiny_llama(layers=2))), str(place))
    with torch.inference_mode():
        for policy in (_folders.load(place), plain):
            assert torch.allclose(policy(torch.tensor([[5, 6, 7]])).logits, logits, atol=1e-5)
    assert str(_folders.base_of(place)) == there and (place / "tokenizer.json").is_file()
    assert 0 < _folders.weights_bytes(place) < 200_000


@pytest.mark.parametrize(
    "other", [lambda: shaken(tiny_llama(layers=2), 3.0), lambda: tiny_llama(layers=1), tiny_gpt2], ids=["weights", "depth", "kind"]
)
def test_an_adapter_on_another_base_is_refused(other, folder):
    with pytest.raises(ValueError, match="belongs to another base model"):
        _folders.load(folder[0], base=saved(other))


def test_a_base_that_is_gone_and_a_foreign_folder_are_told(folder, tmp_path):
    place = tmp_path / "copy"
    place.mkdir()
    for path in folder[0].iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    about = json.loads((place / "etude.json").read_text())
    (place / "etude.json").write_text(json.dumps(about | {"base": "/nowhere"}))
    with pytest.raises(ValueError, match=r"the base model /nowhere of .* is not there"):
        _folders.load(place)
    (place / "etude.json").unlink()
    with pytest.raises(ValueError, match="no folder that an align contest"):
        _folders.base_of(place)


def test_a_whole_policy_is_a_plain_hugging_face_folder(tmp_path):
    from transformers import AutoModelForCausalLM

    policy = load_decoder(saved(lambda: tiny_gpt2(layers=2)))
    made = train(policy, data_of(12), Settings(rate=1e-4, epochs=1, rank=0), loss_type=["sigmoid"], beta=0.1)
    _folders.save(made, byte_tokenizer(), tmp_path / "whole")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(ids).logits
        assert torch.allclose(again, made(ids).logits, atol=1e-5)
    assert _folders.base_of(tmp_path / "whole") == saved(lambda: tiny_gpt2(layers=2)).resolve()
