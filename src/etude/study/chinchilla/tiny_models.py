"""The smallest language models that scale: four symbols of context into one hidden layer, trained in seconds on one core.

Embedding d, hidden 2 d, 64 symbols: 484 parameters at d = 2, 14,464 at d = 32. Used by the étude's ladder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

SYMBOLS, CONTEXT, BATCH = 64, 4, 256


class ContextMLP(nn.Module):
    """ids (B, 4) -> logits (B, 64)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, width)
        self.hidden = nn.Linear(CONTEXT * width, 2 * width)
        self.out = nn.Linear(2 * width, SYMBOLS)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.out(torch.nn.functional.gelu(self.hidden(self.embed(ids_BT).flatten(1))))


@dataclass(frozen=True)
class Trained:
    """One run of a ladder: N, D, C = 6 N D, and the loss on held-out text in nats a symbol."""

    parameters: int
    tokens: int
    compute: float
    loss: float


def size_of(width: int) -> int:
    """Parameters of a `ContextMLP` of this width, embeddings included."""
    return SYMBOLS * width + (CONTEXT * width + 1) * 2 * width + (2 * width + 1) * SYMBOLS


def width_for(parameters: float) -> int:
    """The width whose model is nearest in size."""
    return min(range(1, 257), key=lambda width: abs(math.log(size_of(width) / parameters)))


def symbols(text: bytes) -> Tensor:
    """Bytes as symbols: the 63 most frequent ones, all others as one."""
    counts = torch.bincount(torch.frombuffer(bytearray(text), dtype=torch.uint8).long(), minlength=256)
    table = torch.full((256,), SYMBOLS - 1)
    table[counts.argsort(descending=True, stable=True)[: SYMBOLS - 1]] = torch.arange(SYMBOLS - 1)
    return table[torch.frombuffer(bytearray(text), dtype=torch.uint8).long()]


def split(ids: Tensor, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """Training text and, after it, held-out text."""
    cut = int(len(ids) * (1 - share))
    return ids[:cut], ids[cut:]


def train(width: int, tokens: int, ids: Tensor, seed: int, rate: float = 1e-2) -> Trained:
    """AdamW at batch 256, cosine to a tenth of the peak over exactly `tokens` tokens; positions are drawn at random."""
    known, new = split(ids)
    dice = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ContextMLP(width)
    steps = max(1, round(tokens / BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    reach = torch.arange(CONTEXT)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        at = torch.randint(len(known) - CONTEXT, (BATCH,), generator=dice)
        loss = torch.nn.functional.cross_entropy(model(known[at[:, None] + reach]), known[at + CONTEXT])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    size = sum(p.numel() for p in model.parameters())
    return Trained(size, steps * BATCH, 6.0 * size * steps * BATCH, held_out_loss(model, new))


@torch.inference_mode()
def held_out_loss(model: nn.Module, ids: Tensor) -> float:
    """Mean nats a symbol over the whole held-out text."""
    windows = ids.unfold(0, CONTEXT + 1, 1)
    total = 0.0
    for part in windows.split(16_384):
        total += float(torch.nn.functional.cross_entropy(model(part[:, :-1]), part[:, -1], reduction="sum"))
    return total / len(windows)


def ladder(widths: Sequence[int], horizons: Sequence[int], ids: Tensor, seed: int) -> Iterator[Trained]:
    """Every width at every horizon, each run with a schedule of its own; seeds differ from run to run."""
    for k, (width, tokens) in enumerate(product(widths, horizons)):
        yield train(width, tokens, ids, 1000 * seed + k)
