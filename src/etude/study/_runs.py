"""A table of training runs as arrays: columns found by role or by name, rows checked, bad tables refused with the value and the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.int64]  # positions in a table

# Normalised column names (lower case, letters and digits only), most telling first.
NAMES = {
    "parameters": ("parameters", "params", "nparams", "numparams", "numparameters", "nparameters", "parametercount", "modelsize", "size", "n"),
    "tokens": ("tokens", "ntokens", "numtokens", "trainingtokens", "traintokens", "tokensseen", "numinputtokensseen", "d"),
    "compute": ("compute", "flop", "flops", "trainingflop", "trainingflops", "totalflos", "totalflops", "trainflops", "c"),
    "loss": ("loss", "finalloss", "evalloss", "valloss", "validationloss", "testloss", "heldoutloss", "trainloss", "l"),
    "run": ("run", "runid", "runname", "id"),
}
REQUIRED = "parameters and loss, and tokens or compute"


@dataclass(frozen=True)
class Runs:
    """Rows of a table of runs, in the table's order.

    Attributes:
        parameters: N, model parameters.
        tokens: D, training tokens.
        loss: final loss in nats a token (any unit proportional to it will do).
        compute: C, training FLOP.
        run: which run a row belongs to; rows of one run are resampled together.
        flops: C / (N D), the FLOP that one parameter spends on one token; 6 unless the table or the user says otherwise.
    """

    parameters: Array
    tokens: Array
    loss: Array
    compute: Array
    run: tuple[str, ...]
    flops: float = 6.0

    def __len__(self) -> int:
        return len(self.loss)

    def at(self, rows: Any) -> Runs:
        """The rows at these positions or where this mask is true."""
        picks = np.arange(len(self))[rows]
        return Runs(self.parameters[picks], self.tokens[picks], self.loss[picks], self.compute[picks], tuple(self.run[i] for i in picks), self.flops)

    def finished(self) -> Runs:
        """The last row of each run: with a decaying schedule the earlier ones are no losses of shorter runs."""
        last: dict[str, int] = {}
        for i, run in enumerate(self.run):
            if run not in last or self.tokens[i] > self.tokens[last[run]]:
                last[run] = i
        return self.at(sorted(last.values()))

    def without_highest_losses(self, count: int) -> Runs:
        """All rows but the `count` highest losses, order kept."""
        if count >= len(self):
            raise ValueError(f"drop_highest_losses={count} leaves nothing of {len(self)} rows: lower it")
        return self.at(sorted(np.argsort(self.loss, kind="stable")[: len(self) - count]))


def read(table: Any, flops: float | None = None) -> Runs:
    """The runs of `table`: a `Table` part, a pandas DataFrame, or a mapping of columns.

    Args:
        table: needs parameters, loss and one of tokens and compute; the third of N, D, C follows from C = flops N D.
        flops: FLOP a parameter spends on a token. None takes the median of the table where it holds all three, else 6.

    Raises:
        ValueError: a column is missing, or a value is no positive number.
    """
    columns = {role: _column(table, name) for role, name in find_columns(table).items()}
    for role in ("parameters", "loss"):
        if role not in columns:
            raise ValueError(f"the table has no {role} column (it has {', '.join(_names(table))}): it needs {REQUIRED}")
    if not {"tokens", "compute"} & set(columns):
        raise ValueError(f"the table has neither tokens nor compute (it has {', '.join(_names(table))}): it needs {REQUIRED}")
    numbers = {role: _positive(role, values) for role, values in columns.items() if role != "run"}
    n, loss = numbers["parameters"], numbers["loss"]
    if "tokens" in numbers and "compute" in numbers and flops is None:
        flops = float(np.median(numbers["compute"] / (n * numbers["tokens"])))
    kappa = 6.0 if flops is None else float(flops)
    tokens = numbers["tokens"] if "tokens" in numbers else numbers["compute"] / (kappa * n)
    compute = numbers["compute"] if "compute" in numbers else kappa * n * tokens
    run = tuple(map(str, columns["run"])) if "run" in columns else tuple(map(str, range(len(loss))))
    return Runs(n, tokens, loss, compute, run, kappa)


def find_columns(table: Any) -> dict[str, str]:
    """Role -> column: the roles that the table carries, then what its column names tell."""
    roles = {role: column for role, column in getattr(table, "roles", {}).items() if role in NAMES}
    plain = {re.sub("[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower()): name for name in reversed(_names(table))}
    plain |= {re.sub("[^a-z0-9]", "", name.lower()): name for name in reversed(_names(table))}
    for role, names in NAMES.items():
        found = next((plain[name] for name in names if name in plain and plain[name] not in roles.values()), None)
        if role not in roles and found is not None:
            roles[role] = found
    return roles


def check(runs: Runs, rows: int = 6) -> None:
    """Refuse a table from which E, A and B cannot be told apart.

    Raises:
        ValueError: fewer than `rows` rows, fewer than three model sizes or token counts, all D = k N, or a loss that rises with N.
    """
    if len(runs) < rows:
        raise ValueError(f"the table holds {len(runs)} runs, a law needs at least {rows}: add runs (etude's ladder plans cheap ones)")
    for what, values in (("model sizes", runs.parameters), ("token counts", runs.tokens)):
        count = len(clusters(values))
        if count < 3:
            raise ValueError(f"the table holds {count} distinct {what}, a law needs at least 3: E, A and B cannot be told apart; vary them")
    ratio = runs.tokens / runs.parameters
    if float(np.log(ratio.max() / ratio.min())) < 0.02:
        raise ValueError(
            f"every run has D = {float(np.median(ratio)):.4g} N: size and data cannot be told apart, only L(C) can; "
            "add runs with other tokens per parameter"
        )
    slope, error = size_slope(runs)
    if slope > 0 and slope > 2 * error:
        raise ValueError(
            f"the loss rises with model size (as N to the {slope:.3g} at equal tokens): is it an accuracy? Give a loss, lower for better models"
        )


def size_slope(runs: Runs) -> tuple[float, float]:
    """The slope of ln L in ln N at equal D by least squares, with its standard error."""
    x = np.stack([np.ones(len(runs)), np.log(runs.parameters), np.log(runs.tokens)], 1)
    y = np.log(runs.loss)
    theta = np.linalg.lstsq(x, y, rcond=None)[0]
    spread = float(np.sum((y - x @ theta) ** 2)) / max(1, len(runs) - 3)
    return float(theta[1]), float(np.sqrt(spread * np.linalg.pinv(x.T @ x)[1, 1]))


def clusters(values: Array, gap: float = 0.01) -> list[Rows]:
    """Positions of values grouped where neighbours differ by less than the share `gap`, in ascending order."""
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(values[order])) > gap) + 1
    return list(np.split(order, cuts))


def trainer_history(state: Mapping[str, Any], run: str, parameters: float | None = None, which: Literal["eval_loss", "loss"] = "eval_loss") -> dict:
    """Columns of a table from one `trainer_state.json` of the Hugging Face Trainer, one row a logged loss.

    Args:
        state: the parsed file; it must hold `num_input_tokens_seen` in its log (`include_num_input_tokens_seen=True`).
        run: a name for the run.
        parameters: N; left out, it follows from `total_flos` = 6 N D (the Trainer counts without embeddings).
    """
    logged = [row for row in state["log_history"] if which in row and row.get("num_input_tokens_seen")]
    if not logged:
        raise ValueError(f"run {run}: no {which} with num_input_tokens_seen was logged: train with include_num_input_tokens_seen=True")
    if parameters is None:
        if not state.get("total_flos"):
            raise ValueError(f"run {run}: total_flos is {state.get('total_flos')}, so the model size is unknown: give parameters")
        parameters = state["total_flos"] / (6 * max(row["num_input_tokens_seen"] for row in logged))
    rows = [{"run": run, "parameters": parameters, "tokens": row["num_input_tokens_seen"], "loss": row[which]} for row in logged]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _names(table: Any) -> list[str]:
    if hasattr(table, "dataset"):
        return list(table.dataset.column_names)
    return [str(name) for name in (table.columns if hasattr(table, "columns") else table)]


def _column(table: Any, name: str) -> Any:
    if hasattr(table, "dataset"):
        return list(table.dataset[name])
    return list(table[name])


def _positive(role: str, values: Any) -> Array:
    numbers = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            numbers[i] = float(value)
        except (TypeError, ValueError):
            numbers[i] = np.nan
        if not (np.isfinite(numbers[i]) and numbers[i] > 0):
            told = "missing or not a number" if value is None else value
            raise ValueError(f"row {i + 1}: {role} is {told}, it must be a positive number: correct or remove the row")
    return numbers
