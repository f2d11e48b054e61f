"""Llama checkpoints in and out: Hugging Face's folders and models, Meta's tensors; names, and the order of the rows of queries and keys.

Both ways are exact: what is loaded answers as the original does, and what is saved is read by transformers as its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from etude.models.llama.rope import halves_to_pairs, pairs_to_halves
from etude.nn.decoder import EtudeDecoder
from etude.nn.decoder_config import EtudeDecoderConfig

FORMATS = ("hugging_face", "meta", "gguf")
TOP = {  # ours -> Hugging Face's, Meta's, GGUF's
    "model.embed_tokens": ("model.embed_tokens", "tok_embeddings", "token_embd"),
    "model.norm": ("model.norm", "norm", "output_norm"),
    "lm_head": ("lm_head", "output", "output"),
}
STACK = ("model.layers", "layers", "blk")
INNER = {
    "mixer_norm": ("input_layernorm", "attention_norm", "attn_norm"),
    "mixer.q_proj": ("self_attn.q_proj", "attention.wq", "attn_q"),
    "mixer.k_proj": ("self_attn.k_proj", "attention.wk", "attn_k"),
    "mixer.v_proj": ("self_attn.v_proj", "attention.wv", "attn_v"),
    "mixer.o_proj": ("self_attn.o_proj", "attention.wo", "attn_output"),
    "channel_mixer_norm": ("post_attention_layernorm", "ffn_norm", "ffn_norm"),
    "channel_mixer.gate_proj": ("mlp.gate_proj", "feed_forward.w1", "ffn_gate"),
    "channel_mixer.up_proj": ("mlp.up_proj", "feed_forward.w3", "ffn_up"),
    "channel_mixer.down_proj": ("mlp.down_proj", "feed_forward.w2", "ffn_down"),
}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def from_hugging_face(source: str | Path | LlamaForCausalLM, vocabulary: int | None = None, layout: str = "halves") -> EtudeDecoder:
    """A decoder with the weights of a Hugging Face Llama, in evaluation mode, in the checkpoint's dtype.

    Args:
        source: a folder, or a model (whose weights are copied).
        vocabulary: how many tokens the tokenizer has that will be used with it.
        layout: of the queries and keys in our model.

    Raises:
        ValueError: it is no Llama, uses what this one lacks, or has fewer tokens than `vocabulary`.
    """
    config = source.config if isinstance(source, LlamaForCausalLM) else AutoConfig.from_pretrained(source)
    if vocabulary is not None and vocabulary > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {vocabulary:,} tokens and the checkpoint {config.vocab_size:,}: use the tokenizer it was trained with, or give the "
            f"model more rows first (`resize_token_embeddings`)"
        )
    ours = config_from_llama(config, layout)
    model = source if isinstance(source, LlamaForCausalLM) else LlamaForCausalLM.from_pretrained(source, dtype="auto")
    state = {key: tensor.clone() if model is source else tensor for key, tensor in model.state_dict().items()}
    return filled(ours, to_ours(state, ours, "hugging_face"), model.generation_config)


def to_hugging_face(model: EtudeDecoder) -> LlamaForCausalLM:
    """A Hugging Face Llama with a copy of the model's weights: `save_pretrained` then writes what every engine reads.

    Raises:
        ValueError: a slot is filled by another method, or the skeleton is not Llama's.
    """
    config = config_to_llama(model.config)
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    state = {key: tensor.clone() for key, tensor in from_ours(model.state_dict(), model.config, "hugging_face").items()}
    theirs.load_state_dict(state, strict=True, assign=True)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)  # its buffers are not saved: made on the device of the weights
    theirs.generation_config = GenerationConfig.from_dict(model.generation_config.to_dict())
    return theirs.to(model.device).eval()


def filled(config: EtudeDecoderConfig, state: Mapping[str, Tensor], generation: GenerationConfig | None = None) -> EtudeDecoder:
    """A decoder whose weights are these tensors themselves."""
    with torch.device("meta"):
        model = EtudeDecoder(config)
    model.load_state_dict(dict(state), strict=True, assign=True)
    model.tie_weights()
    if generation is not None:
        model.generation_config = GenerationConfig.from_dict(generation.to_dict())
    return model.eval()


def config_from_llama(config: Any, layout: str = "halves") -> EtudeDecoderConfig:
    """Our configuration of a `LlamaConfig`.

    Raises:
        ValueError: it is no Llama's, or asks for another activation.
    """
    if config.model_type != "llama":
        raise ValueError(f"a checkpoint of {config.model_type!r} is no Llama: only model_type 'llama' is read")
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"a Llama's activation is silu, this checkpoint has {config.hidden_act!r}")
    rope = dict(config.rope_parameters)
    base = rope.pop("rope_theta")
    mixer = {"method": "llama", "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads, "head_dim": config.head_dim}
    mixer |= {"base": float(base), "layout": layout, "bias": config.attention_bias}
    if rope.get("rope_type", "default") != "default":
        mixer["scaling"] = rope
    return EtudeDecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        mixer=mixer,
        channel_mixer={"method": "llama", "hidden": config.intermediate_size, "bias": config.mlp_bias},
        norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        initializer_range=config.initializer_range,
        **{name: getattr(config, name) for name in SPECIAL},
    )


def config_to_llama(config: EtudeDecoderConfig) -> LlamaConfig:
    """The `LlamaConfig` of a decoder whose slots are both filled by "llama".

    Raises:
        ValueError: they are not, or the skeleton differs from Llama's.
    """
    from etude.models.llama.blocks import hidden_width

    mixer, channel = config.mixer, config.channel_mixer
    methods = [slot.get("method") if isinstance(slot, dict) else "a list" for slot in (mixer, channel)]
    plain = config.norm == "rms" and config.positions == "none" and not config.residual_float32
    if methods != ["llama", "llama"] or not plain:
        what = f"slots {methods[0]} and {methods[1]}, norm {config.norm}, positions {config.positions}"
        raise ValueError(f"only a decoder of Llama blocks, rms norm and no learned positions is a Hugging Face Llama; this one has {what}")
    heads, width = mixer.get("heads", 4), config.hidden_size
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=width,
        intermediate_size=channel.get("hidden") or hidden_width(width, channel.get("multiple", 256)),
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=mixer.get("kv_heads") or heads,
        head_dim=mixer.get("head_dim") or width // heads,
        max_position_embeddings=config.max_position_embeddings or 2048,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", **(mixer.get("scaling") or {}), "rope_theta": mixer.get("base", 10000.0)},
        attention_bias=mixer.get("bias", False),
        mlp_bias=channel.get("bias", False),
        tie_word_embeddings=config.tie_word_embeddings,
        initializer_range=config.initializer_range,
        **{name: getattr(config, name) for name in SPECIAL},
    )


def from_ours(state: Mapping[str, Tensor], config: EtudeDecoderConfig, form: str) -> dict[str, Tensor]:
    """Our tensors under another format's names and in its layout; a tied head is left out of Meta's and GGUF's."""
    out = {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings and form != "hugging_face":
            continue
        out[renamed(name, form)] = _ordered(name, tensor, config, "halves" if form == "hugging_face" else "pairs")
    return out


def to_ours(state: Mapping[str, Tensor], config: EtudeDecoderConfig, form: str) -> dict[str, Tensor]:
    """Another format's tensors under our names and in our layout.

    Raises:
        ValueError: a tensor has a name that no Llama has.
    """
    back = {renamed(ours, form): ours for ours in _names(config)}
    out = {}
    for name, tensor in state.items():
        if name.endswith(("rotary_emb.inv_freq", "rope.freqs")):  # old checkpoints carry what follows from the configuration
            continue
        if name not in back:
            raise ValueError(f"a Llama has no tensor {name!r}: the checkpoint is of another architecture")
        out[back[name]] = _ordered(back[name], tensor, config, _layout(config), "halves" if form == "hugging_face" else "pairs")
    if config.tie_word_embeddings:
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
    return out


def renamed(name: str, form: str) -> str:
    """The name of one of our tensors in another format."""
    place = FORMATS.index(form)
    stem, _, end = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return f"{TOP[stem][place]}.{end}" if layer is None else f"{STACK[place]}.{layer[1]}.{INNER[layer[2]][place]}.{end}"


def _names(config: EtudeDecoderConfig) -> list[str]:
    with torch.device("meta"):
        return list(EtudeDecoder(config).state_dict())


def _layout(config: EtudeDecoderConfig) -> str:
    return str(config.mixer.get("layout", "halves"))


def _ordered(name: str, tensor: Tensor, config: EtudeDecoderConfig, wanted: str, given: str | None = None) -> Tensor:
    """The rows of a query's or key's weight in the wanted layout."""
    given, heads = given or _layout(config), config.mixer.get("heads", 4)
    found = re.search(r"mixer\.([qk])_proj\.", name)
    if found is None or wanted == given:
        return tensor
    count = heads if found[1] == "q" else config.mixer.get("kv_heads") or heads
    return (pairs_to_halves if wanted == "halves" else halves_to_pairs)(tensor, count)
