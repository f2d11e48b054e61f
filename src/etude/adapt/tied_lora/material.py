"""What the études train on: how much of it, the rows, and the models; no network and no real weights where a model is called "tiny"."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerBase

from etude.adapt._rows import examples
from etude.adapt._subject import load_subject
from etude.data import sources
from etude.data.assets import model_folder
from etude.data.contract import Rows
from etude.data.corpora import PUBLIC, fetch
from etude.nn.loading import load_tokenizer
from etude.nn.pooled import EtudeForSequenceClassification
from etude.nn.pooled_config import EtudeClassifierConfig
from etude.nn.tiny import byte_tokenizer, tiny_llama, tiny_sentences

DTYPE = "bfloat16"  # of the frozen weights, as they are mostly served; what is trained is float32 in every arm
LABELS = {"0": "negative", "1": "positive"}


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        encoder, decoder: names for `etude.data.assets`, or "tiny" for random weights.
        ranks: of the adapters.
        rows: training rows of the encoder, drawn anew for each seed; epochs: passes over them.
        judged: held-out rows of the encoder, None for all.
        back: rows of the training set that judge rates.
        tasks: files below `ETUDE_DATA` with the decoder's training and held-out rows; none makes them from SST-2.
        told, asked: rows that the decoder is trained on, once, and judged by, of at most `longest` tokens.
        size: rows a batch; trials: rates that each arm may try.
        models: whose adapters are counted: names for `etude.data.assets`, or of `etude.adapt.tied_lora.arms.SHAPES`.
    """

    encoder: str
    decoder: str
    ranks: tuple[int, ...]
    rows: int
    epochs: int
    judged: int | None
    back: int
    tasks: tuple[str, ...]
    told: int
    asked: int
    longest: int
    size: int
    trials: int
    models: tuple[str, ...]


class Classify:
    """Labelled rows and a sentence encoder with a new label head."""

    @staticmethod
    def rows(scale: Scale, piece: int) -> Rows:
        """All training (0) or held-out (1) rows."""
        return tiny_rows(piece) if scale.encoder == "tiny" else sst2(piece)

    @staticmethod
    def model(scale: Scale, rows: Rows, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer; the seed draws the head."""
        if scale.encoder == "tiny":
            torch.manual_seed(seed)
            small = BertConfig(vocab_size=256, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48)
            names = {"num_labels": 2, "id2label": dict(enumerate(LABELS.values())), "label2id": {name: i for i, name in enumerate(LABELS.values())}}
            return EtudeForSequenceClassification(EtudeClassifierConfig.of(small, **names)).eval(), byte_tokenizer()
        folder = model_folder(scale.encoder)
        return load_subject(folder, rows, DTYPE, seed=seed), load_tokenizer(folder)

    @staticmethod
    def some(rows: Rows, model: Any, tokenizer: PreTrainedTokenizerBase, scale: Scale, seed: int, training: bool) -> Rows:
        """As many rows as are trained on, or as judge."""
        return rows.take(shuffled(len(rows), seed)[: scale.rows if training else scale.judged])

    @staticmethod
    def epochs(scale: Scale) -> int:
        """Passes over the rows."""
        return scale.epochs


class Answer:
    """Instruction rows and a chat model, which answers them."""

    @staticmethod
    def rows(scale: Scale, piece: int) -> Rows:
        """All training (0) or held-out (1) rows."""
        if scale.tasks:
            return sources.load(str(Path(os.environ.get("ETUDE_DATA", ".")) / scale.tasks[piece]), (Rows,), {})[Rows]
        return instructions(tiny_rows(piece) if scale.decoder == "tiny" else sst2(piece))

    @staticmethod
    def model(scale: Scale, rows: Rows, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, and its tokenizer without chat template: the template's system prompt alone would fill half a row."""
        if scale.decoder == "tiny":
            return tiny_llama(), byte_tokenizer()
        folder = model_folder(scale.decoder)
        tokenizer = load_tokenizer(folder)
        tokenizer.chat_template = None
        return load_subject(folder, None, DTYPE), tokenizer

    @staticmethod
    def some(rows: Rows, model: Any, tokenizer: PreTrainedTokenizerBase, scale: Scale, seed: int, training: bool) -> Rows:
        """As many rows of at most `longest` tokens as are trained on, or as judge."""
        found, count = list[int](), scale.told if training else scale.asked
        for place in shuffled(len(rows), seed):
            if len(found) < count and len(examples(rows.take([place]), model, tokenizer)[0].ids) <= scale.longest:
                found.append(place)
        return rows.take(found)

    @staticmethod
    def epochs(scale: Scale) -> int:
        """Passes over the rows."""
        return 1


Task = type[Classify] | type[Answer]


def split(task: Task, scale: Scale) -> tuple[Rows, Rows]:
    """Rows that judge rates, and rows that are trained on, both of the training set."""
    whole = task.rows(scale, 0)
    return whole.take(list(range(scale.back))), whole.take(list(range(scale.back, len(whole))))


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in the order of a seed."""
    places = list(range(count))
    random.Random(seed).shuffle(places)
    return places


def labelled(texts: list[str], labels: list[str]) -> Rows:
    """Rows of text and label."""
    return Rows(Dataset.from_dict({"text": texts, "label": labels}), {"text": "text", "label": "label"})


def sst2(piece: int) -> Rows:
    """SST-2's training (0) or development (1) rows."""
    lines = fetch(PUBLIC["sst2"].pieces[piece]).read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines if line]
    return labelled([text for text, _ in pairs], [LABELS[label] for _, label in pairs])


def tiny_rows(seed: int) -> Rows:
    """Sentences of a small grammar, labelled by what is done in them."""
    texts = [sentence.strip() for sentence in tiny_sentences(200, seed)]
    return labelled(texts, ["positive" if "paints" in text or "counts" in text else "negative" for text in texts])


def instructions(rows: Rows) -> Rows:
    """Labelled rows as questions and answers."""
    asked = [f"Review: {text}\nIs the review positive or negative?" for text in rows.column("text")]
    told = [f"The review is {label}." for label in rows.column("label")]
    return Rows(Dataset.from_dict({"prompt": asked, "answer": told}), {"prompt": "prompt", "answer": "answer"})
