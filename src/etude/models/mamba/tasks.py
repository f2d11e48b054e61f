"""Two tasks that ask for content, not place: induction heads and selective copying (arXiv 2312.00752, section 4.1).

A batch follows from its seed alone. Its answers are asked for at the last tokens: one in induction, as many as were to be remembered in copying.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

# Dimensions: B batch, L length (of what is read before the cues), S sequence, M answers.
SYMBOLS = 8  # tokens 0..7 carry content; the marker, or noise and cue, come after them
VOCABULARY = SYMBOLS + 2


@dataclass(frozen=True)
class Task:
    """One of the two.

    Attributes:
        name: "induction" or "copying".
        answers: tokens that are to be answered, at the end of the sequence.
    """

    name: str
    answers: int = 1

    def batch(self, size: int, length: int, seed: int) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B M"]]:
        """Sequences, and the answers at their last tokens.

        Raises:
            ValueError: the length has no place for what is to be remembered.
        """
        dice = torch.Generator().manual_seed(seed)
        return induction(size, length, dice) if self.name == "induction" else copying(size, length, self.answers, dice)


def induction(size: int, length: int, dice: torch.Generator) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B M"]]:
    """Random symbols with a marker among them and at the end: the answer is the symbol that followed the first marker (section 4.1.2)."""
    if length < 3:
        raise ValueError(f"induction needs at least 3 tokens (marker, symbol, marker), got a length of {length}")
    ids_BS, rows_B = torch.randint(0, SYMBOLS, (size, length), generator=dice), torch.arange(size)
    place_B = torch.randint(0, length - 2, (size,), generator=dice)
    ids_BS[rows_B, place_B] = ids_BS[:, -1] = SYMBOLS
    return ids_BS, ids_BS[rows_B, place_B + 1, None]


def copying(size: int, length: int, count: int, dice: torch.Generator) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B M"]]:
    """`count` symbols at random places among noise, then as many cues: the answers are the symbols in their order (section 4.1.1)."""
    if length < count:
        raise ValueError(f"{count} symbols do not fit a length of {length}: give at least {count}")
    place_BM = torch.rand(size, length, generator=dice).argsort(1)[:, :count].sort(1).values
    answers_BM = torch.randint(0, SYMBOLS, (size, count), generator=dice)
    ids_BS = torch.full((size, length + count), SYMBOLS)
    ids_BS[:, length:] = SYMBOLS + 1
    return ids_BS.scatter(1, place_BM, answers_BM), answers_BM
