"""The configuration of a sentence encoder with a label head (`etude.nn.pooled`)."""

from __future__ import annotations

from dataclasses import field
from types import ModuleType
from typing import Any

from transformers import PretrainedConfig


class EtudeClassifierConfig(PretrainedConfig):
    """A label head on the mean of an encoder's last hidden states.

    Attributes:
        encoder: the encoder's own configuration, its `model_type` among it.
        hidden_size, vocab_size, max_position_embeddings, pad_token_id: the encoder's.
        classifier_dropout: in front of the head.
        initializer_range: standard deviation of the new head.
    """

    model_type = "etude_classifier"

    encoder: dict[str, Any] = field(default_factory=dict)
    hidden_size: int = 64
    vocab_size: int = 256
    max_position_embeddings: int | None = None
    pad_token_id: int | None = None
    classifier_dropout: float = 0.1
    initializer_range: float = 0.02

    @classmethod
    def of(cls, encoder: PretrainedConfig, **kwargs: Any) -> EtudeClassifierConfig:
        """The configuration for an encoder of this one; `kwargs` are its own, labels for instance."""
        shared = ("hidden_size", "vocab_size", "max_position_embeddings", "pad_token_id", "initializer_range")
        found = {name: getattr(encoder, name) for name in shared if getattr(encoder, name, None) is not None}
        return cls(encoder=encoder.to_diff_dict() | {"model_type": encoder.model_type}, **(found | kwargs))


def register(host: ModuleType) -> None:
    """Enter the configuration in transformers' table (`etude.nn.hosts`)."""
    host.AutoConfig.register(EtudeClassifierConfig.model_type, EtudeClassifierConfig, exist_ok=True)
