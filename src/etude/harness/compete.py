"""`etude compare` and `etude apply`: from a request to results on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from etude import catalogue
from etude.data.cache import artifact, digest_json, home, trim, write_text
from etude.harness.contract import Contest
from etude.harness.display import shown
from etude.harness.inputs import Inputs, gather
from etude.harness.machine import cores
from etude.harness.recommend import Case, recommend
from etude.harness.referee import CHOOSING, Measured, Referee
from etude.harness.request import Entrant, Progress, Request, check_machine, check_out, claim_out, contest_for, entrants_of
from etude.harness.results import assemble
from etude.harness.runner import Job, Runner
from etude.harness.store import Store, lock
from etude.harness.verify import sealed

MEMO = 20 << 30  # bytes of memoised decompositions that stay, those used last
Say = Callable[[str], None]


def compete(request: Request, say: Say, progress: Progress | None = None) -> dict[str, Any]:
    """Run a contest (or finish one that was interrupted) and write `results.json` and `report.html` into `request.out`.

    Raises:
        ValueError: something the user gave cannot be used; the message says what and what to do.
    """
    contest = contest_for(request)
    check_machine(request)
    runner = Runner(Store(home() / "etude.sqlite"), jobs=request.jobs or cores(), progress=progress)
    runner.warm_up()
    entrants = entrants_of(request, contest)
    inputs = gather(request, contest, say)
    leave_out(entrants, lambda entrant: lacks(entrant, inputs))
    identity = identity_of(request, contest, entrants, inputs)
    referee = Referee(request, contest, inputs, runner, progress, identity)
    check_out(request, identity)
    with nullcontext() if request.dry_run else lock(request.out):
        if not request.dry_run:
            claim_out(request, identity)
        for entrant in entrants:
            if entrant.file:
                referee.single(referee.run("check", entrant))
        for note in referee.study_subject():
            say(note)
        leave_out(entrants, lambda entrant: contest.unfit(referee.facts, entrant.entry.traits))
        replace_reference(referee, entrants)
        announce_plan(referee, entrants, say)
        if request.dry_run:
            return {"dry_run": True, "contenders": [entrant.label for entrant in entrants], "identity": identity}
        results = sealed(run_contest(referee, entrants, say))
        write_text(request.out / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        from etude.harness.report import write

        write(results, request.out)
    trim("memo", MEMO)
    return results


def run_contest(referee: Referee, entrants: list[Entrant], say: Say) -> dict[str, Any]:
    """Points on the choice part, the chosen ones on the test part over seeds, then what is timed."""
    request, reference = referee.request, entrants[0]
    reference.options = catalogue.to_options(catalogue.make(reference.entry, reference.options))  # as its points are written: built once
    referee.reference = reference
    if any(limit["axis"] == referee.contest.costs[0] for limit in referee.limits) and not referee.reference_cost:
        referee.base = referee.measure([(reference, reference.options, CHOOSING)], "choice")[0].metrics
    referee.points(entrants)
    asked = [(entrant, options, CHOOSING) for entrant in entrants if not entrant.left_out for options in entrant.points]
    wanted = [(reference, reference.options, CHOOSING), *asked]
    first, *others = referee.measure(wanted, "choice")
    if first.error:
        raise ValueError(f"the reference {reference.label} failed, so that nothing can be compared: {first.error}")
    referee.base = first.metrics
    tried = dict[str, list[Measured]]()
    for (entrant, _, _), one in zip(asked, others, strict=True):
        tried.setdefault(entrant.label, []).append(one)
    held_out = "choice" if request.dev else "test"
    timed_early = request.prefer == "speed" or any(limit["form"] in ("faster", "seconds") for limit in referee.limits)
    if timed_early:
        referee.time(reference, first, "choice")
        for entrant in entrants:
            for one in tried.get(entrant.label, []):
                if not one.error:
                    referee.time(entrant, one, "choice")
    for entrant in entrants:
        entrant.chosen = referee.choose(entrant, tried.get(entrant.label, []))
    chosen = {entrant.label: tried[entrant.label][entrant.chosen] for entrant in entrants if entrant.chosen >= 0}
    referee.release([one for ones in tried.values() for one in ones], {one.built for one in chosen.values()} | {first.built})
    seeds = over_seeds(referee, entrants, chosen, held_out)
    if reference.label not in seeds or seeds[reference.label][0].error:
        why = seeds[reference.label][0].error if reference.label in seeds else reference.error or "it was not measured"
        raise ValueError(f"the reference {reference.label} failed on the {held_out} part, so that nothing can be compared: {why}")
    once = seeds[reference.label][0]
    again = referee.measure([(reference, once.options, once.seed)], held_out, again=1)[0]
    for entrant in entrants:
        good = [one for one in seeds.get(entrant.label, []) if not one.error]
        if good:
            referee.time(entrant, good[0], held_out)
    known = [*referee.inputs.pick("model", "train"), ("held_out", referee.inputs.digests[held_out])]
    floor = None if referee.inputs.metric else float(referee.single(referee.run("floor", inputs=known)).value["floor"])
    spoken = samples(referee, entrants, seeds, held_out) if request.with_samples else None
    results = assemble(referee, entrants, tried, seeds, again, floor, spoken)
    case = Case(results)
    for row in results["contenders"]:
        row["reached"] = case.reached(row)
    results["recommendation"] = recommend(results)
    keep = {one.built for label, ones in seeds.items() for one in ones[:1] if label == results["recommendation"].get("name")}
    referee.release([one for ones in [*seeds.values(), *tried.values()] for one in ones], keep | {first.built})
    return results


def over_seeds(referee: Referee, entrants: list[Entrant], chosen: dict[str, Measured], held_out: str) -> dict[str, list[Measured]]:
    """The chosen points on the held-out part: one seed each, and the further ones of those that proved not deterministic.

    What a search settled on with the choosing seed is an option from here on: it is tuned once, on a seed that is not reported.
    """
    seeds = list(range(CHOOSING + 1, CHOOSING + 1 + referee.seeds))
    able = [entrant for entrant in entrants if entrant.label in chosen]
    options = {label: one.options | one.settled for label, one in chosen.items()}
    first = referee.measure([(entrant, options[entrant.label], seeds[0]) for entrant in able], held_out)
    found = {entrant.label: [one] for entrant, one in zip(able, first, strict=True)}
    random = [entrant for entrant in able if found[entrant.label][0].probe != chosen[entrant.label].probe or found[entrant.label][0].error]
    wanted = [(entrant, options[entrant.label], seed) for entrant in random for seed in seeds[1:]]
    for (entrant, _, _), one in zip(wanted, referee.measure(wanted, held_out), strict=True):
        found[entrant.label].append(one)
    return found


def samples(referee: Referee, entrants: list[Entrant], seeds: dict[str, list[Measured]], held_out: str) -> dict[str, list[str]]:
    """Two short samples of each contender that was built."""
    spoken = dict[str, list[str]]()
    for entrant in entrants:
        for one in [one for one in seeds.get(entrant.label, []) if not one.error][:1]:
            inputs = [("built", one.built), ("held_out", referee.inputs.digests[held_out])]
            if artifact(one.built).is_dir():
                spoken[entrant.label] = referee.single(referee.run("samples", entrant, inputs)).value["samples"]
    return spoken


def lacks(entrant: Entrant, inputs: Inputs) -> str:
    """Which part of the data a contender needs and was not brought, in words; empty when nothing is missing."""
    there = set(inputs.about["data"]["rows"])
    missing = [need for need in entrant.entry.needs if need not in there and not (need == "Text" and "Rows" in there)]
    return f"it needs {missing[0]}, which the data does not hold (it holds {', '.join(sorted(there))})" if missing else ""


def leave_out(entrants: list[Entrant], why: Callable[[Entrant], str]) -> None:
    """Leave out the contenders that cannot take part; one that the user named is refused, and so is the reference, before any work."""
    for place, entrant in enumerate(entrants):
        reason = entrant.left_out or why(entrant)
        if reason and (entrant.named or place == 0):
            raise ValueError(f"{entrant.label} cannot take part: {reason}")
        entrant.left_out = reason


def replace_reference(referee: Referee, entrants: list[Entrant]) -> None:
    """Put the fallback in the reference's place where that needs more memory than the machine has."""
    contest, reference = referee.contest, entrants[0]
    needed, there = contest.reference_memory(referee.facts), float(referee.machine["memory"])
    if not contest.fallback or needed <= there:
        return
    reason = f"it needs {needed / 1e9:.0f} GB of memory, this machine has {there / 1e9:.0f}"
    if reference.named:
        raise ValueError(f"{reference.label} cannot take part: {reason}")
    reference.left_out = reason
    entrants.sort(key=lambda entrant: entrant.entry.name != contest.fallback)


def identity_of(request: Request, contest: Contest[Any, Any], entrants: list[Entrant], inputs: Inputs) -> str:
    """What makes two calls the same contest."""
    who = [[entrant.label, entrant.options, entrant.file] for entrant in entrants]
    seeds = contest.seeds if request.seeds is None else request.seeds
    asked = [request.budget, request.max_loss, request.prefer, seeds, request.dev, request.with_samples, request.device, request.dtype]
    numbers = [inputs.numbers] if inputs.numbers else []
    return digest_json([contest.family, contest.name, who, asked, inputs.digests, inputs.metric, *numbers])


def announce_plan(referee: Referee, entrants: list[Entrant], say: Say) -> None:
    """Say what will be done and what it is expected to take."""
    contest, facts, seeds, jobs = referee.contest, referee.facts, referee.seeds, referee.runner.jobs
    known, absent = facts | {"flops": referee.flops}, [entrant for entrant in entrants if entrant.left_out]
    entrants = [entrant for entrant in entrants if not entrant.left_out]
    each = {step: contest.estimate(known, step) for step in ("build", "measure", "time")}
    builds = 4 * len(entrants) - 2
    searching = sum(contest.estimate(known, "search").seconds * (1 + seeds) for entrant in entrants if "searches" in entrant.entry.traits)
    seconds = (builds * (each["build"].seconds + each["measure"].seconds) + searching) / jobs + len(entrants) * each["time"].seconds
    memory, disk = jobs * max(e.memory for e in each.values()), builds * each["build"].disk
    say(f"{contest.title}: {len(entrants)} contenders ({', '.join(entrant.label for entrant in entrants)})")
    say(
        f"in {referee.dtype}, about {builds} builds and measurements on {jobs} worker{'s' if jobs > 1 else ''}, "
        f"seed {CHOOSING} to choose and {seeds} to report: about {max(1, round(seconds / 60))} min, "
        f"{memory / 1e9:.1f} GB of memory, at most {disk / 1e9:.1f} GB of disk in {home()}"
    )
    for limit in referee.limits:
        base = referee.reference_cost if limit["form"] == "share" else None
        if base:
            axis = contest.axes[limit["axis"]]
            amount = shown(limit["amount"] * base, axis.unit)
            say(f"budget {limit['text']}: {axis.title} at most {amount}, of {shown(base, axis.unit)} (what the reference is taken to cost)")
    if referee.progress:
        referee.progress.forecast(7 - seeds + (6 + seeds) * len(entrants))
    for entrant in absent:
        say(f"{entrant.label} is left out: {entrant.left_out}")
    for entrant in entrants:
        if mark := contest.marks(facts, entrant.entry.traits):
            say(f"{entrant.label}: {mark}")


def apply(
    name: str,
    options: dict[str, Any],
    request: Request,
    say: Say,
    progress: Progress | None = None,
) -> tuple[str, dict[str, Any]]:
    """Build one contender on all of the user's data.

    Returns:
        The digest of the built folder, and what the model card says of it.
    """
    entry = catalogue.find(name)
    if not entry.enters:
        raise ValueError(f"{name} is a {entry.role} and cannot be applied on its own")
    contest: Contest[Any, Any] = catalogue.contest(request.family or entry.enters[0])
    catalogue.make(entry, options)
    check_machine(request)
    inputs = gather(request, contest, say, whole=True)
    runner = Runner(Store(home() / "etude.sqlite"), jobs=1, progress=progress)
    referee = Referee(request, contest, inputs, runner, progress)
    for note in referee.study_subject():
        say(note)
    entrant = Entrant(name, entry, options)
    leave_out([entrant], lambda one: lacks(one, inputs) or contest.unfit(referee.facts, one.entry.traits))
    record = referee.single(referee.build_run(entrant, options, CHOOSING), makes=True)
    return record.artifact or "", {
        "entry": entry,
        "options": options,
        "facts": referee.facts,
        "about": inputs.about,
        "wall": record.wall,
        "memory": record.memory,
        "describe": record.value["describe"],
        "tuning": record.value["tuning"],
    }


def apply_from(results_path: Path, request: Request, say: Say, progress: Progress | None = None) -> tuple[str, dict[str, Any]]:
    """The folder of what a contest recommends: the very one that was measured, built again where it was cleared."""
    try:
        results = json.loads(results_path.read_text())
        name = results["recommendation"]["name"]
        contender = next((one for one in results["contenders"] if one["name"] == name), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--from {results_path} is no results.json of a contest ({type(error).__name__}: {error})") from error
    if contender is None:
        raise ValueError(f"{results_path} recommends nothing: {results['recommendation']['line']}")
    seed = next(one for one in contender["seeds"] if not one.get("error"))
    about = {"results": results, "contender": contender, "options": contender["options"], "describe": contender.get("describe", {})}
    if not artifact(seed["built"]).is_dir():
        say(f"the measured folder of {name} was cleared from the cache: building it again")
        rebuild(seed, progress)
    return seed["built"], about


def rebuild(seed: dict[str, Any], progress: Progress | None) -> None:
    """Build a measured folder again; it must come out with the same digest."""
    store = Store(home() / "etude.sqlite")
    record = store.maker(seed["built"])
    if record is None:
        raise ValueError(f"the build of {seed['built'][:12]} is in no store on this machine: run the contest again")
    job = Job(record.run, record.call, makes=True)
    again = Runner(store, jobs=1, progress=progress).run([job], whole=True)[0]
    if again.artifact != seed["built"]:
        raise ValueError(f"building it again gave other weights ({again.reason or again.artifact}): run the contest again")
