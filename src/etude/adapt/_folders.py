"""What lies on disk: PEFT folders for adapters, Hugging Face folders for whole models, a list of examples for a prompt; the tokenizer beside.

`etude.json` beside them says what a folder alone does not: which base model it belongs to (a path, and a sketch of its weights by which another one
is known), the labels, how many weights were trained, and whether the base was rounded to four bits.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from etude.adapt._four_bit import known_to, pack, packs
from etude.adapt._subject import kind_of, labels_of, load_subject, recall, remember
from etude.nn import same_base, saving
from etude.nn.loading import load_decoder
from etude.nn.surgery import find_blocks, is_linear

ABOUT = "etude.json"
OWN = (ABOUT, "adapter_config.json", "config.json", "generation_config.json")  # beside weights, what belongs to an adapter and not to its tokenizer


def save(made: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write what was trained.

    Raises:
        ValueError: an adapter trained its base model, or the folder cannot be written.
    """
    base = made.get_base_model() if isinstance(made, PeftModel) else made
    count = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    shots = recall(made, "shots")
    about = {
        "base": str(getattr(base.config, "_name_or_path", "") or ""),
        "sketch": same_base.sketch(base_layers(base)) if isinstance(made, PeftModel) or shots else {},
        "labels": labels_of(made),
        "trained": count,
        "bits": recall(made, "bits") or None,
        "shots": shots,
    }
    if isinstance(made, PeftModel):
        for config in made.peft_config.values():
            config.base_model_name_or_path = about["base"] or None
        made.save_pretrained(folder)
        refuse_smuggled(folder, count)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's, which says nothing; `etude apply` writes one
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    elif shots and not count:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    else:
        with_dtype(made, base.config.dtype)
        saving.save(made, tokenizer, folder / "whole")
        for path in (folder / "whole").iterdir():
            path.rename(folder / path.name)
        (folder / "whole").rmdir()
    (folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def refuse_smuggled(folder: Path, count: int) -> None:
    """Refuse an adapter that trained more than its folder holds: what is loaded again would be another model."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 -- it is no dict
    if count > stored:
        raise ValueError(f"{count - stored:,} of the {count:,} trained weights are not in the adapter's folder: leave the base model frozen")


def with_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """All weights in one dtype: what was trained in float32 goes back to the base's."""
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def base_layers(base: Any) -> dict[str, nn.Module]:
    """The linear layers of the base model's blocks by their names before an adapter was put around them."""
    blocks = find_blocks(base)[0] + "."
    found = {name.replace(".base_layer", ""): module for name, module in base.named_modules() if name.startswith(blocks) and is_linear(module)}
    return {name: module for name, module in found.items() if not any(part in name for part in ("lora_", "etude_parts", "modules_to_save"))}


def about_of(folder: Path) -> dict[str, Any]:
    """What `save` wrote beside the weights."""
    path = folder / ABOUT
    if not path.is_file():
        raise ValueError(f"{folder} holds no {ABOUT}: it is no folder that an adapt contest or `etude apply` wrote")
    about: dict[str, Any] = json.loads(path.read_text())
    return about


def load(folder: Path, dtype: str = "float32", device: str = "cpu", base: Path | None = None) -> Any:
    """What lies in the folder, in evaluation mode: the whole model, or its base model with the adapter or the prompt.

    Args:
        base: the base model's folder, where it is not the one that the folder names.

    Raises:
        ValueError: the base model is gone, or it is another one than the adapter was trained on.
    """
    about = about_of(folder)
    if (folder / "config.json").is_file():
        return whole(folder, dtype, device)
    place = base or Path(about["base"])
    if not (place / "config.json").is_file():
        raise ValueError(f"the base model {place} of {folder} is not there: give its folder as base")
    model = base_model(place, about, dtype, device)
    same_base.check(base_layers(model), about["sketch"], about["base"])
    if about["shots"]:
        remember(model, shots=about["shots"])
    return adapted(model, folder, place) if (folder / "adapter_config.json").is_file() else model


def whole(folder: Path, dtype: str, device: str) -> PreTrainedModel:
    """A model that was saved whole."""
    if kind_of(folder) == "decoder":
        return load_decoder(folder, dtype, device)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    found: PreTrainedModel = model.to(torch.device(device)).eval()
    return found


def base_model(place: Path, about: dict[str, Any], dtype: str, device: str) -> PreTrainedModel:
    """The base as it was when training began: with its label head, rounded where it was."""
    model = load_subject(place, None, dtype, device, labels=about["labels"])
    if about["bits"]:
        pack(model, about["bits"])
    return model


def adapted(model: PreTrainedModel, folder: Path, place: Path) -> PeftModel:
    """The base model with the adapter of the folder."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            config = PeftConfig.from_pretrained(str(folder))
            found = PeftModel.from_pretrained(model, str(folder), config=known_to(config) if packs(model) else config)
        except (RuntimeError, UserWarning) as error:
            raise ValueError(
                f"the adapter in {folder} does not fit {place} ({str(error).splitlines()[0]}): it belongs to another base model"
            ) from error
    found.eval()
    return found


def weights_bytes(folder: Path) -> int:
    """Bytes of what belongs to the folder's task: weights, configurations and examples; the tokenizer is the base model's own."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name in OWN or path.suffix == ".safetensors")
