"""What an adapted model costs to run and to train, alone and warm, by medians; and its adapter merged into its base."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from etude.adapt._recipe import SIZE
from etude.adapt._rows import SILENT, Example, batch_of, by_length, examples
from etude.adapt._train import computing, groups, loss, widen
from etude.data.contract import Data, Rows
from etude.fit.loop import Recipe, fit
from etude.measure.contract import Metrics
from etude.nn.surgery import evaluating

WARM = 2  # forward passes, or training steps, before those that count
COUNTED = 4  # training steps
SECONDS, PATIENCE = 0.6, 20.0  # of forward passes; of training steps at most, where the machine is slow


class _Enough(Exception):
    """Enough steps were timed."""


def latency(model: Any, row: Example) -> float:
    """Seconds of one forward pass over a row, batch 1: the median."""
    batch = batch_of([row], model.device)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    times = list[float]()
    with evaluating(model), torch.inference_mode(), computing(model):
        stop = perf_counter() + SECONDS
        while len(times) < 2 * WARM or perf_counter() < stop:
            before = perf_counter()
            model(**inputs)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            times.append(perf_counter() - before)
    return statistics.median(times[WARM:])


def typical(rows: Sequence[Example]) -> Example:
    """The row of median length."""
    return sorted(rows, key=lambda row: len(row.ids))[len(rows) // 2]


def merged(model: Any) -> Any:
    """The model with its adapter merged into its weights, in place; as it is where there is none."""
    if not isinstance(model, PeftModel):
        return model
    heads = {name for config in model.peft_config.values() for name in getattr(config, "modules_to_save", None) or ()}
    made = model.merge_and_unload()
    output = made.get_output_embeddings()
    if output is not None and any(module is output and name.rpartition(".")[2] in heads for name, module in made.named_modules()):
        made.config.tie_word_embeddings = False  # the trained output layer is no embedding
    return made


def training(attach: Callable[[Any, Data], Any], model: Any, data: Data, steps: int, held: Callable[[], int]) -> Metrics:
    """Seconds that `steps` training steps take, from a few of them, and the most memory that `held` said meanwhile."""
    made = attach(model, data)
    if not any(parameter.requires_grad for parameter in made.parameters()):
        return Metrics(train=0.0)
    widen(made)
    rows: Rows = data.train[Rows]
    read = [row for row in examples(rows, made, data.tokenizer) if row.targets or row.label != SILENT]
    order = by_length([i % len(read) for i in range(max(len(read), SIZE))], {i: len(row.ids) for i, row in enumerate(read)}, SIZE, 0)
    stamps, seen = list[float](), list[int]()

    def loss_of(step: int) -> Tensor:
        stamps.append(perf_counter())
        if step > 1 and stamps[-1] - stamps[0] > PATIENCE:
            raise _Enough
        value = loss(made, [read[place] for place in order[step % len(order)]])
        seen.append(held())  # the activations are there, for the backward pass
        return value

    with suppress(_Enough):
        fit(made, loss_of, Recipe(WARM + COUNTED + 1, 1e-6), 0, groups=groups(made))
    spent = [after - before for before, after in pairwise(stamps)]
    return Metrics(train=steps * statistics.median(spent[WARM:] or spent), train_memory=float(max(seen)))


def load_seconds(load: Callable[[Path], Any], folder: Path) -> tuple[Any, float]:
    """What a folder holds, and the seconds that loading it took."""
    start = perf_counter()
    made = load(folder)
    return made, perf_counter() - start
