"""From what the user brings to digests: the model's folder, the four splits, files of the user's own."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etude.data import assets, sources, split
from etude.data.cache import artifact, digest_json, digest_of, store_folder
from etude.data.contract import Split
from etude.harness.contract import Contest, Need
from etude.harness.request import Request
from etude.harness.steps import load_function

NAMES = ("train", "validation", "choice", "test")


@dataclass(frozen=True)
class Inputs:
    """Everything a contest reads, by digest.

    Attributes:
        digests: name -> digest: model, tokenizer, train, validation, choice, test, metric.
        about: what the report says of model and data.
        metric: the name of the user's own metric, or "".
        quality: the metric that decides.
        numbers: what the user set by a number (a size, a length), or its default.
    """

    digests: dict[str, str]
    about: dict[str, Any]
    metric: str
    quality: str
    numbers: dict[str, float] = field(default_factory=dict)

    def pick(self, *names: str) -> tuple[tuple[str, str], ...]:
        """Inputs of a run, those that there are."""
        return tuple((name, self.digests[name]) for name in names if name in self.digests)


def gather(request: Request, contest: Contest[Any, Any], say: Callable[[str], None], whole: bool = False) -> Inputs:
    """Fetch, load, deduplicate and split what the user brings.

    Args:
        whole: for `etude apply`: no choice and test parts are kept back.
    """
    brought = {need.name: request.brought.get(need.name) or need.default for need in contest.brings}
    notes = list[str]()

    def aloud(line: str) -> None:
        notes.append(line)
        say(line)

    digests, about = dict[str, str](), dict[str, Any]()
    numbers = {need.name: number_of(need, brought[need.name]) for need in contest.brings if need.kind == "number" and brought[need.name]}
    for need in contest.brings:
        if need.kind in ("model", "tokenizer") and brought[need.name]:
            find = assets.model_folder if need.kind == "model" else assets.tokenizer_folder
            folder = find(brought[need.name], request.revision, say)
            digests[need.name] = adopt(folder)
            about[need.name] = {"name": brought[need.name], "digest": digests[need.name]}
    parts = load(brought["data"], contest, request.columns, aloud)
    rows = {name: len(part) for name, part in zip(parts.parts, parts.parts.values(), strict=True)}
    key = [sources.source_digest(brought["data"]), sources.read_as(brought["data"]), request.columns, contest.family, contest.name]
    digests |= save_splits(request, contest, parts, key, aloud, whole)
    about["data"] = {
        "name": brought["data"],
        "digest": key[0],
        "notes": notes,
        "rows": {kind.__name__: count for kind, count in rows.items()},
        "splits": {name: {k.__name__: len(p) for k, p in Split.load(artifact(digests[name])).parts.items()} for name in NAMES if name in digests},
    }
    metric = ""
    if request.metric:
        path, _, metric = request.metric.rpartition(":")
        if not Path(path).is_file() or not metric.isidentifier():
            raise ValueError(f"--metric {request.metric!r}: give FILE.py:FUNCTION, with a file that is there")
        load_function(Path(path), metric)

        def copy(folder: Path) -> None:
            shutil.copyfile(path, folder / "metric.py")

        digests["metric"] = store_folder(copy)
    return Inputs(digests, about, metric, metric or contest.decides(parts), numbers)


def number_of(need: Need, text: str) -> float:
    """A number above 0, whole where it is.

    Raises:
        ValueError: the text is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"--{need.name} {text} is no number above 0" + (f": give for instance {need.default}" if need.default else ""))
    return int(value) if value.is_integer() else value


def load(spec: str, contest: Contest[Any, Any], columns: dict[str, str], say: Callable[[str], None]) -> Split:
    """The parts of one source, duplicates dropped aloud."""
    parts, known = sources.load(spec, contest.kinds, columns, say), set[str]()

    def once(line: str) -> None:
        if line not in known:  # rows that are text as well are the same rows
            say(line)
        known.add(line)

    return Split(*(part if part.running else split.deduplicate(part, once) for part in parts.parts.values()))


def save_splits(
    request: Request, contest: Contest[Any, Any], parts: Split, key: list[Any], say: Callable[[str], None], whole: bool
) -> dict[str, str]:
    """The contest's own split, with the user's files in the place of its parts, each kept under a digest."""
    splits: dict[str, Split] = dict(zip(NAMES, contest.whole(parts, 0) if whole else contest.split(parts, 0), strict=False))
    sources_of = dict.fromkeys(splits, "")
    for name, spec in (("validation", request.validation), ("test", request.test), ("train", request.calibration)):
        if spec and name in splits:
            splits[name], sources_of[name] = load(spec, contest, request.columns, say), sources.source_digest(spec) + str(sources.read_as(spec))
    for name, piece in splits.items():
        for part in piece.parts.values():
            if len(part) == 0:
                raise ValueError(f"the {name} part would be empty: the data holds {sizes(parts)}; bring more")
    return {
        name: store_folder(piece.save, digest_json([*key, name, sources_of[name], "whole" if whole else "split"])) for name, piece in splits.items()
    }


def sizes(parts: Split) -> str:
    """How much there is, in words."""
    return ", ".join(f"{len(part)} {'pieces' if part.running else 'rows'} of {kind.__name__}" for kind, part in parts.parts.items())


def adopt(folder: Path) -> str:
    """Make a folder of the user's reachable by its digest, through a link."""
    digest = digest_of(folder)
    target = artifact(digest)
    if target.is_symlink() or not target.exists():  # an older link may point to a folder that has changed since
        target.parent.mkdir(parents=True, exist_ok=True)
        link = target.with_name(f".{digest}.{os.getpid()}")
        link.unlink(missing_ok=True)
        link.symlink_to(folder.resolve())
        os.replace(link, target)
    return digest
