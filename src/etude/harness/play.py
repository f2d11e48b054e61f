"""`etude play`: a paper's études run arm by arm and seed by seed, their claims judged, the desk run recorded beside the étude.

The first seeds are run and judged; where a claim over seeds stays inconclusive, seeds are added once, up to ten, as many as the time of the scale
allows by the time that the first ones took (`etude.harness.verdict.seeds_to_add`): the number does not depend on how often one looks.
"""

from __future__ import annotations

import io
import json
import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from etude import catalogue
from etude.data.cache import home, write_text
from etude.harness.closure import closure
from etude.harness.contract import Experiment, Run
from etude.harness.intervals import DRAWS
from etude.harness.machine import machine, versions
from etude.harness.runner import Job, Progress, Runner
from etude.harness.store import Record, Store
from etude.harness.verdict import judge, seeds_to_add
from etude.harness.verify import SCHEMA, claims_of, code_of, runs_of, sealed
from etude.measure.contract import Items, Value

SMOKE_DRAWS = 50  # of bootstraps over items: smoke proves that all runs, not that anything holds
CALL = "etude.harness.play:"
SECONDS = {"smoke": 5.0, "desk": 1200.0, "gpu": 6 * 3600.0}  # a paper may take
RUN_SECONDS = {"smoke": 300.0, "desk": 3600.0, "gpu": 6 * 3600.0}  # one run may take before it counts as hanging


@dataclass(frozen=True)
class Study:
    """The études of one paper: `experiments` by class name, the one that gives the verdict first; records go to `folder`."""

    name: str
    family: str
    paper: str
    folder: Path
    experiments: Mapping[str, Experiment[Any]]


def study(name: str) -> Study:
    """The études of a paper by its name or arXiv id."""
    entry = catalogue.find(name)
    return Study(entry.name, entry.family, entry.paper, entry.path.parent, catalogue.experiments(entry.name))


def play(
    names: Iterable[str],
    scale: str = "smoke",
    seeds: int | None = None,
    jobs: int = 2,
    fresh: bool = False,
    progress: Progress | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Play papers one after another.

    Args:
        seeds: exactly so many; by default the étude's, and more by the fixed rule.
        fresh: run also what the store has.

    Returns:
        For each paper its record with, besides, `failures` (what did not run; then nothing is written), `path` (of what was written) and `stale`
        (False: it was just made by the installed code).

    Raises:
        ValueError: an unknown paper, one without étude or without this scale, or a folder that cannot be written.
    """
    studies = [study(name) for name in dict.fromkeys(names)]
    for one in studies:
        check_scale(one, scale)
    store = Store(home() / "etude.sqlite")
    try:
        return [play_study(one, Runner(store, jobs, fresh, progress), scale, seeds, device) for one in studies]
    finally:
        store.close()


def check_scale(one: Study, scale: str) -> None:
    """Refuse a scale that an étude does not have, before any work."""
    if not one.experiments:
        raise ValueError(f"{one.name} has no étude: its experiment.py lists no EXPERIMENTS")
    for name, experiment in one.experiments.items():
        if scale not in experiment.scales:
            raise ValueError(f"{one.name}'s étude {name} has no scale {scale!r}: it has {', '.join(experiment.scales)}")


def play_study(one: Study, runner: Runner, scale: str, seeds: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Run, judge and (but for smoke) record one paper's études."""
    first = {name: 1 if e.deterministic else seeds or (1 if scale == "smoke" else max(3, e.seeds)) for name, e in one.experiments.items()}
    stage = Stage(one, runner, scale, device, f" --seeds {seeds}" if seeds else "")
    stage.run(first)
    if seeds is None and scale != "smoke" and not stage.failures:
        stage.run(more_seeds(stage, first))
    record = stage.record()
    plots, trouble = draw(one, stage)
    failures = stage.failures + trouble
    path = None
    if scale != "smoke" and not failures:
        path = write(one, sealed(record), plots, scale)
    return sealed(record) | {"failures": failures, "path": str(path) if path else None, "stale": False}


class Stage:
    """The runs of one paper at one scale, as far as they are known."""

    def __init__(self, one: Study, runner: Runner, scale: str, device: str, asked: str = "") -> None:
        self.asked = asked  # beyond the scale, as on the command line
        self.study, self.runner, self.scale, self.device = one, runner, scale, device
        self.records: dict[tuple[str, str, str, int], Record] = {}  # experiment, step, arm, seed
        self.seeds: dict[str, range] = {}  # those that are to be run now

    def run(self, until: Mapping[str, int]) -> None:
        """Run every experiment's seeds up to (without) the given number."""
        before = {name: 1 + max((key[3] for key in self.records if key[:2] == (name, "arm")), default=-1) for name in until}
        self.seeds = {name: range(before[name], n) for name, n in until.items() if n > before[name]}
        jobs = [job for name in self.seeds for job in self.start(name)]
        for record in self.runner.run(jobs, self.then) if jobs else ():
            self.records[record.run.target.rpartition("/")[2], record.run.step, record.run.arm, record.run.seed] = record

    def start(self, name: str) -> list[Job]:
        """An experiment's first jobs: what it prepares, or its seeds."""
        if overrides(self.study.experiments[name], "prepare"):
            return [self.job(name, "prepare")]
        return self.prepared(name, ())

    def then(self, record: Record) -> list[Job]:
        """What follows from a record."""
        name, run = record.run.target.rpartition("/")[2], record.run
        if record.status != "done" or run.step == "arm":
            return []
        made = (*run.inputs, ("prepared" if run.step == "prepare" else "seed", record.artifact or ""))
        return self.prepared(name, made) if run.step == "prepare" else self.arms(name, run.seed, made)

    def prepared(self, name: str, inputs: tuple[tuple[str, str], ...]) -> list[Job]:
        """The jobs of all seeds, once what they share is there."""
        if overrides(self.study.experiments[name], "prepare_seed"):
            return [self.job(name, "prepare_seed", seed=seed, inputs=inputs) for seed in self.seeds[name]]
        return [job for seed in self.seeds[name] for job in self.arms(name, seed, inputs)]

    def arms(self, name: str, seed: int, inputs: tuple[tuple[str, str], ...]) -> list[Job]:
        """One seed's arms."""
        experiment = self.study.experiments[name]
        return [self.job(name, "arm", arm, seed, inputs) for arm in experiment.arms(experiment.scales[self.scale])]

    def job(self, name: str, step: str, arm: str = "", seed: int = 0, inputs: tuple[tuple[str, str], ...] = ()) -> Job:
        """A run of an experiment and the function that makes it."""
        kind = type(self.study.experiments[name])
        run = Run(
            target=f"study:{self.study.family}/{self.study.name}/{name}",
            arm=arm,
            scale=self.scale,
            seed=seed,
            step=step,
            settings=json.dumps({"experiment": f"{kind.__module__}:{kind.__qualname__}"}),
            device=self.device,
            inputs=inputs,
            closure=closure([kind.__module__]),
        )
        return Job(run, CALL + ("measure_arm" if step == "arm" else "make"), makes=step != "arm", seconds=RUN_SECONDS.get(self.scale, 3600.0))

    @property
    def failures(self) -> list[dict[str, Any]]:
        """What did not run."""
        return [
            {"experiment": name, "step": step, "arm": arm, "seed": seed, "error": record.reason}
            for (name, step, arm, seed), record in self.records.items()
            if record.status != "done"
        ]

    def runs(self, name: str) -> list[dict[str, Any]]:
        """An experiment's runs as they are recorded, in the order of seeds and arms."""
        order = list(self.study.experiments[name].arms(self.study.experiments[name].scales[self.scale]))
        found = [
            (seed, order.index(arm), arm, r)
            for (at, step, arm, seed), r in self.records.items()
            if at == name and step == "arm" and r.status == "done"
        ]
        return [
            {"arm": arm, "seed": seed, "metrics": r.value["metrics"], "wall": round(r.wall, 3), "memory": r.memory.get("rss_anon")}
            for seed, _, arm, r in sorted(found, key=lambda row: row[:2])
        ]

    def record(self) -> dict[str, Any]:
        """All that was run and found, judged from exactly what is recorded."""
        experiments = dict[str, Any]()
        for name, experiment in self.study.experiments.items():
            runs = self.runs(name)
            shared = "the intervals are conditional on what all seeds share, which was prepared once" if overrides(experiment, "prepare") else ""
            experiments[name] = {
                "claims": claims_of(experiment, runs_of({"runs": runs}), SMOKE_DRAWS if self.scale == "smoke" else DRAWS),
                "conditional": shared,
                "runs": runs,
            }
        first = next(iter(experiments.values()))["claims"]
        return {
            "schema": SCHEMA,
            "paper": self.study.paper,
            "name": self.study.name,
            "scale": self.scale,
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"etude play {self.study.name} --scale {self.scale}{self.asked}",
            "machine": dict(machine()),
            "versions": dict(versions()),
            "closure": code_of(self.study.experiments),
            "verdict": first[0]["status"] if first else None,
            "experiments": experiments,
        }


def overrides(experiment: Experiment[Any], method: str) -> bool:
    """Whether an étude does something of its own in an optional step."""
    return getattr(type(experiment), method) is not getattr(Experiment, method)


def more_seeds(stage: Stage, first: Mapping[str, int]) -> dict[str, int]:
    """How many seeds each experiment gets in all, decided once after the first ones, from the time that they took."""
    left = SECONDS[stage.scale] - sum(record.wall for record in stage.records.values()) / stage.runner.jobs
    until = dict(first)
    for name, n in first.items():
        experiment = stage.study.experiments[name]
        if experiment.deterministic:
            continue
        spent = sum(r.wall for (at, step, _, _), r in stage.records.items() if at == name and step != "prepare") / stage.runner.jobs
        runs = runs_of({"runs": stage.runs(name)})
        more = seeds_to_add([judge(claim, runs) for claim in experiment.claims], n, left, spent / n)
        until[name], left = n + more, left - more * spent / n
    return until


# ---- in a worker ----


def _experiment(run: Run) -> Experiment[Any]:
    kind = pkgutil.resolve_name(json.loads(run.settings)["experiment"])
    return cast(Experiment[Any], kind())


def make(run: Run, folder: Path) -> dict[str, Any]:
    """What is prepared once, or once a seed."""
    experiment = _experiment(run)
    (experiment.prepare if run.step == "prepare" else experiment.prepare_seed)(run, experiment.scales[run.scale], folder)
    return {}


def measure_arm(run: Run, folder: Path | None) -> dict[str, Any]:
    """One arm at one seed, rounded to what is recorded."""
    experiment = _experiment(run)
    scale = experiment.scales[run.scale]
    found = experiment.arms(scale)[run.arm](run, scale)
    return {"metrics": {key: rounded(value) for key, value in found.items()}}


def rounded(value: Value) -> Any:
    """A recorded value as plain JSON of six significant digits; ones as denominators are left out, infinite and undefined numbers are words."""
    if isinstance(value, Items):
        weights = {} if all(x == 1 for x in value.bottom) else {"bottom": [_six(x) for x in value.bottom]}
        return {"ids": list(value.ids), "top": [_six(x) for x in value.top], **weights}
    return [_six(x) for x in value] if isinstance(value, list) else _six(value)


def _six(x: float) -> float | str:
    short = float(f"{float(x):.6g}")
    return short if math.isfinite(short) else str(short)


# ---- the record and its plots ----


def draw(one: Study, stage: Stage) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Each experiment's plot as PNG, and the plots that failed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plots, failures = dict[str, bytes](), list[dict[str, Any]]()
    for i, (name, experiment) in enumerate(one.experiments.items()):
        runs = runs_of({"runs": stage.runs(name)})
        if not runs or stage.failures:
            continue
        try:
            figure, buffer = experiment.plot(runs), io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
            plots["" if i == 0 else f"_{name}"] = buffer.getvalue()
        except Exception as error:  # a plot is the author's code: whatever it raises is told, and the runs are kept
            failures.append({"experiment": name, "step": "plot", "arm": "", "seed": 0, "error": f"{type(error).__name__}: {error}"})
        finally:
            pyplot.close("all")
    return plots, failures


def write(one: Study, record: Mapping[str, Any], plots: Mapping[str, bytes], scale: str) -> Path:
    """The record as SCALE.json beside the étude, its first plot as SCALE.png, further ones as SCALE_EXPERIMENT.png."""
    path = one.folder / f"{scale}.json"
    try:
        for suffix, image in plots.items():
            (one.folder / f"{scale}{suffix}.png").write_bytes(image)
        write_text(path, layout(record) + "\n")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): install etude where you may write (pip install -e .); the runs are kept"
        ) from error
    return path


def layout(value: Any, indent: str = "") -> str:
    """JSON with one line a claim and a run, so that a changed record reads well in a diff and stays small."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if not any(isinstance(part, Mapping | list) for part in parts):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    inner = indent + " "
    if isinstance(value, Mapping):
        return "{\n" + ",\n".join(f"{inner}{json.dumps(key)}: {layout(part, inner)}" for key, part in value.items()) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + json.dumps(part, separators=(",", ":"), ensure_ascii=False) for part in value) + f"\n{indent}]"
