"""What a command says, and where: lines or one JSON document on stdout, errors on stderr, progress as a live table on a terminal."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, Any


class Output:
    """Where a command writes.

    Attributes:
        json: one JSON document goes to stdout, and everything else to stderr.
        live: progress may redraw the screen.
    """

    def __init__(self, as_json: bool = False, stdout: IO[str] | None = None, stderr: IO[str] | None = None) -> None:
        self.json = as_json
        self.stdout, self.stderr = stdout or sys.stdout, stderr or sys.stderr
        self.talk = self.stderr if as_json else self.stdout
        self.live = self.talk.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        """Columns of the terminal; 160 where there is none."""
        return shutil.get_terminal_size((100, 24)).columns if self.stdout.isatty() else 160

    def say(self, line: str = "") -> None:
        """One line for a reader, at once."""
        print(line, file=self.talk, flush=True)

    def document(self, value: Any) -> None:
        """The one JSON document; NaN and infinity, which JSON does not know, are null."""
        print(json.dumps(_known(value), indent=1, ensure_ascii=False, default=str), file=self.stdout, flush=True)

    def error(self, line: str) -> None:
        """One line on stderr, and the document {"error": ...} where one is promised."""
        print(f"etude: {line}", file=self.stderr, flush=True)
        if self.json:
            self.document({"error": line})

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """While the block runs, whatever libraries and worker processes print goes to stderr when stdout is for JSON."""
        if not self.json:
            yield
            return
        try:
            kept = os.dup(1) if self.stdout is sys.__stdout__ else -1
        except OSError:
            kept = -1
        if kept < 0:
            with redirect_stdout(self.stderr):
                yield
            return
        self.stdout.flush()
        os.dup2(2, 1)
        try:
            with redirect_stdout(self.stderr):
                yield
        finally:
            self.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _known(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lasting(seconds: float) -> str:
    """A duration as it is said: "40 s", "3 min", "1.5 h"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Jobs as they start and finish, with the time that is left: a table that fills on a terminal, plain lines elsewhere."""

    def __init__(self, out: Output) -> None:
        self.out, self.total, self.done, self.fresh, self.planned = out, 0, 0, 0, 0
        self.began, self.running, self.rows = time.monotonic(), dict[str, int](), dict[tuple[str, str, str], dict[str, Any]]()
        self.screen: Any = None
        self.asked = 0

    def __enter__(self) -> Progress:
        if self.out.live:
            from rich.console import Console
            from rich.live import Live

            self.screen = Live(console=Console(file=self.out.talk), get_renderable=self.table, refresh_per_second=4, transient=True)
            self.screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.screen:
            self.screen.stop()

    def expect(self, total: int) -> None:
        """So many more jobs are to come."""
        self.asked += total
        self.total = max(self.planned, self.asked)

    def forecast(self, total: int) -> None:
        """About so many jobs there will be in all, those that later ones bring along included."""
        self.total = max(self.total, total)
        self.planned = self.total

    def started(self, job: Any) -> None:
        """A worker took this job."""
        what = f"{job.run.arm} {job.run.step}".strip()
        self.running[what] = self.running.get(what, 0) + 1

    def finished(self, record: Any) -> None:
        """A job is done, well or not; what was in the store counts as done but not for the estimate."""
        what, cached = f"{record.run.arm} {record.run.step}".strip(), getattr(record, "cached", False)
        self.running[what] = self.running.get(what, 1) - 1
        self.done, self.fresh = self.done + 1, self.fresh + (not cached)
        self.total = max(self.total, self.done)
        if self.screen is None and not cached:
            ending = "" if record.status == "done" else f" failed: {' '.join(str(record.error).split())}"
            self.out.say(f"[{self.done}/{self.total}] {what}, seed {record.run.seed}: {lasting(record.wall or 0.0)}{ending}{self.left(', ')}")

    def standing(self, rows: list[dict[str, Any]]) -> None:
        """What became known of some contenders."""
        self.rows.update({(str(row["name"]), str(row.get("options", "")), str(row.get("part", ""))): row for row in rows})

    def left(self, before: str = "") -> str:
        """The time left, from the pace of the jobs so far."""
        if not self.fresh or self.total <= self.done:
            return ""
        return f"{before}about {lasting((time.monotonic() - self.began) / self.fresh * (self.total - self.done))} left"

    def table(self) -> Any:
        """What the screen shows now."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("contender", "options", "on", "quality", "cost", box=None, pad_edge=False)
        for (name, options, part), row in self.rows.items():
            error = Text(" ".join(str(row["error"]).split())[:60], style="red") if row.get("error") else Text(_short(row.get("quality")))
            table.add_row(name, options[:40], part, error, _short(row.get("cost")))
        now = ", ".join(what for what, count in self.running.items() if count > 0)
        return Group(table, Text(f"{self.done}/{self.total} runs{self.left(', ')}{'; now ' + now if now else ''}", style="dim"))


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else "" if value is None else str(value)
