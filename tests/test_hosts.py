"""The quantizer `etude` in transformers, and the one way to save: read back in new processes, with and without etude."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import etude.nn.hosts
from etude.nn.factored import FactoredLinear, factorize
from etude.nn.packing import Grid, install, pack, round_to_nearest, unpack
from etude.nn.saving import save
from etude.nn.surgery import block_linears, evaluating, features, find_blocks, linear_layers, replace_module, set_weight, weight_of
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama

IDS = (torch.arange(40).reshape(2, 20) * 7) % 256
TINY = {"llama": tiny_llama, "gpt2": tiny_gpt2}
DOWN = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}
ARCHITECTURES = pytest.mark.parametrize("architecture", ["llama", "gpt2"])

READ = """
import json, sys
{first}
{second}
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
ids = (torch.arange(40).reshape(2, 20) * 7) % 256
with torch.no_grad():
    json.dump(model(ids).logits.tolist(), open(sys.argv[2], "w"))
made = model.generate(ids[:, :5], max_new_tokens=3, do_sample=False, pad_token_id=0)
print(made.shape[1], "etude" in sys.modules)
"""


def in_new_process(folder, answers, first="", second=""):
    """(exit code, output) of reading the folder; the logits lie in `answers` as JSON."""
    code = READ.format(first=first, second=second)
    speaking = os.environ | {"TRANSFORMERS_VERBOSITY": "warning"}
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(answers)], capture_output=True, text=True, check=False, env=speaking)
    return done.returncode, done.stdout + done.stderr


def factored(architecture, rank=5):
    model, name = TINY[architecture](), DOWN[architecture]
    layer = model.get_submodule(name)
    out, width = features(layer)
    replace_module(model, name, factorize(layer, torch.randn(out, rank) / 8, torch.randn(rank, width) / 8))
    return model


def rounded(architecture, grid, dtype=torch.float32):
    model = TINY[architecture]().to(dtype)
    for layer in block_linears(model).values():
        install(layer, round_to_nearest(weight_of(layer).detach(), grid, dtype))
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_importing_etude_imports_neither_torch_nor_transformers():
    heavy = "import etude, sys; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0


@pytest.mark.parametrize(
    ("architecture", "first", "second"),
    [
        ("gpt2", "import etude", "import transformers"),
        ("gpt2", "import transformers.quantizers.auto", "import etude"),
        ("llama", "from transformers import LlamaModel", "import etude"),
    ],
)
def test_factors_reload_in_a_new_process_whichever_is_imported_first(architecture, first, second, tmp_path):
    model = factored(architecture)
    save(model, byte_tokenizer(), tmp_path / "model")
    code, said = in_new_process(tmp_path / "model", tmp_path / "answers", first, second)
    assert code == 0, said
    torch.testing.assert_close(torch.tensor(json.loads((tmp_path / "answers").read_text())), logits(model), atol=1e-5, rtol=1e-5)


def test_without_etude_a_folder_of_its_own_shapes_fails_loudly(tmp_path):
    save(factored("llama"), None, tmp_path / "factored")
    save(rounded("gpt2", Grid(4, 32)), None, tmp_path / "packed")
    for folder in ("factored", "packed"):
        code, said = in_new_process(tmp_path / folder, tmp_path / "answers")
        assert code != 0 and "Unknown quantization type, got etude" in said and "MISMATCH" in said


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (8, True), (3, False)])
def test_packed_llama_reloads_without_etude(bits, symmetric, tmp_path):
    model = rounded("llama", Grid(bits, 32, symmetric), torch.bfloat16)
    save(model, byte_tokenizer(), tmp_path / "model")
    code, said = in_new_process(tmp_path / "model", tmp_path / "answers")
    assert code == 0 and "8 False" in said, said
    answers = torch.tensor(json.loads((tmp_path / "answers").read_text()))
    torch.testing.assert_close(answers, logits(model).float(), atol=2e-2, rtol=0)
    about = json.loads((tmp_path / "model" / "config.json").read_text())
    assert about["quantization_config"]["format"] == "pack-quantized" and about["dtype"] == "bfloat16"
    assert getattr(model.config, "quantization_config", None) is None  # the caller's model is left as it was


@pytest.mark.parametrize(
    "make", [lambda: factored("llama"), lambda: factored("gpt2"), lambda: rounded("gpt2", Grid(4, 32)), lambda: rounded("gpt2", Grid(3, 16, True))]
)
def test_what_was_read_is_written_again_exactly(make, tmp_path):
    etude.nn.hosts.install()
    model = make()
    save(model, None, tmp_path / "one")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "one").eval()
    save(again, None, tmp_path / "two")
    again.save_pretrained(tmp_path / "three")
    for folder in ("two", "three"):
        assert (tmp_path / folder / "model.safetensors").stat().st_size == (tmp_path / "one" / "model.safetensors").stat().st_size
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()), logits(model))


def test_two_grids_in_one_model_go_through_our_own_reader(tmp_path):
    etude.nn.hosts.install()
    model = rounded("llama", Grid(4, 32))
    layer = model.get_submodule(DOWN["llama"])
    install(layer, round_to_nearest(weight_of(layer).detach(), Grid(8, 64)))
    save(model, None, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["quant_method"] == "etude"
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()), logits(model))


def test_a_factored_layer_can_be_trained_after_reloading(tmp_path):
    etude.nn.hosts.install()
    save(factored("llama"), None, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model(IDS, labels=IDS).loss.backward()
    layer = model.get_submodule(DOWN["llama"])
    assert isinstance(layer, FactoredLinear) and layer.up.grad.abs().sum() > 0 and layer.weight.grad.abs().sum() > 0
    assert model.hf_quantizer.is_trainable and model.hf_quantizer.is_serializable()


def test_tied_embeddings_are_saved_once(tmp_path):
    from safetensors import safe_open

    model = rounded("llama", Grid(8, 32))
    save(model, None, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert f"{DOWN['llama']}.weight_packed" in names and f"{DOWN['llama']}.weight" not in names


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    model = tiny_llama()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        save(model, None, tmp_path / "full")

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(byte_tokenizer().__class__, "save_pretrained", fails)
    with pytest.raises(ValueError, match="No space left"):
        save(model, byte_tokenizer(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_layer_changed_after_quantisation_is_not_saved_as_if_it_were_not(tmp_path):
    model = rounded("llama", Grid(4, 32))
    layer = model.get_submodule(DOWN["llama"])
    with torch.no_grad():
        layer.weight[0, 0] += 1
    with pytest.raises(ValueError, match="quantise last"):
        save(model, None, tmp_path / "model")
    set_weight(layer, torch.zeros_like(layer.weight))  # a change through the door forgets the codes
    save(model, None, tmp_path / "model")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()), logits(model))


@given(bits=st.sampled_from([2, 3, 4, 8]), rows=st.integers(1, 40), columns=st.integers(1, 90), dim=st.sampled_from([0, 1]), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_unpacking_undoes_packing(bits, rows, columns, dim, seed):
    dice = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (rows, columns), generator=dice, dtype=torch.int8)
    words = pack(codes, bits, dim)
    assert torch.equal(unpack(words, bits, (rows, columns), dim), codes)
    assert words.numel() == (rows * -(-columns * bits // 32) if dim == 1 else columns * -(-rows * bits // 32))


@given(rank=st.integers(1, 6), bias=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_factored_layer_is_the_dense_layer_of_its_product(rank, bias, seed):
    torch.manual_seed(seed)
    A, B, x = torch.randn(7, rank), torch.randn(rank, 6), torch.randn(3, 2, 6)
    dense = torch.nn.Linear(6, 7, bias=bias)
    thin = factorize(dense, A, B)
    set_weight(dense, A @ B)
    torch.testing.assert_close(thin(x), dense(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(thin.dense(), dense.weight)


@ARCHITECTURES
def test_layers_are_found_by_pattern_and_set_through_one_view(architecture):
    model, name = TINY[architecture](), DOWN[architecture]
    end = name.rsplit(".", 1)[1]
    assert name in linear_layers(model, f"mlp.{end}") and len(linear_layers(model, f"mlp.{end}")) == len(find_blocks(model)[1])
    assert list(linear_layers(model, name.replace(".", r"\."))) == [name]
    layer = model.get_submodule(name)
    out, width = features(layer)
    assert (out, width) == (64, 256 if architecture == "gpt2" else 128)
    wanted = torch.randn(out, width)
    set_weight(layer, wanted)
    x, bias = torch.randn(2, width), layer.bias if layer.bias is not None else 0
    torch.testing.assert_close(layer(x), x @ wanted.T + bias, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_done_is_refused_by_name():
    model = tiny_llama()
    with pytest.raises(ValueError, match="no linear layer matches 'no_proj'.*down_proj"):
        linear_layers(model, "no_proj")
    with pytest.raises(ValueError, match="neither the end of a layer's name nor a regular expression"):
        linear_layers(model, "mlp.(")
    with pytest.raises(ValueError, match="Embedding is neither Linear nor Conv1D"):
        weight_of(model.get_input_embeddings())
    with pytest.raises(ValueError, match="rank must lie in"):
        FactoredLinear(4, 4, 5)
    with pytest.raises(ValueError, match="do not make a"):
        factorize(torch.nn.Linear(4, 4), torch.zeros(5, 2), torch.zeros(2, 4))


def test_evaluation_mode_is_lent_module_by_module():
    model = tiny_llama().train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
