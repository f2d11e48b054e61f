"""The arms of the études: pure functions from a run and its scale to what was measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from etude.data.contract import Data, Split, Text
from etude.data.corpora import PUBLIC, fetch
from etude.fit.loop import Recipe, fit
from etude.fit.tune import Tuned, climb
from etude.measure.contract import Metrics
from etude.measure.cost import state_bytes
from etude.models._train import Terms, judged, train, usual_rate
from etude.models.baselines.gpt2_block import Gpt2Block
from etude.models.llama import Llama
from etude.models.llama.convert import to_hugging_face
from etude.models.mamba import Mamba
from etude.models.mamba.tasks import VOCABULARY, Task
from etude.nn.decoder import EtudeDecoder
from etude.nn.tiny import byte_tokenizer, tiny_text

if TYPE_CHECKING:
    from etude.harness.contract import Run

TUNING = 1000  # rates are tuned on seeds from here on; no arm is measured on them
TIMES = 1_000_003  # batches of different seeds never meet
HELD_OUT = 1 << 40  # a seed beyond every training batch's
TOGETHER = 1 << 17  # tokens that are judged in one pass


def tuned(scores: dict[str, Callable[[float], float]], start: float, trials: int, folder: Path) -> None:
    """Write `rates.json`: every arm's best rate by equally many trials, each search following its own optimum."""
    found = {arm: climb(start, score, trials) for arm, score in scores.items()}
    (folder / "rates.json").write_text(json.dumps({arm: _told(one) for arm, one in found.items()}))


def _told(one: Tuned) -> dict[str, float]:
    return {"rate": one.rate, "undertuned": float(one.edge)}


def rates(run: Run, arm: str) -> dict[str, float]:
    """What tuning found for an arm: its rate, and whether that is the edge of what was tried."""
    found: dict[str, float] = json.loads((run.path("prepared") / "rates.json").read_text())[arm]
    return found


# ---- 1 and 2: content, not place ----


@dataclass(frozen=True)
class Synthetic:
    """Size of a task's étude.

    Attributes:
        task: "induction" or "copying"; answers: tokens that are asked for.
        length: of the training sequences; stretches: multiples of it at which the accuracy is measured.
        steps, batch: optimizer steps, sequences of a step.
        trials, tuners: rates that each arm may try, each on so many seeds (near the edge of stability some seeds fail).
        judged: sequences of each length.
        width, state: D and N of blocks, of which there are two.
    """

    task: str
    answers: int
    length: int
    stretches: tuple[int, ...]
    steps: int
    batch: int = 64
    trials: int = 4
    tuners: int = 3
    judged: int = 512
    width: int = 32
    state: int = 8
    rate: float = 3e-3


def decoder(arm: str, scale: Synthetic, seed: int, device: str) -> EtudeDecoder:
    """An untrained decoder of two blocks: "selective", "invariant", or attention with "rotary" or "learned" positions."""
    size = {"layers": 2, "width": scale.width}
    longest = max(scale.stretches) * scale.length + scale.answers
    made = {
        "selective": lambda: Mamba(**size, state=scale.state),
        "invariant": lambda: Mamba(**size, state=scale.state, selective=False),
        "rotary": lambda: Llama(**size, context=longest),
        "learned": lambda: Gpt2Block(**size, context=longest),
    }[arm]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EtudeDecoder(made.shape(VOCABULARY)).to(device)


def solve(arm: str, scale: Synthetic, rate: float, seed: int, device: str) -> EtudeDecoder:
    """A decoder after training on the task at a constant rate."""
    model, task = decoder(arm, scale, seed, device), Task(scale.task, scale.answers)

    def loss_of(step: int) -> Tensor:
        return cross_entropy(*answered(model, task, scale.batch, scale.length, TIMES * seed + step))

    fit(model, loss_of, Recipe(scale.steps, rate, warmup=0.0, schedule="constant"), seed)
    return model.eval()


def answered(model: EtudeDecoder, task: Task, size: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits at the answers' places and the right answers, one row an answer."""
    ids_BS, answers_BM = (tensor.to(model.device) for tensor in task.batch(size, length, seed))
    pieces = ids_BS.split(max(1, TOGETHER // length))
    logits_BMV = torch.cat([model(input_ids=piece, logits_to_keep=task.answers, use_cache=False).logits for piece in pieces])
    return logits_BMV.flatten(0, 1), answers_BM.flatten()


def tune_tasks(arms: tuple[str, ...], run: Run, scale: Synthetic, folder: Path) -> None:
    """Every arm's rate by the loss on fresh sequences of the training length, on average over several seeds."""

    def loss(arm: str, rate: float, seed: int) -> float:
        model = solve(arm, scale, rate, seed, run.device)
        with torch.inference_mode():
            return float(cross_entropy(*answered(model, Task(scale.task, scale.answers), scale.judged, scale.length, HELD_OUT)))

    def score(arm: str, rate: float) -> float:
        return statistics.fmean(loss(arm, rate, TUNING + k) for k in range(scale.tuners))

    tuned({arm: partial(score, arm) for arm in arms}, scale.rate, scale.trials, folder)


def solved(arm: str, run: Run, scale: Synthetic) -> Metrics:
    """Accuracy at every length after training at the tuned rate."""
    found = rates(run, arm)
    model, task = solve(arm, scale, found["rate"], run.seed, run.device), Task(scale.task, scale.answers)
    metrics = Metrics(found)
    with torch.inference_mode():
        for stretch in scale.stretches:
            logits, answers = answered(model, task, scale.judged, stretch * scale.length, HELD_OUT + 1 + run.seed)
            metrics[f"accuracy_x{stretch}"] = float((logits.argmax(-1) == answers).float().mean())
    return metrics


# ---- 3: cost against length ----


@dataclass(frozen=True)
class Lengths:
    """What is timed.

    Attributes:
        parameters: of both models.
        lengths: of prompts, from the shortest to the longest.
        repeats: prefills of each length; steps: decoded after the shortest and the longest prompt.
    """

    parameters: int
    lengths: tuple[int, ...]
    repeats: int
    steps: int


def in_turn(run: Run, scale: Lengths) -> Metrics:
    """Seconds of Mamba and of transformers' Llama, measured in turn, by medians."""
    longest = scale.lengths[-1] + scale.steps
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        llama = to_hugging_face(Llama(context=longest).build(256, scale.parameters))
        models = {"mamba": Mamba().build(256, scale.parameters).to(run.device), "llama": llama.to(run.device)}
    metrics = Metrics()
    with torch.inference_mode():
        for name, seconds in prefills(models, scale).items():
            metrics[f"{name}_prefill"] = seconds
            metrics[f"{name}_exponent"] = float(np.polyfit(np.log(scale.lengths), np.log(seconds), 1)[0])
        for name, model in models.items():
            short, long = decoding(model, scale)
            metrics |= {f"{name}_decode": [1e3 * short, 1e3 * long], f"{name}_slower": long / short}
            metrics[f"{name}_state"] = [state_bytes(model, length) for length in scale.lengths]
            metrics[f"{name}_parameters"] = float(sum(parameter.numel() for parameter in model.parameters()))
    return Metrics(metrics | {"formula": state_formula(models["mamba"])})


def prefills(models: dict[str, PreTrainedModel], scale: Lengths) -> dict[str, list[float]]:
    """Median seconds of each model at each length, the models taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for length in scale.lengths:
        found: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(1 + scale.repeats):
            for name, model in models.items():
                found[name].append(timed(model, partial(prefilled, model, length)))
        for name in models:
            seconds[name].append(statistics.median(found[name][1:]))  # the first one warms up
    return seconds


def decoding(model: PreTrainedModel, scale: Lengths) -> tuple[float, float]:
    """Median seconds of a decode step after the shortest and after the longest prompt, both really read; the two take turns."""
    caches = [prefilled(model, length) for length in (scale.lengths[0], scale.lengths[-1])]
    found: list[list[float]] = [[], []]
    for step in range(scale.steps):
        ids = torch.tensor([[step % 256]], device=model.device)
        for cache, times in zip(caches, found, strict=True):
            times.append(timed(model, partial(model, input_ids=ids, cache=cache, use_cache=True)))
    short, long = (statistics.median(times[2:]) for times in found)
    return short, long


def prefilled(model: PreTrainedModel, length: int) -> Any:
    """The cache after a prompt."""
    ids = torch.arange(length, device=model.device)[None] * 7 % 256
    return model(input_ids=ids, logits_to_keep=1, use_cache=True).cache


def timed(model: PreTrainedModel, action: Callable[[], Any]) -> float:
    """Seconds of an action: of the process on a CPU, where other programs then cost little; by the clock on a GPU."""
    if model.device.type != "cuda":
        start = process_time()
        action()
        return process_time() - start
    torch.cuda.synchronize()
    start = perf_counter()
    action()
    torch.cuda.synchronize()
    return perf_counter() - start


def state_formula(model: EtudeDecoder) -> float:
    """Bytes that a Mamba remembers of one text: of each block K inputs and N numbers a channel, in float32."""
    blocks = [layer.mixer for layer in model.model.layers]
    return float(sum(4 * block.channels * (block.kernel + block.state) for block in blocks))


# ---- 4: language ----


@dataclass(frozen=True)
class Language:
    """Size of the language étude.

    Attributes:
        text: "wikitext2" or "tiny"; its last tenth is judged, a twentieth before it tunes the rates.
        parameters, tokens, context: of both models and their training.
        trials: rates that each may try.
    """

    text: str
    parameters: int
    tokens: int
    context: int
    trials: int


BUILDERS = {"mamba": lambda scale: Mamba(), "llama": lambda scale: Llama(context=scale.context)}
PARTS = ((0.0, 0.85), (0.85, 0.9), (0.9, 1.0))  # trained on, tuned on, judged


def texts(name: str) -> tuple[Text, Text, Text]:
    """Training, tuning and held-out text: consecutive spans."""
    if name == "tiny":
        lines = list(tiny_text(600).column("text"))
    else:
        lines = [line for piece in PUBLIC[name].pieces for line in fetch(piece).read_text(encoding="utf-8").splitlines(keepends=True)]
    spans = [lines[int(low * len(lines)) : int(high * len(lines))] for low, high in PARTS]
    train_part, tune_part, judged_part = (Text(Dataset.from_dict({"text": span}), {"text": "text"}, running=True) for span in spans)
    return train_part, tune_part, judged_part


def bits(arm: str, run: Run, scale: Language, seed: int, rate: float) -> float:
    """Bits per byte after training at this rate: of the tuning text on the tuning seed, else of the held-out text."""
    first, second, third = texts(scale.text)
    data = Data(Split(first), Split(second if seed == TUNING else third), seed, byte_tokenizer())
    terms = Terms(256, scale.parameters, scale.tokens, scale.context, run.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[arm](scale).build(256, scale.parameters).to(run.device)
    train(model, terms, data, rate)
    return judged(model, terms, data)


def tune_language(arms: tuple[str, ...], run: Run, scale: Language, folder: Path) -> None:
    """Both arms' rates, from the family's usual one on."""
    tuned({arm: partial(bits, arm, run, scale, TUNING) for arm in arms}, usual_rate(scale.parameters), scale.trials, folder)


def language(arm: str, run: Run, scale: Language) -> Metrics:
    """Bits per byte of held-out text at the tuned rate."""
    found = rates(run, arm)
    return Metrics(found | {"bits_per_byte": bits(arm, run, scale, run.seed, found["rate"])})
