"""The arms of the études: what is trained, how its rate is found, what is measured; every arm gets the same rows, steps, head and trials."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from etude.adapt import _train
from etude.adapt._judge import judge
from etude.adapt._rows import Example, examples
from etude.adapt.baselines.head_only import HeadOnly
from etude.adapt.baselines.lora import Lora
from etude.adapt.tied_lora import TiedLora, target_layers
from etude.adapt.tied_lora.material import Answer, Classify, Scale, Task, split
from etude.data.assets import model_folder
from etude.data.contract import Data, Split
from etude.fit.loop import Recipe, by_shape, fit
from etude.fit.tune import climb
from etude.measure.contract import Metrics
from etude.nn.tiny import tiny_llama
from etude.nn.tuner import names_for

if TYPE_CHECKING:
    from etude.harness.contract import Run

TUNING = 1_000  # the seed on which rates are tuned, and which is not used again
RANK = 8  # at which adapters are counted
STARTS = {"head": 1e-2, "tl6": 2e-3, "no_vectors": 2e-3, "vectors": 5e-3, "fused": 2e-3, "lora": 2e-3}  # where each arm's search begins
SHAPES = {  # the decoders of the paper's 7B, and the deepest of their kind
    "7B": LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008),
    "70B": LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672),
}


# --- what is compared ---------------------------------------------------------------------------------------------------


def method_of(kind: str, rank: int, model: PreTrainedModel) -> Any:
    """The contender of an arm; the update is scaled by 1 everywhere."""
    if kind == "head":
        return HeadOnly()
    if kind == "lora":  # PEFT's, an A for each of q, k and v
        return Lora(rank=rank, alpha=float(rank), targets=tuple(names_for(model, target_layers(model, "qkv"))))
    options: dict[str, dict[str, Any]] = {
        "tl6": {},
        "no_vectors": {"train": ("A", "B")},
        "vectors": {"train": ("u", "v")},
        "fused": {"train": ("A", "B"), "tie": ()},
    }
    return TiedLora(rank=rank, **options[kind])


def split_name(arm: str) -> tuple[str, int]:
    """ "tl6_8" as ("tl6", 8)."""
    kind, _, rank = arm.rpartition("_")
    return (kind, int(rank)) if rank.isdigit() else (arm, 0)


# --- training -----------------------------------------------------------------------------------------------------------


def grouped(lengths: list[int], size: int, epochs: int, seed: int) -> list[list[int]]:
    """Batches of rows of like length: shuffled, sorted within spans of eight batches, and the batches shuffled again."""
    dice, batches = random.Random(seed), list[list[int]]()
    for _ in range(epochs):
        order, epoch = list(range(len(lengths))), list[list[int]]()
        dice.shuffle(order)
        for start in range(0, len(order), 8 * size):
            span = sorted(order[start : start + 8 * size], key=lambda place: lengths[place])
            epoch += [span[i : i + size] for i in range(0, len(span), size)]
        dice.shuffle(epoch)
        batches += epoch
    return batches


def fitted(model: PeftModel, read: list[Example], batches: list[list[int]], rate: float, head_rate: float, seed: int) -> None:
    """Train an adapter, and a label head at a rate of its own which is the same in all arms."""
    heads, parts = _train.head_names(model), dict[float, list[nn.Parameter]]()
    for name, parameter in _train.trained(model):
        head = any(part in heads for part in name.split("."))
        parts.setdefault(head_rate / rate if head else 1.0, []).append(parameter)
    groups = [group | {"lr": factor} for factor, part in parts.items() for group in by_shape(part, 0.0)]
    fit(model, lambda step: _train.loss(model, [read[place] for place in batches[step]]), Recipe(len(batches), rate), seed, groups=groups)


def adapted(task: Task, arm: str, rates: Mapping[str, float], scale: Scale, seed: int) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """An arm's model, trained on the rows of a seed."""
    _, rows = split(task, scale)
    model, tokenizer = task.model(scale, rows, seed)
    read = examples(task.some(rows, model, tokenizer, scale, seed, training=True), model, tokenizer)
    tuned = method_of(*split_name(arm), model).attach(model, Data(Split(rows), Split(), seed, tokenizer))
    batches = grouped([len(row.ids) for row in read], scale.size, task.epochs(scale), seed)
    fitted(tuned, read, batches, rates[arm], rates.get("head", rates[arm]), seed)
    return tuned, tokenizer


def tuned_rates(task: Task, arms: Iterable[str], scale: Scale) -> dict[str, Any]:
    """Each arm's best rate, by rows of the training set that nothing is trained on, and all that were tried; the head's own comes first."""
    found, tried, (judging, _) = dict[str, float](), dict[str, Any](), split(task, scale)

    def score(arm: str, rate: float) -> float:
        model, tokenizer = adapted(task, arm, found | {arm: rate}, scale, TUNING)
        rows = task.some(judging, model, tokenizer, scale, TUNING, training=False)
        return _train.mean_loss(model, examples(rows, model, tokenizer))

    for arm in sorted(arms, key=lambda arm: arm != "head"):
        best = climb(STARTS[split_name(arm)[0]], partial(score, arm), scale.trials, factor=4.0)
        found[arm], tried[arm] = best.rate, {"tried": best.tried, "edge": best.edge}
    return {"rates": found, "tried": tried}


# --- what is measured ---------------------------------------------------------------------------------------------------


def classified(arm: str, run: Run, scale: Scale) -> Metrics:
    """Accuracy on held-out rows after training, row by row; the adapter's numbers and bytes; the rate that was used."""
    known = remembered(run)
    model, tokenizer = adapted(Classify, arm, known["rates"], scale, run.seed)
    rows = Classify.rows(scale, 1)
    rows = rows.take(list(range(scale.judged or len(rows))))
    metrics = Metrics(accuracy=judge(model, tokenizer, rows, range(len(rows)))["accuracy"], **size_of(model), **tuning_of(arm, known))
    kind, rank = split_name(arm)
    if kind == "tl6":
        config = model.config.encoder
        metrics["formula"] = float(formula(config["hidden_size"], config["hidden_size"], config["num_hidden_layers"], rank))
    return metrics


def answered(arm: str, run: Run, scale: Scale) -> Metrics:
    """Nats an answer token on held-out instruction rows, before any training or after it."""
    model: Any
    if arm == "untouched":
        (model, tokenizer), metrics = Answer.model(scale, split(Answer, scale)[1], run.seed), Metrics()
    else:
        known = remembered(run)
        model, tokenizer = adapted(Answer, arm, known["rates"], scale, run.seed)
        metrics = Metrics(**size_of(model), **tuning_of(arm, known))
    rows = Answer.some(Answer.rows(scale, 1), model, tokenizer, scale, 0, training=False)
    metrics["loss"] = judge(model, tokenizer, rows, range(len(rows)))["loss"]
    return metrics


def remembered(run: Run) -> dict[str, Any]:
    """What `tuned_rates` found."""
    found: dict[str, Any] = json.loads((run.path("prepared") / "rates.json").read_text())
    return found


def tuning_of(arm: str, known: Mapping[str, Any]) -> dict[str, float]:
    """The rate of an arm, and whether it is the outermost that was tried."""
    return {"rate": float(known["rates"][arm]), "edge": float(known["tried"][arm]["edge"])}


def size_of(model: PeftModel) -> dict[str, float]:
    """The adapter's trained numbers and the bytes of its file."""
    return {"numbers": float(adapter_numbers(model)), "bytes": float(file_bytes(model))}


def adapter_numbers(model: PeftModel) -> int:
    """Trained numbers of the adapter, without a label head."""
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and ("lora_" in name or "etude_" in name))


def file_bytes(model: PeftModel) -> int:
    """Bytes of the adapter's file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


# --- counting -----------------------------------------------------------------------------------------------------------


def formula(width: int, keys: int, layers: int, rank: int) -> int:
    """4 d r + L (r + 3 d), with `keys` outputs of k and of v each (d of them without grouped queries)."""
    outputs = width + 2 * keys
    return (width + outputs) * rank + layers * (rank + outputs)


def counted(name: str, run: Run, scale: Scale) -> Metrics:
    """Numbers that adapters of rank 8 train, counted on the model itself without its weights, and by the formula."""
    config = SHAPES[name] if name in SHAPES else tiny_llama().config if name == "tiny" else AutoConfig.from_pretrained(model_folder(name))
    numbers = dict[str, float]()
    for kind in ("tl6", "fused", "lora"):
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        numbers[kind] = float(adapter_numbers(method_of(kind, RANK, model).attach(model, Data(Split(), Split()))))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    keys, depth = config.hidden_size // config.num_attention_heads * heads, config.num_hidden_layers
    shares = {f"share_of_{kind}": numbers["tl6"] / numbers[kind] for kind in ("fused", "lora")}
    return Metrics(layers=float(depth), formula=float(formula(config.hidden_size, keys, depth, RANK)), **numbers, **shares)


def filed(run: Run, scale: Scale) -> Metrics:
    """Bytes of the decoder's adapter files at rank 8, as saved."""
    sizes = Metrics()
    for kind in ("tl6", "fused", "lora"):
        model, _ = Answer.model(scale, Answer.rows(scale, 1), run.seed)
        sizes[kind] = float(file_bytes(method_of(kind, RANK, model).attach(model, Data(Split(), Split()))))
    return sizes
