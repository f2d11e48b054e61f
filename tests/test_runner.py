"""The runner on real workers: caching, follow-ups, folders, threads, memory, failures of every kind, kills and interrupts."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # workers get it too

from runner_jobs import job

from etude.data.cache import artifact
from etude.harness.machine import rss_anon
from etude.harness.runner import Job, Runner
from etude.harness.store import Record, Store

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
HERE = Path(__file__).parent


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.ends: list[tuple[str, str, bool]] = []

    def started(self, job: Job) -> None:
        self.starts.append(job.run.arm)

    def finished(self, record: Record) -> None:
        self.ends.append((record.run.arm, record.status, record.cached))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    return Store(tmp_path / "store.sqlite")


def one(store: Store, wanted: Job, **given: Any) -> Record:
    (record,) = Runner(store, **given).run([wanted])
    return record


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_what_the_store_has_is_not_run_again(store: Store) -> None:
    told = Told()
    runner = Runner(store, progress=told)
    jobs = [job("nothing", seed) for seed in range(4)]
    first = runner.run([*jobs, jobs[0]])
    assert [record.value["seed"] for record in sorted(first, key=lambda r: r.run.seed)] == [0, 1, 2, 3] and runner.total == runner.finished == 4
    again = Runner(store, progress=told).run(jobs)
    assert all(record.cached for record in again) and not any(record.cached for record in first)
    assert len(told.starts) == 4 and len(told.ends) == 8 and again == sorted(first, key=lambda r: r.run.seed)
    fresh = Runner(store, fresh=True, progress=told)
    assert not any(record.cached for record in fresh.run(jobs)) and all(record.cached for record in fresh.run(jobs))
    assert len(told.starts) == 8 and len(list(store.records())) == 4


@linux
def test_workers_come_from_a_server_of_one_thread_that_holds_torch(store: Store) -> None:
    assert dict(one(store, job("server")).value) == {"threads": 1, "torch": True, "datasets": True}


def test_threads_seeds_and_environment_of_a_run(store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ASKED", "after the server started")
    jobs = [job("facts", seed, f"{threads}.{copy}", threads=threads) for seed in (0, 1) for copy in (0, 1) for threads in (1, 2)]
    found = {(r.run.seed, r.run.arm): r.value for r in Runner(store).run(jobs)}
    for (_, arm), value in found.items():
        assert value["threads"]["torch"] == int(arm[0]) and value["threads"]["omp"] == arm[0] and value["asked"] == "after the server started"
        assert not value["folder"] and value["set"] == found[0, "1.0"]["set"]
    assert found[0, "1.0"]["drawn"] == found[0, "2.1"]["drawn"] != found[1, "1.0"]["drawn"]
    assert capfd.readouterr().out == ""


def test_a_record_says_how_it_was_made(store: Store) -> None:
    record = one(store, job("holds", options={"megabytes": 100}))
    assert 0.3 < record.wall < 5 and record.cpu < 5 and record.call == "runner_jobs:holds"
    assert record.versions["torch"] and record.machine["cores"] and record.created.startswith("20")
    assert 95e6 < record.memory["above_imports"] < 130e6
    assert record.memory["rss_anon"] == record.memory["after_imports"] + record.memory["above_imports"] <= record.memory["hwm"]


def test_memory_is_each_runs_own(store: Store) -> None:
    jobs = [job("holds", i, options={"megabytes": size}) for i, size in enumerate((300, 1, 50))]
    above = {r.run.seed: r.memory["above_imports"] for r in Runner(store, jobs=1).run(jobs)}
    assert above[0] > 295e6 and above[1] < 20e6 and 45e6 < above[2] < 80e6


def test_failures_of_every_kind_are_rows_and_the_others_go_on(store: Store) -> None:
    names = {"hog": {}, "crash": {}, "leaves": {}, "not_json": {}, "no_such_function": {}}
    jobs = [job(name) for name in names] + [
        job("fails", i, options={"kind": kind}) for i, kind in enumerate(("ValueError", "RuntimeError", "SystemExit"))
    ]
    jobs += [job("hangs", seconds=1.0), *(job("nothing", seed) for seed in range(3))]
    records = Runner(store).run(jobs)
    errors = {(r.run.arm, r.run.seed): r for r in records if r.status == "failed"}
    assert len(records) == 12 and sum(r.status == "done" for r in records) == 3
    assert errors["hog", 0].error.startswith("killed, most likely for lack of memory (it held ")
    assert errors["crash", 0].error == "killed by signal SIGSEGV" and "in crash" in errors["crash", 0].traceback
    assert errors["leaves", 0].error == "ended without an answer (exit code 3)"
    assert errors["not_json", 0].error.startswith("TypeError: ") and errors["no_such_function", 0].error.startswith("AttributeError: ")
    assert errors["hangs", 0].error == "hung past 1 s" and errors["hangs", 0].wall >= 1
    assert [errors["fails", i].error for i in range(3)] == [f"{kind}: the value 7 is odd" for kind in ("ValueError", "RuntimeError", "SystemExit")]
    assert errors["fails", 0].reason == "the value 7 is odd"
    assert "Traceback" in errors["fails", 0].traceback and "last words" in errors["fails", 0].traceback
    assert len(list(store.records(status="failed"))) == 9


def test_a_failed_run_is_tried_again(store: Store, tmp_path: Path) -> None:
    wanted = job("makes", makes=True, options={"file": str(tmp_path / "later")})
    assert one(store, wanted).error.startswith("FileNotFoundError")
    (tmp_path / "later").write_text("there")
    assert one(store, wanted).status == "done"
    assert one(store, wanted).cached


def test_a_folder_is_kept_only_after_success(store: Store, tmp_path: Path) -> None:
    record = one(store, job("makes", makes=True, options={"text": "a"}))
    assert record.artifact and (artifact(record.artifact) / "made.txt").read_text() == "a"
    same = one(store, job("makes", 1, makes=True, options={"text": "a"}))
    assert same.artifact == record.artifact
    failed = one(store, job("fails", makes=True, options={"kind": "ValueError"}))
    assert failed.artifact is None and len(list((tmp_path / "artifacts").iterdir())) == 1 and not list((tmp_path / "tmp").iterdir())


def follow(record: Record) -> list[Job]:
    """A reading of what was made."""
    if record.run.arm == "makes" and record.status == "done":
        return [job("reads", record.run.seed, inputs=[("built", record.artifact)])]
    return []


def test_followers_run_before_what_waits_longer(store: Store) -> None:
    told = Told()
    jobs = [job("makes", seed, makes=True, options={"text": str(seed)}) for seed in range(3)]
    records = Runner(store, jobs=1, progress=told).run(jobs, follow)
    assert told.starts == ["makes", "reads"] * 3 and [r.value["text"] for r in records if r.run.arm == "reads"] == ["0", "1", "2"]


def test_a_lost_folder_is_made_again_only_when_it_is_needed(store: Store, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("first")
    making = job("makes", makes=True, options={"file": str(text)})
    (made, _) = Runner(store).run([making], follow)
    lost = artifact(str(made.artifact))

    shutil.rmtree(lost)
    assert all(record.cached for record in Runner(store).run([making], follow)) and not lost.exists()

    reading = job("reads", 7, inputs=[("built", made.artifact)])  # also where its maker is not among the jobs
    (read,) = Runner(store).run([reading])
    assert read.value["text"] == "first" and lost.is_dir()

    shutil.rmtree(lost)
    assert one(store, making).cached and not lost.exists()
    (whole,) = Runner(store).run([making], whole=True)
    assert not whole.cached and lost.is_dir()


def test_a_lost_folder_that_comes_out_different_starts_anew(store: Store, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("first")
    making = job("makes", makes=True, options={"file": str(text)})
    made = one(store, making)
    shutil.rmtree(artifact(str(made.artifact)))
    text.write_text("second")
    told = Told()
    records = {record.run.arm: record for record in Runner(store, progress=told).run([making], follow)}
    assert records["reads"].value["text"] == "second" and records["makes"].artifact != made.artifact and len(records) == 2
    assert told.starts == ["makes", "reads"]

    shutil.rmtree(artifact(str(records["makes"].artifact)))
    text.write_text("third")
    (read,) = Runner(store).run([job("reads", 9, inputs=[("built", records["makes"].artifact)])])
    assert read.status == "failed" and "came out different" in read.error
    text.unlink()
    shutil.rmtree(tmp_path / "artifacts")
    kept = store.get(making.run)
    (read,) = Runner(store).run([job("reads", 10, inputs=[("built", kept and kept.artifact)])])
    assert read.status == "failed" and "FileNotFoundError" in read.error and store.get(making.run) == kept


def test_what_is_timed_runs_alone(store: Store) -> None:
    jobs = [job("spans", seed, alone=seed in (1, 4)) for seed in range(6)]
    spans = {r.run.seed: (r.value["began"], r.value["ended"]) for r in Runner(store, jobs=3).run(jobs)}
    for timed in (1, 4):
        assert all(spans[timed][0] >= end or spans[timed][1] <= begin for seed, (begin, end) in spans.items() if seed != timed)
    quality = [spans[seed] for seed in (0, 2, 3, 5)]
    assert any(a[0] < b[1] and b[0] < a[1] for a in quality for b in quality if a is not b)


def test_a_timing_of_another_machine_does_not_count(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job("nothing", 0, alone=True), job("nothing", 1)]
    Runner(store).run(jobs)
    assert all(record.cached for record in Runner(store).run(jobs))
    monkeypatch.setattr("etude.harness.runner.machine", lambda: {"processor": "another"})
    assert {r.run.seed: r.cached for r in Runner(store).run(jobs)} == {0: False, 1: True}


def test_a_card_is_asked_for_before_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wanted = job("nothing")
    on_card = Job(type(wanted.run)("t", "a", "user", 0, device="cuda"), wanted.call)
    with pytest.raises(ValueError, match="no NVIDIA card"):
        Runner(store).run([on_card])


def test_one_worker_a_card(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    wanted = job("spans")
    jobs = [Job(type(wanted.run)("t", "a", "user", seed, device="cuda"), wanted.call) for seed in range(2)]
    (first, second) = Runner(store, preload=()).run(jobs)
    assert first.value["ended"] <= second.value["began"]


def test_a_script_needs_no_guard_and_is_not_run_by_workers(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom pathlib import Path\nfrom runner_jobs import job\n"
        "from etude.harness.runner import Runner\nfrom etude.harness.store import Store\n"
        "print('script', flush=True)\n"
        "print(len(Runner(Store(Path('s.sqlite')), preload=()).run([job('nothing', i) for i in range(3)])))\n"
    )
    said = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=os.environ | {"ETUDE_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert (said.stdout, said.stderr, said.returncode) == ("script\n3\n", "", 0)


def test_an_error_in_then_leaves_no_process(store: Store, tmp_path: Path) -> None:
    def then(record: Record) -> list[Job]:
        raise RuntimeError("then went wrong")

    pids = tmp_path / "pids"
    with pytest.raises(RuntimeError, match="then went wrong"):
        Runner(store).run([job("hangs", options={"pids": str(pids)}), job("spans")], then)
    assert all(gone(int(pid)) for pid in pids.read_text().split())


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT as in a terminal: what a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_stops_cleanly(store: Store, tmp_path: Path, heard: None) -> None:
    pids = tmp_path / "pids"

    def interrupt() -> None:
        while not pids.exists() or not store_has_done():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    def store_has_done() -> bool:
        return any(True for _ in Store(store.path).records(status="done"))

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        Runner(store).run([job("hangs", options={"pids": str(pids)}), *(job("nothing", seed) for seed in range(3)), job("hangs", 1)])
    assert signal.getsignal(signal.SIGINT) is before and store.check() == "ok"
    assert all(gone(int(pid)) for pid in pids.read_text().split())
    assert {r.error for r in store.records(status="failed")} == {"interrupted"} and any(r.status == "done" for r in store.records())


@linux
def test_no_worker_outlives_a_killed_driver(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom runner_jobs import job\n"
        "from etude.harness.runner import Runner\nfrom etude.harness.store import Store\n"
        "Runner(Store(Path(sys.argv[2]) / 's.sqlite'), preload=()).run([job('hangs', i, options={'pids': sys.argv[2] + '/pids'}) for i in range(2)])"
    )
    driver = subprocess.Popen([sys.executable, "-c", text, str(HERE), str(tmp_path)], env=os.environ | {"ETUDE_HOME": str(tmp_path)})
    until = time.monotonic() + 60
    while (len(pids.read_text().splitlines()) if pids.exists() else 0) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    workers = [line.split() for line in pids.read_text().splitlines()]
    assert len(workers) == 2 and all(gone(int(pid), 5) for pid, _ in workers)
    for _, child in workers:  # what a run started by itself is its own affair once everybody was killed
        os.kill(int(child), signal.SIGKILL)


def outcome(home: Path) -> dict[tuple[str, int], Any]:
    """What a driver left, but for times and memory."""
    store = Store(home / "store.sqlite")
    assert store.check() == "ok"
    records = list(store.records())
    assert max(Counter((r.run.arm, r.run.seed) for r in records).values(), default=1) == 1
    return {(r.run.arm, r.run.seed): (r.status, dict(r.value), r.error, r.artifact, r.run.inputs) for r in records}


def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    count, dice = 24, random.Random(0)
    command = [sys.executable, str(HERE / "runner_jobs.py")]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "undisturbed"), str(count)], check=True, capture_output=True)
    whole, kills = time.monotonic() - start, 0
    while True:
        driver = subprocess.Popen([*command, str(tmp_path / "killed"), str(count)], stdout=subprocess.PIPE)
        try:
            said, _ = driver.communicate(timeout=whole * dice.uniform(0.1, 0.3) if kills < 6 else 300)
            assert said.strip() == str(2 * count + 1).encode()
            break
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.communicate()
            kills += 1
            outcome(tmp_path / "killed") if (tmp_path / "killed" / "store.sqlite").exists() else None
    expected = outcome(tmp_path / "undisturbed")
    assert kills >= 3 and outcome(tmp_path / "killed") == expected and len(expected) == 2 * count + 1


def server_cpu() -> float:
    """Seconds of CPU time that the fork server and its ended workers have used."""
    pid = vars(forkserver)["_forkserver"]._forkserver_pid
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@linux
def test_overhead_and_memory_of_many_runs(store: Store) -> None:
    Runner(store).run([job("nothing", -1)])
    held = list[int]()
    began = time.process_time() + server_cpu()
    records = Runner(store).run([job("nothing", seed) for seed in range(200)], lambda record: held.append(rss_anon()) or [])
    seconds = time.process_time() + server_cpu() - began  # CPU time: the wall's depends on who else is at work
    assert len(records) == 200 and seconds / 200 < 0.1  # two at a time: 50 ms of wall time on two cores
    assert held[-1] - held[50] < 3e6


@linux
def test_a_lost_fork_server_is_replaced(store: Store) -> None:
    records = {r.run.arm: r for r in Runner(store, jobs=1).run([job("kills_server"), job("nothing")])}
    assert "fork server" in records["kills_server"].error and records["nothing"].status == "done"


def test_what_is_timed_runs_alone_after_its_folder_was_made_again(store: Store) -> None:
    made = one(store, job("makes", makes=True, options={"text": "a"}))
    shutil.rmtree(artifact(str(made.artifact)))
    timed = job("spans", 1, alone=True, inputs=[("built", made.artifact)])
    spans = {r.run.seed: (r.value["began"], r.value["ended"]) for r in Runner(store, jobs=3).run([timed, *(job("spans", i) for i in (2, 3, 4))])}
    assert all(spans[1][0] >= end for seed, (_, end) in spans.items() if seed != 1) and len(spans) == 4
