"""What the baselines that PEFT has itself share: where they are put, the label head beside them, and the dice that start them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from etude.adapt._train import head_names
from etude.data.contract import Budget, Data
from etude.nn.surgery import block_linears, features, linear_layers


class Pairs:
    """What the kin of LoRA do alike; each is a dataclass of its own with the options `rank`, `alpha`, `dropout`, `targets` and `rate`."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    rate: float | None
    start: ClassVar[float] = 1e-3  # where the search for a rate begins
    kind: ClassVar[Mapping[str, Any]] = {}  # what tells it from LoRA, in the words of PEFT's LoraConfig

    def __post_init__(self) -> None:
        check_lora(self.rank, self.alpha, self.dropout, self.rate)

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """`rank`, and where a budget in bytes is smaller than that the largest power of two below it that fits."""
        return [replace(cast(Any, self), rank=rank) for rank in ranks_within(budget, subject, self.rank, self.targets)]

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        """Freeze `model` and put a pair beside each target layer.

        Raises:
            ValueError: a target matches no linear layer; the message lists the candidates.
        """
        return inject(model, lora_config(model, self.rank, self.alpha, self.dropout, self.targets, **self.kind), data.seed)


def targets_of(model: PreTrainedModel, wanted: Sequence[str]) -> list[str]:
    """The ends of the names of the layers that are adapted: those wanted, else PEFT's own for this kind of model, else all of the blocks.

    Raises:
        ValueError: one of those wanted matches no linear layer; the message lists the candidates.
    """
    kind = getattr(model.config, "encoder", {}).get("model_type") or model.config.model_type
    ends = list(wanted) or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    if not ends:
        return sorted({name.rpartition(".")[2] for name in block_linears(model)})
    linear_layers(model, ends)
    return list(ends)


def lora_config(model: PreTrainedModel, rank: int, alpha: float, dropout: float, targets: Sequence[str], **more: Any) -> LoraConfig:
    """PEFT's LoRA for this model, its label head trained and saved along."""
    ends = targets_of(model, targets)
    conv = any(isinstance(layer, Conv1D) for layer in linear_layers(model, ends).values())
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=ends,
        modules_to_save=head_names(model) or None,
        task_type=task_of(model),
        fan_in_fan_out=conv,
        **more,
    )


def task_of(model: PreTrainedModel) -> TaskType:
    """PEFT's name of what the model does."""
    return TaskType.SEQ_CLS if head_names(model) else TaskType.CAUSAL_LM


def inject(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """The model with a new adapter, drawn by the seed, in the mode in which it came; everything else is frozen."""
    training = model.training
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        tuned = cast(PeftModel, get_peft_model(model, config))
    tuned.train(training)
    return tuned


def check_lora(rank: int, alpha: float, dropout: float, rate: float | None) -> None:
    """Refuse options that make no adapter."""
    if rank < 1:
        raise ValueError(f"rank is a count of at least 1, got {rank}")
    if alpha <= 0:
        raise ValueError(f"alpha scales the adapter and must be above 0, got {alpha}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    check_rate(rate)


def check_rate(rate: float | None) -> None:
    """Refuse a rate that is none."""
    if rate is not None and rate <= 0:
        raise ValueError(f"rate must be above 0, or null to be tuned, got {rate}")


def ranks_within(budget: Budget, model: PreTrainedModel, rank: int, wanted: Sequence[str]) -> list[int]:
    """The rank, or the largest power of two below it whose pairs keep a budget in bytes (float32); 1 where none does."""
    if budget.axis != "bytes" or budget.share == 1:
        return [rank]
    layers = linear_layers(model, targets_of(model, wanted)).values()
    each = 4 * sum(sum(features(layer)) for layer in layers)
    head = 4 * sum(p.numel() for name in head_names(model) for p in model.get_submodule(name).parameters())
    fits = [r for r in (rank, *(1 << k for k in reversed(range(rank.bit_length())))) if r <= rank and r * each + head <= budget.limit]
    return [fits[0] if fits else 1]
