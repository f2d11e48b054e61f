"""One training loop for all that is trained outside TRL: AdamW, a schedule, clipping, checkpoints, and a resume that is exact to the last bit.

A step's batch and its dice follow from the seed and the step alone: a run that goes on from a checkpoint ends where the undisturbed one does.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from etude.measure.contract import NotFinite

Say = Callable[[str], None]
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: optimizer steps.
        rate: peak learning rate.
        warmup: share of the steps over which the rate rises.
        final: share of the peak at the last step.
        schedule: how the rate falls from the peak to the end.
        decay: weight decay (decoupled), of matrices only where `groups` are not given.
        clip: largest norm of the gradient; 0 leaves it as it is.
        every: steps between checkpoints.
    """

    steps: int
    rate: float
    warmup: float = 0.1
    final: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    every: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 1:
            raise ValueError(f"steps and every are counts of at least 1, got {self.steps} and {self.every}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"the rate must be a number above 0, got {self.rate}")

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step, counted from 0."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / rising
        if self.schedule == "constant" or self.steps <= rising + 1:
            return 1.0
        past = (step - rising) / (self.steps - rising - 1)
        left = (1 + math.cos(math.pi * past)) / 2 if self.schedule == "cosine" else 1 - past
        return self.final + (1 - self.final) * left


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    recipe: Recipe,
    seed: int,
    *,
    groups: Iterable[dict[str, Any]] | None = None,
    checkpoints: Path | None = None,
    say: Say | None = None,
) -> list[float]:
    """Train the parameters that require a gradient; the mode of the model and the caller's dice are left as they were.

    Args:
        loss_of: the loss of a step's batch; it runs with dice that follow from `seed` and the step.
        groups: parameter groups in AdamW's form, `lr` as a factor of the recipe's rate; by default matrices decay and the rest does not.
        checkpoints: a folder of this run's own; what lies there is resumed.
        say: is told the step and the loss at every checkpoint.

    Returns:
        The loss of every step, those before a resume included.

    Raises:
        NotFinite: the loss is no number: the step is named, and the last checkpoint stays.
        ValueError: nothing is to be trained.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise ValueError("nothing is to be trained: no parameter requires a gradient")
    parts = list(groups) if groups is not None else by_shape(named.values(), recipe.decay, spared(model))
    optimizer = torch.optim.AdamW(parts, lr=1.0, betas=recipe.betas, fused=True)  # one pass over the weights instead of a dozen
    factors = [group["lr"] for group in optimizer.param_groups]
    kept = _Checkpoints(checkpoints, named, optimizer) if checkpoints else None
    losses, was_training, start = kept.load() if kept else [], model.training, 0
    start = len(losses)
    try:
        for step in range(start, recipe.steps):
            model.train()
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = factor * recipe.rate * recipe.factor(step)
            losses.append(_step(named, loss_of, optimizer, recipe, seed, step))
            if kept and ((step + 1) % recipe.every == 0 or step + 1 == recipe.steps):
                kept.save(losses)
                if say:
                    say(f"step {step + 1} of {recipe.steps}: loss {losses[-1]:.4g}")
    finally:
        model.train(was_training)
        optimizer.zero_grad()
    return losses


def by_shape(parameters: Iterable[nn.Parameter], decay: float, spared: Set[int] = frozenset()) -> list[dict[str, Any]]:
    """Groups in which matrices decay; vectors (norms, biases, scales) and the parameters whose ids are `spared` do not."""
    parts = {True: list[nn.Parameter](), False: list[nn.Parameter]()}
    for parameter in parameters:
        parts[parameter.ndim >= 2 and id(parameter) not in spared].append(parameter)
    return [{"params": part, "weight_decay": decay if wide else 0.0, "lr": 1.0} for wide, part in parts.items() if part]


def spared(model: nn.Module) -> set[int]:
    """Ids of the parameters that their modules name in an attribute `no_decay`: copies and loads forget what is marked on the tensor itself."""
    return {id(getattr(module, name)) for module in model.modules() for name in getattr(module, "no_decay", ())}


def _step(
    named: dict[str, nn.Parameter], loss_of: Callable[[int], Tensor], optimizer: torch.optim.Optimizer, recipe: Recipe, seed: int, step: int
) -> float:
    devices = sorted({p.device.index or 0 for p in named.values() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed((seed * 1_000_003 + step) % (1 << 63))
        loss: Any = loss_of(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NotFinite(f"the loss is {value} at step {step + 1} of {recipe.steps} (rate {recipe.rate:g}): lower the rate, or look at the data")
        optimizer.zero_grad()
        loss.backward()
    if recipe.clip:
        nn.utils.clip_grad_norm_(named.values(), recipe.clip)
    optimizer.step()
    return value


class _Checkpoints:
    """The newest state of a run, in a folder that is replaced as a whole."""

    def __init__(self, folder: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.place, self.named, self.optimizer = folder / "last", named, optimizer

    def save(self, losses: list[float]) -> None:
        partial, old = self.place.with_name("writing"), self.place.with_name("old")
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {f"weight.{name}": parameter.detach().contiguous() for name, parameter in self.named.items()}
        for name, parameter in self.named.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": state[moment].contiguous() for moment in MOMENTS if moment in state}
        save_file(tensors, partial / "state.safetensors")
        (partial / "losses.json").write_text(json.dumps(losses))
        if self.place.exists():
            os.replace(self.place, old)  # a folder cannot be replaced in one step: `load` knows both names
        os.replace(partial, self.place)
        shutil.rmtree(old, ignore_errors=True)

    def load(self) -> list[float]:
        """Restore the newest whole checkpoint; the losses so far."""
        for folder in (self.place, self.place.with_name("old")):
            if not (folder / "losses.json").is_file():
                continue
            try:
                tensors = load_file(folder / "state.safetensors")
            except (SafetensorError, OSError) as reason:
                raise ValueError(f"the checkpoint {folder} cannot be read ({reason}): remove it to train from the start") from reason
            losses: list[float] = json.loads((folder / "losses.json").read_text())
            self._restore(folder, tensors, len(losses))
            return losses
        return []

    def _restore(self, folder: Path, tensors: dict[str, Tensor], steps: int) -> None:
        if {name for name in tensors if name.startswith("weight.")} != {f"weight.{name}" for name in self.named}:
            raise ValueError(f"the checkpoint {folder} is of another model: remove it to train from the start")
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"weight.{name}"])
                if f"{MOMENTS[0]}.{name}" in tensors:
                    moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                    self.optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
