"""This machine and its memory: facts that go into every record, and what a process holds, from /proc where there is one."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PERIOD = 0.05  # seconds between two looks at a worker's memory
LIBRARIES = ("torch", "transformers", "peft")


@cache
def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, graphics cards: the same as long as the machine is; no name of host or user."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": gpus(),
    }


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


@cache
def gpus() -> list[str]:
    """Model and driver of each NVIDIA card that CUDA_VISIBLE_DEVICES leaves, asked without touching CUDA."""
    lines, visible = _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").splitlines(), _visible()
    if visible is None:
        return lines
    if all(card.isdigit() for card in visible):
        return [lines[int(card)] for card in visible if int(card) < len(lines)]
    return lines[: len(visible)]


def cards() -> list[str]:
    """What CUDA_VISIBLE_DEVICES must be for a worker to own each one of the cards."""
    visible = _visible()
    return visible if visible is not None else [str(i) for i in range(len(gpus()))]


def _visible() -> list[str] | None:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if given is None else [card.strip() for card in given.split(",") if card.strip() not in ("", "-1")]


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def versions() -> dict[str, str]:
    """Versions of Python, etude and the libraries that results depend on, without importing them."""
    return {"python": platform.python_version()} | {name: _version(name) for name in ("etude", *LIBRARIES)}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def rss_anon(pid: int | str = "self") -> int:
    """Bytes of memory that a process holds for itself (files that it maps not counted); 0 when it is gone or there is no /proc."""
    return _status(pid, "RssAnon:")


def _status(pid: int | str, field: str) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(field)), 0)
    except OSError:
        return 0


def reset_peak() -> None:
    """Let the kernel count this process's peak (VmHWM) anew from what it holds now; without /proc nothing happens."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """Bytes of this process's peak since `reset_peak`, mapped files included; without /proc since its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("self", "VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_words(size: float) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


class Sampler:
    """Looks every 50 ms at what the watched processes hold, from outside: a worker that is busy or dies of it is seen all the same."""

    def __init__(self) -> None:
        self._peaks: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="etude-memory", daemon=True)

    def __enter__(self) -> Self:
        if os.path.exists("/proc/self/status"):
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def watch(self, pid: int) -> None:
        """Start to look at a process."""
        self._peaks[pid] = 0

    def take(self, pid: int) -> int:
        """Stop looking, and say the most that was seen."""
        return self._peaks.pop(pid, 0)

    def _look(self) -> None:
        while not self._over.wait(PERIOD):
            for pid, before in list(self._peaks.items()):
                seen = rss_anon(pid)
                if seen > before and pid in self._peaks:
                    self._peaks[pid] = seen
