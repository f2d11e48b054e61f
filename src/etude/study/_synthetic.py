"""Synthetic tables of runs from known constants: the embedded example, smoke runs and tests. Nobody trained these models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from etude.study._runs import Array

CONSTANTS = {"E": 1.75, "A": 420.0, "B": 1500.0, "alpha": 0.34, "beta": 0.345}


def isoflop_table(
    constants: Mapping[str, float] = CONSTANTS, noise: float = 0.01, seed: int = 0, budgets: int = 8, sizes: int = 9, lowest: float = 1e18
) -> dict[str, Array]:
    """Columns parameters, tokens, loss, compute of `budgets` x `sizes` runs, each budget three times the one before.

    Args:
        noise: standard deviation of ln loss.
    """
    dice = np.random.default_rng(seed)
    compute = np.repeat(lowest * 3.0 ** np.arange(budgets), sizes)
    spread = np.tile(np.geomspace(1 / 5, 5, sizes), budgets)
    parameters = np.round(spread * np.sqrt(compute / (6 * 20)))
    tokens = np.round(compute / (6 * parameters))
    loss = constants["E"] + constants["A"] * parameters ** -constants["alpha"] + constants["B"] * tokens ** -constants["beta"]
    loss = loss * np.exp(noise * dice.standard_normal(len(loss)))
    return {"parameters": parameters, "tokens": tokens, "loss": loss, "compute": 6 * parameters * tokens}


def csv_text(table: Mapping[str, Array]) -> str:
    """The table as CSV."""
    lines = [",".join(table)] + [",".join(f"{value:.6g}" for value in row) for row in zip(*table.values(), strict=True)]
    return "\n".join(lines) + "\n"
