"""What a fit gives back: a law of N and D with its optimum in closed form, or, from approaches 1 and 2, the optimal frontier alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from etude.study._law import Law, nullable, percentiles, read_draws, write_draws
from etude.study._runs import Array
from etude.study.chinchilla import report
from etude.study.chinchilla.planner import Config, buildable

FAR = 10.0  # a plan beyond this multiple of the largest run is warned about


@dataclass(frozen=True)
class Plan:
    """The compute-optimal run for a budget; each triple is (value, low, high) at 95 %.

    Attributes:
        compute: C in FLOP.
        parameters, tokens, loss: N, D and L, loss with the spread of single runs.
        config: a decoder of about that size that can be built, with its true FLOP count; None below 1M parameters.
        far: how many times the largest run of the table C is.
        note: what to be careful about; empty when nothing.
    """

    compute: float
    parameters: tuple[float, float, float]
    tokens: tuple[float, float, float]
    loss: tuple[float, float, float]
    config: Config | None = None
    far: float = 1.0
    note: str = ""

    @property
    def tokens_per_parameter(self) -> float:
        """D / N, about 20 in the paper."""
        return self.tokens[0] / self.parameters[0]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with `value`, `low` and `high` a quantity."""
        out: dict[str, Any] = {"compute": self.compute}
        for name in ("parameters", "tokens", "loss"):
            value, low, high = getattr(self, name)
            out[name] = {"value": nullable(value), "low": nullable(low), "high": nullable(high)}
        config = self.config.to_json() if self.config else None
        return out | {"tokens_per_parameter": self.tokens_per_parameter, "config": config, "times_largest_run": self.far, "note": self.note}


class Planning(Protocol):
    """What the two kinds of law share: exponents, plans, notes."""

    about: Mapping[str, Any]

    def plan(self, compute: float) -> Plan: ...


@dataclass(frozen=True)
class ChinchillaLaw(Law):
    """L(N, D) = E + A / N^alpha + B / D^beta with its optimum, iso-loss curves and plots."""

    @property
    def flops(self) -> float:
        """FLOP that a parameter spends on a token: C = flops N D."""
        return float(self.about.get("flops", 6.0))

    @property
    def exponent(self) -> float:
        """a = beta / (alpha + beta), the exponent of N_opt(C); tokens grow with 1 - a."""
        return self.parameters["beta"] / (self.parameters["alpha"] + self.parameters["beta"])

    def exponents(self, level: float = 0.95) -> dict[str, tuple[float, float, float]]:
        """a and b = 1 - a, each with its percentile interval."""
        drawn = self.draws["beta"] / (self.draws["alpha"] + self.draws["beta"]) if self.draws else None
        low, high = percentiles(drawn, level)
        return {"a": (self.exponent, low, high), "b": (1 - self.exponent, 1 - high, 1 - low)}

    def optimum(self, compute: float) -> tuple[float, float]:
        """N and D of least loss with flops N D = C (eq. 4)."""
        n, d = optimum(self.parameters, compute / self.flops)
        return float(n), float(d)

    def plan(self, compute: float) -> Plan:
        """The best model and token count for `compute` FLOP, with intervals.

        Raises:
            ValueError: `compute` is no positive number.
        """
        if not (np.isfinite(compute) and compute > 0):
            raise ValueError(f"a plan needs a positive number of FLOP, got {compute}")
        n, d = self.optimum(compute)
        spans = [(float("nan"),) * 2] * 3
        if self.draws:
            some_n, some_d = optimum(self.draws, compute / self.flops)
            low, high = self.predictive(n, d)
            spans = [percentiles(some_n), percentiles(some_d), (float(low[0]), float(high[0]))]
        far = compute / float(self.about.get("compute", [compute, compute])[1])
        config = buildable(n, d) if n >= 1e6 else None
        return Plan(compute, (n, *spans[0]), (d, *spans[1]), (float(self.predict(n, d)), *spans[2]), config, far, far_note(far))

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Tokens after which a model of `parameters` parameters reaches `loss`.

        Raises:
            ValueError: no number of tokens suffices.
        """
        p = self.parameters
        room = loss - p["E"] - p["A"] * parameters ** -p["alpha"]
        if room <= 0:
            least = p["E"] + p["A"] * parameters ** -p["alpha"]
            raise ValueError(f"a model of {parameters:.4g} parameters never gets below {least:.4g}, so {loss} is out of reach: take a larger one")
        return float((p["B"] / room) ** (1 / p["beta"]))

    def iso_loss(self, loss: float, parameters: Sequence[float]) -> Array:
        """Tokens for `loss` at each size; infinite where the size is too small."""
        p = self.parameters
        room = loss - p["E"] - p["A"] * np.asarray(parameters, float) ** -p["alpha"]
        tokens = np.full_like(room, np.inf)
        tokens[room > 0] = (p["B"] / room[room > 0]) ** (1 / p["beta"])
        return tokens

    def penalty(self, compute: float, times: float) -> float:
        """Compute that a model `times` too large (below 1: too small) needs for the optimum's loss, as a multiple of `compute`."""
        n, d = self.optimum(compute)
        target = float(self.predict(n, d))
        try:
            return times * n * self.tokens_for(target, times * n) / (n * d)
        except ValueError:
            return float("inf")

    def to_json(self) -> dict[str, Any]:
        """`fit.json`: the constants, the exponents a and b, the plans, the formula and the rest."""
        data = super().to_json()
        return {**data, **exponents_json(self.exponents()), "plan": [plan.to_json() for plan in planned(self)]}

    def plot(self) -> Any:
        """Loss against compute with IsoFLOP curves, the frontier N_opt(C), and residuals."""
        return report.law_figure(self)

    def save(self, folder: Path | str) -> None:
        """Write `fit.json`, `draws.json`, `plan.csv`, `summary.md`, `runs.csv` and `fit.png` into `folder`."""
        super().save(folder)
        report.write(self, planned(self), Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The law that `save` wrote, with the runs it was fitted to."""
        law, rows = super().load(folder), Path(folder) / "runs.csv"
        if not rows.exists():
            return law
        return replace(law, about={**law.about, "runs": report.read_runs(rows)})


@dataclass(frozen=True)
class Frontier:
    """What approaches 1 and 2 estimate: N_opt = k C^a and the loss along it; no loss off the frontier.

    Attributes:
        scale: k; exponent: a; loss_scale, loss_exponent: L_opt = loss_scale C^(-loss_exponent).
        draws: bootstrap draws of those four, by the same names.
        points: (C, N, L) of the points that the lines go through.
        about: rows, ranges, options, notes.
    """

    scale: float
    exponent: float
    loss_scale: float
    loss_exponent: float
    draws: Mapping[str, Array] = field(default_factory=dict)
    points: Sequence[tuple[float, float, float]] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def exponents(self, level: float = 0.95) -> dict[str, tuple[float, float, float]]:
        """a and b = 1 - a, each with its percentile interval."""
        low, high = percentiles(self.draws.get("exponent"), level)
        return {"a": (self.exponent, low, high), "b": (1 - self.exponent, 1 - high, 1 - low)}

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile intervals of the four constants."""
        return {name: percentiles(self.draws.get(name), level) for name in FRONTIER}

    def predict(self, parameters: Any, tokens: Any) -> Any:
        """Refused: these approaches say nothing of the loss away from the optimum."""
        raise ValueError(f"approach {self.about.get('approach')} finds the optimal sizes only, not the loss at any N and D: fit with approach=3")

    def plan(self, compute: float) -> Plan:
        """The best model and token count for `compute` FLOP."""
        if not (np.isfinite(compute) and compute > 0):
            raise ValueError(f"a plan needs a positive number of FLOP, got {compute}")
        flops = float(self.about.get("flops", 6.0))
        n = self.scale * compute**self.exponent
        loss = self.loss_scale * compute**-self.loss_exponent
        sizes = self.draws["scale"] * compute ** self.draws["exponent"] if self.draws else None
        losses = self.draws["loss_scale"] * compute ** -self.draws["loss_exponent"] if self.draws else None
        low, high = percentiles(sizes)
        far = compute / float(self.about.get("compute", [compute, compute])[1])
        tokens = tuple(compute / (flops * size) for size in (n, high, low))
        return Plan(compute, (n, low, high), tokens, (loss, *percentiles(losses)), buildable(n, tokens[0]) if n >= 1e6 else None, far, far_note(far))

    def to_json(self) -> dict[str, Any]:
        """`fit.json`: the four constants and the exponents with intervals, the points, the plans, the rest."""
        spans = self.interval()
        four = {name: {"value": getattr(self, name), "low": nullable(spans[name][0]), "high": nullable(spans[name][1])} for name in FRONTIER}
        plans = [plan.to_json() for plan in planned(self)]
        about = {key: value for key, value in self.about.items() if key != "runs"}
        return {**exponents_json(self.exponents()), **four, "points": [list(p) for p in self.points], "plan": plans, "about": about}

    def plot(self) -> Any:
        """The points and the lines through them."""
        return report.frontier_figure(self)

    def save(self, folder: Path | str) -> None:
        """Write `fit.json`, `plan.csv`, `summary.md`, `runs.csv` and `fit.png` into `folder`."""
        report.write_json(self.to_json(), Path(folder))
        write_draws(self.draws, Path(folder))
        report.write(self, planned(self), Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The frontier that `save` wrote."""
        data = json.loads((Path(folder) / "fit.json").read_text())
        if "points" not in data:
            raise ValueError(f"{folder} holds a law of N and D, not a frontier: load it with ChinchillaLaw.load")
        four = {name: float(data[name]["value"]) for name in FRONTIER}
        return cls(**four, draws=read_draws(Path(folder)), points=[tuple(point) for point in data["points"]], about=data["about"])


FRONTIER = ("scale", "exponent", "loss_scale", "loss_exponent")


def optimum(constants: Mapping[str, Any], product: float) -> tuple[Any, Any]:
    """N and D that minimise the law with N D = `product`: N = G product^a, G = (alpha A / (beta B))^(1 / (alpha + beta))."""
    alpha, beta = constants["alpha"], constants["beta"]
    with np.errstate(all="ignore"):
        log_g = (np.log(alpha * constants["A"]) - np.log(beta * constants["B"])) / (alpha + beta)
        log_n = log_g + beta / (alpha + beta) * np.log(product)
        return np.exp(log_n), np.exp(np.log(product) - log_n)


def planned(law: Planning) -> list[Plan]:
    """The plans that are saved: for the budgets asked for, else 1, 3 and 10 times the largest run."""
    largest = float(law.about.get("compute", [0, 1.0])[1])
    return [law.plan(compute) for compute in law.about.get("plan_for") or (largest, 3 * largest, 10 * largest)]


def exponents_json(exponents: Mapping[str, tuple[float, float, float]]) -> dict[str, Any]:
    """a and b as `value`, `low`, `high`."""
    return {name: {"value": value, "low": nullable(low), "high": nullable(high)} for name, (value, low, high) in exponents.items()}


def far_note(far: float) -> str:
    """A warning where a plan leaves the range of the runs too far behind."""
    if far <= FAR * (1 + 1e-9):
        return ""
    return f"{far:.3g} times the largest run: beyond {FAR:g} times the law is a guess, and the frontier bends at high compute; run a step between"
