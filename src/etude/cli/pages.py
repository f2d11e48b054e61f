"""`etude list` and `etude show`: what there is, what a paper promises, and what was found when it was played."""

from __future__ import annotations

import ast
import json
import textwrap
from typing import Any

from etude import catalogue
from etude.catalogue import Entry, Paper
from etude.cli.output import Output
from etude.harness.formulas import untex

SCALES = ("desk", "gpu")


def listing(family: str | None = None) -> list[dict[str, Any]]:
    """The papers (of one family), then what other packages announce, as JSON-able rows."""
    if family and family not in catalogue.families():
        raise ValueError(
            f"no family is called {family!r}{catalogue.nearest(family, catalogue.families())} (families: {', '.join(catalogue.families())})"
        )
    known = catalogue.entries()
    found = [paper_row(paper, known.get(paper.name)) for paper in catalogue.papers() if family in (None, paper.family)]
    announced = [e for e in known.values() if e.source == "plugin" and family in (None, e.family)]
    return found + [entry_row(entry) for entry in announced]


def paper_row(paper: Paper, entry: Entry | None) -> dict[str, Any]:
    """One line of `list --json`."""
    verdicts = {scale: record["verdict"] for scale, record in records(entry).items()} if entry else {}
    about = {"id": paper.id, "name": paper.name, "family": paper.family, "title": paper.title}
    return about | {"role": entry.role if entry else None, "implemented": entry is not None, "verdicts": verdicts}


def entry_row(entry: Entry) -> dict[str, Any]:
    """The same for a method that is none of the papers."""
    about = {"id": entry.paper or None, "name": entry.name, "family": entry.family, "title": entry.title}
    return about | {"role": entry.role, "implemented": True, "verdicts": {}, "source": entry.source}


def records(entry: Entry) -> dict[str, dict[str, Any]]:
    """The recorded runs of an étude by scale; a record that cannot be read says so in its verdict."""
    found = dict[str, dict[str, Any]]()
    for scale in SCALES:
        path = entry.path.parent / f"{scale}.json"
        if entry.source != "file" and path.is_file():
            try:
                found[scale] = {"verdict": "unknown", "experiments": {}} | json.loads(path.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, TypeError):
                found[scale] = {"verdict": "unreadable", "experiments": {}}
    return found


def print_listing(out: Output, family: str | None) -> None:
    """The papers by family, what is implemented marked with its verdict."""
    rows = listing(family)
    papers = [row for row in rows if "source" not in row]
    width = max(60, out.width)
    for name in dict.fromkeys(row["family"] for row in papers):
        out.say(f"{name}")
        for row in sorted((row for row in papers if row["family"] == name), key=lambda row: not row["implemented"]):
            state = "missing" if not row["implemented"] else ", ".join(row["verdicts"].values()) or row["role"]
            out.say(f"  {row['id']:<10}  {row['name']:<28} {state:<15} ".ljust(59) + fit(untex(row["title"]), width - 59))
        field = [e.name for e in catalogue.entries().values() if e.source == "baseline" and e.family == name]
        if field:
            out.say(f"  also in the field: {', '.join(field)}")
    announced = [row for row in rows if "source" in row]
    if announced:
        out.say("announced by other packages")
        for row in announced:
            out.say(fit(f"  {row['name']} ({row['family']}): {row['title']}", width))
    out.say(f"{len(papers)} papers, {sum(row['implemented'] for row in papers)} implemented; `etude show NAME` tells more")


def fit(text: str, width: int) -> str:
    """The text, cut to the width."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def page(name: str) -> dict[str, Any]:
    """All that `show` tells of a paper or method."""
    missing = next((p for p in catalogue.papers() if name in (p.id, p.name) and p.name not in catalogue.entries()), None)
    if missing:
        return paper_row(missing, None) | {"page": "", "claims": [], "options": [], "use": []}
    entry = catalogue.find(name)
    paper = next((p for p in catalogue.papers() if entry.source == "paper" and p.id == entry.paper), None)
    tree = ast.parse(entry.path.read_text(encoding="utf-8"))
    options = [{"name": o.name, "type": o.type, "default": o.default, "doc": o.doc} for o in catalogue.option_docs(entry)]
    return (paper_row(paper, entry) if paper else entry_row(entry)) | {
        "paper": entry.paper or None,
        "page": ast.get_docstring(tree) or "",
        "enters": list(entry.enters),
        "needs": list(entry.needs),
        "traits": list(entry.traits),
        "licence": entry.licence,
        "claims": claims(entry),
        "options": options,
        "use": usage(entry),
    }


def claims(entry: Entry) -> list[dict[str, Any]]:
    """The étude's claims with their recorded verdicts; those of the source where nothing was recorded."""
    found = [
        {
            "experiment": name,
            "scale": scale,
            **{key: claim.get(key) for key in ("title", "row", "status", "estimate", "low", "high", "margin", "seeds")},
        }
        for scale, record in records(entry).items()
        for name, experiment in record["experiments"].items()
        for claim in experiment.get("claims", ())
    ]
    source = entry.path.parent / "experiment.py"
    if found or entry.source == "file" or not source.is_file():
        return found
    calls = [
        n
        for n in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "Claim"
    ]
    titles = [call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)]
    return [{"title": title, "status": "not recorded"} for title in titles]


def usage(entry: Entry) -> list[str]:
    """The commands that use it."""
    lines = []
    for family in entry.enters:
        if family in catalogue.with_contests():
            needs = [f"--{need.name} {example(need.name, need.default)}" for contest in catalogue.contests(family)[:1] for need in contest.brings]
            lines.append(" ".join(["etude compare", entry.name, *([f"--family {family}"] if len(entry.enters) > 1 else []), *needs]))
            lines.append(" ".join(["etude apply", entry.name, *needs, "--out DIR"]))
    if entry.source == "paper" and (entry.path.parent / "experiment.py").is_file():
        lines.append(f"etude play {entry.name} --scale desk")
    return lines


def example(name: str, default: str) -> str:
    """What to write after a flag: the default where it is a word, else a placeholder."""
    return default if default and "/" not in default else "YOUR_" + name.upper()


def print_record(out: Output, record: dict[str, Any]) -> None:
    """What playing a paper gave: the verdict and every claim."""
    out.say(f"{record['name']} ({record.get('paper', '')}), {record.get('scale', '')}: {record['verdict']}")
    for name, experiment in record["experiments"].items():
        for claim in experiment.get("claims", ()):
            out.say(textwrap.fill(f"{name}: {verdict(claim)}", min(100, out.width), initial_indent="  ", subsequent_indent="    "))
    for failure in record.get("failures", ()):
        out.say(
            f"  failed: {failure['experiment']} {failure['step']} {failure['arm']}, seed {failure['seed']}: {' '.join(str(failure['error']).split())}"
        )
    if record.get("path"):
        out.say(f"  recorded in {record['path']}")


def verdict(claim: dict[str, Any]) -> str:
    """A claim with its status, estimate and interval."""
    numbers = ""
    if claim.get("estimate") is not None:
        numbers = f": {_number(claim['estimate'])} [{_number(claim.get('low'))}, {_number(claim.get('high'))}]"
    return f"{claim['status']}{numbers} - {claim['title']}"


def print_page(out: Output, name: str) -> None:
    """The page as text."""
    about, width = page(name), min(100, out.width)
    out.say(untex(about["title"]))
    linked = f"https://arxiv.org/abs/{about['id']}" if about["id"] else "no paper"
    out.say(f"{about['name']} ({about['family']}, {about['role'] or 'not implemented yet'}), {linked}")
    if not about["implemented"]:
        out.say("This paper is not implemented yet: `etude list` shows what is.")
        return
    out.say(f"\n{untex(about['page'])}")
    if about["claims"]:
        out.say("\nClaims and verdicts")
    for claim in about["claims"]:
        where = ", ".join(claim[key] for key in ("experiment", "scale") if claim.get(key))
        text = verdict(claim) + (f" ({where})" if where else "")
        out.say(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    "))
    if about["options"]:
        out.say("\nOptions")
    for option in about["options"]:
        text = f"{option['name']} ({option['type']}, default {json.dumps(option['default'], default=str)}): {option['doc']}"
        out.say(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    "))
    if about["use"]:
        out.say("\nUse")
    for line in about["use"]:
        out.say(f"  {line}")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-" if value is None else str(value)
