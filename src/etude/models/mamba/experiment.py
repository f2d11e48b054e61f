"""The études of Mamba: content-based tasks against a time-invariant system, cost against length, and language against a Llama.

The margins are the sheet's. Beyond it: rotary and learned positions are both in the induction field, every arm's learning rate follows its own
optimum (equally many trials on seeds that are not used again), and times are CPU seconds of one thread, so that runs beside each other disturb them
little. Cut at the desk: 600,000 tokens of language, and lengths up to 8,192.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from etude.harness.contract import Claim, Experiment, Figure, Run
from etude.harness.verdict import above, below, exact, within
from etude.measure.contract import Metrics
from etude.models.mamba.arms import Language, Lengths, Synthetic, in_turn, language, solved, tune_language, tune_tasks

Arms = Mapping[str, Metrics]
Recorded = Mapping[tuple[str, int], Metrics]


def accuracy(arm: str, *stretches: int) -> Callable[[Arms], float]:
    """The arm's lowest accuracy at these multiples of the training length."""
    return lambda m: min(getattr(m[arm], f"accuracy_x{stretch}") for stretch in stretches)


# ---- 1: induction heads ----


class Induction(Experiment[Synthetic]):
    """What followed the marker the first time? Trained on 32 tokens, asked on up to 512."""

    claims = (
        Claim("selection solves induction heads up to 4 times the training length: accuracy at least 0.99", accuracy("selective", 1, 2, 4),
              exact(1.0, 0.01), row="1"),
        Claim("it extrapolates to 16 times the length: accuracy at least 0.7", accuracy("selective", 16), above(0.7), row="1"),
        Claim("without selection accuracy is at most 0.3 at twice the length", accuracy("invariant", 2), below(0.3), row="1"),
    )  # fmt: skip
    scales = {
        "smoke": Synthetic("induction", 1, 8, (1, 2, 4, 16), steps=3, batch=8, trials=1, tuners=1, judged=8, width=16, state=4),
        "desk": Synthetic("induction", 1, 32, (1, 2, 4, 16), steps=400),
        "gpu": Synthetic("induction", 1, 256, (1, 2, 4, 16, 64, 256, 1024, 4096), steps=20_000, batch=8, judged=64, width=64, state=16),
    }
    names = ("selective", "invariant", "rotary", "learned")

    def prepare(self, run: Run, scale: Synthetic, folder: Path) -> None:
        tune_tasks(self.names, run, scale, folder)

    def arms(self, scale: Synthetic) -> Mapping[str, Callable[[Run, Synthetic], Metrics]]:
        return {name: partial(solved, name) for name in self.names}

    def plot(self, runs: Recorded) -> Figure:
        return by_length(runs, "induction heads: one line a seed")


# ---- 2: selective copying ----


class Copying(Experiment[Synthetic]):
    """Which four symbols stood among the noise? Trained on 24 tokens, asked on up to 96."""

    claims = (
        Claim("selection copies at the training length: accuracy at least 0.95", accuracy("selective", 1), above(0.95), row="2"),
        Claim("and at twice the length: accuracy at least 0.9", accuracy("selective", 2), above(0.9), row="2"),
        Claim("without selection accuracy is at most 0.85 at the training length", accuracy("invariant", 1), below(0.85), row="2"),
        Claim("and at most 0.55 at twice the length", accuracy("invariant", 2), below(0.55), row="2"),
    )
    scales = {
        "smoke": Synthetic("copying", 4, 8, (1, 2, 4), steps=3, batch=8, trials=1, tuners=1, judged=8, width=16, state=4),
        "desk": Synthetic("copying", 4, 24, (1, 2, 4), steps=550),
        "gpu": Synthetic("copying", 16, 4096, (1, 2, 4), steps=20_000, width=64, state=64),
    }
    names = ("selective", "invariant")

    def prepare(self, run: Run, scale: Synthetic, folder: Path) -> None:
        tune_tasks(self.names, run, scale, folder)

    def arms(self, scale: Synthetic) -> Mapping[str, Callable[[Run, Synthetic], Metrics]]:
        return {name: partial(solved, name) for name in self.names}

    def plot(self, runs: Recorded) -> Figure:
        return by_length(runs, "selective copying: one line a seed")


def by_length(runs: Recorded, title: str) -> Figure:
    """Accuracy against length, a colour an arm."""
    figure, axes = _axes(title)
    for k, arm in enumerate(dict.fromkeys(arm for arm, _ in runs)):
        for (name, _), metrics in runs.items():
            if name == arm:
                places = [int(key.removeprefix("accuracy_x")) for key in metrics if key.startswith("accuracy_x")]
                axes.plot(places, [getattr(metrics, f"accuracy_x{place}") for place in places], "o-", color=f"C{k}", alpha=0.5, markersize=3)
        axes.plot([], [], "o-", color=f"C{k}", label=arm)
    axes.set(xscale="log", xlabel="length over training length", ylabel="accuracy")
    axes.legend()
    return figure


# ---- 3: cost ----


class Cost(Experiment[Lengths]):
    """Prefill and decoding of equal-sized models with random weights, from 256 to 8,192 tokens of context."""

    claims = (
        Claim("Mamba's prefill time grows with an exponent of at most 1.15", lambda m: m["in turn"].mamba_exponent, below(1.15), row="3"),
        Claim("transformers' Llama's grows with one of at least 1.5", lambda m: m["in turn"].llama_exponent, above(1.5), row="3"),
        Claim("Mamba's decode step takes as long after the longest prompt as after the shortest, within 15 %", lambda m: m["in turn"].mamba_slower,
              within(0.85, 1.15), row="3"),
        Claim("its state is E (K + N) numbers a block, at every length", lambda m: worst_state(m["in turn"]), exact(0.0, 0.0), row="3"),
    )  # fmt: skip
    scales = {
        "smoke": Lengths(30_000, (32, 64, 128), repeats=1, steps=4),
        "desk": Lengths(2_000_000, (256, 512, 1024, 2048, 4096, 8192), repeats=3, steps=32),
        "gpu": Lengths(130_000_000, (1024, 2048, 4096, 8192, 16384, 32768), repeats=5, steps=64),
    }

    def arms(self, scale: Lengths) -> Mapping[str, Callable[[Run, Lengths], Metrics]]:
        return {"in turn": in_turn}

    def plot(self, runs: Recorded) -> Figure:
        figure, axes = _axes("CPU seconds of a prefill, one line a run; the slope is the exponent")
        for metrics in runs.values():
            for k, name in enumerate(("mamba", "llama")):
                seconds = _curve(metrics, f"{name}_prefill")
                decode = _curve(metrics, f"{name}_decode")
                axes.plot(
                    range(len(seconds)), seconds, "o-", color=f"C{k}", alpha=0.5, label=f"{name}: decode {decode[0]:.1f} to {decode[-1]:.1f} ms"
                )
        axes.set(yscale="log", xlabel="doublings of the shortest length", ylabel="seconds")
        axes.legend(fontsize=7)
        return figure


def worst_state(metrics: Metrics) -> float:
    """How far the measured bytes of the state lie off the formula, at the worst length, as a share."""
    return max(abs(size / metrics.formula - 1) for size in _curve(metrics, "mamba_state"))


def _curve(metrics: Metrics, name: str) -> Sequence[float]:
    value = metrics[name]
    assert isinstance(value, list)
    return value


# ---- 4: language ----


class LanguageModel(Experiment[Language]):
    """About a million parameters, bytes of WikiText-2, the family's one recipe: AdamW, cosine, each arm's rate tuned."""

    claims = (
        Claim("Mamba's bits per byte are at most 0.02 above those of a Llama of the same size after the same tokens",
              lambda m: m["mamba"].bits_per_byte - m["llama"].bits_per_byte, below(0.02), row="4"),
    )  # fmt: skip
    scales = {
        "smoke": Language("tiny", 30_000, 2048, 64, trials=1),
        "desk": Language("wikitext2", 1_000_000, 600_000, 256, trials=4),
        "gpu": Language("wikitext2", 130_000_000, 100_000_000, 1024, trials=4),
    }
    names = ("mamba", "llama")

    def prepare(self, run: Run, scale: Language, folder: Path) -> None:
        tune_language(self.names, run, scale, folder)

    def arms(self, scale: Language) -> Mapping[str, Callable[[Run, Language], Metrics]]:
        return {name: partial(language, name) for name in self.names}

    def plot(self, runs: Recorded) -> Figure:
        figure, axes = _axes("bits per byte of held-out text (one dot a seed)")
        for place, name in enumerate(self.names):
            values = [metrics.bits_per_byte for (arm, _), metrics in runs.items() if arm == name]
            axes.plot(values, [place] * len(values), "o", alpha=0.6)
            axes.plot([statistics.fmean(values)], [place], "|", color="black", markersize=18)
        axes.set_yticks(range(len(self.names)), self.names)
        return figure


def _axes(title: str) -> tuple[Figure, Figure]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=9)
    return figure, axes


EXPERIMENTS = (Induction, Copying, Cost, LanguageModel)
