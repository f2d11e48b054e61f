"""Tiny runs for the runner's tests, importable by workers; as a script it is a driver that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.harness.contract import Run

if TYPE_CHECKING:
    from etude.harness.runner import Job
    from etude.harness.store import Record


def run_of(name: str, seed: int = 0, **given: Any) -> Run:
    """A run of the toy target."""
    return Run("test:runner", name, "user", seed, **given)


def job(name: str, seed: int = 0, arm: str | None = None, options: Any = None, inputs: Any = (), threads: int = 1, **given: Any) -> Job:
    """A job that calls a function of this file."""
    from etude.harness.runner import Job

    run = run_of(arm or name, seed, options=json.dumps(options or {}), inputs=tuple(inputs), threads=threads)
    return Job(run, f"runner_jobs:{name}", **given)


def nothing(run: Run, folder: Path | None) -> dict[str, Any]:
    return {"seed": run.seed}


def facts(run: Run, folder: Path | None) -> dict[str, Any]:
    import random

    import numpy
    import torch

    print("for nobody's eyes")
    names = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")] if os.path.isdir("/proc/self") else []
    drawn = [random.random(), float(numpy.random.rand()), float(torch.rand(()))]
    threads = {"torch": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"], "running": len(names)}
    return {"drawn": drawn, "threads": threads, "set": list({"a", "b", "c", "d"}), "folder": folder is not None, "asked": os.environ.get("ASKED")}


def server(run: Run, folder: Path | None) -> dict[str, Any]:
    """How many threads the process that forked this one has."""
    return {"threads": len(os.listdir(f"/proc/{os.getppid()}/task")), "torch": "torch" in sys.modules, "datasets": "datasets" in sys.modules}


def fails(run: Run, folder: Path | None) -> dict[str, Any]:
    print("last words")
    if folder:
        (folder / "half").write_text("half")
    raise {"ValueError": ValueError, "RuntimeError": RuntimeError, "SystemExit": SystemExit}[json.loads(run.options)["kind"]]("the value 7 is odd")


def not_json(run: Run, folder: Path | None) -> dict[str, Any]:
    return {"path": Path("x")}


def holds(run: Run, folder: Path | None) -> dict[str, Any]:
    """Hold some megabytes for a moment and let go of them."""
    block = bytearray(os.urandom(1)) * (json.loads(run.options)["megabytes"] << 20)
    time.sleep(0.3)
    return {"size": len(block)}


def hog(run: Run, folder: Path | None) -> dict[str, Any]:
    """What the kernel does to a process for which there is no memory."""
    block = bytearray(b"x") * (64 << 20)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
    return {"size": len(block)}


def crash(run: Run, folder: Path | None) -> dict[str, Any]:
    import ctypes

    ctypes.string_at(0)
    return {}


def leaves(run: Run, folder: Path | None) -> dict[str, Any]:
    os._exit(3)


def kills_server(run: Run, folder: Path | None) -> dict[str, Any]:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
    return {}


def hangs(run: Run, folder: Path | None) -> dict[str, Any]:
    """Hang, together with a process of its own."""
    options = json.loads(run.options)
    child = subprocess.Popen(["sleep", "600"])
    if "pids" in options:
        with open(options["pids"], "a") as file:
            file.write(f"{os.getpid()} {child.pid}\n")
    time.sleep(600)
    return {}


def makes(run: Run, folder: Path | None) -> dict[str, Any]:
    assert folder is not None
    options = json.loads(run.options)
    (folder / "made.txt").write_text(options.get("text") or Path(options["file"]).read_text())
    return {"made": True}


def reads(run: Run, folder: Path | None) -> dict[str, Any]:
    return {"text": (run.path("built") / "made.txt").read_text()}


def spans(run: Run, folder: Path | None) -> dict[str, Any]:
    """When it ran."""
    began = time.monotonic()
    time.sleep(0.15)
    return {"began": began, "ended": time.monotonic()}


def build_toy(run: Run, folder: Path | None) -> dict[str, Any]:
    assert folder is not None
    time.sleep(0.02)
    (folder / "made.txt").write_text(f"made by {run.arm} {run.seed} " + "x" * 10_000)
    return {"arm": run.arm}


def measure_toy(run: Run, folder: Path | None) -> dict[str, Any]:
    time.sleep(0.02)
    return {"length": len((run.path("built") / "made.txt").read_text()) + run.seed}


def drive(home: Path, count: int) -> list[Record]:
    """A toy contest: builds, measurements that follow from them, and one run that fails."""
    from etude.harness.runner import Runner
    from etude.harness.store import Store

    store = Store(home / "store.sqlite")

    def then(record: Record) -> list[Job]:
        if record.run.arm.startswith("build") and record.status == "done":
            arm = record.run.arm.replace("build", "measure")
            return [job("measure_toy", record.run.seed, arm, inputs=[("built", record.artifact)])]
        return []

    jobs = [job("build_toy", seed, f"build{seed % 3}", makes=True) for seed in range(count)]
    records = Runner(store, jobs=2, preload=("etude.harness.worker",)).run([*jobs, job("fails", options={"kind": "RuntimeError"})], then)
    store.close()
    return records


if __name__ == "__main__":
    os.environ["ETUDE_HOME"] = sys.argv[1]
    print(len(drive(Path(sys.argv[1]), int(sys.argv[2]))))
