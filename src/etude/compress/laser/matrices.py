"""Which weight matrices a transformer has: types by name pattern on Llama, GPT-2, OPT, GPT-NeoX and BERT styles, no list of models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from etude.nn.surgery import block_linears, features, find_blocks, linear_layers

TYPES: dict[str, tuple[str, ...]] = {  # the paper's parameter types; a name belongs to the first type one of whose ends it has
    "q": ("q_proj", "q_lin", "self.query", "attention.query", "wq"),
    "k": ("k_proj", "k_lin", "self.key", "attention.key", "wk"),
    "v": ("v_proj", "v_lin", "self.value", "attention.value", "wv"),
    "qkv": ("attn.c_attn", "query_key_value", "qkv_proj", "Wqkv", "att_proj", "attn.qkv"),
    "o": (
        "o_proj",
        "self_attn.out_proj",
        "attn.out_proj",
        "attention.out_proj",
        "attn.c_proj",
        "attention.dense",
        "attention.output.dense",
        "self_attn.dense",
        "self_attention.dense",
        "attention.out_lin",
        "attn.proj",
        "attn_out",
    ),
    "in": ("gate_proj", "up_proj", "gate_up_proj", "mlp.c_fc", "fc1", "fc_in", "dense_h_to_4h", "intermediate.dense", "wi", "wi_0", "wi_1", "lin1"),
    "out": ("down_proj", "mlp.c_proj", "fc2", "fc_out", "dense_4h_to_h", "output.dense", "lin2", "DenseReluDense.wo"),
}
GROUPS = {"mlp": ("in", "out"), "attn": ("q", "k", "v", "qkv", "o"), "all": tuple(TYPES)}


@dataclass(frozen=True)
class Matrix:
    """One linear layer inside the stack of blocks.

    Attributes:
        name: dotted, as in `model.named_modules()`.
        end: the name inside its block ("mlp.down_proj").
        layer: number of its block.
        type: one of TYPES, empty where the name tells none.
        shape: (out, in).
    """

    name: str
    end: str
    layer: int
    type: str
    shape: tuple[int, int]
    module: nn.Module


def type_of(end: str) -> str:
    """The paper's parameter type of a layer by its name inside the block; empty where it is none of them."""
    for kind, ends in TYPES.items():
        if any(end == each or end.endswith("." + each) for each in ends):
            return kind
    return ""


def all_matrices(model: PreTrainedModel) -> list[Matrix]:
    """Every linear layer of the blocks, in the model's order."""
    prefix, found = find_blocks(model)[0] + ".", list[Matrix]()
    for name, module in block_linears(model).items():
        layer, _, end = name[len(prefix) :].partition(".")
        found.append(Matrix(name, end, int(layer), type_of(end), features(module), module))
    return found


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
