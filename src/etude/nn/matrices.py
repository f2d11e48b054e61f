"""Which weight matrices a transformer has: types by name pattern on Llama, GPT-2, OPT, GPT-NeoX and BERT styles, no list of models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from etude.nn.surgery import block_linears, features, find_blocks

TYPES: dict[str, tuple[str, ...]] = {  # LASER's parameter types (arXiv 2312.13558); a name belongs to the first type one of whose ends it has
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
    """The parameter type of a layer by its name inside the block; empty where it is none of them."""
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
