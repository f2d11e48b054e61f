"""Whatever `--data` says becomes parts: files of any size, saved `datasets` folders, hub data sets, corpora by name."""

from __future__ import annotations

import difflib
import functools
import gzip
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from etude.data import corpora
from etude.data.cache import artifact, digest_json, digest_of, scratch, store_folder
from etude.data.contract import Part, Split
from etude.data.formats import Source, detect, pieces, readable
from etude.data.records import Csv, json_rows
from etude.data.roles import known, parts_of

if TYPE_CHECKING:
    from datasets import Dataset

Say = Callable[[str], None]
LAYOUT = 1  # of what is cached: raised when reading changes
LARGE = 50 << 20  # bytes of a file from which reading it is announced
SUFFIXES = {".txt", ".md", ".rst", ".log", ".py", ".html", ".xml", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".parquet", ".gz"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
FORMS = "text, JSONL, JSON, CSV, TSV or Parquet, or gzip of these; a folder that `datasets` saved; a hub data set"


def load(spec: str, kinds: tuple[type[Part], ...], columns: Mapping[str, str], say: Say = print) -> Split:
    """The parts that a source holds.

    Args:
        spec: a file, a folder that `datasets` saved, a corpus by name, or a hub data set (`owner/name` or `owner/name:configuration`).
        kinds: the kinds of parts that are wanted; those that the source holds come back.
        columns: role -> column, where the guess is not to be trusted.
        say: is told what was guessed, left out or fetched.

    Raises:
        ValueError: there is no such source, it is broken, or it holds none of the kinds; the message says what to do.
    """
    dataset, running = read(spec, say)
    return parts_of(spec, dataset, running, kinds, columns, say)


def read(spec: str, say: Say = print) -> tuple[Dataset, bool]:
    """The rows of a source as a memory-mapped data set, and whether they are pieces of one running text."""
    if corpora.known(spec):
        return from_file(corpora.file_of(spec, say), say)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path, say), False
    if path.exists():
        return from_file(path, say)
    if path.suffix.lower() not in SUFFIXES and HUB_NAME.fullmatch(spec) and not path.is_absolute():
        return _from_hub(spec, say), False
    near = difflib.get_close_matches(spec, corpora.NAMES, 1, 0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"data {spec} does not exist{hint}: give a file or folder that is there, a hub data set or one of {', '.join(corpora.NAMES)}")


def source_digest(spec: str) -> str:
    """Digest of the bytes that `load` reads; of a hub data set, of its name and commit."""
    if corpora.known(spec):
        return digest_of(corpora.file_of(spec, lambda line: None))
    path = Path(spec).expanduser()
    return digest_of(path) if path.exists() else digest_json([spec, _commit(spec)])


def read_as(spec: str) -> list[str]:
    """How a file is read, by its name and content: form and delimiter; nothing for what is no file."""
    path = Path(spec).expanduser()
    if corpora.known(spec) or not path.is_file():
        return []
    source = detect(path)
    return [source.form, str(source.delimiter)]


def from_file(path: Path, say: Say = print) -> tuple[Dataset, bool]:
    """The rows of one file; what was read before is not read again."""
    from etude.data import arrow

    source = detect(path)

    def fill(folder: Path) -> None:
        size = path.stat().st_size
        if size >= LARGE:
            say(f"reading {path.name} ({size / 1e9:.1f} GB, once)")
        with readable(path):
            rows, notes = _write(source, folder / "rows.arrow")
        if not rows:
            raise ValueError(f"data {path} is empty: it holds no rows")
        (folder / "notes.json").write_text(json.dumps(notes))

    digest = store_folder(fill, digest_json(["rows", LAYOUT, digest_of(path), source.form, source.delimiter]))
    for note in json.loads((artifact(digest) / "notes.json").read_text()):
        say(f"{path.name}: {note}")
    return arrow.mapped(artifact(digest) / "rows.arrow", digest), source.form == "text"


def _write(source: Source, path: Path) -> tuple[int, list[str]]:
    """Write the Arrow file of a source; the number of rows, and what is to be said aloud."""
    import pyarrow as pa

    from etude.data import arrow

    if source.form == "text":
        return arrow.write(pieces(source), pa.schema([("text", pa.string())]), path), []
    if source.form == "parquet":
        if not source.gzipped:
            return arrow.copy_parquet(source.path, path), []
        with scratch() as room:
            with gzip.open(source.path, "rb") as packed, (room / "rows.parquet").open("wb") as plain:
                shutil.copyfileobj(packed, plain)
            return arrow.copy_parquet(room / "rows.parquet", path), []
    if source.form == "csv":
        table = Csv(source, known)
        kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
        schema = pa.schema([(name, kinds[kind]) for name, kind in zip(table.names, table.kinds, strict=True)])
        notes = [f"no header: the columns are called {', '.join(table.names)}"] if table.headless else []
        return arrow.write(table.rows(), schema, path), notes
    schema, mixed = arrow.infer(json_rows(source))
    notes = [f"column {name} mixes types: kept as text" for name in mixed]
    return arrow.write(json_rows(source), schema, path, mixed), notes


def _from_folder(folder: Path, say: Say) -> Dataset:
    from datasets import Dataset, DatasetDict, load_from_disk

    if not (folder / "state.json").exists() and not (folder / "dataset_dict.json").exists():
        raise ValueError(f"data {folder} is a folder in no known form: give {FORMS}")
    try:
        found = load_from_disk(str(folder))
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"data {folder} is no whole `datasets` folder ({error}): save it again with `save_to_disk`") from error
    if isinstance(found, DatasetDict):
        name = "train" if "train" in found else next(iter(found))
        say(f"{folder.name}: part {name} of {', '.join(map(str, found))} is taken; give {folder}/PART for another")
        return found[name]
    assert isinstance(found, Dataset)
    return found


def _from_hub(spec: str, say: Say) -> Dataset:
    from datasets import load_dataset

    commit = _commit(spec)
    name, _, configuration = spec.partition(":")
    say(f"{spec}: hub data set at commit {commit}")
    try:
        found = load_dataset(name, configuration or None, revision=commit)
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"data {spec}: the hub data set cannot be read ({reason}); a configuration is named as {name}:CONFIGURATION") from error
    part = "train" if "train" in found else next(iter(found))
    if len(found) > 1:
        say(f"{spec}: part {part} of {', '.join(map(str, found))} is taken")
    dataset: Dataset = found[part]
    return dataset


@functools.cache
def _commit(spec: str) -> str:
    """The commit that a hub data set's name means now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    name, _, _ = spec.partition(":")
    near = difflib.get_close_matches(spec, corpora.NAMES, 1, 0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    names = f"{hint}Corpora by name are {', '.join(corpora.NAMES)}"
    try:
        return str(HfApi().dataset_info(name).sha)
    except RepositoryNotFoundError as error:
        raise ValueError(f"data {spec} is neither a path here nor a data set on the hub (or it is private): {names}") from error
    except Exception as error:  # whatever its HTTP client raises where there is no network
        raise ValueError(f"data {spec} is no path here, and the hub cannot be reached ({error}): {names}") from error
