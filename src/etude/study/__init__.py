"""The family's verb for tables of runs: find the law that the larger runs will follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from etude.data.contract import Budget, Data, Table
    from etude.study._law import Law


class Fits(Protocol):
    """A contender that fits laws."""

    def points(self, budget: Budget, subject: Table) -> list[Self]:
        """Operating points for a budget on this table, around the options the user set."""
        ...

    def fit(self, table: Any, data: Data | None) -> Law:
        """The law of a table of runs; a `Law(formula, constants)` is enough."""
        ...
