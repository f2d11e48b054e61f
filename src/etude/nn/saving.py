"""One way to write a model that `compress` returned: a plain Hugging Face folder, really smaller, whole or not at all.

Codes of quantised Linear layers go out as compressed-tensors `pack-quantized`, which transformers and vLLM read without etude. Factored
layers, and quantised Conv1D layers (GPT-2), need `import etude` before `from_pretrained`; without it loading stops with an error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from etude.nn.factored import FactoredLinear
from etude.nn.packing import Codes, codes_of


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, files: Mapping[str, str] | None = None) -> None:
    """Write weights, configuration, generation configuration, tokenizer and `files` (name -> text) to a new or empty folder.

    Raises:
        ValueError: the folder holds something, or cannot be written (full disk, no right).
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: give another one")
    partial = folder.parent / f".{folder.name}.{uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        _write(model, tokenizer, partial)
        for name, text in (files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        os.replace(partial, folder)
    except (OSError, SafetensorError) as reason:
        raise ValueError(f"cannot write {folder}: {reason}; free some space or give another folder") from reason
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    state, about = stored(model)
    with _configured(model, about):
        model.save_pretrained(folder, state_dict=state, max_shard_size="5GB")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def stored(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors that go to disk, and config.json's `quantization_config` (None: all layers are dense).

    Raises:
        ValueError: a layer was changed after it was quantised.
    """
    state, codes, ranks = model.state_dict(), dict[str, Codes](), dict[str, int]()
    for name, module in model.named_modules():
        if isinstance(module, FactoredLinear):
            ranks[name] = module.rank
        elif (own := codes_of(module)) is not None:
            codes[name] = own
    ours = bool(ranks) or not _stock(model, codes) or _is_etude(getattr(model.config, "quantization_config", None))
    for name, own in codes.items():
        del state[f"{name}.weight"]
        state.update({f"{name}.{end}": tensor for end, tensor in _tensors(own, ours).items()})
    if not codes and not ranks:
        return state, None
    return state, _etude(codes, ranks) if ours else _compressed_tensors(model, codes)


def _is_etude(about: Any) -> bool:
    return (about.get("quant_method") if isinstance(about, dict) else getattr(about, "quant_method", None)) == "etude"


def _tensors(codes: Codes, ours: bool) -> dict[str, Tensor]:
    """For our own reader the words stand under `weight`: one that does not know them meets a wrong shape and stops."""
    tensors = codes.packed()
    if ours:
        tensors["weight"] = tensors.pop("weight_packed")
        del tensors["weight_shape"]
    return tensors


def _etude(codes: Mapping[str, Codes], ranks: Mapping[str, int]) -> dict[str, Any]:
    packed = {name: {"bits": own.grid.bits, "group": own.grid.group, "symmetric": own.grid.symmetric} for name, own in codes.items()}
    return {"quant_method": "etude", "factors": dict(ranks), "packed": packed}


def _stock(model: PreTrainedModel, codes: Mapping[str, Codes]) -> bool:
    """Whether stock transformers reads these codes: Linear layers on one grid, since it unpacks zero points only while it loads, by one scheme.

    It fails on the zero points of layers whose outputs fit one word.
    """
    linear = all(isinstance(model.get_submodule(name), nn.Linear) for name in codes)
    readable = all(own.zero_OG is None or len(own.q_OI) * own.grid.bits > 32 for own in codes.values())
    return linear and readable and len({own.grid for own in codes.values()}) <= 1


def _compressed_tensors(model: PreTrainedModel, codes: Mapping[str, Codes]) -> dict[str, Any]:
    """config.json's entry; every Linear that is not packed is named under `ignore`."""
    grid = next(iter(codes.values())).grid
    weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "strategy": "group", "group_size": grid.group, "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}},
        "ignore": [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in codes],
        "kv_cache_scheme": None,
        "dequantize": True,  # while loading: the other way unpacks at the first forward pass, and cannot read packed zero points
    }


@contextmanager
def _configured(model: PreTrainedModel, about: dict[str, Any] | None) -> Iterator[None]:
    """The model's configuration with `quantization_config` for the time of writing."""
    before = getattr(model.config, "quantization_config", None)
    if about is not None:
        model.config.quantization_config = about
    elif _is_etude(before):
        del model.config.quantization_config
    try:
        yield
    finally:
        if before is not None:
            model.config.quantization_config = before
        elif about is not None:
            del model.config.quantization_config
