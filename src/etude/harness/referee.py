"""One contest as runs: builds and measurements of every contender, in the order that keeps it fair."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from etude.data.cache import artifact, remove
from etude.harness.closure import closure
from etude.harness.contract import Contest, Run
from etude.harness.display import shown
from etude.harness.inputs import Inputs
from etude.harness.machine import cores, machine
from etude.harness.recommend import speed_axis
from etude.harness.request import Entrant, Progress, Request, parse_budget, parse_share
from etude.harness.runner import Job, Runner
from etude.harness.store import Record
from etude.measure.contract import Metrics

CALL = "etude.harness.steps:"
CHOOSING = 0  # the seed on which operating points are chosen; it is not used again
TIMED_THREADS = cores()


@dataclass
class Measured:
    """One build and what was measured of it; `error` where a step failed."""

    options: dict[str, Any]
    seed: int
    built: str = ""
    metrics: Metrics = field(default_factory=Metrics)
    probe: str = ""
    tuning: list[dict[str, Any]] = field(default_factory=list)
    settled: dict[str, Any] = field(default_factory=dict)  # what its search settled on, as options
    describe: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    error: str = ""
    step: str = ""


class Referee:
    """Runs a contest's steps through the runner and remembers what came out.

    Attributes:
        reference: the contender that all others are held against.
    """

    reference: Entrant

    def __init__(
        self, request: Request, contest: Contest[Any, Any], inputs: Inputs, runner: Runner, progress: Progress | None, identity: str = ""
    ) -> None:
        self.identity = identity  # timings are of one contest: another one's were taken under another load
        self.request, self.contest, self.inputs, self.runner, self.progress = request, contest, inputs, runner, progress
        self.seeds = contest.seeds if request.seeds is None else request.seeds
        self.dtype = request.dtype or contest.dtype or default_dtype()
        self.machine = machine()
        self.limits = [parse_budget(text, contest) for text in request.budget]
        loss = parse_share(request.max_loss, "--max-loss") if request.max_loss else None
        self.max_loss = loss if loss is not None or self.limits else contest.max_loss
        self.facts: dict[str, Any] = {}
        self.reference_cost: float | None = None
        self.flops = math.nan  # a second, of one thread here
        self.remembered: dict[str, str] = {}  # held-out part -> digest of what the reference said
        self.base: Metrics | None = None  # the reference's numbers on the choice part
        self.measured_module = f"etude.{contest.family}.contest"
        self.closure = cache(closure)  # once a contest: sources that are edited meanwhile belong to the next one

    def run(self, step: str, entrant: Entrant | None = None, inputs: Iterable[tuple[str, str]] = (), seed: int = 0, **settings: Any) -> Run:
        """The identity of one step."""
        modules = [self.measured_module, *([entrant.entry.target.partition(":")[0]] if entrant and not entrant.file else [])]
        if entrant and entrant.file:
            settings["class"] = entrant.entry.cls
        return Run(
            target=f"contest:{self.contest.family}/{self.contest.name}",
            arm=entrant.entry.name if entrant else "",
            scale="user",
            seed=seed,
            step=step,
            settings=json.dumps(self.inputs.numbers | settings, sort_keys=True),
            device=self.request.device,
            dtype=self.dtype,
            inputs=tuple(sorted([*inputs, *(entrant.inputs if entrant else ())])),
            closure=self.closure(tuple(modules)),
        )

    def single(self, run: Run, makes: bool = False, alone: bool = False) -> Record:
        """One step that must succeed."""
        record = self.runner.run([Job(run, CALL + run.step, makes=makes, alone=alone)])[0]
        if record.status != "done":
            raise ValueError(record.reason)
        return record

    def study_subject(self) -> list[str]:
        """Find out what there is to know of the subject before anything is planned; what is to be said aloud is returned."""
        value = self.single(self.run("facts", inputs=self.inputs.pick("model", "tokenizer", "train", "choice", "test"))).value
        name = self.inputs.about.get("model", {}).get("name", "")
        self.facts, self.reference_cost, self.flops = value["facts"] | {"name": name}, value["reference_cost"], value["flops"]
        notes: list[str] = value["notes"]
        self.inputs.about["data"]["notes"] += notes
        return notes

    def points(self, entrants: list[Entrant]) -> None:
        """Ask every contender for its operating points."""
        limit, reference = next((l for l in self.limits if l["axis"] == self.contest.costs[0]), None), self.reference_cost
        if limit and not reference:
            reference = float(getattr(self.base, self.contest.costs[0], math.nan))  # what is timed is not known yet
        amount = None if limit is None else limit["amount"] * (reference if limit["form"] == "share" else 1.0)
        settings: dict[str, Any] = {"axis": self.contest.costs[0], "limit": amount, "reference": reference}
        given, present = self.inputs.pick("model", "tokenizer", "train"), [entrant for entrant in entrants if not entrant.left_out]
        runs = {
            entrant.label: replace(self.run("points", entrant, given, 0, **settings), options=json.dumps(entrant.options, sort_keys=True))
            for entrant in present
        }
        records = {r.run: r for r in self.runner.run([Job(run, CALL + "points") for run in runs.values()])}
        for entrant in present:
            record = records[runs[entrant.label]]
            entrant.points = record.value["points"] if record.status == "done" else []
            entrant.error = record.reason if record.status != "done" else ""
            entrant.left_out = "it offers no operating point for this model and budget" if not entrant.error and not entrant.points else ""

    def measure(self, wanted: list[tuple[Entrant, dict[str, Any], int]], held_out: str, again: int = 0) -> list[Measured]:
        """Build each (contender, options, seed) and measure it on a held-out part; what the store has is not done again.

        Before a part's first measurement the reference is built and what others are held against is written down; builds don't wait for it.

        Raises:
            ValueError: the reference could not be built, or could not say what others are held against.
        """
        builds = [self.build_run(entrant, options, seed) for entrant, options, seed in wanted]
        results = [Measured(options, seed) for _, options, seed in wanted]
        who = {run: entrant for run, (entrant, _, _) in zip(builds, wanted, strict=True)}
        first = self.build_run(self.reference, self.reference.options, CHOOSING)
        built = dict[Run, Record]()  # what waits for what the reference says

        def measurements(records: list[Record]) -> list[Job]:
            return [Job(self.measure_run(who[record.run], record, held_out, again), CALL + "measure") for record in records if record.run in who]

        def then(record: Record) -> list[Job]:
            step, known = record.run.step, held_out in self.remembered
            if not known and (step == "remember" or record.run == first):
                if record.status != "done":
                    raise ValueError(f"the reference {self.reference.label} failed, so that nothing can be compared: {record.reason}")
                if step == "remember":
                    self.remembered[held_out] = record.artifact or ""
                    return measurements(list(built.values()))
                built[record.run] = record
                given = [("built", record.artifact or ""), ("held_out", self.inputs.digests[held_out])]
                return [Job(self.run("remember", self.reference, given), CALL + "remember", makes=True)]
            if step == "build" and record.status == "done":
                if known:
                    return measurements([record])
                built[record.run] = record
            else:
                self.announce(record)
            return []

        asked = dict.fromkeys(builds if held_out in self.remembered else [first, *builds])
        done = self.runner.run([Job(run, CALL + "build", makes=True) for run in asked], then)
        by_run = {record.run: record for record in done}
        for result, run, (entrant, _, _) in zip(results, builds, wanted, strict=True):
            self.fill(result, by_run, run, entrant, held_out, again)
        return results

    def fill(self, result: Measured, by_run: dict[Run, Record], run: Run, entrant: Entrant, held_out: str, again: int) -> None:
        """Take what the records of one build and its measurement say."""
        built = by_run.get(run)
        if built is None or built.status != "done":
            result.error, result.step = (built.reason if built else "it was not run"), "build"
            return
        result.built, result.records = built.artifact or "", [built]
        result.tuning, result.settled, result.describe = built.value["tuning"], built.value.get("settled", {}), built.value["describe"]
        measured = by_run.get(self.measure_run(entrant, built, held_out, again))
        if measured is None or measured.status != "done":
            result.error, result.step = (measured.reason if measured else "it was not measured"), "measure"
            return
        result.records.append(measured)
        result.metrics, result.probe = Metrics.from_json(measured.value["metrics"]), measured.value["probe"]
        quality = self.inputs.quality
        if quality not in result.metrics or not math.isfinite(getattr(result.metrics, quality)):
            result.error, result.step = f"its {quality} is not a number", "measure"
        elif measured.memory:
            result.metrics["memory"] = float(measured.memory.get("rss_anon") or measured.memory.get("hwm") or 0.0)

    def build_run(self, entrant: Entrant, options: dict[str, Any], seed: int) -> Run:
        """The identity of a build: nothing held out is among its inputs."""
        run = self.run("build", entrant, self.inputs.pick("model", "tokenizer", "train", "validation"), seed)
        return replace(run, options=json.dumps(options, sort_keys=True))

    def measure_run(self, entrant: Entrant, built: Record, held_out: str, again: int = 0) -> Run:
        """The identity of a measurement: what was built, on what, and with which metric."""
        given = [("built", built.artifact or ""), ("held_out", self.inputs.digests[held_out]), *self.inputs.pick("metric")]
        if held_out in self.remembered:
            given.append(("reference", self.remembered[held_out]))
        settings: dict[str, Any] = {"metric": self.inputs.metric} if self.inputs.metric else {}
        run = self.run("measure", entrant, given, **settings, **({"again": again} if again else {}))
        return replace(run, options=built.run.options)

    def time(self, entrant: Entrant, measured: Measured, held_out: str) -> None:
        """Add what is timed, alone on this machine."""
        run = self.run("time", entrant, [("built", measured.built), ("held_out", self.inputs.digests[held_out])], contest=self.identity)
        run = replace(run, threads=TIMED_THREADS, options=json.dumps(measured.options, sort_keys=True))
        record = self.runner.run([Job(run, CALL + "time", alone=True)])[0]
        if record.status == "done":
            measured.metrics.update(Metrics.from_json(record.value["metrics"]))
            measured.records.append(record)

    def announce(self, record: Record) -> None:
        """Tell the live table what just became known."""
        if self.progress and record.run.step == "measure" and record.status == "done":
            metrics = Metrics.from_json(record.value["metrics"])
            main, digest = self.contest.costs[0], dict(record.run.inputs).get("held_out")
            part = next((name for name, one in self.inputs.digests.items() if one == digest), "")
            row = {"name": record.run.arm, "options": record.run.options, "quality": getattr(metrics, self.inputs.quality, math.nan), "part": part}
            self.progress.standing([row | {"cost": shown(getattr(metrics, main, None), self.contest.axes[main].unit)}])
        elif self.progress and record.status != "done":
            self.progress.standing([{"name": record.run.arm, "options": record.run.options, "error": record.reason}])

    def inside(self, metrics: Metrics, reference: Metrics) -> bool:
        """Whether these numbers keep every limit of the user's."""
        return all(self.keeps(limit, metrics, reference) for limit in self.limits) and (
            self.max_loss is None or self.loss(metrics, reference) <= self.max_loss
        )

    def keeps(self, limit: dict[str, Any], metrics: Metrics, reference: Metrics) -> bool:
        """Whether one `--budget` is kept; an axis that was not measured keeps nothing."""
        if limit["axis"] not in metrics:
            return False
        value = getattr(metrics, limit["axis"])
        if limit["form"] == "faster":
            return bool(value >= limit["amount"] * getattr(reference, limit["axis"]))
        base = self.reference_cost or getattr(reference, limit["axis"])
        return bool(value <= limit["amount"] * (base if limit["form"] == "share" else 1.0))

    def loss(self, metrics: Metrics, reference: Metrics) -> float:
        """Quality lost against the reference, as a share of the reference's."""
        quality = self.inputs.quality
        axis = self.contest.axes.get(quality)
        mine, base = getattr(metrics, quality), getattr(reference, quality)
        return float((mine - base) / abs(base) if axis and axis.better == "lower" else (base - mine) / abs(base)) if base else 0.0

    def choose(self, entrant: Entrant, tried: list[Measured]) -> int:
        """The operating point to report, chosen on the choice part: the cheapest (or best) inside the limits, else the nearest."""
        good = [i for i, one in enumerate(tried) if not one.error]
        if not good:
            return -1
        reference, main = self.base or Metrics(), self.contest.costs[0]
        inside = [i for i in good if self.inside(tried[i].metrics, reference)]
        by_loss = {i: self.loss(tried[i].metrics, reference) for i in good}
        axis = main if self.request.prefer != "speed" else speed_axis({name: vars(one) for name, one in self.contest.axes.items()}, main)
        sign = 1.0 if self.contest.axes[axis].better == "lower" else -1.0
        by_cost = {i: sign * getattr(tried[i].metrics, axis, sign * math.inf) for i in good}
        cheapest_first = self.request.prefer is not None or (not self.limits and self.max_loss is not None)
        if inside:
            return min(inside, key=lambda i: (by_cost[i], by_loss[i]) if cheapest_first else (by_loss[i], by_cost[i]))
        return min(good, key=lambda i: (by_loss[i], by_cost[i]) if cheapest_first else (by_cost[i], by_loss[i]))

    def release(self, measured: Iterable[Measured], keep: set[str]) -> None:
        """Remove built folders that nothing will need: they can be built again."""
        for one in measured:
            if one.built and one.built not in keep and artifact(one.built).is_dir():
                remove(artifact(one.built))


def default_dtype() -> str:
    """bfloat16 where the processor computes with it, float32 elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            return "bfloat16" if "avx512_bf16" in file.read() else "float32"
    except OSError:
        return "float32"
