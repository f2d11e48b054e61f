"""What a training leaves behind: checkpoints that are whole, and a policy and dice that are otherwise as they were."""

from __future__ import annotations

import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from etude.nn.surgery import replace_module

WHOLE = "whole"  # marks a checkpoint that was written to its end


def below(folder: Path | None, name: str) -> Path | None:
    """A folder of this name inside, where there is one to keep anything in."""
    return folder / name if folder else None


@contextmanager
def room_of(checkpoints: Path | None) -> Iterator[Path]:
    """Where the trainer may write: the folder of checkpoints, else one that vanishes."""
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        yield checkpoints
        return
    with tempfile.TemporaryDirectory() as room:
        yield Path(room)


def last(room: Path) -> str | None:
    """The newest whole checkpoint; what a kill left half written goes."""
    found = list[tuple[int, Path]]()
    for folder in room.glob("checkpoint-*"):
        if (folder / WHOLE).exists():
            found.append((int(folder.name.rpartition("-")[2]), folder))
        else:
            shutil.rmtree(folder)
    return str(max(found)[1]) if found else None


def restore(policy: PreTrainedModel, weights: dict[str, Tensor] | None) -> None:
    """The policy as it was before a trial: without its adapter, or with its old weights."""
    if weights is not None:
        policy.to(next(iter(weights.values())).dtype).load_state_dict(weights)
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(policy.named_modules()):
        if isinstance(module, BaseTunerLayer):
            replace_module(policy, name, module.get_base_layer())
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        policy.__dict__.pop(leftover, None)


@contextmanager
def as_it_was(policy: PreTrainedModel) -> Iterator[None]:
    """The caller's dice and the policy's forward, dropout and pad token are afterwards as before."""
    import numpy as np

    config, generation = policy.config.get_text_config(), policy.generation_config
    dropouts = {module: module.p for module in policy.modules() if isinstance(module, nn.Dropout)}
    pads = config.pad_token_id, getattr(generation, "pad_token_id", None)
    python, numpy, forward, tags = random.getstate(), np.random.get_state(), policy.__dict__.get("forward"), policy.model_tags
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        policy.__dict__.pop("forward", None)
        if forward is not None:
            policy.__dict__["forward"] = forward
        for module, share in dropouts.items():
            module.p = share
        config.pad_token_id, policy.model_tags = pads[0], tags
        if generation is not None:
            generation.pad_token_id = pads[1]
