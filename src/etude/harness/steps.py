"""What a worker does for a contest: one function a step, from a run (and a folder to fill) to plain JSON."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from etude import catalogue
from etude.data.cache import home
from etude.data.contract import Budget, Journal, Split
from etude.harness.contract import Contest, Run
from etude.measure.contract import Items

SIGNATURE = {2: "made, rows", 3: "model, tokenizer, texts"}


def contest_of(run: Run) -> Contest[Any, Any]:
    """The contest that a run belongs to."""
    family, name = run.target.removeprefix("contest:").split("/")
    contest: Contest[Any, Any] = catalogue.contest(family, name)
    return contest


def entry_of(run: Run) -> catalogue.Entry:
    """The contender's entry, from the catalogue or for the user's own file."""
    if "with" in dict(run.inputs):
        return catalogue.from_file(run.path("with") / "method.py", json.loads(run.settings)["class"], contest_of(run).family)
    return catalogue.find(run.arm)


def contender_of(run: Run) -> Any:
    """The contender with its options."""
    return catalogue.make(entry_of(run), json.loads(run.options))


def check(run: Run, folder: Path | None) -> dict[str, Any]:
    """Put a contender through the conformance suite before it competes."""
    from etude.harness.check import conformance

    if problems := conformance(entry_of(run), contest_of(run)):
        raise ValueError(f"{json.loads(run.settings)['class']} cannot compete: {'; '.join(problems)}")
    return {}


def points(run: Run, folder: Path | None) -> dict[str, Any]:
    """The contender's operating points for the budget, as options."""
    contest, settings = contest_of(run), json.loads(run.settings)
    contender = contender_of(run)
    budget = Budget(settings["axis"], settings["limit"] or float("inf"), settings["reference"] or float("inf"))
    offered = contender.points(budget, contest.subject(run)) if hasattr(contender, "points") else [contender]
    return {"points": [catalogue.to_options(point) for point in offered]}


def build(run: Run, folder: Path | None) -> dict[str, Any]:
    """Run the verb and save what it made; the trials of its search are its tuning curve."""
    assert folder is not None
    from dataclasses import replace

    contest = contest_of(run)
    journal = Journal(journal_path(run))
    contest.build(contender_of(run), contest.subject(run), replace(contest.data(run), journal=journal), folder)
    found = {"its search chose": journal.chosen} if journal.chosen else {}
    journal.close()
    return {"tuning": journal.trials, "settled": journal.settled, "describe": contest.describe(folder) | found}


def journal_path(run: Run) -> Path:
    """Where a build's trials are kept until it is done."""
    import hashlib

    folder = home() / "journals"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(repr(run).encode()).hexdigest()[:24]}.jsonl"


def remember(run: Run, folder: Path | None) -> dict[str, Any]:
    """What later measurements want to know of the reference."""
    assert folder is not None
    contest_of(run).remember(run.path("built"), Split.load(run.path("held_out")), run, folder)
    (folder / "of.json").write_text(json.dumps({"reference": run.arm}))
    return {}


def measure(run: Run, folder: Path | None) -> dict[str, Any]:
    """Quality on held-out data, the user's own metric, and a probe that tells equal models apart from different ones."""
    contest, held_out = contest_of(run), Split.load(run.path("held_out"))
    metrics = contest.measure(run.path("built"), held_out, run)
    if "metric" in dict(run.inputs):
        metrics[json.loads(run.settings)["metric"]] = own_metric(run, held_out)
    return {"metrics": metrics.to_json(), "probe": contest.probe(run.path("built"), run)}


def own_metric(run: Run, held_out: Split) -> Items | float:
    """The user's function of what was built and the held-out texts (compress: model, tokenizer, texts): a number, or one a text."""
    function = load_function(run.path("metric") / "metric.py", json.loads(run.settings)["metric"])
    part = next(iter(held_out.parts.values()))
    texts = list(part.column("text" if "text" in part.roles else next(iter(part.roles)))[:200])
    given = (*contest_of(run).loaded(run.path("built"), run), texts)
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        kinds, wanted = ", ".join(type(one).__name__ for one in given), SIGNATURE[len(given)]
        raise ValueError(f"the metric is called with {kinds} ({error}): write def {function.__name__}({wanted})") from None
    value = function(*given)
    if isinstance(value, int | float):
        return float(value)
    scores = [float(score) for score in value]
    if len(scores) != len(texts):
        raise ValueError(f"the metric gave {len(scores)} scores for {len(texts)} texts: return one number, or one number a text")
    return Items.of(range(len(scores)), scores)


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """A function from a Python file of the user's."""
    spec = importlib.util.spec_from_file_location(f"etude_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: give --metric FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{path.name} has no function {name!r}")
    function: Callable[..., Any] = getattr(module, name)
    return function


def time(run: Run, folder: Path | None) -> dict[str, Any]:
    """What is timed, alone and warm, and how many cores other programs used meanwhile."""
    with others() as used:
        metrics = contest_of(run).time(run.path("built"), Split.load(run.path("held_out")), run)
    metrics["other_load"] = used[0]
    return {"metrics": metrics.to_json()}


@contextmanager
def others() -> Iterator[list[float]]:
    """Fills its list with the mean number of cores that other processes used during the block."""
    import psutil

    def spent() -> tuple[float, float, float]:
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0) + getattr(machine, "guest", 0.0)
        return perf_counter(), sum(machine) - idle, own.user + own.system

    used, before = list[float](), spent()
    yield used
    seconds, busy, own = (now - then for now, then in zip(spent(), before, strict=True))
    used.append(max(0.0, (busy - own) / seconds))


def facts(run: Run, folder: Path | None) -> dict[str, Any]:
    """What is to be known of the subject before the contest starts; data that cannot be used is refused here."""
    contest, notes = contest_of(run), list[str]()
    parts = ("choice", "test") if "choice" in dict(run.inputs) else ()
    told = {name: contest.check(Split.load(run.path(name)), run) for name in parts}
    for name, own in told.items():
        for note in own:  # what holds for both parts is said once
            shared = all(note in other for other in told.values())
            notes += [note] if shared and note not in notes else [] if shared else [f"{name}: {note}"]
    cost = contest.reference_cost(run)
    about = contest.facts(run)
    return {"facts": about, "reference_cost": cost, "flops": flops(run.dtype), "notes": [*about.pop("notes", ()), *notes]}


def flops(dtype: str, seconds: float = 0.2) -> float:
    """Floating-point operations a second of one thread, from a few products of matrices."""
    import torch

    size, count, a = 512, 0, torch.ones(512, 512, dtype=getattr(torch, dtype))
    a @ a
    start = perf_counter()
    while perf_counter() < start + seconds:
        a @ a
        count += 1
    return 2.0 * size**3 * count / (perf_counter() - start)


def floor(run: Run, folder: Path | None) -> dict[str, Any]:
    """What a contender must beat."""
    held_out = Split.load(run.path("held_out"))
    return {"floor": contest_of(run).floor(Split.load(run.path("train")), held_out, run)}


def samples(run: Run, folder: Path | None) -> dict[str, Any]:
    """Two short samples for the report."""
    return {"samples": contest_of(run).samples(run.path("built"), Split.load(run.path("held_out")), run)}
