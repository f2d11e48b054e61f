"""`etude verify`: verdicts and recommendations computed anew from the recorded runs, and every difference by the name of its field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etude import catalogue
from etude.data.cache import digest_json
from etude.harness.closure import closure
from etude.harness.contract import Experiment
from etude.harness.intervals import DRAWS
from etude.harness.verdict import judge
from etude.measure.contract import Metrics

SCHEMA = 1
SHOWN = 100  # characters of a value in a message

Experiments = Mapping[str, Experiment[Any]]


@dataclass
class Findings:
    """What a verification found.

    Attributes:
        checked: files that were read.
        differences: "FILE: FIELD: recorded X, recomputed Y", one a field.
        stale: records that were made by other code than is installed; that alone is no difference.
    """

    checked: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def verify(paths: Iterable[Path] = ()) -> Findings:
    """Check records (`desk.json`, `gpu.json`) and contests (`results.json`, or a folder with one); without paths, all records of the installation.

    Raises:
        ValueError: a file is missing, is not JSON, is neither kind, or was written by a newer etude.
    """
    found = Findings()
    for given in [*paths] or installed():
        path = given / "results.json" if given.is_dir() else given
        document = read(path)
        found.checked.append(str(path))
        if "contenders" in document:
            found.differences += [f"{path}: {text}" for text in check_results(document)]
        else:
            studies = catalogue.experiments(document["name"])
            found.differences += [f"{path}: {text}" for text in check_record(document, studies)]
            found.stale += (
                [] if fresh(document, studies) else [f"{path}: made by other code than is installed; etude play {document['name']} renews it"]
            )
    return found


def installed() -> list[Path]:
    """Every recorded étude of the installation."""
    folders = [entry.path.parent for entry in catalogue.entries().values() if entry.source in ("paper", "plugin")]
    return sorted(path for folder in folders for path in (folder / "desk.json", folder / "gpu.json") if path.is_file())


def read(path: Path) -> dict[str, Any]:
    """A record or a contest's results.

    Raises:
        ValueError: it is missing, is not JSON, is neither kind, or was written by a newer etude.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a results.json or desk.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): it was cut or edited; make it again with the command that wrote it") from error
    if not isinstance(document, dict) or not ("contenders" in document or {"experiments", "name"} <= document.keys()):
        raise ValueError(f"{path} is neither a contest's results.json nor an étude's desk.json: give one of these")
    version = document.get("schema", document.get("schema_version", SCHEMA))
    if not isinstance(version, int) or version > SCHEMA:
        raise ValueError(f"{path} was written by a newer etude (its form is {version}, known is {SCHEMA}): update etude to read it")
    return document


# ---- an étude's record ----


def check_record(record: Mapping[str, Any], studies: Experiments) -> Iterator[str]:
    """What differs between a record and its recomputation by the installed claims."""
    yield from check_seal(record)
    recorded = record["experiments"]
    for name in sorted(recorded.keys() ^ studies.keys()):
        yield f"experiments.{name}: " + (
            "recorded, but the installed étude has it no more" if name in recorded else "the installed étude has it, the record lacks it"
        )
    verdict = None
    for name, experiment in studies.items():
        if name not in recorded:
            continue
        place = f"experiments.{name}.claims"
        try:
            claims = claims_of(experiment, runs_of(recorded[name]))
        except (ValueError, KeyError, TypeError) as error:
            yield f"{place}: cannot be recomputed ({error})"
            continue
        yield from differences(recorded[name].get("claims"), claims, place)
        verdict = verdict or (claims[0]["status"] if claims else None)
    yield from differences(record.get("verdict"), verdict, "verdict")


def claims_of(experiment: Experiment[Any], runs: Mapping[tuple[str, int], Metrics], draws: int = DRAWS) -> list[dict[str, Any]]:
    """Every claim of an experiment judged, as plain JSON."""
    return [judge(claim, runs, draws).to_json() for claim in experiment.claims]


def runs_of(recorded: Mapping[str, Any]) -> dict[tuple[str, int], Metrics]:
    """The runs of a recorded experiment."""
    return {(run["arm"], int(run["seed"])): Metrics.from_json(run["metrics"]) for run in recorded["runs"]}


def code_of(studies: Experiments) -> str:
    """The digest of the sources that the experiments depend on."""
    return closure(sorted({type(experiment).__module__ for experiment in studies.values()}))


def fresh(record: Mapping[str, Any], studies: Experiments | None = None) -> bool:
    """Whether the installed code is the code that made the record; a stale record is shown as such."""
    return bool(record.get("closure") == code_of(studies or catalogue.experiments(record["name"])))


# ---- a contest's results ----


def check_results(results: Mapping[str, Any]) -> Iterator[str]:
    """What differs between a contest's results and their recomputation from the recorded seeds."""
    from etude.harness.recommend import recommend
    from etude.harness.results import summarise

    yield from check_seal(results)
    for i, row in enumerate(results["contenders"]):
        place = f"contenders[{i}] ({row.get('name')})"
        try:
            runs = [Metrics.from_json(seed["metrics"]) for seed in row.get("seeds") or () if not seed.get("error")]
            yield from differences(row.get("summary"), json.loads(json.dumps(summarise(runs))), f"{place}.summary")
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            yield f"{place}.summary: cannot be recomputed ({error})"
    try:
        yield from differences(results.get("recommendation"), json.loads(json.dumps(recommend(results))), "recommendation")
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        yield f"recommendation: cannot be recomputed ({error})"


# ---- seals and differences ----


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with a digest of all that it holds, so that a changed digit anywhere is found."""
    rest = {key: value for key, value in document.items() if key != "seal"}
    return rest | {"seal": digest_json(json.loads(json.dumps(rest)))[:16]}


def check_seal(document: Mapping[str, Any]) -> Iterator[str]:
    """A difference where the document is not what was sealed."""
    found = sealed(document)["seal"]
    if "seal" not in document:
        yield "seal: missing: something in this file was changed after it was written"
    elif document["seal"] != found:
        yield f"seal: recorded {document['seal']}, but the contents give {found}: something in this file was changed after it was written"


def differences(recorded: Any, recomputed: Any, place: str) -> Iterator[str]:
    """Every field in which two plain documents differ."""
    if isinstance(recorded, Mapping) and isinstance(recomputed, Mapping):
        for key in dict.fromkeys([*recomputed, *recorded]):
            yield from differences(recorded.get(key), recomputed.get(key), f"{place}.{key}")
    elif isinstance(recorded, list) and isinstance(recomputed, list) and len(recorded) == len(recomputed):
        for i, (one, other) in enumerate(zip(recorded, recomputed, strict=True)):
            yield from differences(one, other, f"{place}[{i}]")
    elif not same(recorded, recomputed):
        yield f"{place}: recorded {json.dumps(recorded)[:SHOWN]}, recomputed {json.dumps(recomputed)[:SHOWN]}"


def same(one: Any, other: Any) -> bool:
    """Whether two plain values agree; numbers up to the last bits, which differ between machines."""
    if isinstance(one, int | float) and isinstance(other, int | float) and not isinstance(one, bool) and not isinstance(other, bool):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-15) or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and bool(one == other)
