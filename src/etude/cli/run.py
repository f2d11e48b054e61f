"""One function a command: from parsed flags to what is printed and the exit code."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etude import catalogue
from etude.cli import pages, upkeep
from etude.cli.output import Output, Progress, lasting

SHARED = ("validation", "calibration", "device", "dtype", "revision", "force", "dry_run")
JUDGING = ("family", "with_file", "without", "test", "budget", "max_loss", "prefer", "metric", "seeds", "dev", "with_samples", "jobs", "out")


def list_(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude list`."""
    if out.json:
        out.document(pages.listing(options.family))
    else:
        pages.print_listing(out, options.family)
    return 0


def show(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude show`."""
    if out.json:
        out.document(pages.page(options.paper))
    else:
        pages.print_page(out, options.paper)
    return 0


def brought(options: argparse.Namespace) -> dict[str, Any]:
    """What the user brought, by the names of the contests' needs."""
    known = {need.name for family in catalogue.with_contests() for contest in catalogue.contests(family) for need in contest.brings}
    return {name: value for name, value in vars(options).items() if name in known and value is not None}


def compare(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude compare`."""
    from etude.cli import commands
    from etude.harness.terminal import recommendation_lines, table_lines

    asked = {name: getattr(options, name) for name in (*SHARED, *JUDGING)}
    with out.guarded(), Progress(out) as progress:
        outcome = commands.compare(
            *options.names,
            **asked,
            **brought(options),
            columns=dict(options.column),
            command=commands.command_of(words),
            say=out.say,
            progress=progress,
        )
    results = outcome.results
    if out.json:
        out.document(results)
    elif not results.get("dry_run"):
        if not progress.fresh:
            out.say("Nothing was left to do: every run of this contest is in the store.")
        for line in ("", *table_lines(results, out.width), "", *recommendation_lines(results, out.width), "", f"report: {outcome.report}"):
            out.say(line.replace("--from results.json", f"--from {shlex.quote(str(outcome.out / 'results.json'))}"))
    return 1 if results.get("failures") else 0


def apply(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude apply`."""
    from etude.cli import commands

    set_ = {name.partition(":")[2]: value for name, value in vars(options).items() if name.startswith("option:")}
    asked = {name: getattr(options, name) for name in SHARED}
    with out.guarded(), Progress(out) as progress:
        outcome = commands.apply(
            options.name,
            out=options.out,
            results=options.results,
            options=set_,
            **asked,
            **brought(options),
            columns=dict(options.column),
            command=commands.command_of(words),
            say=out.say,
            progress=progress,
        )
    if out.json:
        out.document(outcome.results)
    elif not outcome.results.get("dry_run"):
        told = outcome.results
        cost = f" in {lasting(told['wall'])}" if told.get("wall") and not options.results else ""
        out.say(f"{told['name']} {told['options'] or ''}".rstrip() + f": done{cost}, {sum(told['files'].values()) / 1e6:.1f} MB in {outcome.out}")
        for what, said in told["describe"].items():
            out.say(f"  {what}: {said}")
        out.say(f"card: {outcome.report}")
    return 0


def named(options: argparse.Namespace) -> list[str]:
    """The papers that `play` is about."""
    playable = [e.name for e in catalogue.entries().values() if e.source == "paper" and (e.path.parent / "experiment.py").is_file()]
    if options.family and options.family not in catalogue.families():
        raise ValueError(f"no family is called {options.family!r}{catalogue.nearest(options.family, catalogue.families())}")
    if options.all or options.family:
        return [name for name in playable if options.all or catalogue.find(name).family == options.family]
    if not options.names:
        raise ValueError(f"name a paper, or give --family or --all; there are {', '.join(playable) or 'none yet'}")
    return [catalogue.find(name).name for name in options.names]


def play(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude play`."""
    from etude.harness.machine import cores
    from etude.harness.play import play as run

    names, jobs = named(options), options.jobs or min(2, cores())
    with out.guarded(), Progress(out) as progress:
        records = run(names, options.scale, seeds=options.seeds, jobs=jobs, fresh=options.fresh, progress=progress, device=options.device)
    if out.json:
        out.document(records)
    for record in records if not out.json else ():
        pages.print_record(out, record)
    unmet = options.require and any(record["verdict"] != "reproduced" for record in records)
    return 1 if unmet or any(record["failures"] for record in records) else 0


def report(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude report`."""
    from etude.cli import commands
    from etude.harness.scoreboard import scoreboard

    folder = Path(options.out)
    if not (folder / "index.html").is_file():
        commands.check_free(folder, options.force)
    records = upkeep.recorded()
    done = [entry.name for entry in catalogue.entries().values() if entry.source == "paper"]
    path = scoreboard(records, catalogue.papers(), folder, implemented=done)
    if out.json:
        out.document({"report": str(path), "records": [{k: r.get(k) for k in ("paper", "name", "scale", "verdict", "fresh")} for r in records]})
    else:
        out.say(f"{len(records)} recorded verdicts: {path}")
    return 0


def verify(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude verify`."""
    from etude.harness.verify import verify as check

    with out.guarded():
        found = check([Path(file) for file in options.files])
    if out.json:
        out.document(vars(found))
        return 1 if found.differences else 0
    for line in (*found.differences, *found.stale):
        out.say(line)
    what = f"{len(found.differences)} differences" if found.differences else "all numbers and verdicts come out as recorded"
    if found.checked:
        out.say(f"{len(found.checked)} file{'s' if len(found.checked) > 1 else ''} checked: {what}")
    else:
        out.say("nothing is recorded yet: `etude play PAPER --scale desk` makes a record")
    return 1 if found.differences else 0


def cache(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude cache`."""
    found = upkeep.cache(options.clear)
    if out.json:
        out.document(found)
        return 0
    for kind, (count, size) in found["cleared"].items():
        out.say(f"removed {kind}: {count} entries, {size / 1e6:.1f} MB")
    out.say(f"{found['home']}")
    for kind, about in found["kinds"].items():
        out.say(f"  {kind:<12} {about['entries']:>6} entries {about['bytes'] / 1e6:>10.1f} MB  {about['what']}".rstrip())
    out.say(f"  {'in all':<12} {'':>6}         {sum(about['bytes'] for about in found['kinds'].values()) / 1e6:>10.1f} MB")
    return 0


def doctor(options: argparse.Namespace, out: Output, words: list[str]) -> int:
    """`etude doctor`."""
    with out.guarded():
        rows = upkeep.diagnose()
    if out.json:
        out.document(rows)
        return 0
    for row in rows:
        out.say(f"{'ok     ' if row['ok'] else 'missing'}  {row['what']}: {row['found']}" + (f"\n         -> {row['fix']}" if row["fix"] else ""))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, Output, list[str]], int]] = {
    "list": list_,
    "show": show,
    "compare": compare,
    "apply": apply,
    "play": play,
    "report": report,
    "verify": verify,
    "cache": cache,
    "doctor": doctor,
}
