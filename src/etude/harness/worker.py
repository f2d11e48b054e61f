"""One process a run: what happens inside it (`main`), and the handle that the runner holds (`Worker`)."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from etude.data.cache import store_folder
from etude.harness.contract import Run
from etude.harness.machine import in_words, peak, reset_peak, rss_anon

START = 300.0  # seconds that a worker may take before its run begins: the first one waits for the fork server's imports
FAREWELL = 5.0  # seconds that it may take to end after it has answered
TAIL = 2000  # characters of the beginning and of the end of what it printed that are kept when it fails
TRIES = 50  # to start a worker
VANISHED = 255  # what multiprocessing says of a process whose fork server is gone
POOLS = ("OMP", "MKL", "OPENBLAS", "NUMBA", "RAYON", "VECLIB_MAXIMUM")
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Order:
    """What a worker is told.

    Attributes:
        call: "module:function".
        makes: the function fills a folder, which becomes an artifact.
        environment: the caller's environment variables (the fork server may have started under others).
        log: the file that takes what the run prints.
        preload: modules that are imported already in a forked worker.
    """

    run: Run
    call: str
    makes: bool
    environment: dict[str, str]
    log: str
    preload: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of an order."""

    value: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    traceback: str = ""
    artifact: str | None = None
    wall: float = 0.0
    cpu: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)


def main(pipe: Connection, order: Order) -> None:
    """A worker's life: settle, run, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides
    os.setsid()
    _die_with_driver()
    with contextlib.suppress(OSError):  # if memory runs out, it is this process that should go, not the driver
        Path("/proc/self/oom_score_adj").write_text("800")
    _print_into(Path(order.log))
    os.environ.clear()
    os.environ.update(order.environment)
    _threads(order.run.threads)
    outcome = _perform(pipe, order)
    with contextlib.suppress(BrokenPipeError):
        pipe.send_bytes(json.dumps(asdict(outcome)).encode())
    sys.stdout.flush()


def _perform(pipe: Connection, order: Order) -> Outcome:
    clock = _Clock()
    try:
        for name in order.preload:
            importlib.import_module(name)
        function = _function(order.call)
        _seed(order.run)
        clock.start()
        pipe.send_bytes(json.dumps({"begun": time.monotonic()}).encode())
        value, artifact = _called(function, order, clock)
        clock.stop()
        return Outcome(value, artifact=artifact, wall=clock.wall, cpu=clock.cpu, memory=clock.memory)
    except BaseException as error:
        clock.stop()
        text = f"{type(error).__name__}: {error}".rstrip(": ").strip()
        return Outcome({}, text, traceback.format_exc()[-10 * TAIL :], None, clock.wall, clock.cpu, clock.memory)


def _called(function: Callable[..., Any], order: Order, clock: _Clock) -> tuple[dict[str, Any], str | None]:
    """The value that the function returned, proven to be JSON, and the digest of the folder that it filled."""
    kept: list[dict[str, Any]] = []

    def fill(folder: Path | None) -> None:
        value = function(order.run, folder)
        clock.stop()
        if not isinstance(value, dict):
            raise TypeError(f"{order.call} returned {type(value).__name__}: a run returns a dict that JSON can hold")
        kept.append(json.loads(json.dumps(value)))

    if order.makes:
        digest = store_folder(fill)
        return kept[0], digest
    fill(None)
    return kept[0], None


def _function(call: str) -> Callable[..., Any]:
    module, _, name = call.partition(":")
    return cast("Callable[..., Any]", getattr(importlib.import_module(module), name))


class _Clock:
    """Wall time, CPU time (children included) and memory between start and the first stop."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.memory: dict[str, int] = {}
        self._since: tuple[float, float, int] | None = None

    def start(self) -> None:
        reset_peak()
        self._since = time.perf_counter(), _cpu(), rss_anon()

    def stop(self) -> None:
        if self._since is None:
            return
        (wall, cpu, after), self._since = self._since, None
        self.wall, self.cpu = time.perf_counter() - wall, _cpu() - cpu
        self.memory = {"rss_anon": max(after, rss_anon()), "hwm": peak(), "after_imports": after}


def _cpu() -> float:
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in times)


def _print_into(log: Path) -> None:
    """Send what the run prints, a crash's last words included, into its log: the driver's output is the driver's."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.enable(file=sys.__stderr__ or sys.stderr)


def _threads(count: int) -> None:
    for name in POOLS:
        os.environ[f"{name}_{'THREADS' if name.startswith('VECLIB') else 'NUM_THREADS'}"] = str(count)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if count > 1 else "false"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    if count > 1:
        importlib.import_module("threadpoolctl").threadpool_limits(count)


def _seed(run: Run) -> None:
    """Whatever a run draws without a seed of its own it draws alike each time."""
    random.seed(run.seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(run.seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(run.seed)


def _die_with_driver() -> None:
    """See to it that this process ends when the driver does, however that ends.

    The kernel kills it with its parent: the driver, or the fork server, which ends with the last process that holds its "alive" pipe;
    a worker lets go of that. Without prctl a thread waits for the driver's end.
    """
    driver = multiprocessing.parent_process()
    if driver is None:
        return
    if not (_killed_with_parent() and _let_go_of_server()):
        threading.Thread(target=_follow, args=(driver.sentinel,), daemon=True).start()
    elif wait([driver.sentinel], 0):
        os.kill(os.getpid(), signal.SIGKILL)


def _killed_with_parent() -> bool:
    try:
        return bool(sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(DIE_WITH_PARENT, signal.SIGKILL) == 0)
    except (OSError, AttributeError):
        return False


def _let_go_of_server() -> bool:
    server = getattr(forkserver, "_forkserver", None)
    if server is None or not hasattr(server, "_forkserver_alive_fd"):
        return False
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
    return True


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _bare_start() -> Iterator[None]:
    """Workers import nothing of the caller's script (it needs no `if __name__ == "__main__"`) and hash strings alike each time."""
    script, before = sys.modules["__main__"], os.environ.get("PYTHONHASHSEED")
    sys.modules["__main__"], os.environ["PYTHONHASHSEED"] = ModuleType("__main__"), "0"
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


class Worker:
    """The driver's handle of a run in its process."""

    def __init__(self, order: Order, context: ForkServerContext | SpawnContext, seconds: float) -> None:
        self._log, self._seconds, self._why = Path(order.log), seconds, ""
        self._started, self._begun, self._answered = time.monotonic(), 0.0, 0.0
        self._answer: Outcome | None = None
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=main, args=(theirs, order), name="etude-run")
        self._start()
        theirs.close()

    def _start(self) -> None:
        for left in reversed(range(TRIES)):  # a fork server that was killed just now is replaced once it has gone
            try:
                with _bare_start():
                    return self.process.start()
            except (EOFError, ConnectionError, FileNotFoundError) as error:
                time.sleep(0.1)
                if not left:
                    raise RuntimeError(f"no worker could be started ({type(error).__name__}: {error}): is there enough memory?") from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self.process.pid or 0)

    @property
    def signs(self) -> list[Any]:
        """What to wait on: its messages and its end."""
        return [self.process.sentinel, *([] if self._pipe.closed else [self._pipe])]

    def look(self) -> bool:
        """Take its messages, end it when its time is over; True when its process has ended."""
        self._listen()
        ended = bool(wait([self.process.sentinel], 0))
        if ended:
            self._listen()
        elif (overdue := self._overdue()) is not None:
            self.kill(overdue)
        return ended

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while not self._pipe.closed and self._pipe.poll():
                message = json.loads(self._pipe.recv_bytes())
                if "begun" in message:
                    self._begun = message["begun"]
                else:
                    self._answer, self._answered = Outcome(**message), time.monotonic()
            return
        self._pipe.close()

    def _overdue(self) -> str | None:
        now = time.monotonic()
        if self._answered:
            return "" if now - self._answered > FAREWELL else None
        if self._begun:
            return f"hung past {self._seconds:g} s" if now - self._begun > self._seconds else None
        return f"did not start within {START:g} s" if now - self._started > START else None

    def kill(self, why: str) -> None:
        """End it and all that it started."""
        self._why = self._why or why
        for end in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self.pid, signal.SIGKILL)

    def close(self, seen: int) -> Outcome:
        """Its outcome, after its process has ended (it is waited for); `seen` is the most memory that was sampled."""
        self.process.join()
        self._listen()
        code = self.process.exitcode
        outcome = self._answer or Outcome(error=self._why or _ending(code, seen), wall=time.monotonic() - (self._begun or self._started))
        self.process.close()
        self._pipe.close()
        memory = dict(outcome.memory)
        memory["rss_anon"] = max(seen, memory.get("rss_anon", 0)) or memory.get("hwm", 0)
        if "after_imports" in memory:
            memory["above_imports"] = max(0, memory["rss_anon"] - memory["after_imports"])
        printed = self._last_words() if outcome.error else ""
        self._log.unlink(missing_ok=True)
        return Outcome(outcome.value, outcome.error, (outcome.traceback + printed).strip(), outcome.artifact, outcome.wall, outcome.cpu, memory)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            text = self._log.read_text(errors="replace").strip()
            text = text if len(text) <= 2 * TAIL else f"{text[:TAIL]}\n...\n{text[-TAIL:]}"
            return f"\nIt printed:\n{text}" if text else ""
        return ""


def _ending(code: int | None, seen: int) -> str:
    """Why a process that gave no answer ended."""
    if code == -signal.SIGKILL:
        return "killed, most likely for lack of memory" + (f" (it held {in_words(seen)} when last seen)" if seen else "")
    if code == VANISHED:
        return "killed together with the fork server, most likely for lack of memory"
    if code is not None and code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"ended without an answer (exit code {code})"
