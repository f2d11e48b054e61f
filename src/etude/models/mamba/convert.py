"""Hugging Face's Mamba checkpoints, both ways: the same weights under other names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, MambaConfig, MambaForCausalLM

from etude.nn.decoder import EtudeDecoder
from etude.nn.decoder_config import EtudeDecoderConfig

ALIKE = ("vocab_size", "hidden_size", "num_hidden_layers", "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
OPTIONS = {
    "state": "state_size",
    "kernel": "conv_kernel",
    "expand": "expand",
    "rank": "time_step_rank",
    "bias": "use_bias",
    "conv_bias": "use_conv_bias",
}
NAMES = (("backbone.embeddings.", "model.embed_tokens."), ("backbone.norm_f.", "model.norm."), ("backbone.layers.", "model.layers."))
NORMS = (".norm.", ".mixer_norm.")  # of each block


def from_hugging_face(source: str | Path | MambaForCausalLM, vocabulary: int | None = None) -> EtudeDecoder:
    """A decoder with the weights of a Hugging Face Mamba, in evaluation mode, in the checkpoint's dtype.

    Args:
        source: a folder, or a model (whose weights are copied).
        vocabulary: how many tokens the tokenizer has that will be used with it.

    Raises:
        ValueError: it is no Mamba, lacks weights, uses what this one lacks, or has fewer tokens than `vocabulary`.
    """
    model = source if isinstance(source, MambaForCausalLM) else _loaded(source)
    theirs = model.config
    if vocabulary is not None and vocabulary > theirs.vocab_size:
        raise ValueError(
            f"the tokenizer has {vocabulary:,} tokens and the checkpoint {theirs.vocab_size:,}: use the tokenizer it was trained with, or give the "
            f"model more rows first (`resize_token_embeddings`)"
        )
    if theirs.hidden_act not in ("silu", "swish"):
        raise ValueError(f"hidden_act is {theirs.hidden_act!r}: this Mamba block has SiLU only")
    if theirs.intermediate_size != theirs.expand * theirs.hidden_size:
        raise ValueError(f"intermediate_size is {theirs.intermediate_size}, not {theirs.expand} times the width of {theirs.hidden_size}")
    config = EtudeDecoderConfig(
        mixer={"method": "mamba"} | {ours: getattr(theirs, name) for ours, name in OPTIONS.items()},
        channel_mixer=None,
        norm="rms",
        norm_eps=theirs.layer_norm_epsilon,
        max_position_embeddings=None,
        residual_float32=theirs.residual_in_fp32,
        **{name: getattr(theirs, name) for name in ALIKE},
    )
    return _filled(EtudeDecoder, config, model, _renamed(model.state_dict(), ours=1))


def to_hugging_face(model: EtudeDecoder) -> MambaForCausalLM:
    """A Hugging Face Mamba with a copy of the model's weights: `save_pretrained` then writes what every engine reads.

    Raises:
        ValueError: the decoder is not made of selective Mamba blocks alone.
    """
    config = model.config
    fillings = [config.filling("mixer", layer) for layer in range(config.num_hidden_layers)]
    if any(one != fillings[0] for one in fillings) or fillings[0] is None or fillings[0]["method"] != "mamba":
        raise ValueError("this decoder's mixers are not all the same Mamba block: transformers' Mamba has no place for others")
    if any(config.filling("channel_mixer", layer) for layer in range(config.num_hidden_layers)):
        raise ValueError("this decoder has channel mixers: transformers' Mamba has none")
    options = {"state": 16, "kernel": 4, "expand": 2, "rank": None, "bias": False, "conv_bias": True, "selective": True} | fillings[0]
    if not options["selective"] or config.norm != "rms" or config.positions != "none":
        raise ValueError("transformers' Mamba is selective, has RMS norms and no positions: this decoder differs")
    theirs = MambaConfig(
        layer_norm_epsilon=config.norm_eps,
        residual_in_fp32=config.residual_float32,
        **{name: getattr(config, name) for name in ALIKE},
        **{name: options[ours] for ours, name in OPTIONS.items() if options[ours] is not None},
    )
    return _filled(MambaForCausalLM, theirs, model, _renamed(model.state_dict(), ours=0))


def _loaded(folder: str | Path) -> MambaForCausalLM:
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind != "mamba":
        raise ValueError(f"a checkpoint of {kind!r} is no Mamba: only model_type 'mamba' is read")
    model, told = MambaForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, output_loading_info=True)
    if told["missing_keys"]:
        first = sorted(told["missing_keys"])[0]
        raise ValueError(f"{folder} lacks {len(told['missing_keys'])} tensors of its Mamba ({first}...): fetch or save it again")
    return model


def _renamed(weights: Mapping[str, Tensor], ours: int) -> dict[str, Tensor]:
    """The weights under our names (`ours` is 1) or theirs (0)."""
    renamed = dict[str, Tensor]()
    for name, tensor in weights.items():
        for pair in NAMES:
            if name.startswith(pair[1 - ours]):
                name = pair[ours] + name.removeprefix(pair[1 - ours])
        renamed[name.replace(NORMS[1 - ours], NORMS[ours]) if ".layers." in name else name] = tensor
    return renamed


def _filled(kind: Any, config: Any, source: Any, weights: Mapping[str, Tensor]) -> Any:
    """A model of this kind with copies of these weights; nothing is drawn."""
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_dict(source.generation_config.to_dict())
    return model.eval()
