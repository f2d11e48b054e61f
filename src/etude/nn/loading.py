"""What a model's folder holds: the model itself, its tokenizer, and what its configuration tells without reading a weight."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import etude.nn.hosts
import etude.nn.quantizer  # a folder may be of its kind: what reads it belongs to the sources of every outcome
from etude.measure.quality import context_of

etude.nn.hosts.install()


def load_decoder(folder: Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The folder's decoder, in evaluation mode.

    Raises:
        ValueError: tensors are missing from its weights.
    """
    model: Any
    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True)
    if told["missing_keys"]:
        first = ", ".join(sorted(told["missing_keys"])[:3])
        raise ValueError(f"the weights of the model lack {len(told['missing_keys'])} tensors ({first}...): fetch or save its folder again")
    model.to(torch.device(device))
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def parameters(folder: Path) -> int:
    """How many parameters the folder's decoder has, tied ones counted once: from the configuration, no weights read."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def context_length(folder: Path) -> int:
    """The longest sequence that the model's positions allow, from its configuration."""
    stand_in: Any = SimpleNamespace(config=AutoConfig.from_pretrained(folder, local_files_only=True))
    return context_of(stand_in, 1 << 30)


def architecture(folder: Path) -> str:
    """The name of the class that the folder's weights were saved from."""
    config = config_of(folder)
    return str((config.get("architectures") or [config.get("model_type", "unknown")])[0])


def licence(folder: Path) -> str:
    """The licence that the folder's model card states."""
    card = (folder / "README.md").read_text().splitlines() if (folder / "README.md").exists() else []
    return next((line.partition(":")[2].strip() for line in card if line.startswith("license:")), "not stated")
