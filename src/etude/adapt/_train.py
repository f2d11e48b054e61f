"""The family's one trainer: what a contender left unfrozen is trained on the training rows, in equal steps for all, its rate tuned alike for all.

Trained parts are float32 whatever the base's dtype, and half-precision bases compute in their own. A new label head learns `HEAD` times as
fast as the rest: it starts from nothing, and at an adapter's rate it hardly moves within a few steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etude.adapt._recipe import EVERY, HEAD, JUDGED, SIZE, STEPS, TRIALS
from etude.adapt._rows import SILENT, Example, batch_of, by_length, drawn, examples, spread
from etude.data.contract import Data, Rows
from etude.fit.loop import Recipe, by_shape, fit
from etude.fit.tune import climb
from etude.measure.contract import NotFinite
from etude.nn.surgery import evaluating

Say = Callable[[str], None]


def train(
    model: Any,
    data: Data,
    rate: float,
    *,
    steps: int = STEPS,
    size: int = SIZE,
    every: int = EVERY,
    checkpoints: Path | None = None,
    say: Say | None = None,
) -> list[float]:
    """Train what requires a gradient, in place; a checkpoint that lies in `checkpoints` is resumed.

    Args:
        model: what `attach` returned: a model with a label head, a decoder, or a PEFT model of either.
        data: its training rows are drawn by `data.seed`; its tokenizer reads them.
        rate: peak learning rate (cosine, one tenth of the steps to warm up).
        size: rows a batch.

    Returns:
        The loss of every step: nats a row for a label head, nats an answer token otherwise.

    Raises:
        NotFinite: the loss is no number: the step is named, the last checkpoint stays.
        ValueError: nothing requires a gradient, or a label is unknown.
    """
    rows: Rows = data.train[Rows]
    places = [place for step in range(steps) for place in drawn(len(rows), size, step, data.seed)]
    wanted = sorted(set(places))
    read = dict(zip(wanted, examples(rows.take(wanted), model, data.tokenizer), strict=True))
    if strange := [place for place, row in read.items() if not row.targets and row.label == SILENT]:
        label = rows.take(strange[:1]).column("label")[0]
        raise ValueError(f"the model's head has no label {label!r}: it was made for other rows")
    widen(model)
    order = by_length(places, {place: len(row.ids) for place, row in read.items()}, size, data.seed)

    def loss_of(step: int) -> Tensor:
        return loss(model, [read[place] for place in order[step]])

    recipe = Recipe(steps, rate, every=every)
    return fit(model, loss_of, recipe, data.seed, groups=groups(model), checkpoints=checkpoints, say=say)


def tune(model: Any, data: Data, start: float, *, trials: int = TRIALS, steps: int = STEPS, size: int = SIZE) -> float:
    """The rate, of `trials` tried, after which the loss on the validation rows is lowest; the model is left as it came.

    Each trial is a whole training from where the model stands, remembered in `data.journal`; what it settles on further seeds take over.
    """
    rows: Rows = data.validation[Rows]
    judged = examples(rows.take(spread(len(rows), JUDGED)), model, data.tokenizer)
    widen(model)
    before = {name: parameter.detach().clone() for name, parameter in trained(model)}

    def score(rate: float) -> float:
        return data.journal.once({"rate": rounded(rate)}, lambda: trial(rounded(rate)))

    def trial(rate: float) -> float:
        restore(model, before)
        train(model, data, rate, steps=steps, size=size, checkpoints=data.journal.room({"rate": rate}))
        value = mean_loss(model, judged)
        if not math.isfinite(value):
            raise NotFinite(f"the loss on the validation rows is {value} at rate {rate:g}")
        return value

    found = climb(start, score, trials)
    restore(model, before)
    data.journal.settle(rate=rounded(found.rate))
    data.journal.chosen = found.words()
    return rounded(found.rate)


def rounded(rate: float) -> float:
    """A rate as reports write it, which is also the one that is used."""
    return float(f"{rate:.3g}")


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that require a gradient, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def restore(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Set the trained parameters back."""
    with torch.no_grad():
        for name, parameter in trained(model):
            parameter.copy_(before[name])


def widen(model: nn.Module) -> None:
    """Trained parameters in float32: half precision loses small steps."""
    for _, parameter in trained(model):
        parameter.data = parameter.data.float()


def groups(model: Any) -> list[dict[str, Any]]:
    """AdamW's groups: the label head apart, at `HEAD` times the rate."""
    heads = head_names(model)
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in trained(model):
        parts[any(part in heads for part in name.split("."))].append(parameter)
    return [group | {"lr": HEAD if new else 1.0} for new, part in parts.items() for group in by_shape(part, 0.0)]


def head_names(model: Any) -> list[str]:
    """The modules of a model with a label head that are not its backbone; none for a decoder."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not type(base).__name__.endswith("ForSequenceClassification"):
        return []
    return [name for name, child in base.named_children() if name != base.base_model_prefix and any(True for _ in child.parameters())]


def computing(model: Any) -> AbstractContextManager[Any]:
    """The dtype that the model computes in: that of its base, where that is a half precision; else as its weights are."""
    dtype = getattr(model.config, "dtype", None)
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(model.device.type, dtype=dtype)
    return nullcontext()


def logits_of(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (n, classes or vocabulary) in float32 and their targets (n,), of what is to be said only."""
    inputs, labels = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"]
    with computing(model):
        if labels.ndim == 1:
            return model(**inputs).logits.float(), labels
        said_BT = labels[:, 1:] != SILENT
        columns = said_BT.any(0).nonzero()[:, 0]
        if keeps_logits(model):
            logits_BTV = model(**inputs, use_cache=False, logits_to_keep=columns).logits
        else:
            logits_BTV = model(**inputs, use_cache=False).logits[:, columns]
        return logits_BTV[said_BT[:, columns]].float(), labels[:, 1:][said_BT]


def keeps_logits(model: Any) -> bool:
    """Whether the model can be asked for the logits of some places only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def loss(model: Any, rows: Sequence[Example]) -> Tensor:
    """Mean nats a row for a label head, mean nats an answer token of the batch otherwise."""
    logits, targets = logits_of(model, batch_of(rows, model.device))
    return nn.functional.cross_entropy(logits, targets)


def batches(rows: Sequence[Example], tokens: int = 2048) -> Iterator[list[int]]:
    """Places of rows of like length, at most about `tokens` tokens together."""
    batch = list[int]()
    for place in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        if batch and (len(batch) + 1) * len(rows[place].ids) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def mean_loss(model: Any, rows: Sequence[Example]) -> float:
    """Nats a row, or nats an answer token, over all rows, without dropout."""
    nats = tokens = 0.0
    with evaluating(model), torch.inference_mode():
        for batch in batches(rows):
            logits, targets = logits_of(model, batch_of([rows[i] for i in batch], model.device))
            nats += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
            tokens += int((targets != SILENT).sum())
    return nats / tokens if tokens else math.nan
