"""The known answer of the contest: runs that follow a law exactly but for noise, and contenders of which it is known who must win."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.study._law import Law
from etude.study._runs import read
from etude.study._synthetic import CONSTANTS, csv_text, isoflop_table

WINNER, LOSER, TWINS = "true_form", "worn_copy", ("twin", "other_twin")
FORMULA = "E + A / N**alpha + B / D**beta"


def plant(folder: Path) -> dict[str, str]:
    """Write a table of 72 runs with 1 % noise; what to bring is returned."""
    (folder / "runs.csv").write_text(csv_text(isoflop_table(noise=0.01, seed=7)))
    return {"data": str(folder / "runs.csv")}


def least_squares(table: Any, rows: Any = slice(None)) -> dict[str, float]:
    """E, A, B by linear least squares on relative errors, the exponents being known."""
    runs = read(table).at(rows)
    basis = np.stack([np.ones(len(runs)), runs.parameters ** -CONSTANTS["alpha"], runs.tokens ** -CONSTANTS["beta"]], 1)
    floor, size, data = np.linalg.lstsq(basis / runs.loss[:, None], np.ones(len(runs)), rcond=None)[0]
    return {"E": float(floor), "A": float(size), "B": float(data), "alpha": CONSTANTS["alpha"], "beta": CONSTANTS["beta"]}


@dataclass(frozen=True)
class TrueForm:
    """The planted winner: it knows the exponents."""

    def fit(self, table: Any, data: Any) -> Law:
        return Law(FORMULA, least_squares(table))


@dataclass(frozen=True)
class WornCopy:
    """The degraded copy: the winner's law with a floor 5 % too high."""

    def fit(self, table: Any, data: Any) -> Law:
        constants = least_squares(table)
        return Law(FORMULA, constants | {"E": 1.05 * constants["E"]})


def _drawn(table: Any, seed: int) -> Law:
    dice = np.random.default_rng(seed)
    count = len(read(table))
    return Law(FORMULA, least_squares(table, dice.integers(0, count, count)))


@dataclass(frozen=True)
class Twin:
    """One of two contenders that are the same but for their dice."""

    salt: int = 1

    def fit(self, table: Any, data: Any) -> Law:
        return _drawn(table, 1000 * data.seed + self.salt)


@dataclass(frozen=True)
class OtherTwin:
    """The other one."""

    salt: int = 2

    def fit(self, table: Any, data: Any) -> Law:
        return _drawn(table, 1000 * data.seed + self.salt)
