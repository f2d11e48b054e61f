"""The known answer of the contest: a model half of whose blocks do nothing, and contenders of which it is known who must win."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from etude.data.contract import Data

WINNER, LOSER, TWINS = "drop_idle", "drop_busy", ("twin", "other_twin")


def plant(folder: Path, steps: int = 150) -> dict[str, str]:
    """Write a tiny trained Llama whose last two of four blocks write nothing, and a text of its kind; what to bring is returned."""
    from etude.nn.tiny import byte_tokenizer, tiny_llama, tiny_sentences, train

    sentences = tiny_sentences(4000)
    model = tiny_llama()
    idle = model.model.layers[2:]
    for block in idle:
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            torch.nn.init.zeros_(linear.weight)
            linear.weight.requires_grad_(False)
    train(model, "".join(sentences), steps=steps)
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text("".join(sentences))
    return {"model": str(folder / "model"), "data": str(folder / "text.txt")}


def _keep(model: PreTrainedModel, count: int) -> PreTrainedModel:
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    del blocks[count:]
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:count]
    return model


@dataclass(frozen=True)
class DropIdle:
    """The planted winner: the idle half goes, nothing is lost."""

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        return _keep(model, 2)


@dataclass(frozen=True)
class DropBusy:
    """The degraded copy: smaller by the same half, and its first block is turned into noise."""

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        dice = torch.Generator().manual_seed(0)
        for weight in _keep(model, 2).parameters():
            weight.data += 0.5 * weight.data.std().nan_to_num() * torch.randn(weight.shape, generator=dice).to(weight.dtype)
        return model


def _shaken(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    dice = torch.Generator().manual_seed(seed)
    for weight in _keep(model, 3).parameters():
        if weight.ndim == 2:
            weight.data += 0.05 * weight.data.std() * torch.randn(weight.shape, generator=dice).to(weight.dtype)
    return model


@dataclass(frozen=True)
class Twin:
    """One of two contenders that are the same but for their dice."""

    salt: int = 1

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        return _shaken(model, 1000 * data.seed + self.salt)


@dataclass(frozen=True)
class OtherTwin:
    """The other one."""

    salt: int = 2

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        return _shaken(model, 1000 * data.seed + self.salt)
