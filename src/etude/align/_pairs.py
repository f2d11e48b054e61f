"""Preference pairs as token ids: cut to the context, left out where they are too long, the same way wherever a pair is read.

Token ids follow TRL's rules: a chat goes through the tokenizer's template, a plain completion gets the end token, and the prompt is what the
encodings of both whole sequences share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etude.data.contract import Preferences
from etude.data.preferences import shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = 256  # of a pair (both sequences, the prompt counted twice) in a contest: building, judging and timing keep to it
PAIRS = 200  # of a run in a contest
TUNING = 64  # pairs that a trial of the learning rate trains on, and as many to score it


@dataclass(frozen=True)
class Pair:
    """One preference in token ids.

    Attributes:
        prompt, chosen, rejected: token ids; a sequence is the prompt and one of the completions.
        weight: how much the pair counts.
        rate: share of annotators who prefer `chosen`.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    weight: float = 1.0
    rate: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens of both sequences: what a training step on this pair reads."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Encoded:
    """The pairs of some rows, and what happened on the way.

    Attributes:
        pairs: those that stay, in the order of the rows.
        rows: for each of them its row.
        cut: rows whose prompt lost its beginning to the context.
        long: rows left out, since they hold more tokens than are allowed.
    """

    pairs: list[Pair]
    rows: list[int]
    cut: int = 0
    long: int = 0


def encode(tokenizer: PreTrainedTokenizerBase, part: Preferences, context: int, tokens: int | None = TOKENS, most: int | None = None) -> Encoded:
    """The pairs of at most `tokens` tokens, the first `most` of them.

    Args:
        context: longest sequence that the model reads; of a longer one the prompt's beginning is cut off.
        tokens: of a pair, both sequences together; None allows any number.

    Raises:
        ValueError: a chat meets a tokenizer without a template, or no pair is short enough.
    """
    pairs, rows, cut, long = list[Pair](), list[int](), 0, 0
    extras = [part.column(role) if role in part.roles else None for role in ("weight", "rate")]
    for row, sides in enumerate(zip(*(part.column(role) for role in ("prompt", "chosen", "rejected")), strict=True)):
        if most is not None and len(pairs) == most:
            break
        pair, shorter = fitted(*split_ids(tokenizer, *sides), context)
        cut += shorter
        if tokens is not None and pair.tokens > tokens:
            long += 1
            continue
        weight, rate = (1.0 if extra is None else float(extra[row]) for extra in extras)
        pairs.append(Pair(pair.prompt, pair.chosen, pair.rejected, weight, rate))
        rows.append(row)
    if not pairs:
        raise ValueError(f"all {long} pairs hold more than {tokens} tokens (both sequences): bring shorter ones")
    return Encoded(pairs, rows, cut, long)


def split_ids(tokenizer: PreTrainedTokenizerBase, prompt: Any, chosen: Any, rejected: Any) -> tuple[list[int], list[int], list[int]]:
    """Token ids of prompt, chosen and rejected: the prompt ends where the encodings of the whole sequences part from its own."""
    if isinstance(prompt, str):
        end = str(tokenizer.eos_token or "")
        completions = [side if end and side.endswith(end) else side + end for side in (chosen, rejected)]
        alone = ids_of(tokenizer(prompt, verbose=False))
        whole = [ids_of(tokenizer(prompt + side, verbose=False)) for side in completions]
    else:
        if not tokenizer.chat_template:
            raise ValueError("the rows are chats, and this model's tokenizer has no chat template: give plain strings, or a chat model")
        asked, told, other = plain_chat(prompt), plain_chat(chosen), plain_chat(rejected)
        alone = ids_of(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True))
        whole = [ids_of(tokenizer.apply_chat_template(asked + side, return_dict=True)) for side in (told, other)]
    start = min(shared(alone, ids) for ids in whole)
    return alone[:start], whole[0][start:], whole[1][start:]


def ids_of(encoding: Any) -> list[int]:
    """The token ids of a tokenizer's answer."""
    return list(encoding["input_ids"])


def plain_chat(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """Messages as role and content alone: Arrow fills in keys that other rows have."""
    return [{key: value for key, value in dict(message).items() if value is not None} for message in messages]


def fitted(prompt: list[int], chosen: list[int], rejected: list[int], context: int) -> tuple[Pair, bool]:
    """The pair within the context, and whether it had to be cut: the prompt's beginning goes first, then the completions' ends."""
    left = context - max(len(chosen), len(rejected))
    if len(prompt) <= left:
        return Pair(prompt, chosen, rejected), False
    kept = prompt[-max(1, left) :]
    room = context - len(kept)
    return Pair(kept, chosen[:room], rejected[:room]), True
