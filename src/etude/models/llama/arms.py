"""The arms of the études: byte models trained from scratch on text, and checkpoints read both ways."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from etude.data.assets import model_folder
from etude.fit.loop import fit
from etude.fit.tune import Tuned, climb
from etude.measure.contract import Items, Metrics, NotFinite
from etude.models._size import made
from etude.models.llama.convert import from_hugging_face, to_hugging_face
from etude.models.llama.recipe import recipe
from etude.nn.decoder import EtudeDecoder
from etude.nn.decoder_config import EtudeDecoderConfig
from etude.nn.surgery import evaluating
from etude.nn.tiny import byte_tokenizer

if TYPE_CHECKING:
    from etude.harness.contract import Run

BYTES, TRIALS, MOST = 256, 3, 5  # vocabulary; rates that are tried, and at most where the best is the outermost
TUNING_SEED = 10_007  # of the runs that choose a rate: none that is measured
PROMPT = "The capital of France is"
SHARES = (0.8, 0.9)  # training text ends at the first, the text that chooses rates at the second, held-out text follows


@dataclass(frozen=True)
class Training:
    """How one small model is trained: steps of `batch` windows of `length` bytes, and how many windows are judged."""

    steps: int
    batch: int
    length: int
    judged: int = 128


def as_ids(text: bytes) -> Tensor:
    """Bytes as token ids (N,)."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def split(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Training, choosing and held-out text, in this order in the text."""
    first, second = (int(len(ids) * share) for share in SHARES)
    return ids[:first], ids[first:second], ids[second:]


def draw(ids: Tensor, batch: int, length: int, seed: int, step: int) -> Tensor:
    """Windows (batch, length) from random places of a text: a step's follow from the seed and its number."""
    dice = torch.Generator().manual_seed(1_000_003 * seed + step)
    starts = torch.randint(len(ids) - length + 1, (batch,), generator=dice)
    return torch.stack([ids[start : start + length] for start in starts])


def fresh(config: EtudeDecoderConfig, seed: int, device: str) -> EtudeDecoder:
    """An untrained model, drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return made(config).to(device)


def train(
    config: EtudeDecoderConfig, ids: Tensor, training: Training, rate: float, seed: int, device: str, marks: Mapping[int, Callable[[Any], None]] = {}
) -> EtudeDecoder:
    """A new model by the paper's recipe; `marks` are called with the model before these steps."""
    model = fresh(config, seed, device)

    def loss_of(step: int) -> Tensor:
        if step in marks:
            marks[step](model)
        ids_BT = draw(ids, training.batch, training.length, seed, step).to(device)
        return model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    fit(model, loss_of, recipe(training.steps, rate, every=training.steps), seed)
    return model.eval()


@torch.inference_mode()
def nats(model: PreTrainedModel, ids: Tensor, training: Training) -> Items:
    """Nats a byte on windows spread evenly over a text, one item a window."""
    count = min(training.judged, len(ids) // training.length)
    starts = [place * (len(ids) - training.length) // max(1, count - 1) for place in range(count)]
    found = list[float]()
    with evaluating(model):
        for part in range(0, count, 32):
            ids_BT = torch.stack([ids[start : start + training.length] for start in starts[part : part + 32]]).to(model.device)
            logits = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
            found += torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:], reduction="none").mean(1).tolist()
    return Items.of(range(count), found)


def tuned(score: Callable[[float], float], start: float) -> Tuned:
    """The best of three rates around `start`, of up to five where the best is the outermost; a run that diverges counts as infinitely bad."""
    seen: dict[float, float] = {}

    def once(rate: float) -> float:
        if rate not in seen:
            try:
                seen[rate] = score(rate)
            except NotFinite:
                seen[rate] = math.inf
        return seen[rate]

    for trials in range(TRIALS, MOST + 1):
        found = climb(start, once, trials)
        if not found.edge:
            break
    return found


def choose(configs: Mapping[str, EtudeDecoderConfig], texts: Tensor, trainings: Mapping[str, Training], start: float, device: str) -> dict[str, Any]:
    """The rate of each configuration, by the loss on the choosing text."""
    known, choosing, _ = split(texts)
    out = {}
    for name, config in configs.items():
        training = trainings[name]

        def score(rate: float, config: EtudeDecoderConfig = config, training: Training = training) -> float:
            return sum(nats(train(config, known, training, rate, TUNING_SEED, device), choosing, training).top) / training.judged

        found = tuned(score, start)
        out[name] = {"rate": found.rate, "edge": float(found.edge), "tried": [list(pair) for pair in found.tried]}
    return out


def told(chosen: Mapping[str, Any]) -> Metrics:
    """What is recorded of a search for a rate."""
    return Metrics(rate=float(chosen["rate"]), undertuned=float(chosen["edge"]), tried=[rate for rate, _ in chosen["tried"]])


def read_chosen(run: Run) -> dict[str, Any]:
    """What `prepare` wrote."""
    return json.loads((run.path("prepared") / "rates.json").read_text())


# ---- claim 1 ----


def faithful(spec: str, new_tokens: int, run: Run, scale: Any) -> Metrics:
    """A checkpoint through our Llama, and ours through transformers: largest difference of logits, and whether greedy texts agree."""
    theirs, tokenizer = checkpoint(spec)
    ours = from_hugging_face(theirs, vocabulary=len(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        to_hugging_face(ours).save_pretrained(folder)
        again = LlamaForCausalLM.from_pretrained(folder)
        ours.save_pretrained(Path(folder) / "ours")
        reloaded = EtudeDecoder.from_pretrained(Path(folder) / "ours")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        texts = [greedy(model, ids, new_tokens) for model in (theirs, ours, again, reloaded)]
        logits = [model(input_ids=texts[0]).logits.float() for model in (theirs, ours, again, reloaded)]
    return Metrics(
        loaded=float((logits[1] - logits[0]).abs().max()),
        saved=float(max((other - logits[0]).abs().max() for other in logits[2:])),
        same_text=float(all(torch.equal(text, texts[0]) for text in texts[1:])),
        tokens=float(new_tokens),
    )


def checkpoint(spec: str) -> tuple[LlamaForCausalLM, Any]:
    """A Hugging Face Llama in float32 and its tokenizer: "tiny" for random weights with grouped queries."""
    if spec == "tiny":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=BYTES,
                hidden_size=64,
                intermediate_size=172,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                bos_token_id=None,
                eos_token_id=None,
                initializer_range=0.1,
            )
            return LlamaForCausalLM(config).eval(), byte_tokenizer()
    folder = model_folder(spec)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval(), AutoTokenizer.from_pretrained(folder)


def greedy(model: Any, ids: Tensor, new_tokens: int) -> Tensor:
    """The prompt and the likeliest tokens after it."""
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )


# ---- claims 2 and 3 ----


def trained(
    name: str, configs: Mapping[str, EtudeDecoderConfig], trainings: Mapping[str, Training], run: Run, rate_of: str = "", marks: Sequence[float] = ()
) -> Metrics:
    """One arm: trained at its chosen rate (or that of `rate_of`), judged on held-out text; at `marks` (shares of the steps) on the way too."""
    ids = as_ids((run.path("prepared") / "text").read_bytes())
    known, _, held_out = split(ids)
    chosen, training, curve = read_chosen(run)[rate_of or name], trainings[name], list[float]()

    def look(model: PreTrainedModel) -> None:
        found = nats(model, held_out, training)
        curve.append(sum(found.top) / len(found.top))

    places = {min(training.steps - 1, round(share * training.steps)): look for share in marks}
    model = train(configs[name], known, training, chosen["rate"], run.seed, run.device, places)
    found = nats(model, held_out, training)
    size = sum(parameter.numel() for parameter in model.parameters())
    metrics = Metrics(nats=found, parameters=float(size), tokens=float(training.steps * training.batch * training.length), **told(chosen))
    if curve:
        metrics["curve"] = [*curve, metrics.nats]
        metrics["last_gain"] = curve[-1] - metrics.nats
    return metrics
