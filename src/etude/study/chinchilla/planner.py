"""From a size to a decoder that can be built, and from no runs at all to a ladder of cheap ones whose cost is known first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

HEAD = 64  # width of an attention head
ASPECT = 96  # width / depth of usual decoders


@dataclass(frozen=True)
class Config:
    """A Llama-style decoder (gated MLP of 8/3 width, tied embeddings).

    Attributes:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, vocab_size: as transformers names them.
        parameters: embeddings included; body: without them.
        flops: true training FLOP for the planned tokens, attention over `context` included.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    context: int
    parameters: int
    body: int
    flops: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def buildable(parameters: float, tokens: float, vocabulary: int = 32_000, context: int = 2048) -> Config:
    """The usual decoder whose size, embeddings included, is closest to `parameters`."""
    if parameters < 1e6:
        raise ValueError(f"{parameters:.4g} parameters are too few for a decoder with {vocabulary} tokens: plan from 1e6 on")
    vocabulary = min(vocabulary, int(parameters / 128))
    choices = []
    for width in [*range(HEAD, 1024, HEAD), *range(1024, 32_769, 256)]:
        layers = max(1, round((parameters - width * vocabulary) / (_body(width, 1) - width)))
        misfit = abs(float(np.log((_body(width, layers) + width * vocabulary) / parameters)))
        choices.append((misfit + 0.05 * abs(float(np.log(width / layers / ASPECT))), width, layers))
    _, width, layers = min(choices)
    body = _body(width, layers)
    per_token = 6 * (body + width * vocabulary) + 6 * layers * context * width  # causal attention: half of 12 L T d
    return Config(width, _hidden(width), layers, width // HEAD, vocabulary, context, body + width * vocabulary, body, float(per_token * tokens))


@dataclass(frozen=True)
class Rung:
    """One run of a ladder: train `parameters` on `tokens` with a learning-rate cycle of exactly that length."""

    budget: int
    parameters: float
    tokens: float
    compute: float


@dataclass(frozen=True)
class Ladder:
    """Runs that a user without runs should make, the cheapest first.

    Attributes:
        rungs: the runs.
        compute: FLOP of all of them together.
    """

    rungs: tuple[Rung, ...]
    compute: float

    def hours(self, flops_per_second: float) -> float:
        """Hours on a machine that sustains so many FLOP a second."""
        return self.compute / flops_per_second / 3600

    def __str__(self) -> str:
        head = f"{len(self.rungs)} runs, {self.compute:.3g} FLOP in all; let each run's learning rate decay over exactly its own tokens\n"
        return head + "\n".join(f"budget {r.budget}  N {r.parameters:.3g}  D {r.tokens:.3g}  C {r.compute:.3g}" for r in self.rungs)


def ladder(
    largest: float, budgets: int = 6, sizes: int = 5, step: float = 3.0, width: float = 16.0, ratio: float = 20.0, flops: float = 6.0
) -> Ladder:
    """`budgets` IsoFLOP groups up to `largest` FLOP a run, each with `sizes` model sizes around `ratio` tokens a parameter.

    Args:
        step: ratio of neighbouring budgets.
        width: largest over smallest model of one budget.

    Raises:
        ValueError: too few budgets or sizes to identify a law.
    """
    if budgets < 2 or sizes < 4:
        raise ValueError(f"{budgets} budgets x {sizes} sizes do not pin a parabola at each of several budgets: take at least 2 x 4")
    if not (largest > 0 and step > 1 and width > 1 and ratio > 0):
        raise ValueError(f"largest={largest} and ratio={ratio} must be positive, step={step} and width={width} above 1")
    rungs = []
    for k in range(budgets):
        compute = largest / step ** (budgets - 1 - k)
        centre = np.sqrt(compute / (flops * ratio))
        for n in centre * np.geomspace(width**-0.5, width**0.5, sizes):
            rungs.append(Rung(k + 1, float(n), float(compute / (flops * n)), float(compute)))
    return Ladder(tuple(rungs), float(sum(rung.compute for rung in rungs)))


def _hidden(width: int) -> int:
    return -(-8 * width // 3 // HEAD) * HEAD


def _body(width: int, layers: int) -> int:
    return layers * (4 * width * width + 3 * width * _hidden(width) + 2 * width) + width
