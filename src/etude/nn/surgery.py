"""Finding and replacing layers by structure: no list of model names, Linear and Conv1D (GPT-2) alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a dense affine map: `nn.Linear` or transformers' `Conv1D`, which stores its weight transposed."""
    return isinstance(module, nn.Linear | Conv1D)


def linear_layers(model: nn.Module, pattern: str | Sequence[str] = ".*") -> dict[str, nn.Module]:
    """The linear layers whose dotted name matches, in the model's order.

    Args:
        model: any module.
        pattern: as PEFT's `target_modules`: a regular expression for the whole name ("model.layers.2[0-9].mlp.*"), or the end of the
            name ("down_proj", "mlp.c_proj"); or several of them.

    Raises:
        ValueError: a pattern matches no linear layer; the message lists the candidates.
    """
    patterns = (pattern,) if isinstance(pattern, str) else tuple(pattern)
    layers = {name: module for name, module in model.named_modules() if is_linear(module)}
    for each in patterns:
        if not any(_matches(each, name) for name in layers):
            ends = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in layers})
            raise ValueError(f"no linear layer matches {each!r}; this model has {', '.join(ends) or 'none'}")
    return {name: module for name, module in layers.items() if any(_matches(each, name) for each in patterns)}


def _matches(pattern: str, name: str) -> bool:
    if name == pattern or name.endswith("." + pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as broken:
        raise ValueError(f"{pattern!r} is neither the end of a layer's name nor a regular expression: {broken}") from None


def block_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """All linear layers inside the stack of blocks: neither embeddings nor the head."""
    prefix = find_blocks(model)[0] + "."
    layers = {name: module for name, module in model.named_modules() if name.startswith(prefix) and is_linear(module)}
    if not layers:
        raise ValueError(f"the blocks of {type(model).__name__} hold no Linear or Conv1D layer")
    return layers


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The stack of blocks as (dotted name, list): the longest `nn.ModuleList` of a model with one stack.

    Raises:
        ValueError: the model has an encoder and a decoder, or no stack.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} has an encoder and a decoder: a model with one stack of blocks is needed")
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList: a model with a stack of blocks is needed")
    return max(lists, key=lambda pair: len(pair[1]))


def features(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer."""
    out, width = weight_of(module).shape
    return int(out), int(width)


def weight_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight as an (out, in) view: writing to it writes to the layer.

    Raises:
        ValueError: the module is neither Linear nor Conv1D.
    """
    if isinstance(module, nn.Linear):
        return module.weight
    if isinstance(module, Conv1D):
        return module.weight.T
    raise ValueError(f"{type(module).__name__} is neither Linear nor Conv1D")


def set_weight(module: nn.Module, weight: Float[Tensor, "out in"]) -> None:
    """Copy an (out, in) matrix into the layer, in the layer's own dtype; codes of an earlier quantisation are forgotten."""
    with torch.no_grad():
        weight_of(module).copy_(weight)
    if hasattr(module, "codes"):
        del module.codes


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` at the dotted name, in the mode of what it replaces."""
    new.train(model.get_submodule(name).training)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode (no dropout), then restore the mode of every module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def refuse_quantised(model: PreTrainedModel) -> None:
    """Raise a ValueError for a model whose weights are stored in another quantiser's shape."""
    about = getattr(model.config, "quantization_config", None)
    if about is not None:
        method = about.get("quant_method") if isinstance(about, dict) else getattr(about, "quant_method", type(about).__name__)
        raise ValueError(f"the model is already stored by {getattr(method, 'value', method)}: bring the dense model")
