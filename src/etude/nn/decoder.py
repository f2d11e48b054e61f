r"""One skeleton for decoder language models: embed, then blocks of two slots, then a norm and a head.

$$ x \leftarrow x + \mathrm{mixer}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{channel\_mixer}(\mathrm{norm}(x)) $$

The *mixer* lets tokens speak to earlier ones (attention, a state space, ...), the *channel mixer* works on each token alone (an MLP); it may be
absent. GPT-2's block, Llama and Mamba are three fillings. What fills a slot is written in the configuration, and only the names of the catalogue
are resolved:

    EtudeDecoderConfig(mixer={"method": "llama", "heads": 4}, channel_mixer={"method": "llama", "hidden": 256}, norm="rms")

**The contract of a filling.** The method's module exposes functions

    mixer(config: EtudeDecoderConfig, layer: int) -> nn.Module              # its forward: (x_BTD, context) -> (B, T, D)
    channel_mixer(config: EtudeDecoderConfig, layer: int) -> nn.Module      # its forward: (x_BTD,) -> (B, T, D)

and reads its own options by `config.options("mixer", layer)`. What it raises for bad options is a ValueError. `context` (see `Context`) tells the
positions, which tokens are padding, and holds the layer's memory. A mixer must be causal, must keep padding from being seen by real tokens
(what it answers at padding is free, but finite), and with a cache must continue where the earlier call stopped:

    state = context.state(self.layer)                            # None without a cache, else a `LayerState`
    if state is not None and "conv" in state: ...                # a tensor of fixed size, written by the call before
    keys, values = context.cache.update(keys, values, layer)     # growing ones; other caches of transformers know this one too

Linear layers and embeddings start normal with `initializer_range`, biases at 0; a module of a slot that has a method `init_weights()` is asked after
its children, and writes through `torch.nn.init` functions of `transformers.initialization`, which leave loaded weights alone. Parameters that are
to be loaded in float32 whatever the model's dtype are named by its attribute `keep_float32` ("mixer.A_log").

It is an ordinary transformers model: `save_pretrained`, `from_pretrained`, `generate` with cache, PEFT and TRL work; after `import etude` also
AutoConfig and AutoModelForCausalLM know it (`etude.nn.hosts`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel, StaticCache
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from etude.nn.cache import DecoderCache, LayerState
from etude.nn.decoder_config import EtudeDecoderConfig

# Dimensions: B batch, T tokens of this call, S tokens seen so far and now, D model width, V vocabulary.


@dataclass
class Context:
    """What the blocks of one forward pass share.

    Attributes:
        positions_BT: place of each token in its own text: real tokens count from 0, padding has 0.
        mask_BS: True where a token, seen before or now, is real; None where all are.
        cache: the memory of all layers; None when nothing is kept.
        past: how many tokens came before these (padding included).
    """

    positions_BT: Int[Tensor, "B T"]
    mask_BS: Bool[Tensor, "B S"] | None = None
    cache: Cache | None = None
    past: int = 0
    shared: dict[str, Any] = field(default_factory=dict)

    def state(self, layer: int) -> LayerState | None:
        """The memory of one layer; None when nothing is kept.

        Raises:
            ValueError: the caller brought a cache that holds keys and values only.
        """
        if self.cache is None:
            return None
        if not isinstance(self.cache, DecoderCache):
            raise ValueError(f"this decoder keeps other states than keys and values: pass no {type(self.cache).__name__}, it makes its own cache")
        return self.cache.layers[layer]

    @property
    def real_BT(self) -> Bool[Tensor, "B T"] | None:
        """True where a token of this call is real; None where all are."""
        return None if self.mask_BS is None else self.mask_BS[:, self.past :]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made by the first layer that asks and shared by all (angles, masks); layers may lie on several devices: name them."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, cast to x's dtype and then multiplied by the gain: in this order, else bfloat16 differs."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        if x.dtype == torch.float32:
            return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(self.weight.dtype)


def make_norm(config: EtudeDecoderConfig) -> nn.Module:
    """The norm that the configuration names, over the model's width."""
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.bias)


def fill(slot: str, config: EtudeDecoderConfig, layer: int) -> nn.Module | None:
    """The module that fills a slot of a layer; None where the slot is left out.

    Raises:
        ValueError: the catalogue has no such method, or the method has no such slot.
    """
    filling = config.filling(slot, layer)
    if filling is None:
        return None
    make = getattr(_module_of(filling["method"]), slot, None)
    if make is None:
        raise ValueError(f"{filling['method']} fills no {slot}: its module has no function of that name")
    return make(config, layer)


def _module_of(method: str) -> ModuleType:
    from etude import catalogue

    entry = catalogue.find(method)
    if entry.module == "with":
        raise ValueError(f"{method} is a file of your own: only methods that are installed can fill a slot of a saved model")
    return import_module(entry.module)


class DecoderBlock(GradientCheckpointingLayer):
    """Pre-norm: each slot reads the normed stream and adds to it."""

    def __init__(self, config: EtudeDecoderConfig, layer: int) -> None:
        super().__init__()
        self.float32 = config.residual_float32
        for slot in ("mixer", "channel_mixer"):
            made = fill(slot, config, layer)
            self.add_module(f"{slot}_norm", None if made is None else make_norm(config))
            self.add_module(slot, made)

    def forward(self, x_BTD: Float[Tensor, "B T D"], context: Context) -> Float[Tensor, "B T D"]:
        if self.mixer is not None:
            x_BTD = self._add(x_BTD, self.mixer(self._normed(self.mixer_norm, x_BTD), context))
        if self.channel_mixer is not None:
            x_BTD = self._add(x_BTD, self.channel_mixer(self._normed(self.channel_mixer_norm, x_BTD)))
        return x_BTD

    def _normed(self, norm: nn.Module, x_BTD: Tensor) -> Tensor:
        return norm(x_BTD.to(norm.weight.dtype)) if self.float32 else norm(x_BTD)

    def _add(self, x_BTD: Tensor, change_BTD: Tensor) -> Tensor:
        return x_BTD.float() + change_BTD if self.float32 else x_BTD + change_BTD


class EtudePreTrainedModel(PreTrainedModel):
    """What transformers wants to know of both classes below."""

    config_class = EtudeDecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]
    _supports_sdpa = True

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module, False)  # True would pass over modules without parameters of their own

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        own = getattr(module, "init_weights", None)
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif own is not None and not isinstance(module, PreTrainedModel):
            own()


class EtudeDecoderModel(EtudePreTrainedModel):
    """Embedding, blocks and the last norm: ids (B, T) -> hidden states (B, T, D)."""

    def __init__(self, config: EtudeDecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.layers = nn.ModuleList([DecoderBlock(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = make_norm(config)
        self.gradient_checkpointing = False
        slots = (slot for block in self.layers for slot in (block.mixer, block.channel_mixer))
        self._keep_in_fp32_modules_strict = {name for slot in slots for name in getattr(slot, "keep_float32", ())}
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        x_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        context = self._context(x_BTD, attention_mask, position_ids, cache if cache is not None else past_key_values, use_cache)
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(context.positions_BT)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden = [x_BTD]
        for block in self.layers:
            x_BTD = block(x_BTD, context)
            if keep:
                hidden.append(x_BTD)
        x_BTD = self.norm(x_BTD.to(self.norm.weight.dtype))
        if isinstance(context.cache, DecoderCache):
            context.cache.advance(x_BTD.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=x_BTD, cache=context.cache, hidden_states=(*hidden[:-1], x_BTD) if keep else None)

    def _context(self, x_BTD: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache | None, use_cache: bool | None) -> Context:
        """Positions, padding and memory of this call."""
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            use_cache, cache = False, None  # the backward pass runs each block again and would write its memory twice
        if isinstance(cache, StaticCache):
            raise ValueError("a static cache hands back places that are still empty, which would be attended to: leave the cache to the model")
        if use_cache and cache is None:
            cache = DecoderCache(len(self.layers))
        (B, T), past = x_BTD.shape[:2], 0 if cache is None else int(cache.get_seq_length())
        if mask is not None and mask.shape != (B, past + T):
            raise ValueError(f"attention_mask is (batch, {past} tokens before + {T} now) = ({B}, {past + T}), got {tuple(mask.shape)}")
        real_BS = None if mask is None or bool((mask != 0).all()) else mask != 0
        if positions is None and real_BS is None:
            positions = torch.arange(past, past + T, device=x_BTD.device)[None]
        elif positions is None:
            positions = (real_BS.long().cumsum(-1) - 1).clamp(min=0)
        limit = self.config.max_position_embeddings
        positions_BT = positions[..., -T:].expand(B, T).long()
        if limit is not None and (longest := past + T if real_BS is None else int(positions_BT.max()) + 1) > limit:
            raise ValueError(f"the sequence has {longest} tokens and the model {limit} positions: cut it, or build with a larger context")
        return Context(positions_BT, real_BS, cache, past)


class EtudeDecoder(EtudePreTrainedModel, GenerationMixin):
    """The decoder with its head: ids (B, T) -> logits (B, T, V), and the loss where labels are given."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: EtudeDecoderConfig) -> None:
        super().__init__(config)
        self.model = EtudeDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of all tokens, or of those that `logits_to_keep` names; `labels` (not shifted, -100 is skipped) also give the mean loss in nats.

        Raises:
            ValueError: the mask does not cover the tokens, or the sequence is longer than the model's positions.
        """
        out = self.model(
            input_ids, attention_mask, position_ids, cache if cache is not None else past_key_values, inputs_embeds, use_cache, output_hidden_states
        )
        logits = self.lm_head(slice_logits_to_keep(out.last_hidden_state, logits_to_keep))
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        answer = CausalLMOutputWithPast(loss=loss, logits=logits, cache=out.cache, hidden_states=out.hidden_states)
        return answer.to_tuple() if return_dict is False else answer

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any, **named: Any) -> None:
        """`generate` starts with our cache, where the caller brought none and asked for no other kind."""
        kind = generation_config.cache_implementation
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False and kind in (None, "dynamic"):
            model_kwargs["cache"] = DecoderCache(self.config.num_hidden_layers)
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *rest, **named)


HOST = "transformers.models.auto.modeling_auto"


def register(host: ModuleType) -> None:
    """Enter the models in transformers' tables (`etude.nn.hosts`)."""
    host.AutoModel.register(EtudeDecoderConfig, EtudeDecoderModel, exist_ok=True)
    host.AutoModelForCausalLM.register(EtudeDecoderConfig, EtudeDecoder, exist_ok=True)


if HOST in sys.modules:  # it was imported while this module was, too early for `etude.nn.hosts` to find `register`
    register(sys.modules[HOST])
