"""What lies on disk: PEFT folders for adapters, Hugging Face folders for whole policies, the tokenizer beside.

`etude.json` beside them names the base model, which is the reference of the preferences, and holds a sketch of its weights by which another model
is known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from etude.nn import same_base, saving
from etude.nn.loading import load_decoder
from etude.nn.surgery import is_linear

ABOUT, ADAPTER = "etude.json", "adapter_config.json"


def save(made: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write a policy: its adapter in PEFT's form, or all its weights; the folder is there and empty.

    Raises:
        ValueError: the folder cannot be written.
    """
    base = made.get_base_model() if isinstance(made, PeftModel) else made
    place = str(getattr(base.config, "_name_or_path", "") or "")
    about: dict[str, Any] = {"base": str(Path(place).resolve()) if place and Path(place).exists() else place}
    if isinstance(made, PeftModel):
        about["sketch"] = same_base.sketch(base_layers(base))
        for config in made.peft_config.values():
            config.base_model_name_or_path = about["base"] or None
        made.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's, which says nothing
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    else:
        saving.save(made, tokenizer, folder)
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def base_layers(base: nn.Module) -> dict[str, nn.Module]:
    """The base model's linear layers by the names that they have without an adapter around them."""
    found = {name.replace(".base_layer", ""): layer for name, layer in base.named_modules() if is_linear(layer)}
    return {name: layer for name, layer in found.items() if ".lora_" not in name}


def base_of(folder: Path) -> Path:
    """The folder of the model that the policy was trained from.

    Raises:
        ValueError: it is not known, or it is gone.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise ValueError(f"{folder} holds no {ABOUT}: it is no folder that an align contest or `etude apply` wrote")
    base = Path(json.loads(path.read_text())["base"])
    if not (base / "config.json").is_file():
        raise ValueError(f"the base model {base} of {folder} is not there: give its folder as base")
    return base


def load(folder: Path, dtype: str = "float32", device: str = "cpu", base: Path | PreTrainedModel | None = None) -> PreTrainedModel | PeftModel:
    """The policy of a folder, in evaluation mode; an adapter around its base model.

    Args:
        base: the base model's folder, where it is not the one that the folder names; or the base model itself, which then carries the adapter.

    Raises:
        ValueError: the base model is gone, or another one than the adapter was trained on.
    """
    if not (folder / ADAPTER).is_file():
        return load_decoder(folder, dtype, device)
    place = base or base_of(folder)
    model = load_decoder(place, dtype, device) if isinstance(place, Path) else place
    about = json.loads((folder / ABOUT).read_text()) if (folder / ABOUT).is_file() else {}
    same_base.check(base_layers(model), about.get("sketch", {}), about.get("base"))
    try:
        policy = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the adapter in {folder} does not fit this model ({reason}): it belongs to another base model") from error
    return policy.eval()


def weights_bytes(folder: Path) -> int:
    """Bytes of the weights; the tokenizer and the configuration are the base model's own or tell little."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
