"""A law as a formula: what `fit` returns, saved as JSON that any program can read and loaded without the technique that made it."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from etude.study._runs import Array

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"log": np.log, "exp": np.exp, "minimum": np.minimum, "maximum": np.maximum}


@dataclass(frozen=True)
class Law:
    """A formula of N (parameters) and D (tokens) with fitted constants.

    Attributes:
        formula: arithmetic in N, D and the constants' names (+ - * / **, log, exp, minimum, maximum), for example "E + A / N**alpha".
        parameters: the constants by name.
        draws: the same from each bootstrap draw; empty without a bootstrap.
        residuals: ln(predicted) - ln(observed) of the rows that were fitted.
        about: what else a reader must know: rows, ranges, options, notes; plain JSON. Its "runs" are not repeated in `fit.json`.
    """

    formula: str
    parameters: Mapping[str, float]
    draws: Mapping[str, Array] = field(default_factory=dict)
    residuals: Array = field(default_factory=lambda: np.zeros(0))
    about: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, parameters: Any, tokens: Any) -> Any:
        """The loss of a model with so many parameters after so many tokens; arrays work elementwise."""
        return evaluate(self.formula, {"N": np.asarray(parameters, float), "D": np.asarray(tokens, float), **self.parameters})

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap intervals of the constants (skewed ones stay skewed); NaN without draws."""
        return {name: percentiles(self.draws.get(name), level) for name in self.parameters}

    def predictive(self, parameters: Any, tokens: Any, level: float = 0.95) -> tuple[Array, Array]:
        """The interval in which a new run's loss is expected: bootstrap draws of the law times draws of its residuals.

        Raises:
            ValueError: the law was fitted without a bootstrap.
        """
        if not self.draws or not len(self.residuals):
            raise ValueError("the law holds no bootstrap draws, so it has no interval: fit with bootstrap > 0")
        n, d = np.atleast_1d(np.asarray(parameters, float)), np.atleast_1d(np.asarray(tokens, float))
        drawn = {name: np.asarray(values)[:, None] for name, values in self.draws.items()}
        lines = evaluate(self.formula, {"N": n[None], "D": d[None], **drawn})
        dice = np.random.default_rng(0)
        freedom = np.sqrt(len(self.residuals) / max(1, len(self.residuals) - len(self.parameters)))
        noise = dice.choice(self.residuals * freedom, size=lines.shape)
        tail = (1 - level) / 2
        low, high = np.quantile(lines * np.exp(-noise), [tail, 1 - tail], axis=0)
        return low, high

    def to_json(self) -> dict[str, Any]:
        """What `fit.json` holds: each constant with its 95 % interval at the top, then the formula, the residuals and the rest."""
        intervals = self.interval()
        constants = {
            name: {"value": float(value), "low": nullable(intervals[name][0]), "high": nullable(intervals[name][1])}
            for name, value in self.parameters.items()
        }
        law = {"formula": self.formula, "constants": list(self.parameters), "residuals": [float(f"{r:.6g}") for r in self.residuals]}
        return {**constants, "law": law, "about": {key: value for key, value in self.about.items() if key != "runs"}}

    def save(self, folder: Path | str) -> None:
        """Write `fit.json` and, where there was a bootstrap, `draws.json` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fit.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")
        write_draws(self.draws, folder)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The law that `save` wrote.

        Raises:
            ValueError: the folder holds no `fit.json` with a formula, or its formula is not plain arithmetic.
        """
        path = Path(folder) / "fit.json"
        if not path.exists():
            raise ValueError(f"{folder} holds no fit.json: a law saves one (etude.study._law.Law does)")
        data = json.loads(path.read_text())
        if "law" not in data:
            raise ValueError(f'{path} has no entry "law" with a formula: save the law with etude.study._law.Law')
        constants = {name: float(data[name]["value"]) for name in data["law"]["constants"]}
        evaluate(data["law"]["formula"], {"N": np.ones(1), "D": np.ones(1), **constants})
        return cls(data["law"]["formula"], constants, read_draws(Path(folder)), np.array(data["law"]["residuals"]), data.get("about", {}))


def evaluate(formula: str, values: Mapping[str, Any]) -> Any:
    """The value of an arithmetic formula; nothing but arithmetic is ever run.

    Raises:
        ValueError: another kind of expression, or a name without a value.
    """

    def visit(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return visit(body)
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return float(value)
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](visit(left), visit(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](visit(operand))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(visit, args))
        raise ValueError(f"{ast.unparse(node)!r} in the formula {formula!r} is neither arithmetic nor one of {', '.join(['N', 'D', *values])}")

    with np.errstate(all="ignore"):
        return visit(ast.parse(formula, mode="eval"))


def write_draws(draws: Mapping[str, Array], folder: Path) -> None:
    """`draws.json`, where there was a bootstrap."""
    if draws:
        drawn = {name: [float(f"{value:.9g}") for value in values] for name, values in draws.items()}
        (folder / "draws.json").write_text(json.dumps(drawn) + "\n")


def read_draws(folder: Path) -> dict[str, Array]:
    """What `write_draws` wrote; nothing where it wrote nothing."""
    path = folder / "draws.json"
    return {name: np.array(values) for name, values in json.loads(path.read_text()).items()} if path.exists() else {}


def percentiles(draws: Array | None, level: float = 0.95) -> tuple[float, float]:
    """The middle share `level` of the draws, NaN where there are none."""
    if draws is None or not len(draws):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(draws), [tail, 1 - tail])
    return float(low), float(high)


def nullable(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None
