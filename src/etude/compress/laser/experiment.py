"""The études of LASER: an intervention chosen on half of the facts, depth, rare facts, and size against honest compressors.

The margins are the sheet's. Beyond it: noise also searches its own place with as many tries as LASER, magnitude pruning competes, and the invented
world takes the best intervention even where none helps. Cut at the desk: fitted factors (the gpu scale has them), and one prompt chooses.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from etude.compress.laser import sweep
from etude.compress.laser.arms import Scale, answers, at_layer, from_table, in_world, load_model, noise_there, same_matrix, shrunk
from etude.compress.laser.world import World, corpus, train_world
from etude.harness.contract import Claim, Experiment, Figure, Run
from etude.harness.verdict import above, below
from etude.measure.contract import Metrics

Arms = Mapping[str, Metrics]


DESK = Scale(
    model="smollm2",
    facts=None,
    layers=tuple(range(1, 29, 3)),
    rhos=(0.05, 0.5),
    ablations=("noise", "zero", "magnitude"),
    noises=3,
    blocks=30,
    depth=0.01,
    world=1500,
    triples=40000,
    steps=3000,
    rotated="smollm2-rotated",
    share=0.71,
    tokens=8192,
)
SCALES = {
    "smoke": Scale("tiny", 4, (1, 3), (0.5,), ("noise", "zero", "magnitude", "fitted"), 2, 4, 0.1, 40, 500, 30, "tiny", 0.8, 512),
    "desk": DESK,
    "gpu": Scale(
        model="meta-llama/Meta-Llama-3-8B",
        facts=None,
        layers=tuple(range(32)),
        rhos=(0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01, 0.005),
        ablations=("noise", "zero", "magnitude", "fitted"),
        noises=3,
        blocks=32,
        depth=0.01,
        world=8000,
        triples=400_000,
        steps=20000,
        rotated="meta-llama/Meta-Llama-3-8B",
        share=0.6,
        tokens=65536,
    ),
}


def spread(runs: Mapping[tuple[str, int], Metrics], metric: str, title: str) -> Figure:
    """One dot a seed and a bar at the mean, for every arm that has the metric."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    names = list(dict.fromkeys(arm for arm, _ in runs if metric in runs[arm, _]))
    for place, name in enumerate(names):
        values = [getattr(metrics, metric) for (arm, _), metrics in runs.items() if arm == name]
        axes.plot(values, [place] * len(values), "o", alpha=0.6)
        axes.plot([statistics.fmean(values)], [place], "|", color="black", markersize=18)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(title)
    figure.tight_layout()
    return figure


# ---- 1: does one intervention help out of sample? ----


def gain(arm: str, metric: str = "nll", sign: float = 1.0, over: str = "untouched") -> Callable[[Arms], float]:
    """How much lower (with sign -1: higher) the metric is in `arm` than in `over`."""
    return lambda m: sign * (getattr(m[over], metric) - getattr(m[arm], metric))


class Intervention(Experiment[Scale]):
    """A random half of the facts chooses among all single interventions, the other half is asked."""

    seeds = 5
    claims = (
        Claim("one intervention, chosen on half of the facts, lowers the nats of the others by at least 0.1", gain("laser"), above(0, effect=0.1),
              row="1", overlap=1.0),
        Claim("it raises their top-1 accuracy", gain("laser", "top1", -1), above(0), row="1", overlap=1.0),
        Claim("it beats noise of the same norm in the same matrix (best of 3 seeds)", gain("laser", over="noise"), above(0), row="1", overlap=1.0),
        Claim("it beats noise that may choose its own matrix", gain("laser", over="noise_anywhere"), above(0), row="1", overlap=1.0),
        Claim("it beats the same matrix set to zero", gain("laser", over="zero"), above(0), row="1", overlap=1.0),
        Claim("it beats magnitude pruning that may choose its own matrix", gain("laser", over="magnitude"), above(0), row="1", overlap=1.0),
        Claim("more facts are right in all four paraphrases", gain("laser", "robust", -1), above(0), row="1", overlap=1.0),
    )  # fmt: skip
    scales = SCALES

    def prepare(self, run: Run, scale: Scale, folder: Path) -> None:
        model, tokenizer = load_model(scale.model, run)
        asked = sweep.questions(scale.facts)
        grid = sweep.settings(model, "mlp", scale.layers, scale.rhos, scale.ablations)
        sweep.save(folder / "table.json", (sweep.answered(model, tokenizer, asked, each) for each in grid))

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        searched = {"noise_anywhere": ("noise",)} | {kind: (kind,) for kind in scale.ablations if kind not in ("noise", "zero")}
        return {
            "untouched": partial(answers, ()),
            "laser": partial(answers, ("laser",)),
            "noise": noise_there,
            "zero": same_matrix,
        } | {name: partial(from_table, kinds) for name, kinds in searched.items()}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        return spread(runs, "nll", "nats a token of held-out answers (one dot a random half)")


# ---- 2: depth ----

LATE = tuple(range(10, 28))


def change(layer: int, matrix: str) -> Callable[[Arms], float]:
    """Nats that the facts lose when this matrix of this layer is reduced."""
    return lambda m: getattr(m[f"layer{layer:02d}"], matrix) - m["untouched"].nll


def median_change(matrix: str, layers: tuple[int, ...] | None = None) -> Callable[[Arms], float]:
    """Median over the layers that were measured."""
    names = None if layers is None else {f"layer{layer:02d}" for layer in layers}
    return lambda m: statistics.median(getattr(m[a], matrix) - m["untouched"].nll for a in m if a != "untouched" and (names is None or a in names))


class Depth(Experiment[Scale]):
    """Every layer's matrices reduced to a hundredth of their rank, one at a time: the paper's heat map."""

    deterministic = True
    claims = (
        Claim("reducing down_proj of layer 1 to rho 0.01 costs at least 5 nats", change(1, "down"), above(5), over="items", row="2"),
        Claim("the median over layers 10 to 27 costs at most 0.5 nats", median_change("down", LATE), below(0.5), over="items", row="2"),
        Claim("attention matrices are more nearly indifferent: at rho 0.01 o costs less than down at the median layer",
              lambda m: median_change("down")(m) - median_change("o")(m), above(0), over="items", row="2"),
    )  # fmt: skip
    scales = SCALES

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        return {"untouched": partial(at_layer, None)} | {f"layer{layer:02d}": partial(at_layer, layer) for layer in range(scale.blocks)}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        base, columns = runs["untouched", 0].nll, ("gate", "up", "down", "q", "k", "v", "o")
        arms = sorted(arm for arm, _ in runs if arm != "untouched")
        table = [[min(6.0, getattr(runs[arm, 0], name) - base) for arm in arms] for name in columns]
        figure, axes = pyplot.subplots(figsize=(8, 3))
        image = axes.imshow(table, aspect="auto", cmap="RdBu_r", vmin=-2, vmax=2)
        axes.set_yticks(range(len(columns)), columns)
        axes.set_xlabel("layer")
        figure.colorbar(image, label="change in nats (red: worse)")
        return figure


# ---- 3: rare facts ----


def third(which: int) -> Callable[[Arms], float]:
    """Accuracy that LASER gains in a third of the held-out facts by frequency."""
    names = ("rare", "middle", "frequent")
    return lambda m: getattr(m["laser"], names[which]) - getattr(m["untouched"], names[which])


class Frequency(Experiment[Scale]):
    """An invented world, Zipf frequencies, a third of what is said is wrong: a model trained on it from scratch, then reduced."""

    claims = (
        Claim("rare facts gain more accuracy than frequent ones", lambda m: third(0)(m) - third(2)(m), above(0), row="3"),
        Claim("one intervention, chosen on half of the facts, lowers the nats of the others by at least 0.1 there too", gain("laser"),
              above(0, effect=0.1), row="1"),
        Claim("it beats noise of the same norm in the same matrix there too (best of 3 seeds)", gain("laser", over="noise"), above(0), row="1"),
    )  # fmt: skip
    scales = SCALES

    def prepare_seed(self, run: Run, scale: Scale, folder: Path) -> None:
        world = World(subjects=scale.world, seed=run.seed)
        triples, shown = corpus(world, scale.triples, run.seed)
        train_world(triples, world.vocabulary, scale.steps, seed=run.seed).save_pretrained(folder)
        (folder / "shown.json").write_text(json.dumps(shown))

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        return {name: partial(in_world, name) for name in ("untouched", "laser", "noise")}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.2))
        for seed in sorted({seed for _, seed in runs}):
            arms = {arm: metrics for (arm, at), metrics in runs.items() if at == seed}
            axes.plot(["rare", "middle", "frequent"], [third(place)(arms) for place in range(3)], "o-", alpha=0.6)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel("gain in accuracy (one line a seed)")
        return figure


# ---- 4: size ----


def worse(model: str, than: str) -> Callable[[Arms], float]:
    """Bits per byte that LASER costs beyond another compressor; not defined where it has fewer bytes than that one."""

    def value(m: Arms) -> float:
        ours, theirs = m[f"{model}/laser"], m[f"{model}/{than}"]
        return ours.bits_per_byte - theirs.bits_per_byte if ours.bytes >= theirs.bytes else math.nan

    return value


class Size(Experiment[Scale]):
    """LASER over all MLP matrices against rounding and block dropping, where it has at least as many bytes as they."""

    deterministic = True
    claims = (
        Claim("no free compressor: LASER over all layers costs more bits per byte than 8-bit rounding of no more bytes (off the grid)",
              worse("rotated", "8bit"), above(0), over="blocks", row="4"),
        Claim("it costs more than 4-bit rounding of no more bytes (off the grid)", worse("rotated", "4bit"), above(0), over="blocks", row="4"),
        Claim("it costs more than blocks dropped to no more bytes (off the grid)", worse("rotated", "block_drop"), above(0), over="blocks", row="4"),
        Claim("it costs more than blocks dropped to no more bytes (raw weights)", worse("raw", "block_drop"), above(0), over="blocks", row="4"),
    )  # fmt: skip
    scales = SCALES

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        models, methods = {"raw": scale.model, "rotated": scale.rotated}, ("untouched", "laser", "8bit", "4bit", "block_drop")
        return {f"{kind}/{method}": partial(shrunk, spec, method) for kind, spec in models.items() for method in methods}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.5))
        for (arm, _), metrics in runs.items():
            axes.plot(metrics.bytes / 1e6, metrics.bits_per_byte, "o" if arm.startswith("raw") else "s")
            axes.annotate(arm, (metrics.bytes / 1e6, metrics.bits_per_byte), fontsize=7, xytext=(4, 4), textcoords="offset points")
        axes.set_xlabel("MB on disk")
        axes.set_ylabel("bits per byte")
        axes.set_yscale("log")
        return figure


EXPERIMENTS = (Intervention, Depth, Frequency, Size)
