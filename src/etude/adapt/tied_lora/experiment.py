"""The études of Tied-LoRA: close to LoRA on an encoder, what vectors and pair each add, the share by depth, and a decoder.

The margins are the sheet's. Every arm gets as many trials of its rate (three, following the better side), on a seed that is not used again and on
rows that are neither trained on nor reported; the new label head has one rate in all arms, tuned where it is trained alone. Beyond the sheet:
Tied-LoRA must also beat the head alone, without which closeness to LoRA would mean nothing. Cut at the desk: rank 2 (the gpu scale trains ranks 2 to
128), and training rows from 2,000 to 1,200.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

from etude.adapt.tied_lora.arms import SHAPES, answered, classified, counted, filed, tuned_rates
from etude.adapt.tied_lora.material import Answer, Classify, Scale
from etude.harness.contract import Claim, Experiment, Figure, Run
from etude.harness.verdict import above, exact
from etude.measure.contract import Metrics

Arms = Mapping[str, Metrics]

SCALES = {
    "smoke": Scale("tiny", "tiny", (8,), 40, 1, 40, 40, (), 24, 12, 200, 8, 2, ("tiny", "7B")),
    "desk": Scale("minilm", "smollm2", (8,), 1200, 3, None, 400, (), 512, 128, 48, 16, 3, ("minilm", "smollm2", *SHAPES)),
    "gpu": Scale(
        encoder="minilm",
        decoder="HuggingFaceTB/SmolLM2-1.7B",
        ranks=(2, 8, 32, 128),
        rows=6520,
        epochs=3,
        judged=None,
        back=400,
        tasks=("gsm8k/train.jsonl", "gsm8k/test.jsonl"),
        told=6000,
        asked=800,
        longest=512,
        size=16,
        trials=3,
        models=("minilm", "smollm2", *SHAPES),
    ),
}


def points(a: str, b: str) -> Callable[[Arms], float]:
    """Percentage points of accuracy by which arm `a` is above arm `b`."""
    return lambda m: 100 * (m[a].accuracy - m[b].accuracy)


def kept(rates: Mapping[str, object], folder: Path) -> None:
    """Write the tuned rates where the arms read them."""
    (folder / "rates.json").write_text(json.dumps(rates))


# ---- 1 to 3: an encoder ----


class Encoder(Experiment[Scale]):
    """Sentiment of film reviews by a sentence encoder of six layers; another draw of training rows for each seed."""

    seeds = 5
    claims = (
        Claim("Tied-LoRA of rank 8 is within 1.5 points of fused LoRA", points("tl6_8", "fused_8"), above(-1.5), row="1"),
        Claim("it is within 1.5 points of PEFT's LoRA on q, k and v", points("tl6_8", "lora_8"), above(-1.5), row="1"),
        Claim("it trains 4dr + L(r + 3d) numbers", lambda m: m["tl6_8"].numbers - m["tl6_8"].formula, exact(0, 0), over="none", row="1"),
        Claim("it beats training the head alone", points("tl6_8", "head"), above(0), row="1"),
        Claim("without the vectors it is not better by more than 0.3 points", points("tl6_8", "no_vectors_8"), above(-0.3), row="2"),
        Claim("with the pair frozen (VeRA) it is worse by at least 0.5 points", points("tl6_8", "vectors_8"), above(0, effect=0.5), row="3"),
    )
    scales = SCALES

    def prepare(self, run: Run, scale: Scale, folder: Path) -> None:
        kept(tuned_rates(Classify, self.arms(scale), scale), folder)

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        names = [f"{kind}_{rank}" for rank in scale.ranks for kind in ("tl6", "fused", "lora", "no_vectors", "vectors")]
        return {name: partial(classified, name) for name in ("head", *names)}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        for name in dict.fromkeys(arm for arm, _ in runs):
            found = [metrics for (arm, _), metrics in runs.items() if arm == name]
            size = max(1.0, found[0].numbers)
            axes.plot([size] * len(found), [metrics.accuracy for metrics in found], ".", alpha=0.5)
            axes.annotate(name, (size, statistics.fmean(metrics.accuracy for metrics in found)), fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("trained numbers of the adapter")
        axes.set_ylabel("accuracy (one dot a seed)")
        figure.tight_layout()
        return figure


# ---- 4: depth ----


def counts(m: Arms) -> list[Metrics]:
    """What was counted, from the shallowest model to the deepest."""
    return sorted((m[arm] for arm in m if arm != "files"), key=lambda metrics: metrics.layers)


class Depth(Experiment[Scale]):
    """Trained numbers at rank 8 on models of 6 to 80 layers, counted on the models themselves, and the saved files of the decoder."""

    deterministic = True
    claims = (
        Claim("trained numbers are the formula's on every model", lambda m: sum(abs(each.tl6 - each.formula) for each in counts(m)), exact(0, 0),
              over="none", row="4"),
        Claim("the share of LoRA falls with every step in depth (steps where it does not)",
              lambda m: float(sum(deep.share_of_fused >= flat.share_of_fused for flat, deep in pairwise(counts(m)))), exact(0, 0),
              over="none", row="4"),
        Claim("the decoder's file is at most 15 % of that of PEFT's LoRA", lambda m: m["files"].tl6 / m["files"].lora, exact(0, 0.15),
              over="none", row="4"),
    )  # fmt: skip
    scales = SCALES

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        return {name: partial(counted, name) for name in scale.models} | {"files": filed}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.2))
        found = sorted(((metrics.layers, metrics, arm) for (arm, _), metrics in runs.items() if arm != "files"), key=lambda one: one[0])
        for share, title in (("share_of_fused", "of fused LoRA"), ("share_of_lora", "of PEFT's LoRA")):
            axes.plot([layers for layers, _, _ in found], [100 * getattr(metrics, share) for _, metrics, _ in found], "o-", label=title)
        axes.set_xticks([layers for layers, _, _ in found], [f"{arm}\n{layers:.0f}" for layers, _, arm in found])
        axes.set_xlabel("layers")
        axes.set_ylabel("trained numbers, % (rank 8)")
        axes.legend()
        figure.tight_layout()
        return figure


# ---- 5: a decoder ----


def reduction(m: Arms) -> float:
    """Tied-LoRA's fall of the loss as a share of LoRA's."""
    return (m["untouched"].loss - m["tl6_8"].loss) / (m["untouched"].loss - m["lora_8"].loss)


class Decoder(Experiment[Scale]):
    """Instruction rows made from film reviews, answered by a chat model in bfloat16."""

    claims = (Claim("Tied-LoRA lowers the loss of answers at least 97 % as much as PEFT's LoRA", reduction, above(0.97), row="5"),)
    scales = SCALES

    def prepare(self, run: Run, scale: Scale, folder: Path) -> None:
        kept(tuned_rates(Answer, [arm for arm in self.arms(scale) if arm != "untouched"], scale), folder)

    def arms(self, scale: Scale) -> Mapping[str, Callable[[Run, Scale], Metrics]]:
        names = [f"{kind}_{rank}" for rank in scale.ranks for kind in ("tl6", "lora")]
        return {name: partial(answered, name) for name in ("untouched", *names)}

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 2.4))
        names = list(dict.fromkeys(arm for arm, _ in runs))
        for place, name in enumerate(names):
            losses = [metrics.loss for (arm, _), metrics in runs.items() if arm == name]
            axes.plot(losses, [place] * len(losses), "o", alpha=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("nats an answer token, held out (one dot a seed)")
        figure.tight_layout()
        return figure


EXPERIMENTS = (Encoder, Depth, Decoder)
