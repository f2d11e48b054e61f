"""The matrices that LASER may reduce, picked by type, group or name pattern and by layer."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from etude.nn.matrices import TYPES, Matrix, all_matrices
from etude.nn.surgery import find_blocks, linear_layers

GROUPS = {"mlp": ("in", "out"), "attn": ("q", "k", "v", "qkv", "o"), "all": tuple(TYPES)}


def matrices(model: PreTrainedModel, module: str, layers: tuple[int, ...] | str | None = None) -> list[Matrix]:
    """The matrices of a type, group or name pattern in the given layers (None and "all": in each).

    Raises:
        ValueError: nothing matches (what exists is listed), a layer is out of range or none of it matches, or a weight is shared.
    """
    every = all_matrices(model)
    kinds = GROUPS.get(module, (module,) if module in TYPES else None)
    if kinds is None:
        names = set(linear_layers(model, module))
        found = [matrix for matrix in every if matrix.name in names]
    else:
        found = [matrix for matrix in every if matrix.type in kinds]
    if not found:
        ends = sorted({f"{matrix.end} ({matrix.type or 'no type'})" for matrix in every})
        raise ValueError(f"no matrix of the blocks matches {module!r}; this model has {', '.join(ends)}")
    found = _in_layers(found, layers, len(find_blocks(model)[1]), module)
    _refuse_shared(model, found)
    return found


def _in_layers(found: list[Matrix], layers: tuple[int, ...] | str | None, depth: int, module: str) -> list[Matrix]:
    if layers is None or isinstance(layers, str):
        return found
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer} is out of range: this model has layers 0 to {depth - 1}")
    wanted = {layer % depth for layer in layers}
    if missing := wanted - {matrix.layer for matrix in found}:
        raise ValueError(f"layers {sorted(missing)} have no matrix that matches {module!r}")
    return [matrix for matrix in found if matrix.layer in wanted]


def _refuse_shared(model: nn.Module, found: list[Matrix]) -> None:
    """A weight that two modules share cannot be reduced in one of them."""
    owners: dict[torch.nn.Parameter, str] = {}
    chosen = {matrix.name for matrix in found}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        other = owners.setdefault(weight, name)
        if other != name and (other in chosen or name in chosen):
            raise ValueError(f"{name} shares its weight with {other}: reducing one would reduce both; choose other matrices")
