r"""The intervention itself: exact truncated singular value decompositions, read from one cached decomposition a matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from etude.data.cache import memo
from etude.nn.factored import factorize, saves
from etude.nn.surgery import replace_module, set_weight, weight_of

MEMOISED = 1 << 16  # matrices from this many numbers on are decomposed once on this disk


class Decomposition(NamedTuple):
    """W = U diag(S) V: singular values descending, float32."""

    U: Float[Tensor, "m k"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "k n"]


@dataclass(frozen=True)
class Intervention:
    """Keep the share `rho` of the largest possible rank of the layer `name`."""

    name: str
    rho: float

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho must lie in (0, 1], got {self.rho}: it is the share of the largest possible rank that is kept")


def rank_of(rho: float, rows: int, columns: int) -> int:
    """floor(rho min(m, n)), and 1 where that is 0."""
    return max(1, int(rho * min(rows, columns) + 1e-9))


def stored_numbers(rows: int, columns: int, rank: int) -> int:
    """How many numbers the smaller of the two forms holds."""
    return rank * (rows + columns) if saves(rows, columns, rank) else rows * columns


@torch.no_grad()
def decompose(weight: Float[Tensor, "m n"], name: str = "the matrix") -> Decomposition:
    """The exact decomposition in float32, memoised by the weight's digest.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name} holds NaN or infinity: it has no singular values")

    def make() -> dict[str, Tensor]:
        U, S, V = torch.linalg.svd(weight.float(), full_matrices=False)
        return {"U": U, "S": S, "V": V}

    parts = make() if weight.numel() < MEMOISED else memo(f"svd {digest(weight)}", make)
    return Decomposition(*(parts[name].to(weight.device) for name in ("U", "S", "V")))


def digest(weight: Tensor) -> str:
    """Names the numbers, their type and their shape."""
    numbers = weight.detach().contiguous().cpu().view(torch.uint8).numpy()
    return hashlib.sha256(f"{tuple(weight.shape)} {weight.dtype}".encode() + numbers.tobytes()).hexdigest()


def low_rank(parts: Decomposition, rank: int) -> Float[Tensor, "m n"]:
    """W_r, the best approximation of this rank."""
    return (parts.U[:, :rank] * parts.S[:rank]) @ parts.V[:rank]


def complement(parts: Decomposition, rank: int) -> Float[Tensor, "m n"]:
    """W - W_r: the components that the intervention discards."""
    return (parts.U[:, rank:] * parts.S[rank:]) @ parts.V[rank:]


def factors(parts: Decomposition, rank: int) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]]:
    """A and B with A B = W_r, the singular values shared evenly between them."""
    root = parts.S[:rank].sqrt()
    return parts.U[:, :rank] * root, root[:, None] * parts.V[:rank]


def reduce(model: PreTrainedModel, intervention: Intervention, dense: bool = False) -> None:
    """Apply one intervention for good: two factors where they are smaller and `dense` is not asked for, else the product. rho 1 changes nothing."""
    if intervention.rho == 1:
        return
    module = model.get_submodule(intervention.name)
    weight = weight_of(module)
    parts, rank = decompose(weight, intervention.name), rank_of(intervention.rho, *weight.shape)
    if dense or not saves(*weight.shape, rank):
        set_weight(module, low_rank(parts, rank))
    else:
        replace_module(model, intervention.name, factorize(module, *factors(parts, rank)))


@contextmanager
def replaced(model: nn.Module, weights: Sequence[tuple[str, Float[Tensor, "_ _"]]]) -> Iterator[None]:
    """Other weights in these layers for the body; afterwards the old ones, bit by bit, whatever happened."""
    kept = [(model.get_submodule(name), weight_of(model.get_submodule(name)).detach().clone()) for name, _ in weights]
    try:
        with torch.no_grad():
            for name, weight in weights:
                weight_of(model.get_submodule(name)).copy_(weight)
        yield
    finally:
        with torch.no_grad():
            for module, old in reversed(kept):
                weight_of(module).copy_(old)


@contextmanager
def intervened(model: nn.Module, interventions: Sequence[Intervention]) -> Iterator[None]:
    """The model under these interventions for the body, dense and in its own dtype; then undone bit by bit."""
    weights = list[tuple[str, Tensor]]()
    for name, rho in ((each.name, each.rho) for each in interventions):
        weight = weight_of(model.get_submodule(name))
        if rho < 1:
            weights.append((name, low_rank(decompose(weight, name), rank_of(rho, *weight.shape))))
    with replaced(model, weights):
        yield
