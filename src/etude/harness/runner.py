"""Runs jobs in worker processes, a few at a time, and keeps each record before the next run starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Protocol

from etude.data.cache import artifact, scratch
from etude.harness.contract import Run
from etude.harness.machine import PERIOD, Sampler, cards, machine, versions
from etude.harness.store import Record, Store, identity
from etude.harness.worker import Order, Outcome, Worker

PRELOAD = ("etude.harness.preload",)


@dataclass(frozen=True)
class Job:
    """A run and how to make it.

    Attributes:
        call: "module:function", called in a worker as function(run, folder) -> dict that JSON can hold.
        makes: `folder` is an empty folder to fill, which is kept under its digest (`Record.artifact`); else it is None.
        alone: nothing else runs meanwhile (what is timed); its record counts on this machine only.
        seconds: how long it may take.
    """

    run: Run
    call: str
    makes: bool = False
    alone: bool = False
    seconds: float = 3600.0


class Progress(Protocol):
    """Who is told of runs; `finished` also of those that the store had already (`record.cached`)."""

    def started(self, job: Job) -> None: ...
    def finished(self, record: Record) -> None: ...


Then = Callable[[Record], Iterable[Job]]


class Runner:
    """Runs jobs whose records the store does not have.

    Args:
        jobs: how many processes run at once (on GPUs one a card, whatever `jobs` says).
        fresh: run also what the store has, once.
        progress: told of every start and end.
        preload: what the fork server imports; it counts for the first runner of a process.

    Attributes:
        total: runs known so far, those to come included; finished: those with a record.
    """

    def __init__(
        self, store: Store, jobs: int = 2, fresh: bool = False, progress: Progress | None = None, preload: tuple[str, ...] = PRELOAD
    ) -> None:
        if jobs < 1:
            raise ValueError(f"--jobs {jobs}: at least one process is needed")
        self.store, self.jobs, self.fresh, self.progress, self.preload = store, jobs, fresh, progress, preload
        self.total = self.finished = 0
        self.made_anew: set[str] = set()
        forkserver.set_forkserver_preload(list(preload))

    def warm_up(self) -> None:
        """Let the fork server begin with its imports; nobody waits for it."""
        forkserver.ensure_running()

    def run(self, jobs: Iterable[Job], then: Then | None = None, whole: bool = False) -> list[Record]:
        """Run each job and the jobs that `then` adds, identical ones once.

        Args:
            then: called with every record, cached and failed ones included; what it returns runs before jobs that wait longer.
                When a lost folder was made again and came out different, it is called again with the new record.
            whole: a cached job's folder that is gone is made again even if no other job needs it.

        Returns:
            One record a run, in the order of their ends; values are read from the store when asked for.

        Raises:
            KeyboardInterrupt: after SIGINT, when workers are gone and the store is consistent.
        """
        with ExitStack() as stack:
            interrupted = stack.enter_context(_interrupts())
            log = stack.enter_context(scratch())  # on the cache's disk, where what a killed process left is swept
            session = _Session(self, then, whole, log, stack.enter_context(Sampler()))
            session.submit(jobs)
            try:
                while session.step() and not interrupted():
                    pass
                if interrupted():
                    session.interrupt()
                    raise KeyboardInterrupt
            finally:
                session.abandon()
        return list(session.records.values())

    def known(self, job: Job, whole: bool = False) -> Record | None:
        """The job's record, if it counts."""
        record = self.store.get(job.run)
        if record is None or record.status != "done" or (self.fresh and identity(job.run) not in self.made_anew):
            return None
        if job.makes and (record.artifact is None or (whole and not artifact(record.artifact).is_dir())):
            return None
        if job.alone and record.machine != machine():
            return None
        return replace(record, cached=True)


class _Session:
    """One call of `Runner.run`: jobs that wait, workers at work, records that came."""

    def __init__(self, runner: Runner, then: Then | None, whole: bool, log: Path, sampler: Sampler) -> None:
        self.runner, self.then, self.whole, self.log, self.sampler = runner, then, whole, log, sampler
        self.incoming: deque[Job] = deque()
        self.ready: deque[Job] = deque()
        self.alone: deque[Job] = deque()
        self.working: dict[Worker, tuple[Job, str]] = {}  # with the card that it owns, or ""
        self.seen: set[str] = set()
        self.records: dict[str, Record] = {}
        self.lost: dict[str, str] = {}  # run that makes a lost folder again -> the digest it had
        self.waiting: dict[str, list[Job]] = {}  # run that makes a lost folder again -> jobs that need it
        self.cards: list[str] = []
        self.launched = 0

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs in before those that wait already."""
        fresh = list[Job]()
        for job in jobs:
            key = identity(job.run)
            if key not in self.seen:
                self.seen.add(key)
                fresh.append(job)
                if job.run.device.startswith("cuda") and not self.cards:
                    self.cards = found_cards(job.run.device)
        self.runner.total += len(fresh)
        self.incoming.extendleft(reversed(fresh))

    def step(self) -> bool:
        """Start what can start, wait for what ends; False when nothing is left."""
        self.sort()
        self.launch()
        if self.working:
            wait([sign for worker in self.working for sign in worker.signs], PERIOD)
            for worker in [worker for worker in self.working if worker.look()]:
                self.settle(worker)
        return bool(self.working or self.incoming or self.ready or self.alone)

    def sort(self) -> None:
        """Deliver what the store has; queue the rest."""
        queued = list[Job]()
        while self.incoming:
            job = self.incoming.popleft()
            record = self.runner.known(job, self.whole)
            if record:
                self.deliver(record)
            else:
                queued.append(job)
        self.queue(queued)

    def queue(self, jobs: list[Job]) -> None:
        """Put jobs before those that wait already; what is timed has its own queue, for when nothing else is left."""
        self.ready.extendleft(job for job in reversed(jobs) if not job.alone)
        self.alone.extendleft(job for job in reversed(jobs) if job.alone)

    def launch(self) -> None:
        """Start jobs while there is room."""
        while found := self.next():
            job, card = found
            if not self.held_up(job):
                self.start(job, card)

    def next(self) -> tuple[Job, str] | None:
        """The next job that may start now, taken from its queue, and the card it gets."""
        if any(job.alone for job, _ in self.working.values()):
            return None
        room = self.runner.jobs - sum(1 for _, card in self.working.values() if not card)
        free = [card for card in self.cards if card not in {used for _, used in self.working.values()}]
        for i, job in enumerate(self.ready if room > 0 or free else ()):
            cuda = job.run.device.startswith("cuda")
            if free if cuda else room > 0:
                del self.ready[i]
                return job, free[0] if cuda else ""
        if self.alone and not self.working and not self.ready:
            job = self.alone.popleft()
            return job, free[0] if job.run.device.startswith("cuda") and free else ""
        return None

    def held_up(self, job: Job) -> bool:
        """Whether a folder that the job needs was lost: it is made again first by the run that made it."""
        for _, digest in job.run.inputs:
            maker = None if artifact(digest).is_dir() else self.runner.store.maker(digest)
            if maker:
                key = identity(maker.run)
                if key == identity(job.run) or not maker.call:
                    continue
                self.waiting.setdefault(key, []).append(job)
                if key not in self.lost:
                    self.lost[key] = digest
                    self.runner.total += 1
                    self.ready.appendleft(Job(maker.run, maker.call, makes=True))
                return True
        return False

    def start(self, job: Job, card: str) -> None:
        """Start a job's worker."""
        self.launched += 1
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": card} if card else {})
        order = Order(job.run, job.call, job.makes, environment, str(self.log / str(self.launched)), self.runner.preload)
        forked = job.run.device.startswith("cpu")  # what drives a card does not survive a fork
        context = multiprocessing.get_context("forkserver") if forked else multiprocessing.get_context("spawn")
        if self.runner.progress:
            self.runner.progress.started(job)
        worker = Worker(order, context, job.seconds)
        self.sampler.watch(worker.pid)
        self.working[worker] = job, card

    def settle(self, worker: Worker) -> None:
        """Keep the record of a worker that ended and pass it on."""
        job, _ = self.working.pop(worker)
        outcome = worker.close(self.sampler.take(worker.pid))
        record = self.keep(job, outcome)
        key = identity(job.run)
        if key in self.lost:
            self.regained(record, self.lost.pop(key), self.waiting.pop(key, []))
        else:
            self.deliver(record)

    def keep(self, job: Job, outcome: Outcome) -> Record:
        """Put the record of an outcome into the store."""
        record = Record(
            job.run,
            "failed" if outcome.error else "done",
            outcome.value,
            outcome.error,
            outcome.traceback,
            outcome.artifact,
            outcome.wall,
            outcome.cpu,
            outcome.memory,
            machine(),
            versions(),
            call=job.call,
        )
        self.runner.store.put(record)
        if self.runner.fresh and record.status == "done":
            self.runner.made_anew.add(identity(job.run))
        return record

    def deliver(self, record: Record) -> None:
        """Pass a record on and take in what follows from it."""
        self.records[identity(record.run)] = self.runner.store.light(record)
        self.told(record)
        if self.then:
            self.submit(self.then(record))

    def told(self, record: Record) -> None:
        """Count a record and tell who watches."""
        self.runner.finished += 1
        if self.runner.progress:
            self.runner.progress.finished(record)

    def regained(self, record: Record, digest: str, jobs: list[Job]) -> None:
        """A lost folder was made again, or could not be: what needed it goes on, or starts from the new one, or fails."""
        ours = identity(record.run) in self.records
        if record.status == "done" and record.artifact != digest and ours and self.then:
            self.runner.total -= len(jobs)
            self.deliver(record)
            return
        self.told(record)
        if ours and record.status == "done":
            self.records[identity(record.run)] = self.runner.store.light(record)
        if record.status == "done" and record.artifact == digest:
            self.queue(jobs)
            return
        why = record.error or "it came out different, so what is built on it must be built anew (--fresh)"
        for job in jobs:
            self.deliver(self.keep(job, Outcome(error=f"a folder that it needs was gone and was made again: {why}")))

    def interrupt(self) -> None:
        """Stop what runs and keep a record that says so."""
        for worker in self.working:
            worker.kill("interrupted")
        for worker in list(self.working):
            job, _ = self.working.pop(worker)
            self.told(self.keep(job, worker.close(self.sampler.take(worker.pid))))

    def abandon(self) -> None:
        """Leave no process behind."""
        for worker in self.working:
            worker.kill("abandoned")
        for worker in list(self.working):
            self.working.pop(worker)
            worker.close(0)


def found_cards(device: str) -> list[str]:
    """The cards that workers may own.

    Raises:
        ValueError: there is none.
    """
    found = cards()
    if not found:
        raise ValueError(f"device {device!r}: this machine has no NVIDIA card that can be used; give --device cpu")
    return found


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Note a first SIGINT instead of raising in the middle of things; a second one raises at once."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield lambda: False
        return
    seen = list[int]()

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
