"""The contest of scaling laws: fitted on the smaller runs of a table, judged on the larger ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from etude.data.contract import Data, Split, Table
from etude.harness.contract import Axis, Contest, Estimate, Need, Run
from etude.measure.contract import Items, Metrics

if TYPE_CHECKING:
    import numpy as np

    from etude.study._law import Law

EXAMPLE = str(Path(__file__).with_name("synthetic_runs.csv"))
SHARES = (0.55, 0.1, 0.1, 0.25)  # train, validation, choice, test: by compute, upwards
SECONDS = 6.0  # that timing may take
LEAST = 10  # runs: six to fit, one to choose by, three to judge by


class ScalingLaws(Contest[Table, "Fits"]):
    """Laws L(N, D) of final losses, judged by their error on held-out runs of larger compute."""

    family, name, title, verb = "study", "ScalingLaws", "Scaling laws", "fit"
    brings = (
        Need(
            "data",
            "data",
            "a table of training runs with parameters, loss, and tokens or compute (CSV, JSONL, Parquet); the embedded example is synthetic",
            EXAMPLE,
        ),
    )
    kinds = (Table,)
    field = ("power_law", "kaplan")
    reference = "power_law"
    quality = "log_error"
    costs = ("bytes", "seconds", "memory")
    axes: ClassVar[Mapping[str, Axis]] = {
        "log_error": Axis("nats", "lower", "mean absolute log error on larger runs"),
        "coverage": Axis("share", "higher", "larger runs inside their 95 % interval"),
        "bytes": Axis("bytes", "lower", "bytes of the saved law"),
        "seconds": Axis("s", "lower", "time to fit"),
        "memory": Axis("bytes", "lower", "peak memory"),
    }
    budget_axes: ClassVar[Mapping[str, str]] = {"share": "bytes", "bytes": "bytes", "seconds": "seconds"}

    def split(self, parts: Split, seed: int) -> tuple[Split, Split, Split, Split]:
        """By compute, upwards, rows of one run together: the smaller runs to fit on, the largest to judge by."""
        from etude.study._runs import check, read

        table = parts[Table]
        runs = read(table)
        last = {run: float(runs.compute[i]) for i, run in sorted(enumerate(runs.run), key=lambda pair: runs.compute[pair[0]])}
        names = sorted(last, key=lambda run: (last[run], run))
        if len(names) < LEAST:
            raise ValueError(f"the table holds {len(names)} runs, a contest of laws needs {LEAST}: add runs, or fit one law with `etude apply`")
        ends = [round(len(names) * sum(SHARES[: k + 1])) for k in range(4)]
        ends[0], ends[1] = max(ends[0], 5), max(ends[1], 6)
        groups = [set(names[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        cut = [[i for i, run in enumerate(runs.run) if run in group] for group in groups]
        check(runs.at(cut[0] + cut[1]).finished())
        train, validation, choice, test = (Split(table.take(rows)) for rows in cut)
        return train, validation, choice, test

    def whole(self, parts: Split, seed: int) -> tuple[Split, Split]:
        from etude.study._runs import check, read

        check(read(parts[Table]))
        return Split(parts[Table]), Split()

    def subject(self, run: Run) -> Table:
        given = dict(run.inputs)
        parts = [Split.load(run.path(name)) for name in ("train", "validation") if name in given]
        return joined([part[Table] for part in parts if Table in part])

    def data(self, run: Run) -> Data:
        return Data(Split.load(run.path("train")), Split.load(run.path("validation")), run.seed)

    def save(self, made: Any, data: Data, folder: Path) -> None:
        """The law's own files, and the runs that it was given: what is timed fits them again."""
        if not callable(getattr(made, "save", None)):
            raise ValueError(f"fit returned a {type(made).__name__} that cannot be saved: return an etude.study._law.Law(formula, constants)")
        made.save(folder)
        write_table(joined([part[Table] for part in (data.train, data.validation) if Table in part]), folder / "table.csv")

    def load(self, folder: Path, run: Run) -> Law:
        from etude.study._law import Law

        return Law.load(folder)

    def answers(self, made: Any) -> np.ndarray:
        """Losses along a grid of sizes and tokens."""
        import numpy as np

        sizes = np.geomspace(1e6, 1e11, 6)
        grid: np.ndarray = np.asarray(made.predict(sizes[:, None], 20.0 * np.geomspace(1e6, 1e11, 6)[None]), float)
        return grid

    def tiny(self) -> Mapping[str, tuple[Callable[[], Table], Data]]:
        from datasets import Dataset

        from etude.study._synthetic import isoflop_table

        def part(**options: Any) -> Table:
            columns = {name: values.tolist() for name, values in isoflop_table(**options).items()}
            return Table(Dataset.from_dict(columns), {name: name for name in columns})

        tables = {"large": part(budgets=3, sizes=5), "small": part(budgets=4, sizes=4, lowest=1e15, seed=1)}
        return {name: ((lambda table=table: table), Data(Split(table), Split())) for name, table in tables.items()}

    def measure(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        import numpy as np

        from etude.study._runs import read

        law, runs = self.load(folder, run), read(held_out[Table]).finished()
        ids = [f"{n:.6g} x {d:.6g}" for n, d in zip(runs.parameters, runs.tokens, strict=True)]
        ids = [f"{name} #{k}" for k, name in enumerate(ids)]
        predicted = np.asarray(law.predict(runs.parameters, runs.tokens), float)
        if not (np.isfinite(predicted).all() and (predicted > 0).all()):
            bad = int(np.flatnonzero(~(np.isfinite(predicted) & (predicted > 0)))[0])
            raise ValueError(f"the law predicts a loss of {predicted[bad]} at N = {runs.parameters[bad]:.4g}, D = {runs.tokens[bad]:.4g}")
        metrics = Metrics(log_error=Items.of(ids, np.abs(np.log(predicted / runs.loss)).tolist()))
        if law.draws and len(law.residuals):
            low, high = law.predictive(runs.parameters, runs.tokens)
            metrics["coverage"] = Items.of(ids, ((low <= runs.loss) & (runs.loss <= high)).astype(float).tolist())
        metrics["bytes"] = float(sum(path.stat().st_size for path in folder.glob("*.json")))
        return metrics

    def time(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        """Seconds of a fit, draws included: the median of three (of fewer where they are long) on the runs that were given."""
        from statistics import median

        from etude.harness.steps import contender_of

        with (folder / "table.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        table = {name: [row[name] for row in rows] for name in rows[0]}
        data = Data(Split(), Split(), run.seed)
        spent = list[float]()
        while len(spent) < 3 and sum(spent) < SECONDS / 2:
            start = perf_counter()
            getattr(contender_of(run), self.verb)(table, data)
            spent.append(perf_counter() - start)
        return Metrics(seconds=median(spent))

    def floor(self, train: Split, held_out: Split, run: Run) -> float:
        """The error of one number for all runs: the best loss seen in training."""
        import numpy as np

        from etude.study._runs import read

        known, new = read(train[Table]), read(held_out[Table]).finished()
        return float(np.abs(np.log(known.loss.min() / new.loss)).mean())

    def facts(self, run: Run) -> dict[str, Any]:
        from etude.study._runs import read

        runs = read(Split.load(run.path("train"))[Table])
        return {
            "runs": len(set(runs.run)),
            "parameters": [float(runs.parameters.min()), float(runs.parameters.max())],
            "compute": [float(runs.compute.min()), float(runs.compute.max())],
            "flops a parameter and token": runs.flops,
        }

    def describe(self, folder: Path) -> dict[str, str]:
        formula = json.loads((folder / "fit.json").read_text()).get("law", {}).get("formula", "the optimal frontier only")
        return {"law": formula, "loads in": "any program that reads JSON; etude.study._law.Law.load"}

    def estimate(self, facts: Mapping[str, Any], step: str) -> Estimate:
        return Estimate({"build": 4.0, "measure": 1.0, "time": 6.0, "search": 4.0}.get(step, 2.0), 5e8, 5e5 if step == "build" else 0.0)

    def check(self, parts: Split, run: Run) -> list[str]:
        from etude.study._runs import read

        read(parts[Table])
        return []


def joined(parts: list[Table]) -> Table:
    """Several tables of the same columns as one."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    return Table(concatenate_datasets([part.dataset for part in parts]), parts[0].roles)


def write_table(table: Table, path: Path) -> None:
    """A table as CSV with its columns named by their roles."""
    from etude.study._runs import find_columns

    names = find_columns(table)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(names)
        out.writerows(zip(*(table.dataset[column] for column in names.values()), strict=True))


CONTESTS = (ScalingLaws,)
