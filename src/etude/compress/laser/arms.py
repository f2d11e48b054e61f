"""The arms of the études: pure functions from a run and its scale to what was measured."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from etude.compress.baselines.block_drop import BlockDrop
from etude.compress.baselines.round_to_nearest import RoundToNearest
from etude.compress.laser import Laser, size_of, sweep
from etude.compress.laser.analysis import complement_answers, robust_hits
from etude.compress.laser.matrices import matrices
from etude.compress.laser.rank import Intervention, replaced
from etude.compress.laser.world import World, ask
from etude.data.assets import model_folder
from etude.data.contract import Budget, Data, Split, Text
from etude.data.corpora import PUBLIC, fetch
from etude.measure.contract import Items, Metrics
from etude.measure.cost import folder_bytes
from etude.measure.quality import bits_per_byte
from etude.nn.saving import save
from etude.nn.tiny import byte_tokenizer, tiny_llama, tiny_text

if TYPE_CHECKING:
    from etude.harness.contract import Run


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        model: a name for `etude.data.assets`, or "tiny" for random weights.
        facts: how many facts of each relation, None for all.
        layers, rhos: the grid of single interventions over MLP matrices.
        ablations: what else is tried at every place.
        noises: seeds of the noise where LASER was chosen.
        blocks: layers of the model; depth: rho of the sweep over all of them.
        world, triples, steps: subjects of the invented world, what is written about it, and training steps of its model.
        rotated: the model whose size is compared; share: of its bytes; tokens: of held-out text.
    """

    model: str
    facts: int | None
    layers: tuple[int, ...]
    rhos: tuple[float, ...]
    ablations: tuple[str, ...]
    noises: int
    blocks: int
    depth: float
    world: int
    triples: int
    steps: int
    rotated: str
    share: float
    tokens: int


def load_model(spec: str, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in bfloat16 on the run's device, and its tokenizer."""
    if spec == "tiny":
        return tiny_llama(), byte_tokenizer()

    folder = model_folder(spec)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    return model.to(run.device).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def from_table(kinds: tuple[str, ...], run: Run, scale: Scale) -> Metrics:
    """The best of these kinds, or the untouched model, on the validation half, read on the other half."""
    table, (validation, held_out) = prepared(run, scale)
    return told(sweep.chosen(table, validation, (*kinds, "untouched")), held_out)


def same_matrix(run: Run, scale: Scale) -> Metrics:
    """Zero in place of the matrix that LASER chose."""
    table, (validation, held_out) = prepared(run, scale)
    place = sweep.chosen(table, validation, ("laser", "untouched")).setting
    return told(next((each for each in table if each.setting.kind == "zero" and each.setting.name == place.name), table[0]), held_out)


def noise_there(run: Run, scale: Scale) -> Metrics:
    """Noise of as large a norm in the matrix that LASER chose: the best seed on the validation half."""
    table, (validation, held_out) = prepared(run, scale)
    place = sweep.chosen(table, validation, ("laser", "untouched")).setting
    if place.kind == "untouched":
        return told(table[0], held_out)
    (model, tokenizer), asked = load_model(scale.model, run), sweep.questions(scale.facts)
    tried = [sweep.answered(model, tokenizer, asked, sweep.Setting("noise", place.name, place.rho, 1 + seed)) for seed in range(scale.noises)]
    return told(min(tried, key=lambda each: each.mean(validation)), held_out)


def prepared(run: Run, scale: Scale) -> tuple[list[sweep.Answers], tuple[list[int], list[int]]]:
    """The table (the untouched model first), validation and held-out facts of this seed."""
    return sweep.load(run.path("prepared") / "table.json"), sweep.questions(scale.facts).halves(run.seed)


def told(picked: sweep.Answers, held_out: list[int]) -> Metrics:
    """What is recorded of a setting."""
    return Metrics(nll=picked.nll(held_out), top1=picked.top1(held_out), rho=picked.setting.rho, **_place(picked.setting.name))


def _place(name: str) -> dict[str, float]:
    """The layer as a number, for the record; -1 where nothing was changed."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    kinds = {"gate_proj": 0.0, "up_proj": 1.0, "down_proj": 2.0}
    return {"layer": float(numbers[0]) if numbers else -1.0, "matrix": kinds.get(name.rpartition(".")[2], -1.0)}


def answers(kinds: tuple[str, ...], run: Run, scale: Scale) -> Metrics:
    """As `from_table`, and the model itself asked in all paraphrases; under LASER also what the discarded components say."""
    metrics = from_table(kinds, run, scale)
    asked, (table, (validation, held_out)) = sweep.questions(scale.facts), prepared(run, scale)
    setting = sweep.chosen(table, validation, (*kinds, "untouched")).setting
    model, tokenizer = load_model(scale.model, run)
    forms = [sweep.answered(model, tokenizer, asked, setting, form).top1(held_out) for form in range(4)]
    metrics["robust"] = robust_hits(forms)
    if setting.kind == "laser":
        prompts, gold = asked.prompts(), asked.answers()
        said = complement_answers(model, tokenizer, [prompts[i] for i in held_out], Intervention(setting.name, setting.rho))
        near = [
            any(answer.startswith(words[0]) for answer in asked.of_same_type(i)) and len(words[0].strip()) > 1
            for i, words in zip(held_out, said, strict=True)
        ]
        metrics["complement_same_type"] = Items.of(held_out, [float(hit) for hit in near])
        metrics["complement_right"] = Items.of(held_out, [float(gold[i].startswith(words[0])) for i, words in zip(held_out, said, strict=True)])
    return metrics


def at_layer(layer: int | None, run: Run, scale: Scale) -> Metrics:
    """Nats of all facts with each matrix of one layer reduced in turn; only down_proj and o are kept fact by fact."""
    model, tokenizer = load_model(scale.model, run)
    asked = sweep.questions(scale.facts)
    facts = range(len(asked))
    if layer is None:
        return Metrics(nll=sweep.answered(model, tokenizer, asked, sweep.Setting("untouched")).nll(facts))
    metrics = Metrics()
    for matrix in matrices(model, "all", (layer,)):
        found = sweep.answered(model, tokenizer, asked, sweep.Setting("laser", matrix.name, scale.depth))
        short = matrix.end.rpartition(".")[2].removesuffix("_proj")
        metrics[short] = found.nll(facts) if short in ("down", "o") else found.mean(facts)
    return metrics


WORLD_RHOS = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1)


def in_world(arm: str, run: Run, scale: Scale) -> Metrics:
    """The best intervention on half of the facts, even where none helps, read on the other half by thirds of frequency."""
    world, model = World(subjects=scale.world, seed=run.seed), LlamaForCausalLM.from_pretrained(run.path("seed")).eval()
    shown = json.loads((run.path("seed") / "shown.json").read_text())
    names = world.names()
    random.Random(run.seed).shuffle(names)
    validation, held_out = set(names[: len(names) // 2]), sorted(names[len(names) // 2 :], key=lambda name: shown[name])

    def asked(setting: sweep.Setting) -> tuple[dict[str, float], dict[str, float]]:
        with replaced(model, sweep.changed(model, setting)):
            found = ask(model, world)
        return dict(zip(found.nats.ids, found.nats.top, strict=True)), dict(zip(found.hits.ids, found.hits.top, strict=True))

    def validated(setting: sweep.Setting) -> float:
        return statistics.fmean(value for name, value in asked(setting)[0].items() if name in validation)

    grid = [sweep.Setting("laser", matrix.name, rho) for matrix in matrices(model, "mlp") for rho in WORLD_RHOS]
    picked = sweep.Setting("untouched") if arm == "untouched" else min(grid, key=validated)
    if arm == "noise":
        picked = min([sweep.Setting("noise", picked.name, picked.rho, seed) for seed in range(3)], key=validated)
    nats, hits = asked(picked)
    edges = [place * len(held_out) // 3 for place in range(4)]
    thirds = [statistics.fmean(hits[name] for name in held_out[low:high]) for low, high in pairwise(edges)]
    return Metrics(
        nll=statistics.fmean(nats[name] for name in held_out),
        top1=statistics.fmean(hits[name] for name in held_out),
        rare=thirds[0],
        middle=thirds[1],
        frequent=thirds[2],
        rho=picked.rho,
        **_place(picked.name),
    )


def shrunk(spec: str, method: str, run: Run, scale: Scale) -> Metrics:
    """Bits per byte on held-out text, and bytes of the saved folder, after one compressor."""
    model, tokenizer = load_model(spec, run)
    calibration, held_out = texts(spec)
    budget = Budget("bytes", scale.share * size_of(model), size_of(model))
    made: dict[str, Callable[[], Any]] = {
        "laser": lambda: Laser().points(budget, model)[-1],
        "block_drop": lambda: BlockDrop().points(budget, model)[-1],
        "8bit": lambda: RoundToNearest(bits=8),
        "4bit": lambda: RoundToNearest(bits=4),
    }
    if method != "untouched":
        model = made[method]().compress(model, Data(Split(calibration), Split(calibration), 0, tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        save(model, None, Path(folder))
        size = folder_bytes(Path(folder))
    return Metrics(bits_per_byte=bits_per_byte(model, tokenizer, held_out, tokens=scale.tokens), bytes=float(size))


def texts(spec: str) -> tuple[Any, Any]:
    """Text to calibrate on and text to measure on: WikiText-2's validation and test part; for the tiny model sentences of a small grammar."""
    if spec == "tiny":
        return tiny_text(seed=0), tiny_text(seed=1)

    pieces = [fetch(piece).read_text(encoding="utf-8").splitlines(keepends=True) for piece in PUBLIC["wikitext2"].pieces]
    first, second = (Text(Dataset.from_dict({"text": lines}), {"text": "text"}, running=True) for lines in pieces)
    return first, second
