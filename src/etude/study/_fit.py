"""What the laws that are fitted by a robust loss on logs share: their options, and how a fit and its bootstrap become a law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from etude.study._law import Law
from etude.study._robust import Model, bootstrap_weights, minimise
from etude.study._runs import Array, Runs

Natural = Callable[[Array], Mapping[str, Array]]  # the constants of the formula from the coordinates that were fitted


@dataclass(frozen=True)
class LogFit:
    """Options of the fit.

    Attributes:
        delta: Huber threshold on ln L.
        bootstrap: draws of whole runs for the intervals; 0 for none.
        seed: of the bootstrap.
    """

    delta: float = 1e-3
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta is a positive Huber threshold on ln L, got {self.delta}")
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap is a count and cannot be negative, got {self.bootstrap}")

    def points(self, budget: Any, subject: Any) -> list[Self]:
        """One operating point: a fit costs next to nothing."""
        return [self]

    def law(self, formula: str, runs: Runs, model: Model, starts: Array, natural: Natural) -> Law:
        """The law at the best end of these starts, with its bootstrap draws from there."""
        target = np.log(runs.loss)
        ends, reached = minimise(model, starts, target, self.delta)
        best = ends[int(np.argmin(reached))][None]
        draws: Mapping[str, Array] = {}
        if self.bootstrap:
            weights = bootstrap_weights(runs.run, self.bootstrap, self.seed)
            drawn, _ = minimise(model, np.repeat(best, len(weights), 0), target, self.delta, weights, steps=150, tolerance=1e-10)
            draws = natural(drawn)
        constants = {name: float(value[0]) for name, value in natural(best).items()}
        about = {"rows": len(runs), "flops": runs.flops, "compute": [float(runs.compute.min()), float(runs.compute.max())]}
        return Law(formula, constants, draws, model(best)[0][0] - target, about)
