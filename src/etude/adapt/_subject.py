"""What is adapted: the model of a folder, ready for the task that the rows set.

A decoder stays a decoder: it answers, be it with a label's name. An encoder gets a label head: on the mean of its hidden states where its folder says
that it was trained for that (sentence encoders do, in `1_Pooling`), by its own transformers class otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from etude.adapt._rows import LONGEST, Reading, names_of
from etude.data.contract import Rows
from etude.nn.loading import architecture, config_of, context_length, load_decoder
from etude.nn.pooled import EtudeForSequenceClassification


def kind_of(folder: Path) -> str:
    """ "decoder" or "encoder".

    Raises:
        ValueError: the folder holds a model that is neither.
    """
    config, name = config_of(folder), architecture(folder)
    known = str(config.get("model_type", ""))
    if config.get("is_encoder_decoder"):
        raise ValueError(f"{name} has an encoder and a decoder: bring a model with one of them")
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith(("ForCausalLM", "LMHeadModel")) or name == "EtudeDecoder":
        return "decoder"
    if known in MODEL_FOR_MASKED_LM_MAPPING_NAMES or known == "etude_classifier":
        return "encoder"
    if known in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    if known in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return "encoder"
    raise ValueError(f"{name} ({known or 'no model_type'}) is neither a language model nor a text encoder that transformers knows")


def pools_mean(folder: Path) -> bool:
    """Whether the folder is a sentence encoder's whose sentences are means of token states."""
    path = folder / "1_Pooling" / "config.json"
    return path.is_file() and bool(json.loads(path.read_text()).get("pooling_mode_mean_tokens"))


def load_subject(
    folder: Path, rows: Rows | None, dtype: str = "float32", device: str = "cpu", seed: int = 0, labels: list[str] | None = None
) -> PreTrainedModel:
    """The folder's model for these rows, in evaluation mode; a new label head is drawn by the seed.

    Args:
        rows: the training rows: their labels are the ones that the model will know; None where `labels` names them.

    Raises:
        ValueError: an encoder is to answer with text, or a tensor is missing from the weights.
    """
    names = labels if labels is not None else names_of(rows) if rows is not None and has_labels(rows) else []
    if kind_of(folder) == "decoder":
        model = load_decoder(folder, dtype, device)
        if names:
            remember(model, labels=names)
    elif not names:
        raise ValueError(f"{architecture(folder)} is an encoder: it answers with labels (rows of text and label); bring a decoder, or such rows")
    else:
        model = with_head(folder, names, getattr(torch, dtype), seed).to(torch.device(device)).eval()
    model.name_or_path = model.config._name_or_path = str(folder.resolve())
    return model


def outline(folder: Path) -> PreTrainedModel:
    """The folder's model without its weights: for counting."""
    config, kind = AutoConfig.from_pretrained(folder, local_files_only=True), AutoModelForCausalLM if kind_of(folder) == "decoder" else AutoModel
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config)
    model.tie_weights()
    return model


def reading(folder: Path, rows: Rows) -> Reading:
    """How the folder's model will read rows, once it was made ready for these training rows."""
    limit = min(LONGEST, context_length(folder))
    if kind_of(folder) == "decoder":
        return Reading(limit)
    if not has_labels(rows):
        raise ValueError(f"{architecture(folder)} is an encoder: it answers with labels (rows of text and label); bring a decoder, or such rows")
    return Reading(limit, {name: number for number, name in enumerate(names_of(rows))})


def has_labels(rows: Rows) -> bool:
    """Whether each row's answer is one of a few labels."""
    return "text" in rows.roles and "label" in rows.roles


def with_head(folder: Path, names: list[str], dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """The folder's encoder with a new label head."""
    known: dict[str, Any] = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if pools_mean(folder) or config_of(folder).get("model_type") not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            return EtudeForSequenceClassification.around(folder, dtype, **known)
        model: Any
        model, told = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True, **known
        )
    new = [name for name, child in model.named_children() if name != model.base_model_prefix]
    missing = [name for name in told["missing_keys"] if name.partition(".")[0] not in new and "pooler" not in name]
    if missing:
        raise ValueError(
            f"the weights of the model lack {len(missing)} tensors ({', '.join(sorted(missing)[:3])}...): fetch or save its folder again"
        )
    found: PreTrainedModel = model
    return found


def remember(model: Any, **facts: Any) -> None:
    """Keep facts of the task with the model's configuration: `labels` a decoder chooses among, `shots` that go before every prompt."""
    model.config.etude = {**(getattr(model.config, "etude", None) or {}), **facts}


def recall(model: Any, fact: str) -> Any:
    """What `remember` kept; an empty list where nothing was."""
    return (getattr(model.config, "etude", None) or {}).get(fact) or []


def labels_of(model: Any) -> list[str]:
    """The labels that the model tells apart, in the order of their numbers; empty where it answers with any text."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(base).__name__.endswith("ForSequenceClassification"):
        return [str(base.config.id2label[number]) for number in range(base.config.num_labels)]
    return list(recall(base, "labels"))
