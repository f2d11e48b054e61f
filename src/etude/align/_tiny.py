"""Policies and preferences of a few kilobytes, made on the spot: for conformance, planted contests and tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from etude.data.cache import artifact, store_folder
from etude.data.contract import Data, Preferences, Split
from etude.nn.tiny import byte_tokenizer

THINGS = ("apple", "river", "stone", "lamp", "horse", "cloud", "spoon", "tower")
ROLES = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


def tiny_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows that prefer to hear of what was asked: the right answer names the prompt's thing, the wrong one another."""
    dice, rows = random.Random(seed), list[dict[str, str]]()
    for number in range(count):
        right, wrong = dice.sample(THINGS, 2)
        rows.append({"prompt": f"{number} {right}:", "chosen": f" {right}.", "rejected": f" {wrong}."})
    return rows


def part_of(rows: list[dict[str, str]]) -> Preferences:
    """Rows as a part of the data."""
    return Preferences(Dataset.from_list(rows), ROLES)


def data_of(count: int = 24, seed: int = 0) -> Data:
    """Tiny preferences with the byte tokenizer, two thirds to train on."""
    rows = tiny_rows(count, seed)
    cut = 2 * count // 3
    return Data(Split(part_of(rows[:cut])), Split(part_of(rows[cut:])), seed, byte_tokenizer())


def saved(make: Callable[[], PreTrainedModel]) -> Path:
    """The folder of a tiny model and its tokenizer, in the cache: an adapter needs a base that lies somewhere."""

    def fill(folder: Path) -> None:
        with torch.random.fork_rng():
            make().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)

    return artifact(store_folder(fill))
