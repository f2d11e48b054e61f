"""How well an adapted model does on held-out rows, and what it forgot: item by item.

A decoder that tells labels apart is judged on the label that it says when it may say nothing else: token by token the likeliest that still leads
to a label. That costs about one forward pass a row, whatever the number of labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from etude.adapt._rows import SILENT, Example, batch_of, examples, is_classifier
from etude.adapt._subject import labels_of, load_subject
from etude.adapt._train import batches, computing, keeps_logits, logits_of
from etude.data.cache import digest_of, memo
from etude.data.contract import Rows, Text
from etude.measure.contract import Items, Metrics
from etude.measure.quality import bits_per_byte, context_of
from etude.nn.pooled import mean_pooled
from etude.nn.surgery import evaluating

TOKENS, WINDOW = 1024, 256  # of general text that a decoder is asked about
PARAGRAPHS = 16  # of general text that an encoder is asked about

Tree = dict[int, Any]  # token -> the tokens that may follow, or the label that ends here


def judge(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Rows, ids: Sequence[object]) -> Metrics:
    """Accuracy and macro F1 where answers are labels or choices; the loss an answer token where a decoder answers.

    Args:
        ids: names of the rows.
    """
    found = Metrics()
    if not is_classifier(model):
        nats = answer_nats(model, examples(rows, model, tokenizer))
        found["loss"] = Items.of(ids, [one for one, _ in nats], [count for _, count in nats])
    if "choices" in rows.roles:
        gold: list[Any] = [int(label) for label in rows.column("label")]
        found["accuracy"] = Items.of(ids, [float(a == b) for a, b in zip(best_choices(model, tokenizer, rows), gold, strict=True)])
    elif labels_of(model):
        gold = [str(label) for label in rows.column("label")]
        told = said_labels(model, tokenizer, rows)
        found["accuracy"] = Items.of(ids, [float(a == b) for a, b in zip(told, gold, strict=True)])
        found["f1"] = macro_f1(gold, told)
    return found


def macro_f1(gold: Sequence[str], told: Sequence[str]) -> float:
    """The mean over the labels that occur of 2 hits / (said + true)."""
    scores = list[float]()
    for label in sorted({*gold, *told}):
        hits = sum(a == b == label for a, b in zip(gold, told, strict=True))
        scores.append(2 * hits / (sum(a == label for a in gold) + sum(b == label for b in told)))
    return sum(scores) / len(scores)


def said_labels(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> list[str]:
    """The label that the model gives each row."""
    read, names = examples(rows, model, tokenizer), labels_of(model)
    if not is_classifier(model):
        return walked(model, [prompt_of(row) for row in read], tree_of(names, rows, model, tokenizer))
    told = [""] * len(read)
    with evaluating(model), torch.inference_mode():
        for batch in batches(read):
            logits, _ = logits_of(model, batch_of([read[i] for i in batch], model.device))
            finite(logits)
            for place, number in zip(batch, logits.argmax(-1).tolist(), strict=True):
                told[place] = names[number]
    return told


def finite(logits: Tensor) -> None:
    """Refuse a broken model."""
    if not torch.isfinite(logits).all():
        raise ValueError("the adapted model answers NaN or infinity")


def prompt_of(row: Example) -> list[int]:
    """The tokens before the last answer."""
    said = [target != SILENT for target in row.targets]
    start = max(place for place, one in enumerate(said) if one and not (place and said[place - 1]))
    return list(row.ids[:start])


def tree_of(names: Sequence[str], rows: Rows, model: Any, tokenizer: PreTrainedTokenizerBase) -> Tree:
    """The labels as a tree of tokens, as they stand after the prompt of a row.

    Raises:
        ValueError: two labels are the same to the tokenizer, or one begins another.
    """
    from datasets import Dataset

    asked = Rows(Dataset.from_dict({"text": [rows.column("text")[0]] * len(names), "label": list(names)}), {"text": "text", "label": "label"})
    root: Tree = {}
    for name, row in zip(names, examples(asked, model, tokenizer), strict=True):
        node, tokens = root, row.ids[len(prompt_of(row)) :]
        for token in tokens[:-1]:
            node = node.setdefault(token, {})
            if isinstance(node, str):
                raise ValueError(f"label {name!r} begins with label {node!r}, and nothing ends an answer: this tokenizer has no end token")
        if tokens[-1] in node:
            raise ValueError(f"label {name!r} reads like another one to this tokenizer: rename it")
        node[tokens[-1]] = name
    return root


def walked(model: Any, prompts: Sequence[list[int]], tree: Tree) -> list[str]:
    """Where each prompt leads in the tree, taking the likeliest branch at every fork."""
    place, told = [tree for _ in prompts], [list(prompt) for prompt in prompts]
    ended = dict[int, str]()

    def step(i: int, token: int) -> None:
        node = place[i][token]
        told[i].append(token)
        if isinstance(node, str):
            ended[i] = node
        else:
            place[i] = node

    with evaluating(model), torch.inference_mode():
        while open_ := [i for i in range(len(prompts)) if i not in ended]:
            asked = [i for i in open_ if len(place[i]) > 1]
            for i in set(open_) - set(asked):
                step(i, next(iter(place[i])))
            for batch in batches([Example(tuple(told[i])) for i in asked]):
                logits_BV = last_logits(model, [told[asked[j]] for j in batch])
                finite(logits_BV)
                for row, j in enumerate(batch):
                    branches = list(place[asked[j]])
                    step(asked[j], branches[int(logits_BV[row, branches].argmax())])
    return [ended[i] for i in range(len(prompts))]


def last_logits(model: Any, told: Sequence[list[int]]) -> Tensor:
    """Logits (rows, vocabulary) of what follows each row, in float32."""
    batch = batch_of([Example(tuple(ids), tuple(ids)) for ids in told], model.device)
    ends = torch.tensor([len(ids) - 1 for ids in told], device=model.device)
    columns, where = ends.unique(return_inverse=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with computing(model):
        if keeps_logits(model):
            logits_BKV = model(**inputs, use_cache=False, logits_to_keep=columns).logits
        else:
            logits_BKV = model(**inputs, use_cache=False).logits[:, columns]
    found: Tensor = logits_BKV[torch.arange(len(told), device=model.device), where].float()
    return found


def answer_nats(model: Any, read: Sequence[Example]) -> list[tuple[float, int]]:
    """Nats and tokens of each row's answers."""
    found = dict[int, tuple[float, int]]()
    with evaluating(model), torch.inference_mode():
        for batch in batches(read):
            rows = batch_of([read[i] for i in batch], model.device)
            logits, targets = logits_of(model, rows)
            finite(logits)
            nats = iter(nn.functional.cross_entropy(logits, targets, reduction="none").double().tolist())
            for place, count in zip(batch, (rows["labels"][:, 1:] != SILENT).sum(1).tolist(), strict=True):
                found[place] = (sum(next(nats) for _ in range(count)), count)
    return [found[place] for place in range(len(read))]


def best_choices(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> list[int]:
    """The choice of each row whose tokens cost least on average."""
    from datasets import Dataset

    offered = [list(choices) for choices in rows.column("choices")]
    flat = [(prompt, choice) for prompt, choices in zip(rows.column("prompt"), offered, strict=True) for choice in choices]
    asked = Rows(
        Dataset.from_dict({"prompt": [one for one, _ in flat], "answer": [one for _, one in flat]}), {"prompt": "prompt", "answer": "answer"}
    )
    costs = iter([nats / tokens for nats, tokens in answer_nats(model, examples(asked, model, tokenizer))])
    found = list[int]()
    for choices in offered:
        own = [next(costs) for _ in choices]
        found.append(own.index(min(own)))
    return found


def forgotten(model: Any, tokenizer: PreTrainedTokenizerBase, about: Mapping[str, Any], dtype: str, device: str) -> Metrics:
    """What general text costs more than it cost the base model: bits per byte of a decoder, 1 - cosine of an encoder's embeddings."""
    if about["shots"] and not about["trained"]:
        return Metrics(forgetting=0.0)
    classifies = is_classifier(model)

    def ask(one: Any) -> Tensor:
        return general_states(one, tokenizer) if classifies else torch.tensor([general_bits(one, tokenizer)])

    def before() -> dict[str, Tensor]:
        return {"said": ask(load_subject(Path(about["base"]), None, dtype, device, labels=about["labels"]))}

    key = json.dumps(["general text", digest_of(Path(about["base"])), dtype, device, TOKENS, WINDOW, PARAGRAPHS])
    then, now = memo(key, before)["said"], ask(model)
    if classifies:
        return Metrics(drift=float(1 - (then * now).sum(-1).mean()))
    return Metrics(forgetting=float(now - then))


def samples(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> list[str]:
    """What the model says to each of these rows."""
    if labels_of(model):
        asked = rows.column("text")
        return [f"{text[:300]}\n-> {label}" for text, label in zip(asked, said_labels(model, tokenizer, rows), strict=True)]
    found = list[str]()
    for row in examples(rows, model, tokenizer):
        ids = torch.tensor([prompt_of(row)], device=model.device)
        with evaluating(model), torch.inference_mode(), computing(model):
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=0)
        found.append(str(tokenizer.decode(made[0], skip_special_tokens=True)))
    return found


def english() -> Text:
    """General text: the prose that every Python brings along."""
    from etude.data import sources

    part: Text = sources.load("english", (Text,), {}, lambda line: None)[Text]
    return part


def general_bits(model: Any, tokenizer: PreTrainedTokenizerBase) -> float:
    """Bits per byte of a decoder on general text."""
    with computing(model):
        items = bits_per_byte(model, tokenizer, english(), tokens=TOKENS, window=WINDOW)
    return sum(items.top) / sum(items.bottom)


def general_states(model: Any, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Mean hidden states (paragraphs, D) of an encoder on general text, of length one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    text, limit = english(), context_of(base, 128)
    paragraphs = [one for one in "".join(text.column("text")[: 20 * PARAGRAPHS]).split("\n\n") if one.strip()][:PARAGRAPHS]
    read = [Example(tuple(tokenizer(one, truncation=True, max_length=limit)["input_ids"])) for one in paragraphs]
    found = list[Tensor]()
    with evaluating(model), torch.inference_mode(), computing(model):
        for start in range(0, len(read), 16):
            batch = batch_of(read[start : start + 16], model.device)
            states_BTD = getattr(base, base.base_model_prefix)(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            found.append(mean_pooled(states_BTD, batch["attention_mask"]).float())
    return nn.functional.normalize(torch.cat(found), dim=-1).cpu()
