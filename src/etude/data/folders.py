"""Which model folders are refused before any work: no tokenizer, only pickled weights, code of their own, a weight file cut short."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_folder(folder: Path) -> None:
    """Refuse a model folder that etude does not load, before any work.

    Raises:
        ValueError: names the file that is missing or wrong, and the way out.
    """
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ValueError(f"model {folder} is a PEFT adapter without its base model: merge it (`merge_and_unload`) and save the whole model")
    if not (folder / "config.json").exists():
        raise ValueError(f"model {folder} has no config.json: it is no Hugging Face model folder")
    _check_code(folder)
    _check_weights(folder)
    check_tokenizer(folder)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder whose tokenizer is missing or brings code of its own.

    Raises:
        ValueError: names the file that is missing or wrong, and the way out.
    """
    _check_code(folder)
    if not any((folder / name).exists() for name in TOKENIZERS) and not list(folder.glob("*.tiktoken")):
        names = ", ".join(TOKENIZERS[:4])
        raise ValueError(f"model {folder} has no tokenizer (none of {names}...): save the model's tokenizer there with `tokenizer.save_pretrained`")


def _check_code(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _json(folder / name):
            raise ValueError(
                f"model {folder} brings code of its own ({name} has auto_map), and code of others is not run here: take a model whose "
                "architecture transformers knows; if it does know this one, remove auto_map from the file"
            )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    return value


def _check_weights(folder: Path) -> None:
    shards = set(_json(folder / "model.safetensors.index.json").get("weight_map", {}).values())
    for name in sorted(shards):
        if not (folder / name).exists():
            raise ValueError(f"model {folder} lacks {name}, which model.safetensors.index.json names: download it again")
    files = sorted(folder / name for name in shards) or sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin")
        if pickles:
            raise ValueError(
                f"model {folder} has only pickled weights ({pickles[0]}), which can run code when they are opened: convert them where you trust "
                "them, with `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)`, and give NEW, which holds safetensors"
            )
        raise ValueError(f"model {folder} has no weights: no *.safetensors file is there")
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Refuse a safetensors file that is cut short or broken.

    Raises:
        ValueError: names the file with its size and the size that its header announces.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        try:
            header = json.loads(stream.read(length)) if length <= size - 8 else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{file} ({size:,} bytes) is no whole safetensors file: its header is cut short or broken; download it again")
    wanted = 8 + length + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if size != wanted:
        raise ValueError(f"{file} is truncated or broken: it has {size:,} bytes, its header announces {wanted:,}; download it again")
