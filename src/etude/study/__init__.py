"""The family's verb: fit a law to a table of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import numpy as np

    from etude.data.contract import Budget, Data, Table


class Law(Protocol):
    """A fitted law: predicts the loss of a run from its parameters and tokens."""

    def predict(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray: ...
    def save(self, folder: Path) -> None: ...
    def plot(self) -> Any: ...


class Fitter(Protocol):
    """A study contender."""

    def points(self, budget: Budget, subject: Table) -> list[Self]: ...
    def fit(self, table: Table, data: Data | None = None) -> Law: ...
