"""The functions behind the command line and behind `etude.compare` and `etude.apply`."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from etude import catalogue
from etude.data.cache import artifact, digest_json
from etude.harness.request import Progress, Request

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What `etude.compare` and `etude.apply` return.

    Attributes:
        out: the folder that was written.
        results: all of it, as in results.json; for `apply`, what was done.
    """

    out: Path
    results: dict[str, Any]

    @property
    def recommendation(self) -> dict[str, Any]:
        """Which method, why, and the command that applies it; empty after `apply`."""
        return dict(self.results.get("recommendation") or {})

    @property
    def report(self) -> Path:
        """The page to open: report.html of a contest, the card of what was applied."""
        return self.out / ("report.html" if self.results.get("contest") else "README.md")

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a contender: what was measured on the test part; after `apply`, one row of what was done."""
        import pandas as pd

        if "contenders" not in self.results:
            return pd.DataFrame([{key: value for key, value in self.results.items() if not isinstance(value, dict | list)}])
        return pd.DataFrame([_row(contender) for contender in self.results["contenders"]]).set_index("name")

    def __str__(self) -> str:
        return str(self.recommendation.get("line") or self.out)


def _row(contender: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: contender.get(key) for key in ("name", "reached", "error")}
    numbers = {
        name if key == "value" else f"{name}_{key}": value[key]
        for key in ("value", "low", "high")
        for name, value in (contender.get("summary") or {}).items()
    }
    return about | numbers


# --- compare ----------------------------------------------------------------------------------------------------------


def compare(
    *names: str,
    out: str | Path | None = None,
    family: str | None = None,
    with_file: str | None = None,
    without: Iterable[str] = (),
    budget: str | Iterable[str] = (),
    columns: Mapping[str, str] | None = None,
    say: Say = print,
    progress: Progress | None = None,
    **rest: Any,
) -> Outcome:
    """Let methods compete on your model and data, as `etude compare` does.

    Args:
        names: contenders ("laser", "laser:rho=0.2"); none means every implemented one of the family.
        out: the folder for results.json and report.html.
        rest: what the contest asks for (`model`, `data`), and the command's other flags with underscores: `validation`, `test`, `calibration`,
            `max_loss`, `prefer`, `metric`, `seeds`, `dev`, `with_samples`, `jobs`, `device`, `dtype`, `revision`, `force`, `dry_run`, `command`.

    Raises:
        ValueError: something cannot be used; the message says what and what to do.
    """
    from etude.harness.compete import compete

    known = {name: rest.pop(name) for name in list(rest) if name in Request.__dataclass_fields__ and name not in ("brought", "names")}
    limits = (budget,) if isinstance(budget, str) else tuple(budget)
    request = Request(
        out=Path(out) if out else Path(),
        names=names,
        family=family,
        with_file=with_file,
        without=tuple(without),
        brought={name: str(value) for name, value in rest.items() if value is not None},
        budget=limits,
        columns=dict(columns or {}),
        **known,
    )
    request = settled(request)
    check_brought(request)
    return Outcome(request.out, compete(request, say, progress))


def settled(request: Request) -> Request:
    """The request with its family and its folder, where the user left them open."""
    family = request.family
    if family is not None and family not in catalogue.families():
        raise ValueError(
            f"no family is called {family!r}{catalogue.nearest(family, catalogue.families())} (families: {', '.join(catalogue.families())})"
        )
    if family is None:
        family = families_of(request)
    if request.out == Path():
        asked: list[Any] = [
            family,
            request.names,
            request.with_file,
            request.without,
            request.brought,
            request.validation,
            request.test,
            request.calibration,
        ]
        asked += [request.budget, request.max_loss, request.prefer, request.metric, request.columns, request.seeds, request.dev, request.with_samples]
        request = replace(request, out=Path("etude-out") / f"{family}-{digest_json([*asked, request.device, request.dtype, request.revision])[:8]}")
    return replace(request, family=family)


def families_of(request: Request) -> str:
    """The one family whose contest is meant: by the names, else by the verb of the user's own class."""
    entered = [set(catalogue.find(catalogue.parse(name)[0]).enters) for name in request.names]
    verbs = _verbs(request.with_file) if request.with_file else set[str]()
    able = [f for f in catalogue.with_contests() if all(f in enters for enters in entered)]
    if request.with_file and len(able) > 1:
        able = [family for family in able if any(contest.verb in verbs for contest in catalogue.contests(family))] or able
    if len(able) == 1 and (request.names or request.with_file):
        return able[0]
    if not able and len({catalogue.parse(name)[0] for name in request.names}) > 1:
        said = "; ".join(f"{name} enters {', '.join(sorted(enters)) or 'none'}" for name, enters in zip(request.names, entered, strict=True))
        raise ValueError(f"these methods share no contest ({said}): compare those of one family")
    if not able:
        entry = catalogue.find(catalogue.parse(request.names[0])[0])
        raise ValueError(
            f"{entry.name} is a {entry.role} and enters {', '.join(entry.enters) or 'no contest'}; {', '.join(able) or 'no contest'} fits"
        )
    raise ValueError(f"which contest is meant? name a contender, or give --family, one of {', '.join(able)}")


def _verbs(spec: str) -> set[str]:
    """The methods that the class of a FILE.py:CLASS defines."""
    path, _, name = spec.rpartition(":")
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, SyntaxError, ValueError):
        return set()  # refused with the reason later
    return {
        f.name
        for n in tree.body
        if isinstance(n, ast.ClassDef) and n.name == name
        for f in n.body
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def check_brought(request: Request) -> None:
    """Refuse what the family's contests do not ask for."""
    family = request.family or ""
    asked = [need.name for contest in catalogue.contests(family) for need in contest.brings]
    for name in request.brought:
        if name not in asked and asked:
            raise ValueError(f"the contest of {family} takes no --{name}; bring {', '.join(f'--{a}' for a in dict.fromkeys(asked))}")


# --- apply ------------------------------------------------------------------------------------------------------------


def apply(
    name: str | None = None,
    *,
    out: str | Path,
    results: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    say: Say = print,
    progress: Progress | None = None,
    **rest: Any,
) -> Outcome:
    """Run one method, or what a contest recommended (`results`), and save the result in `out`, as `etude apply` does.

    Args:
        name: the method, with or without options ("laser", "laser:rho=0.2").
        out: a new folder, written whole or not at all.
        results: path of a results.json; `name` is left out then.
        options: of the method, by name.
        rest: what the contest asks for (`model`, `data`), and `validation`, `calibration`, `columns`, `device`, `dtype`, `revision`, `force`,
            `dry_run`.

    Raises:
        ValueError: something cannot be used; the message says what and what to do.
    """
    from etude.harness import compete
    from etude.harness.card import card

    if (name is None) == (results is None):
        raise ValueError("give either the NAME of a method or --from results.json")
    target = Path(out)
    known = {key: rest.pop(key) for key in list(rest) if key in Request.__dataclass_fields__ and key != "brought"}
    request = Request(out=target, brought={key: str(value) for key, value in rest.items() if value is not None}, **known)
    check_free(target, request.force)
    if results is not None:
        if options or request.brought or request.dtype or request.device != "cpu" or request.revision:
            raise ValueError("--from hands over what the contest measured: leave method, options, model, data, --dtype, --device and --revision out")
        if request.dry_run:
            say(f"would write what {results} recommends to {target}")
            return Outcome(target, {"dry_run": True, "out": str(target)})
        digest, about = compete.apply_from(Path(results), request, say, progress)
    else:
        spelled, own = catalogue.parse(str(name))
        entry, chosen = catalogue.find(spelled), own | dict(options or {})
        request = replace(request, family=request.family or next((f for f in entry.enters if f in catalogue.with_contests()), None))
        if request.family is None:
            raise ValueError(
                f"{entry.name} is a {entry.role} that enters no contest, so `apply` cannot run it: `etude show {entry.name}` shows its use"
            )
        check_brought(request)
        catalogue.make(entry, chosen)
        if request.dry_run:
            say(f"would run {spelled} {json.dumps(chosen)} and write the result to {target}")
            return Outcome(target, {"dry_run": True, "name": entry.name, "options": chosen, "out": str(target)})
        digest, about = compete.apply(entry.name, chosen, request, say, progress)
    done = summary(about, target) | {"command": request.command}
    deliver(artifact(digest), target, {"README.md": card(done)}, request.force)
    return Outcome(target, done | {"files": files_in(target)})


def summary(about: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """What was done, JSON-able, from what `compete.apply` or `compete.apply_from` told."""
    results, contender = about.get("results") or {}, about.get("contender") or {}
    entry = about.get("entry") or catalogue.entries().get(catalogue.parse(str(contender.get("name", "")))[0])
    told = about.get("about") or {}
    model = dict(results.get("model") or dict(told.get("model") or {}) | dict(about.get("facts") or {}))
    return {
        "name": contender.get("name") or (entry.name if entry else ""),
        "title": contender.get("title") or (entry.title if entry else ""),
        "paper": contender.get("paper") or (entry.paper if entry else ""),
        "licence": contender.get("licence") or (entry.licence if entry else ""),
        "options": about.get("options") or {},
        "model": model if model.get("name") else {},
        "data": {key: value for key, value in dict(results.get("data") or told.get("data") or {}).items() if key != "notes"},
        "describe": dict(about.get("describe") or {}),
        "measured": dict(contender.get("summary") or {}),
        "axes": results.get("axes") or {},
        "quality": results.get("quality"),
        "wall": about.get("wall", contender.get("wall")),
        "memory": _peak(about.get("memory", contender.get("memory"))),
        "tuning": about.get("tuning") or contender.get("tuning") or [],
        "out": str(out),
    }


def _peak(memory: Any) -> float | None:
    if isinstance(memory, Mapping):
        memory = memory.get("rss_anon") or memory.get("hwm")
    return float(memory) if isinstance(memory, int | float) and memory else None


def files_in(folder: Path) -> dict[str, int]:
    """Name and bytes of each file."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def check_free(out: Path, force: bool) -> None:
    """Refuse a folder that holds something, or that cannot be written, before any work."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if held and not force:
        raise ValueError(f"--out {out} holds {', '.join(held[:3])}{'...' if len(held) > 3 else ''}: give a new folder, or --force to write into it")
    above = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    try:
        probe = above / f".etude-{uuid4().hex[:8]}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({above} is not a folder you may write to: {error.strerror}): give another one") from error


def deliver(source: Path, out: Path, files: Mapping[str, str], force: bool) -> None:
    """Copy a finished folder and further files to `out`, whole or not at all; with `force`, other files that lie there stay."""
    partial = out.absolute().parent / f".{out.name}.{uuid4().hex[:8]}.partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, partial)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        swap(partial, out, force)
    except OSError as error:
        raise OSError(
            f"--out {out} could not be written ({error.strerror or error}): free the disk or give another folder; nothing was left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def swap(partial: Path, out: Path, force: bool) -> None:
    """Give the finished folder its name; what lay under it and is not weights moves into it."""
    if not out.exists() or not any(out.iterdir()):
        os.replace(partial, out)
        return
    check_free(out, force)
    old = partial.with_suffix(".old")
    os.replace(out, old)
    os.replace(partial, out)
    for path in old.iterdir():
        if not (out / path.name).exists() and not path.name.endswith((".safetensors", ".safetensors.index.json")):
            os.replace(path, out / path.name)
    shutil.rmtree(old)


def command_of(words: Iterable[str]) -> str:
    """The command line as the user would write it again."""
    return shlex.join(["etude", *words])
