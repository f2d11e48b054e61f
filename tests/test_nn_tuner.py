"""The host of all adapter methods in PEFT: registration in both orders, strict loading, several adapters, merging, and whose base it is."""

import copy
import json
import subprocess
import sys

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from etude.adapt.tied_lora import TiedLora
from etude.data.contract import Data, Split
from etude.nn.adapted import AdaptedLayer
from etude.nn.packing import Grid, codes_of, install, round_to_nearest
from etude.nn.surgery import linear_layers, weight_of
from etude.nn.tiny import tiny_gpt2, tiny_llama
from etude.nn.tuner import EtudeConfig, register

IDS = (torch.arange(40).reshape(2, 20) * 7) % 256
TINY = {"llama": tiny_llama, "gpt2": tiny_gpt2}
ARCHITECTURES = pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])

READ = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
try:
    PeftModel.from_pretrained(base, sys.argv[2])
except KeyError as error:
    print("plain PEFT knows no", error)
import etude
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
ids = (torch.arange(40).reshape(2, 20) * 7) % 256
with torch.no_grad():
    answers = {"apart": model(input_ids=ids).logits}
    text = model.generate(input_ids=ids[:, :5], max_new_tokens=4, do_sample=False, pad_token_id=0)
    merged = model.merge_and_unload()
    answers["merged"] = merged(ids).logits
assert torch.equal(text, merged.generate(ids[:, :5], max_new_tokens=4, do_sample=False, pad_token_id=0))
from safetensors.torch import save_file
save_file(answers, sys.argv[3])
"""


def trained(make=tiny_llama, seed: int = 0, **options) -> PeftModel:
    """A model with an adapter that is no longer zero."""
    model = TiedLora(**options).attach(make(), Data(Split(), Split(), seed))
    stir(model, seed)
    return model


def stir(model: PeftModel, seed: int = 0) -> None:
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=dice).to(parameter) / 4)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_type_is_a_member_like_any_other_and_registering_twice_changes_nothing():
    register(peft)
    assert PeftType("ETUDE") is PeftType.ETUDE is PeftType["ETUDE"] and "ETUDE" in list(PeftType) and len(set(PeftType)) == len(list(PeftType))
    assert copy.deepcopy(PeftType.ETUDE) is PeftType.ETUDE


def test_an_adapter_is_read_where_peft_came_first_and_refused_without_etude(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    model = trained(lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    command = [sys.executable, "-c", READ, tmp_path / "base", tmp_path / "adapter", tmp_path / "answers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "plain PEFT knows no 'ETUDE'" in done.stdout, done.stderr
    answers = load_file(tmp_path / "answers")
    torch.testing.assert_close(answers["apart"], logits(model))
    torch.testing.assert_close(answers["merged"], logits(model), atol=1e-4, rtol=0)


@ARCHITECTURES
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_what_is_saved_reloads_to_the_last_bit(make, assign, tmp_path):
    model = trained(make, target="all", rank=3)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make(), tmp_path, low_cpu_mem_usage=assign).eval()
    assert torch.equal(logits(again), logits(model)) and not any(p.requires_grad for p in again.parameters())
    further = PeftModel.from_pretrained(make(), tmp_path, is_trainable=True)
    assert {n for n, p in further.named_parameters() if p.requires_grad} == {n for n, p in model.named_parameters() if p.requires_grad}
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, EtudeConfig) and config.method == "tied_lora" and config.options["rank"] == 3


@ARCHITECTURES
def test_disabled_is_the_base_and_merging_is_undone_to_the_last_bit(make):
    model, base = trained(make, target="all"), logits(make())
    apart, before = logits(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), apart, atol=1e-4, rtol=1e-5)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    model.unmerge_adapter()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    model.merge_adapter()
    with model.disable_adapter():  # unmerges, as PEFT does
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), apart)
    plain = model.merge_and_unload()
    assert type(plain) is type(make()) and not any(isinstance(module, AdaptedLayer) for module in plain.modules())
    torch.testing.assert_close(logits(plain), apart, atol=1e-4, rtol=1e-5)


def test_two_adapters_switch_exactly_and_are_trained_saved_and_deleted_apart(tmp_path):
    first, second = trained(seed=1), trained(seed=2, target="mlp", rank=2, train=("u", "v"))
    for name, model in (("first", first), ("second", second)):
        model.save_pretrained(tmp_path / name)
    both = PeftModel.from_pretrained(tiny_llama(), tmp_path / "first", adapter_name="one", is_trainable=True).eval()
    both.load_adapter(tmp_path / "second", "two")
    assert torch.equal(logits(both), logits(first))
    both.set_adapter("two")
    assert torch.equal(logits(both), logits(second))
    assert all(".two." in name for name, p in both.named_parameters() if p.requires_grad) and both.get_nb_trainable_parameters()[0] > 0
    both.base_model.set_adapter(["one", "two"])
    assert not torch.equal(logits(both), logits(second)) and not torch.equal(logits(both), logits(first))
    both.set_adapter("one")
    assert torch.equal(logits(both), logits(first))
    both.save_pretrained(tmp_path / "both")
    for name, single in (("one", "first"), ("two", "second")):
        saved, alone = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "both" / name, tmp_path / single))
        assert saved.keys() == alone.keys() and all(torch.equal(saved[key], alone[key]) for key in alone)
    both.delete_adapter("one")
    assert torch.equal(logits(both), logits(second)) and not any(".one." in name for name in both.state_dict())


def test_rows_of_one_batch_may_have_an_adapter_each(tmp_path):
    first, second = trained(seed=1), trained(seed=2, target="mlp")
    for name, model in (("one", first), ("two", second)):
        model.save_pretrained(tmp_path / name)
    both = PeftModel.from_pretrained(tiny_llama(), tmp_path / "one", adapter_name="one").eval()
    both.load_adapter(tmp_path / "two", "two")
    ids = IDS[[0, 1, 0, 1]]
    with torch.no_grad():
        mixed = both(input_ids=ids, adapter_names=["one", "two", "__base__", "one"]).logits
    for row, model in enumerate((first, second, tiny_llama(), first)):
        torch.testing.assert_close(mixed[row], logits(model)[row % 2], atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(both), logits(first))
    for names, said in ((["one", "three"], "no adapter 'three'; there are one, two"), (["one"], "adapters of 1 rows, but a layer gets 2")):
        with pytest.raises(ValueError, match=said):
            both(input_ids=IDS, adapter_names=names)
    with pytest.raises(ValueError, match="evaluation mode"):
        both.train()(input_ids=IDS, adapter_names=["one", "two"])


def test_a_second_adapter_gets_its_own_pair_and_leaves_the_first_as_it_is():
    model = trained()
    before, wanted = logits(model), {name for name, p in model.named_parameters() if p.requires_grad}
    model.add_adapter("more", EtudeConfig(method="tied_lora", options={"rank": 3}, target_modules=["q_proj", "mlp.down_proj"], task_type="CAUSAL_LM"))
    assert torch.equal(logits(model), before) and {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    shared = model.base_model.etude_shared
    assert set(shared) == {"default", "more"} and shared["more"].etude_A["qkv_64x64"].shape == (3, 64)
    model.set_adapter("more")
    stir(model)
    assert not torch.equal(logits(model), before)
    model.set_adapter("default")
    assert torch.equal(logits(model), before)


def test_a_copy_looks_up_its_own_tensors():
    model = trained()
    other, before = copy.deepcopy(model), logits(model)
    assert torch.equal(logits(other), before)
    stir(other, seed=3)
    assert not torch.equal(logits(other), before) and torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ["A", "B", "u", "v"])
def test_a_file_without_the_tied_pair_or_with_another_is_refused(kind, tmp_path):
    trained().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if f"etude_{kind}." not in name}, file)
    with pytest.raises(ValueError, match=f"lacks . tensors.*etude_{kind}"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    save_file(whole | {"base_model.etude_shared.etude_A.other": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="beyond what belongs to it, 1 tensors"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_an_adapter_on_another_base_is_refused_and_on_a_related_one_warned_of(tmp_path):
    trained().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another base model.*no layer|no layer matches"):
        PeftModel.from_pretrained(tiny_gpt2(), tmp_path)
    with pytest.raises(ValueError, match="another base model"):
        PeftModel.from_pretrained(tiny_llama(width=32), tmp_path)
    with pytest.raises(ValueError, match="another base model"):
        PeftModel.from_pretrained(tiny_llama(layers=2), tmp_path)
    other = tiny_llama()
    for name, layer in linear_layers(other).items():
        torch.nn.init.normal_(layer.weight, std=0.02, generator=torch.Generator().manual_seed(len(name)))
    with pytest.raises(ValueError, match="the weights of model.layers.0.self_attn.q_proj are not those"):
        PeftModel.from_pretrained(other, tmp_path)
    related = tiny_llama()
    for layer in linear_layers(related).values():
        layer.weight.data *= 1.1
    with pytest.warns(UserWarning, match="differ by 10%"):
        PeftModel.from_pretrained(related, tmp_path)
    PeftModel.from_pretrained(tiny_llama().to(torch.bfloat16), tmp_path)


def test_only_methods_of_the_catalogue_are_resolved(tmp_path):
    trained().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    for method, said in (("os.system", "no method or paper is called"), ("laser", "is no adapter method"), ("tied_lorra", "did you mean tied_lora")):
        file.write_text(json.dumps(config | {"method": method}))
        with pytest.raises(ValueError, match=said):
            PeftModel.from_pretrained(tiny_llama(), tmp_path)
    file.write_text(json.dumps(config | {"options": config["options"] | {"rnk": 3}}))
    with pytest.raises(ValueError, match="no option 'rnk'; did you mean rank"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_targets_that_match_nothing_or_no_linear_layer_list_the_candidates():
    for targets, said in (
        (["no_proj"], "no layer matches.*self_attn.q_proj"),
        (["input_layernorm"], "no linear layer.*mlp.up_proj"),
        (None, "no layer"),
    ):
        config = EtudeConfig(method="tied_lora", target_modules=targets, task_type="CAUSAL_LM")
        with pytest.raises(ValueError, match=said):
            get_peft_model(tiny_llama(), config)


def test_trained_parts_stay_float32_on_a_half_precision_base(tmp_path):
    model = trained(lambda: tiny_llama().to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32} and logits(model).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    for assign in (False, True):
        again = PeftModel.from_pretrained(tiny_llama().to(torch.bfloat16), tmp_path, low_cpu_mem_usage=assign).eval()
        assert torch.equal(logits(again), logits(model)) and again.base_model.etude_shared["default"].etude_u[U].dtype == torch.float32


U = "model_layers_0_self_attn"


def test_a_quantised_base_is_adapted_but_not_merged():
    class Packed(torch.nn.Module):
        """A layer that is computed from integers."""

        def __init__(self, layer):
            super().__init__()
            self.in_features, self.out_features, self.dense = layer.in_features, layer.out_features, (layer,)
            self.weight = torch.nn.Parameter((layer.weight.detach() * 100).to(torch.int8), requires_grad=False)

        def forward(self, x):
            return self.dense[0](x)

    model = tiny_llama()
    for block in model.model.layers:
        block.self_attn.q_proj = Packed(block.self_attn.q_proj)
    tuned = get_peft_model(model, EtudeConfig(method="tied_lora", target_modules=["q_proj", "k_proj"], task_type="CAUSAL_LM")).eval()
    assert torch.equal(logits(tuned), logits(tiny_llama()))
    before = weight_of(tuned.base_model.model.model.layers[0].self_attn.k_proj.base_layer).clone()
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with pytest.raises(ValueError, match="the base is quantised \\(Packed of int8\\): load it dequantised"):
            merge()
    assert torch.equal(weight_of(tuned.base_model.model.model.layers[0].self_attn.k_proj.base_layer), before)


def test_merging_into_a_rounded_layer_forgets_its_codes_and_unmerging_brings_them_back():
    base = tiny_llama()
    layer = base.model.layers[0].self_attn.q_proj
    install(layer, round_to_nearest(weight_of(layer).detach(), Grid(4, 32)))
    model = TiedLora().attach(base, Data(Split(), Split()))
    stir(model)
    model.merge_adapter()
    assert codes_of(layer) is None
    model.unmerge_adapter()
    assert codes_of(layer) is not None


def test_a_model_that_carries_an_adapter_takes_no_second_one_by_attach():
    with pytest.raises(ValueError, match="already carries an adapter"):
        TiedLora().attach(trained().get_base_model(), Data(Split(), Split()))


def test_an_adapter_that_is_broken_is_not_merged_safely():
    model = trained()
    with torch.no_grad():
        model.base_model.etude_shared["default"].etude_u[U].fill_(torch.nan)
    with pytest.raises(ValueError, match="no numbers: the adapter is broken"):
        model.merge_adapter(safe_merge=True)
