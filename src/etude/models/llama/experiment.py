"""The études of LLaMA: is it the architecture, does the smaller model on more tokens win, do its parts pay, does the mixture matter?

The margins are the sheet's. Both sides of a comparison choose their rate alike: three rates around 3e-3, up to five where the best is the outermost,
on a text and a seed that are not measured. Cut at the desk: in the race the rates are chosen on a quarter of the tokens, equally on both sides. The
four sources are what every installation carries (`sources`); the King James Bible and help pages of the sheet are not on every machine.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from etude.data.corpora import file_of
from etude.harness.contract import Claim, Experiment, Figure, Run
from etude.harness.verdict import above, exact
from etude.measure.contract import Metrics
from etude.models._size import count, with_hidden
from etude.models.baselines.gpt2_block import Gpt2Block
from etude.models.llama import Llama
from etude.models.llama.arms import BYTES, Training, as_ids, choose, faithful, trained
from etude.models.llama.blend import blended, shares, single
from etude.models.llama.recipe import inference_flops, training_flops
from etude.models.llama.sources import NAMES, sources
from etude.nn.decoder_config import EtudeDecoderConfig

Arms = Mapping[str, Metrics]
RATE = 3e-3  # where the search for a rate begins


def lower(arm: str, than: str) -> Callable[[Arms], float]:
    """Nats a byte by which `arm` lies below `than`."""
    return lambda m: m[than].nats - m[arm].nats


# ---- 1: the architecture ----


@dataclass(frozen=True)
class Checks:
    """Which checkpoint is read beside the tiny one, and how many tokens it answers."""

    model: str
    tokens: int


class Faithful(Experiment[Checks]):
    """Checkpoints through our Llama and ours through transformers, both ways, in float32."""

    deterministic = True
    claims = (
        Claim("a tiny checkpoint with grouped queries: logits within 1e-4 of transformers'", lambda m: m["tiny"].loaded, exact(0, 1e-4), over="none",
              row="1"),
        Claim("saved as a Hugging Face Llama and read by transformers, and reloaded as ours: within 1e-4", lambda m: m["tiny"].saved, exact(0, 1e-4),
              over="none", row="1"),
        Claim("SmolLM2-135M: logits within 2e-3", lambda m: m["checkpoint"].loaded, exact(0, 2e-3), over="none", row="1"),
        Claim("SmolLM2-135M saved and read again both ways: within 2e-3", lambda m: m["checkpoint"].saved, exact(0, 2e-3), over="none", row="1"),
        Claim("SmolLM2-135M: the same 30 greedy tokens, four ways", lambda m: m["checkpoint"].same_text, exact(1.0, 0.0), over="none", row="1"),
    )  # fmt: skip
    scales = {"smoke": Checks("tiny", 8), "desk": Checks("smollm2", 30), "gpu": Checks("HuggingFaceTB/SmolLM2-1.7B", 30)}

    def arms(self, scale: Checks) -> Mapping[str, Callable[[Run, Checks], Metrics]]:
        return {"tiny": partial(faithful, "tiny", scale.tokens), "checkpoint": partial(faithful, scale.model, scale.tokens)}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 2.6))
        rows = [(f"{arm}, {way}", getattr(metrics, way)) for (arm, _), metrics in runs.items() for way in ("loaded", "saved")]
        axes.barh([name for name, _ in rows], [max(value, 1e-9) for _, value in rows])
        axes.set_xscale("log")
        axes.axvline(1e-4, color="black", linewidth=0.8)
        axes.set_xlabel("largest difference of a logit (line: 1e-4)")
        figure.tight_layout()
        return figure


# ---- 2: smaller, on more tokens ----


@dataclass(frozen=True)
class Race:
    """Two sizes at equal training FLOPs.

    Attributes:
        text: a corpus by name; small: parameters; ratio: of the larger one to it; tokens: that the small one sees.
        choosing: share of the tokens on which rates are chosen; batch, length, judged: as in `Training`.
    """

    text: str
    small: int
    ratio: float
    tokens: float
    choosing: float
    batch: int = 8
    length: int = 128
    judged: int = 256

    def configs(self) -> dict[str, EtudeDecoderConfig]:
        sizes = {"small": self.small, "large": round(self.ratio * self.small)}
        return {name: Llama(context=self.length).config(BYTES, size) for name, size in sizes.items()}

    def trainings(self, share: float = 1.0) -> dict[str, Training]:
        sizes = {name: count(config) for name, config in self.configs().items()}
        budget = share * training_flops(sizes["small"], self.tokens)
        steps = {name: max(2, round(budget / training_flops(size, self.batch * self.length))) for name, size in sizes.items()}
        return {name: Training(many, self.batch, self.length, self.judged) for name, many in steps.items()}


class SmallerForLonger(Experiment[Race]):
    """A tenth of the size on ten times the tokens."""

    claims = (
        Claim("at equal training FLOPs the ten times smaller model on ten times the tokens ends at least 0.2 nat a byte lower",
              lower("small", "large"), above(0.2), row="2"),
        Claim("its answer costs at most a tenth of the FLOPs a token", lambda m: inference_flops(round(m["small"].parameters))
              / inference_flops(round(m["large"].parameters)), exact(0, 0.1), over="none", row="2"),
        Claim("its curve still falls at the end: the last tenth of its steps lowers the held-out loss", lambda m: m["small"].last_gain, above(0.0),
              row="2"),
    )  # fmt: skip
    scales = {
        "smoke": Race("python-docs", 20_000, 10.1, 20_000, 0.25, judged=8, length=32),
        "desk": Race("wikitext2", 400_000, 10.1, 2e6, 0.25),
        "gpu": Race("wikitext2", 4_000_000, 10.1, 3e8, 0.1, batch=64, length=512),
    }
    marks = (0.1, 0.25, 0.5, 0.75, 0.9)

    def prepare(self, run: Run, scale: Race, folder: Path) -> None:
        write(folder, scale.text, run, scale.configs(), scale.trainings(scale.choosing))

    def arms(self, scale: Race) -> Mapping[str, Callable[[Run, Race], Metrics]]:
        configs, trainings = scale.configs(), scale.trainings()
        return {name: partial(in_race, name, configs, trainings, self.marks) for name in configs}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.4))
        for (arm, _), metrics in runs.items():
            flops = [share * training_flops(round(metrics.parameters), metrics.tokens) for share in (*self.marks, 1.0)]
            axes.plot(flops, metrics["curve"], "o-", color={"small": "C0", "large": "C1"}[arm], alpha=0.6)
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs (blue: the small model, orange: the large one; one line a seed)")
        axes.set_ylabel("held-out nats a byte")
        figure.tight_layout()
        return figure


def in_race(
    name: str, configs: Mapping[str, EtudeDecoderConfig], trainings: Mapping[str, Training], marks: tuple[float, ...], run: Run, scale: Race
) -> Metrics:
    """One side of the race."""
    return trained(name, configs, trainings, run, marks=marks)


def write(folder: Path, text: str, run: Run, configs: Mapping[str, EtudeDecoderConfig], trainings: Mapping[str, Training]) -> None:
    """The text of an étude and the rates that its two sides choose."""
    content = file_of(text, say=lambda line: None).read_bytes()
    (folder / "text").write_bytes(content)
    (folder / "rates.json").write_text(json.dumps(choose(configs, as_ids(content), trainings, RATE, run.device)))


# ---- 3: the parts ----


@dataclass(frozen=True)
class Block:
    """Depth and width of both sides, and how they are trained."""

    text: str
    layers: int
    width: int
    training: Training

    def configs(self) -> dict[str, EtudeDecoderConfig]:
        """GPT-2's block, Llama's at its size, and Llama with one part of GPT-2's at a time, all of one size."""
        context = self.training.length
        gpt2 = Gpt2Block(layers=self.layers, width=self.width, context=context).shape(BYTES)
        size = count(gpt2)
        llama = Llama(layers=self.layers, width=self.width, context=context).config(BYTES, size)
        plain = {"method": "gpt2_block", "heads": llama.mixer["heads"], "bias": False}
        gelu = {"method": "gpt2_block", "hidden": 4 * self.width, "bias": False}
        changes = {
            "layer_norm": {"norm": "layer", "bias": True},
            "gelu": {"channel_mixer": gelu},
            "learned_positions": {"mixer": plain, "positions": "learned"},
            "biases": {"mixer": llama.mixer | {"bias": True}, "channel_mixer": llama.channel_mixer | {"bias": True}},
        }
        ablated = {name: as_large(EtudeDecoderConfig(**llama.to_dict() | change), size) for name, change in changes.items()}
        return {"llama": llama, "gpt2": gpt2, **ablated}


def as_large(config: EtudeDecoderConfig, size: int) -> EtudeDecoderConfig:
    """The configuration with the hidden width that gives it this size."""
    hidden = config.channel_mixer["hidden"]
    each = count(with_hidden(config, hidden + 1)) - count(with_hidden(config, hidden))
    return with_hidden(config, hidden + round((size - count(config)) / each))


class Components(Experiment[Block]):
    """Llama's block against GPT-2's, and Llama with one part replaced by GPT-2's (recorded, no claim: the sheet sets no threshold)."""

    claims = (
        Claim("the full recipe ends at least 0.03 nat a byte below GPT-2's block of equal size", lower("llama", "gpt2"), above(0.03), row="3"),
    )  # fmt: skip
    scales = {
        "smoke": Block("python-docs", 1, 32, Training(4, 4, 32, 8)),
        "desk": Block("python-docs", 4, 96, Training(300, 16, 128, 256)),
        "gpu": Block("wikitext2", 8, 512, Training(4000, 32, 512, 256)),
    }

    def prepare(self, run: Run, scale: Block, folder: Path) -> None:
        sides = {name: config for name, config in scale.configs().items() if name in ("llama", "gpt2")}
        write(folder, scale.text, run, sides, dict.fromkeys(sides, scale.training))

    def arms(self, scale: Block) -> Mapping[str, Callable[[Run, Block], Metrics]]:
        return {name: partial(with_parts, name, scale.configs()) for name in scale.configs()}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        return dots(runs, "held-out nats a byte (one dot a seed): Llama, GPT-2's block, Llama with one part of GPT-2's")


def with_parts(name: str, configs: Mapping[str, EtudeDecoderConfig], run: Run, scale: Block) -> Metrics:
    """One block; the ablated ones train at Llama's rate."""
    return trained(name, configs, dict.fromkeys(configs, scale.training), run, rate_of="gpt2" if name == "gpt2" else "llama")


def dots(runs: Mapping[tuple[str, int], Metrics], title: str) -> Figure:
    """Each arm's loss, one dot a seed and a bar at the mean."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    names = list(dict.fromkeys(arm for arm, _ in runs))
    for place, name in enumerate(names):
        values = [metrics.nats for (arm, _), metrics in runs.items() if arm == name]
        axes.plot(values, [place] * len(values), "o", alpha=0.6)
        axes.plot([statistics.fmean(values)], [place], "|", color="black", markersize=18)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(title, fontsize=8)
    figure.tight_layout()
    return figure


# ---- 4: the mixture ----


@dataclass(frozen=True)
class Blend:
    """Characters of each source at most, the model's parameters, and its training."""

    limit: int
    parameters: int
    training: Training

    def config(self) -> EtudeDecoderConfig:
        return Llama(context=self.training.length).config(BYTES, self.parameters)


class Mixtures(Experiment[Blend]):
    """Four public sources: mixed by weight, mixed alike, and each alone; judged on all four. All train at one rate, chosen on the even mixture."""

    claims = (
        Claim("the weighted mixture ends at least 0.3 nat a byte below the best single source, on the mean over the sources",
              lambda m: min(m[name].nats for name in NAMES) - m["weighted"].nats, above(0.3), row="4"),
    )  # fmt: skip
    scales = {
        "smoke": Blend(20_000, 20_000, Training(4, 4, 32, 8)),
        "desk": Blend(1_000_000, 200_000, Training(400, 8, 128, 64)),
        "gpu": Blend(5_000_000, 30_000_000, Training(4000, 64, 512, 256)),
    }

    def prepare(self, run: Run, scale: Blend, folder: Path) -> None:
        texts = sources(scale.limit)
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        (folder / "rates.json").write_text(json.dumps(shares(texts, scale.config(), scale.training, RATE, run.device)))

    def arms(self, scale: Blend) -> Mapping[str, Callable[[Run, Blend], Metrics]]:
        mixed = {name: partial(blended, name, scale.config()) for name in ("weighted", "uniform")}
        return mixed | {name: partial(single, name, scale.config()) for name in NAMES}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        names = list(dict.fromkeys(arm for arm, _ in runs))
        table = [[statistics.fmean(getattr(m, f"on_{source}") for (arm, _), m in runs.items() if arm == name) for source in NAMES] for name in names]
        figure, axes = pyplot.subplots(figsize=(5, 3.6))
        image = axes.imshow(table, cmap="viridis_r", aspect="auto")
        axes.set_xticks(range(len(NAMES)), [f"on {name}" for name in NAMES])
        axes.set_yticks(range(len(names)), names)
        figure.colorbar(image, label="held-out nats a byte")
        figure.tight_layout()
        return figure


EXPERIMENTS = (Faithful, SmallerForLonger, Components, Mixtures)
