"""Rows as token ids: what a model reads, and what of it the model is to say.

Labelled rows become one label a row for a model with a label head (encoders), and the label's name as the answer for a decoder. The loss counts
answers only. A tokenizer with a chat template renders every row as a chat, one without joins prompt and answer by a line break.

Where a row is longer than the model's context, an encoder loses the end of the text, a decoder the beginning of its prompt: the answer stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etude.data import chat
from etude.data.chat import Message
from etude.data.contract import Rows
from etude.measure.quality import context_of

LONGEST = 512  # tokens a row, where the model's context allows as many
WINDOW = 16  # batches among which rows of like length find each other
SILENT = -100  # a target that the loss leaves out

# Dimensions: B rows of a batch, T tokens.


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        ids: its tokens.
        targets: as many: the token to be said at each place, SILENT where none is; empty for a model with a label head.
        label: for a model with a label head, the label's number.
        cut: how many tokens were cut off.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...] = ()
    label: int = SILENT
    cut: int = 0


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        limit: tokens a row.
        numbers: label -> number, for a model with a label head; None for a decoder.
        shots: turns that go before every chat.
    """

    limit: int
    numbers: Mapping[str, int] | None = None
    shots: tuple[Message, ...] = ()

    @classmethod
    def of(cls, model: Any, longest: int = LONGEST) -> Reading:
        """How a model reads rows: its context limits them, its configuration names the labels, or the shots of a prompt."""
        limit, config = context_of(model, longest), model.config
        if is_classifier(model):
            return cls(limit, {str(label): int(number) for label, number in config.label2id.items()})
        return cls(limit, None, tuple(Message(**turn) for turn in (getattr(config, "etude", None) or {}).get("shots") or ()))


def is_classifier(model: Any) -> bool:
    """Whether the model has a label head (a PEFT model: its base model)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(base).__name__.endswith("ForSequenceClassification")


def names_of(rows: Rows) -> list[str]:
    """The labels' names, sorted: their order is their number."""
    return sorted({str(label) for label in rows.column("label")})


def dialogues(rows: Rows) -> Iterator[list[Message]]:
    """Each row as a chat whose last turn is the answer.

    Raises:
        ValueError: a row of messages is no chat that can be answered; the row is named.
    """
    if "messages" in rows.roles:
        for number, messages in enumerate(rows.column("messages"), 1):
            try:
                yield chat.turns(messages)
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from None
        return
    asked = "text" if "text" in rows.roles else "prompt"
    told = list(rows.column("answer" if "answer" in rows.roles else "label"))
    if "choices" in rows.roles:
        told = [offered[label] for offered, label in zip(rows.column("choices"), told, strict=True)]
    for prompt, answer in zip(rows.column(asked), told, strict=True):
        yield [Message("user", str(prompt)), Message("assistant", str(answer))]


def examples(rows: Rows, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[Example]:
    """The rows for this model.

    Args:
        model: a decoder, a model with a label head, a PEFT model of either; or how it reads.

    A label that the model's head does not have becomes SILENT.

    Raises:
        ValueError: a chat that cannot be answered, or there is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError("rows are read by a tokenizer, and the model's folder holds none")
    how = model if isinstance(model, Reading) else Reading.of(model)
    if how.numbers is None:
        return [shown_example(how.shots, dialogue, tokenizer, how.limit) for dialogue in dialogues(rows)]
    found = list[Example]()
    for text, label in zip(rows.column("text"), rows.column("label"), strict=True):
        whole = tokenizer(text or "", verbose=False)["input_ids"]
        kept = whole if len(whole) <= how.limit else tokenizer(text, truncation=True, max_length=how.limit)["input_ids"]
        found.append(Example(tuple(kept), label=how.numbers.get(str(label), SILENT), cut=len(whole) - len(kept)))
    return found


def shown_example(shots: Sequence[Message], dialogue: list[Message], tokenizer: PreTrainedTokenizerBase, limit: int) -> Example:
    """A chat with earlier ones put before it, after what the system says."""
    system = dialogue[:1] if dialogue[0].role == "system" else []
    return dialogue_example([*system, *shots, *dialogue[len(system) :]], tokenizer, limit, len(system) + len(shots))


def dialogue_example(dialogue: Sequence[Message], tokenizer: PreTrainedTokenizerBase, limit: int, quiet: int = 0) -> Example:
    """A chat as tokens; every turn of the assistant's is an answer, but for those among the first `quiet` turns.

    Where it is longer than `limit`, its beginning goes; an answer that alone is longer loses its end.
    """
    text, spans = rendered(dialogue, tokenizer, quiet)
    ids, told = encoded(text, spans, tokenizer)
    if not any(told):
        raise ValueError(f"an answer has no token: {dialogue[-1].content!r}")
    cut = max(0, len(ids) - limit)
    if cut:
        first = max(place for place, (said, before) in enumerate(zip(told, [False, *told], strict=False)) if said and not before)
        start = min(cut, max(0, first - 1))  # at least one token before the last answer
        ids, told = ids[start : start + limit], told[start : start + limit]
    return Example(tuple(ids), tuple(token if said else SILENT for token, said in zip(ids, told, strict=True)), cut=cut)


def rendered(dialogue: Sequence[Message], tokenizer: PreTrainedTokenizerBase, quiet: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """The chat as one text, and where its answers stand in it (from, to)."""
    if not tokenizer.chat_template:
        return _plain(dialogue, tokenizer, quiet)
    whole = _templated(dialogue, tokenizer)
    spans = list[tuple[int, int]]()
    for place, message in enumerate(dialogue):
        if message.role == "assistant" and place >= quiet:
            before = _templated(dialogue[:place], tokenizer, asking=True)
            after = whole if place + 1 == len(dialogue) else _templated(dialogue[: place + 1], tokenizer)
            if whole.startswith(before) and whole.startswith(after):  # some templates render earlier turns otherwise
                spans.append((len(before), len(after.rstrip())))
    if not spans or spans[-1][1] < len(whole.rstrip()):
        start = whole.rfind(dialogue[-1].content.strip())
        spans.append((start if start >= 0 else 0, len(whole.rstrip())))
    return whole, spans


def _templated(dialogue: Sequence[Message], tokenizer: PreTrainedTokenizerBase, asking: bool = False) -> str:
    turns = [{"role": message.role, "content": message.content} for message in dialogue]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asking))
    except TemplateError as error:  # some templates know no system, or want speakers to take turns
        raise ValueError(f"the model's chat template refuses a row ({error}): change the rows, or the template in the model's folder") from error


def _plain(dialogue: Sequence[Message], tokenizer: PreTrainedTokenizerBase, quiet: int) -> tuple[str, list[tuple[int, int]]]:
    """Turns one below the other; an answer ends with the end token."""
    text, spans, end = str(tokenizer.bos_token or ""), list[tuple[int, int]](), str(tokenizer.eos_token or "\n")
    for place, message in enumerate(dialogue):
        start = len(text)
        said = message.role == "assistant"
        text += message.content + (end if said else "" if message.content[-1:].isspace() else "\n")
        if said and place >= quiet:
            spans.append((start, len(text)))
    return text, spans


def encoded(text: str, spans: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The text's tokens, and which of them reach into one of the spans."""
    if getattr(tokenizer, "is_fast", False):
        encoding: Mapping[str, Any] = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        told = [any(low < end and start < high for low, high in spans) and end > start for start, end in encoding["offset_mapping"]]
        return list(encoding["input_ids"]), told
    ids, told, edge = list[int](), list[bool](), 0  # without offsets the pieces are encoded apart
    for low, high in [*spans, (len(text), len(text))]:
        for piece, said in ((text[edge:low], False), (text[low:high], True)):
            tokens = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] if piece else []
            ids, told = ids + tokens, told + [said] * len(tokens)
        edge = high
    return ids, told


def batch_of(rows: Sequence[Example], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """input_ids, attention_mask (B, T), padded on the right with token 0 under the mask, and labels: (B, T), or (B,) for a label head."""
    longest, wide = max(len(row.ids) for row in rows), bool(rows[0].targets)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, SILENT)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row.ids)], mask_BT[i, : len(row.ids)] = torch.tensor(row.ids), 1
        if wide:
            labels_BT[i, : len(row.ids)] = torch.tensor(row.targets)
    labels = labels_BT if wide else torch.tensor([row.label for row in rows])
    return {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device), "labels": labels.to(device)}


def spread(count: int, most: int) -> list[int]:
    """At most `most` places of `count`, evenly spread: rows may be sorted by their labels."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def drawn(count: int, size: int, step: int, seed: int) -> list[int]:
    """Which rows a step takes: the rows are shuffled anew each time they were all taken; the seed and the step alone say how."""
    if count < 1:
        raise ValueError("there is no row to train on")
    places, first = list[int](), step * size
    for epoch in range(first // count, (first + size - 1) // count + 1):
        order = torch.randperm(count, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))).tolist()
        places += order[max(0, first - epoch * count) : max(0, first + size - epoch * count)]
    return places


def by_length(places: Sequence[int], lengths: Mapping[int, int], size: int, seed: int) -> list[list[int]]:
    """Batches of rows of like length, so that little is padded: `WINDOW` batches of `places` at a time are sorted, cut, and put in a random order."""
    batches, dice = list[list[int]](), torch.Generator().manual_seed(seed % (1 << 63))
    for start in range(0, len(places), WINDOW * size):
        window = sorted(places[start : start + WINDOW * size], key=lambda place: lengths[place])
        cut = [window[i : i + size] for i in range(0, len(window), size)]
        batches += [cut[i] for i in torch.randperm(len(cut), generator=dice).tolist()]
    return batches
