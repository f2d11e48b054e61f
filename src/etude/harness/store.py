"""Where the records of runs are kept: one SQLite file in WAL mode, one row a run, whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from etude.data.cache import digest_json
from etude.harness.contract import Run
from etude.harness.machine import LIBRARIES, gpus, versions

VERSION = 1
PATIENCE = 60.0  # seconds to wait for another process that writes
COLUMNS = "id, target, arm, step, seed, status, artifact, created, about, value"
ABOUT = ("error", "traceback", "wall", "cpu", "memory", "machine", "versions", "call")


@dataclass(frozen=True)
class Record:
    """What came of one run.

    Attributes:
        status: "done", or "failed" with its error; a failed run is tried again the next time.
        value: what the run returned; of a record that `Runner.run` returned it is read from the store when asked for.
        error: type and message; `reason` is the message alone where the code refused with a ValueError.
        traceback: for `--debug`, with the end of what the worker printed.
        artifact: digest of the folder that the run made.
        wall, cpu: seconds.
        memory: bytes: rss_anon (peak, sampled), hwm (peak, mapped files included), after_imports, above_imports.
        call: the function that ran ("module:function"), so that a lost folder can be made again.
        cached: it was in the store already.
    """

    run: Run
    status: Literal["done", "failed"] = "done"
    value: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    traceback: str = ""
    artifact: str | None = None
    wall: float = 0.0
    cpu: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    call: str = ""
    cached: bool = field(default=False, compare=False)

    @property
    def reason(self) -> str:
        """The error in the words of who refused, for a user to read."""
        kind, _, message = self.error.partition(": ")
        return message if kind in ("ValueError", "Missing") and message else self.error


class Stored(Mapping[str, Any]):
    """A record's value that stays in the store and is read when it is asked for."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def _read(self) -> dict[str, Any]:
        return self._store.value(self._key)

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())


def identity(run: Run) -> str:
    """What a run is known by: all that it holds, the versions of what computes it, and on a GPU the card and its driver."""
    about: dict[str, Any] = {"run": asdict(run), "versions": {name: versions()[name] for name in LIBRARIES}}
    if run.device.startswith("cuda"):
        about["gpus"] = sorted(set(gpus()))
    return digest_json(about)


class Store:
    """The records by identity. One process at a time writes; a second one waits for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} cannot be used as the store of results ({error}): move it away, or set ETUDE_HOME to another folder") from error
        except OSError as error:
            raise ValueError(f"{path.parent} cannot be written ({error.strerror}): set ETUDE_HOME to a folder that you may write to") from error

    def _prepare(self) -> None:
        if self._base.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            with locked_file(self.path.with_name(self.path.name + ".lock")):
                self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=NORMAL")
        found = self._base.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            raise ValueError(f"{self.path} was written by a newer etude (its form is {found}, known is {VERSION}): update etude, or set ETUDE_HOME")
        if found < VERSION:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS records (id TEXT PRIMARY KEY, target TEXT, arm TEXT, step TEXT, seed INTEGER, status TEXT,"
                " artifact TEXT, created TEXT, about TEXT NOT NULL, value TEXT NOT NULL)"
            )
            self._base.execute("CREATE INDEX IF NOT EXISTS made ON records (artifact)")
            self._base.execute("CREATE INDEX IF NOT EXISTS targets ON records (target)")
            self._base.execute(f"PRAGMA user_version={VERSION}")
            self._base.execute("COMMIT")

    def get(self, run: Run) -> Record | None:
        """The record of this run, done or failed."""
        row = self._base.execute("SELECT * FROM records WHERE id = ?", (identity(run),)).fetchone()
        return _record(row) if row else None

    def put(self, record: Record) -> None:
        """Keep a record. A failed one never takes the place of one that is done.

        Raises:
            ValueError: the disk is full or cannot be written; what was there before is unharmed.
        """
        run, about = record.run, {name: getattr(record, name) for name in ABOUT}
        about = {"run": asdict(run)} | {name: dict(value) if isinstance(value, Mapping) else value for name, value in about.items()}
        row = (identity(run), run.target, run.arm, run.step, run.seed, record.status, record.artifact, record.created, json.dumps(about))
        try:
            self._base.execute(
                f"INSERT INTO records ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET status = excluded.status,"
                " artifact = excluded.artifact, created = excluded.created, about = excluded.about, value = excluded.value"
                " WHERE excluded.status = 'done' OR records.status <> 'done'",
                (*row, json.dumps(dict(record.value))),
            )
        except sqlite3.Error as error:
            raise ValueError(
                f"{self.path} cannot be written ({error}): free some disk, or set ETUDE_HOME to another one; runs that are done are kept"
            ) from error

    def light(self, record: Record) -> Record:
        """The record without its value, which is read from here when asked for."""
        return replace(record, value=Stored(self, identity(record.run)), traceback="") if record.status == "done" else record

    def value(self, key: str) -> dict[str, Any]:
        """The value of the record with this identity."""
        row = self._base.execute("SELECT value FROM records WHERE id = ?", (key,)).fetchone()
        value: dict[str, Any] = json.loads(row[0]) if row else {}
        return value

    def maker(self, digest: str) -> Record | None:
        """The last run that made this folder."""
        found = "SELECT * FROM records WHERE artifact = ? AND status = 'done' ORDER BY created DESC, rowid DESC LIMIT 1"
        row = self._base.execute(found, (digest,)).fetchone()
        return _record(row) if row else None

    def records(self, target: str | None = None, status: str | None = None) -> Iterator[Record]:
        """Records one after another, the oldest first: of one target, or with one status."""
        wanted = "SELECT * FROM records WHERE (? IS NULL OR target = ?) AND (? IS NULL OR status = ?) ORDER BY rowid"
        for row in self._base.execute(wanted, (target, target, status, status)):
            yield _record(row)

    def check(self) -> str:
        """SQLite's own check of the file: "ok", or what is wrong."""
        return str(self._base.execute("PRAGMA integrity_check").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()


def _record(row: tuple[Any, ...]) -> Record:
    _, _, _, _, _, status, artifact, created, about, value = row
    facts = json.loads(about)
    run = facts.pop("run")
    run["inputs"] = tuple((name, digest) for name, digest in run["inputs"])
    return Record(Run(**run), status, json.loads(value), artifact=artifact, created=created, **facts)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep a folder to this process; a killed process keeps nothing.

    Raises:
        ValueError: another process is at work in it, or it cannot be written.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): give a folder that you may write to") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            who = file.read().strip()
            at_work = f"another process{f' ({who})' if who else ''} is at work in {folder}"
            raise ValueError(f"{at_work}: wait until it ends, or give another --out") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold a file's lock; who comes second waits."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
