"""The configuration of a decoder (`etude.nn.decoder`): what fills the two slots of its blocks, and the sizes."""

from __future__ import annotations

from dataclasses import field
from types import ModuleType
from typing import Any, no_type_check

from transformers import PretrainedConfig

NORMS, POSITIONS = ("rms", "layer"), ("none", "learned")


@no_type_check  # transformers hands its constructor more than the fields
class EtudeDecoderConfig(PretrainedConfig):
    """What a decoder is made of.

    Attributes:
        vocab_size, hidden_size, num_hidden_layers: V, D and the number of blocks.
        mixer, channel_mixer: {"method": NAME, **options}, for all layers alike or a list with one entry a layer; None leaves the slot out.
        norm: "rms" (root mean square in float32, a gain) or "layer" (LayerNorm, its bias where `bias` is set).
        norm_eps: added to the mean square or the variance under the root.
        bias: whether LayerNorm, and slots that ask for it, have biases.
        positions: "none" (the mixer knows the order by itself) or "learned" (an embedding added to the tokens').
        max_position_embeddings: the longest sequence; None for any, where positions are not learned.
        residual_float32: keeps the residual stream in float32 whatever the weights' dtype.
        tie_word_embeddings: whether the head is the embedding.
        initializer_range: standard deviation of linear layers and embeddings at the start.
    """

    model_type = "etude_decoder"

    vocab_size: int = 256
    hidden_size: int = 64
    num_hidden_layers: int = 2
    mixer: dict[str, Any] | list[Any] = field(default_factory=lambda: {"method": "llama"})
    channel_mixer: dict[str, Any] | list[Any] | None = field(default_factory=lambda: {"method": "llama"})
    norm: str = "rms"
    norm_eps: float = 1e-6
    bias: bool = False
    positions: str = "none"
    max_position_embeddings: int | None = 2048
    residual_float32: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions are one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if self.positions == "learned" and not self.max_position_embeddings:
            raise ValueError("learned positions need max_position_embeddings: how many there are")
        for slot in ("mixer", "channel_mixer"):
            self._check(slot, getattr(self, slot))

    def _check(self, slot: str, filling: Any) -> None:
        each = filling if isinstance(filling, list) else [filling]
        if isinstance(filling, list) and len(filling) != self.num_hidden_layers:
            raise ValueError(f"{slot} lists {len(filling)} fillings for {self.num_hidden_layers} layers: give one a layer, or one for all")
        for one in each:
            if one is not None and not (isinstance(one, dict) and isinstance(one.get("method"), str)):
                raise ValueError(f'{slot} is {{"method": NAME, ...}} with a name of `etude list`, got {one!r}')

    def filling(self, slot: str, layer: int) -> dict[str, Any] | None:
        """The entry of a slot ("mixer", "channel_mixer") at a layer."""
        filling = getattr(self, slot)
        return filling[layer] if isinstance(filling, list) else filling

    def options(self, slot: str, layer: int) -> dict[str, Any]:
        """The options of what fills the slot at this layer, without its method's name."""
        return {key: value for key, value in (self.filling(slot, layer) or {}).items() if key != "method"}


def register(host: ModuleType) -> None:
    """Enter the configuration in transformers' table (`etude.nn.hosts`)."""
    host.AutoConfig.register(EtudeDecoderConfig.model_type, EtudeDecoderConfig, exist_ok=True)
