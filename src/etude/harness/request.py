"""What a user asks of a contest, and who competes in it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from etude import catalogue
from etude.data.cache import store_folder
from etude.harness.contract import Contest


@dataclass(frozen=True)
class Request:
    """`etude compare` as data.

    Attributes:
        names: contenders, each "name" or "name:option=value,..."; empty means every implemented one of the family.
        brought: what the user brings, by the contest's need ("model", "data").
        budget: limits as given ("0.5", "120MB", "60s", "2x faster"); max_loss as given ("2%").
        seeds: measured seeds, after the one on which operating points are chosen; None leaves it to the contest.
    """

    out: Path
    names: tuple[str, ...] = ()
    family: str | None = None
    with_file: str | None = None
    without: tuple[str, ...] = ()
    brought: dict[str, str] = field(default_factory=dict)
    validation: str | None = None
    test: str | None = None
    calibration: str | None = None
    budget: tuple[str, ...] = ()
    max_loss: str | None = None
    prefer: str | None = None
    metric: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    seeds: int | None = None
    dev: bool = False
    with_samples: bool = False
    jobs: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    revision: str | None = None
    force: bool = False
    dry_run: bool = False
    command: str = "etude compare"


class Progress(Protocol):
    """What is told while a contest runs: jobs as they start and finish, and the standings after each."""

    def started(self, job: Any) -> None: ...
    def finished(self, record: Any) -> None: ...
    def expect(self, total: int) -> None: ...
    def forecast(self, total: int) -> None: ...
    def standing(self, rows: list[dict[str, Any]]) -> None: ...


@dataclass
class Entrant:
    """A contender in a contest: its entry, the options the user set, the digest of its file where it is the user's own, why it does not run."""

    label: str
    entry: catalogue.Entry
    options: dict[str, Any]
    file: str = ""
    points: list[dict[str, Any]] = field(default_factory=list)
    chosen: int = -1
    error: str = ""
    left_out: str = ""
    named: bool = False  # by the user: it is refused where another one would be left out

    @property
    def inputs(self) -> tuple[tuple[str, str], ...]:
        return (("with", self.file),) if self.file else ()


def contest_for(request: Request) -> Contest[Any, Any]:
    """The contest that the names, the family and what was brought point to."""
    family = request.family
    if family is None:
        families = {e for name in request.names for e in catalogue.find(catalogue.parse(name)[0]).enters}
        shared = [f for f in families if all(f in catalogue.find(catalogue.parse(n)[0]).enters for n in request.names)]
        if len(shared) != 1:
            raise ValueError(f"which contest is meant? give --family, one of {', '.join(sorted(families)) or 'compress, study'}")
        family = shared[0]
    contest: Contest[Any, Any] = catalogue.contest(family)
    return contest


def entrants_of(request: Request, contest: Contest[Any, Any]) -> list[Entrant]:
    """The field, then the named (or all implemented) contenders, then the user's own: reference first."""
    specs = [(name, *catalogue.parse(name)) for name in request.names] or [
        (entry.name, entry.name, {})
        for entry in catalogue.entries().values()
        if contest.family in entry.enters and entry.source != "baseline" and entry.role in ("contender", "conversion")
    ]
    named = {name for _, name, _ in specs}
    specs = [(name, name, {}) for name in contest.field if name not in named] + specs
    for name in request.without:
        if catalogue.find(name).name == contest.reference:
            raise ValueError(f"--without {name}: it is the reference that all others are compared with, so it stays")
    found = []
    for label, name, options in specs:
        entry = catalogue.find(name)
        if contest.family not in entry.enters:
            raise ValueError(f"{name} does not compete in {contest.family}: it enters {', '.join(entry.enters) or 'no contest'}")
        if entry.name not in request.without:
            catalogue.make(entry, options)  # refuses bad options before any work
            found.append(Entrant(entry.name if label == name else label, entry, options, named=label in request.names))
    if request.with_file:
        path, _, classes = request.with_file.rpartition(":")
        found += [own_entrant(f"{path}:{name}", contest) for name in classes.split(",")]
    found.sort(key=lambda e: e.entry.name != contest.reference)
    return found


def own_entrant(spec: str, contest: Contest[Any, Any]) -> Entrant:
    """The user's own method FILE.py:CLASS, copied beside the contest's inputs."""
    path, _, name = spec.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError(f"--with {spec!r}: give FILE.py:CLASS")
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"--with {path}: there is no such file")
    entry = catalogue.from_file(source, name, contest.family)

    def copy(folder: Path) -> None:
        shutil.copyfile(source, folder / "method.py")

    return Entrant(entry.name, entry, {}, store_folder(copy), named=True)


UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_budget(text: str, contest: Contest[Any, Any]) -> dict[str, Any]:
    """A limit as {"text", "axis", "form", "amount"}: a share of the reference, bytes, seconds, times faster, tokens."""
    forms = {
        "share": re.fullmatch(r"(0?\.\d+|1(?:\.0*)?)", text),
        "bytes": re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB)", text),
        "seconds": re.fullmatch(r"(\d+(?:\.\d+)?)\s*s", text),
        "faster": re.fullmatch(r"(\d+(?:\.\d+)?)\s*x(?:\s*faster)?", text),
        "tokens": re.fullmatch(r"(\d+(?:\.\d+)?)\s*tokens", text),
    }
    for form, match in forms.items():
        if match and form in contest.budget_axes and float(match[1]) > 0:
            amount = float(match[1]) * (UNITS[match[2]] if form == "bytes" else 1.0)
            return {"text": text, "axis": contest.budget_axes[form], "form": form, "amount": amount}
    examples = {"share": "0.5", "bytes": "120MB", "seconds": "60s", "faster": '"2x faster"', "tokens": "5000tokens"}
    raise ValueError(f"--budget {text!r} is no limit that this contest knows: give {' or '.join(examples[f] for f in contest.budget_axes)}")


def parse_share(text: str, flag: str) -> float:
    """A share such as "2%" or "0.02"."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ValueError(f"{flag} {text!r} is no share: give for instance 2% or 0.02")
    return value


DTYPES = ("float32", "bfloat16", "float16")


def check_machine(request: Request) -> None:
    """Refuse a dtype or device that is not there, before any work."""
    if request.dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype {request.dtype}: give {', '.join(DTYPES)}{catalogue.nearest(str(request.dtype), DTYPES)}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", request.device):
        raise ValueError(f"--device {request.device}: give cpu, cuda or cuda:N")
    if request.device != "cpu":
        import torch

        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(request.device.partition(":")[2] or 0) >= there:
            raise ValueError(f"--device {request.device}: this machine has {there} CUDA devices; leave it out to use the processor")
    model = request.brought.get("model", "")
    if request.revision and (not model or Path(model).expanduser().exists() or "/" not in model):
        raise ValueError(f"--revision {request.revision} is of a model on the hub, and {model or 'none'} was brought: leave it out")


def held_by(out: Path) -> str | None:
    """The identity of the contest whose folder this is."""
    mark = out / "contest.json"
    return json.loads(mark.read_text()).get("identity") if mark.exists() else None


def check_out(request: Request, identity: str) -> None:
    """Refuse an `--out` that holds anything but this contest; a contest that never finished makes room."""
    out = request.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder")
    held = held_by(out)
    inside = [path.name for path in out.iterdir() if path.name not in ("lock", "contest.json")] if out.exists() else []
    if inside and held != identity and not request.force:
        what = "another contest" if held else f"other things ({', '.join(sorted(inside)[:3])}...)"
        raise ValueError(f"--out {out} holds {what}: give another folder, or --force to write into it")


def claim_out(request: Request, identity: str) -> None:
    """Make `--out` this contest's folder; whoever calls holds its lock."""
    out, mark = request.out, request.out / "contest.json"
    check_out(request, identity)
    try:
        if held_by(out) != identity:
            for name in ("results.json", "report.html"):
                (out / name).unlink(missing_ok=True)
        (out / "contest.json.part").write_text(json.dumps({"identity": identity, "command": request.command}))
        (out / "contest.json.part").replace(mark)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror}): give a folder that you may write to") from error
