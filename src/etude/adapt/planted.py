"""The known answer of the contest: an encoder that half knows a task, and contenders of which it is known who must win; and tiny subjects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BertConfig, BertModel

from etude.adapt._subject import load_subject
from etude.data.cache import artifact, store_folder
from etude.data.contract import Data, Rows, Split
from etude.nn.tiny import VOCABULARY, byte_tokenizer, tiny_gpt2, tiny_llama, tiny_sentences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYOUT = 1  # of the tiny models on disk


def tiny_bert(layers: int = 2, width: int = 64, context: int = 128) -> BertModel:
    """A BERT of random weights that reads bytes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
        pad_token_id=0,
    )
    return BertModel(config).eval()


def kept(name: str, make: Callable[[], Any]) -> Path:
    """The folder of a tiny model: adapters name their base model's folder."""

    def fill(folder: Path) -> None:
        with torch.random.fork_rng([]):
            make().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)

    return artifact(store_folder(fill, json.dumps(["tiny", name, LAYOUT])))


def labelled(count: int = 64) -> Rows:
    """Sentences labelled by who acts in them."""
    from datasets import Dataset

    sentences = [sentence.strip() for sentence in tiny_sentences(count)]
    return Rows(Dataset.from_dict({"text": sentences, "label": [" ".join(s.split()[:2]) for s in sentences]}), {"text": "text", "label": "label"})


def asked(count: int = 64) -> Rows:
    """Who acts in a sentence, as a question with its answer."""
    from datasets import Dataset

    rows = labelled(count)
    table = {"prompt": [f"Who? {text}" for text in rows.column("text")], "answer": list(rows.column("label"))}
    return Rows(Dataset.from_dict(table), {"prompt": "prompt", "answer": "answer"})


def tiny() -> Mapping[str, tuple[Callable[[], PreTrainedModel], Data]]:
    """An encoder with labelled rows, a Llama with questions, a GPT-2 (Conv1D) with labelled rows."""

    def subject(name: str, make: Callable[[], Any], rows: Rows) -> tuple[Callable[[], PreTrainedModel], Data]:
        return lambda: load_subject(kept(name, make), rows), Data(Split(rows), Split(rows), 0, byte_tokenizer())

    return {
        "encoder": subject("bert", tiny_bert, labelled()),
        "decoder": subject("llama", tiny_llama, asked()),
        "gpt2": subject("gpt2", tiny_gpt2, labelled()),
    }
