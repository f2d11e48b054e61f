"""Kill a contest with SIGKILL at random moments, start it again each time, and compare its end with an undisturbed contest's.

    python scripts/kill_contest.py --kills 25

The results must be equal in all but times and memory, the store sound, and no run there twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TIMED = {"created", "other_load", "wall", "memory", "load", "prefill", "decode", "machine", "run_ids", "jobs", "command", "seal"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="how often the contest is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a contender out, to be done sooner; repeatable")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etude-kill-") as name:
        room = Path(name)
        from etude.compress.planted import plant

        brought = plant(room)
        start = time.monotonic()
        calm = contest(room / "calm-home", room / "calm", brought, options.without)
        while not any((room / "calm-home" / "journals").glob("*")) and calm.poll() is None:
            time.sleep(0.05)
        ready = time.monotonic() - start  # what comes before is imports
        if calm.wait():
            print(f"the undisturbed contest ended with exit code {calm.returncode}")
            return 1
        seconds = time.monotonic() - start
        kills, dice, reach = 0, random.Random(options.seed), ready + 2 * (seconds - ready) / options.kills
        while kills < options.kills:
            process, began = contest(room / "home", room / "out", brought, options.without), time.monotonic()
            try:
                process.wait(dice.uniform(min(ready, reach / 2), reach))
                (room / "out" / "results.json").unlink(missing_ok=True)
                reach = 0.9 * (time.monotonic() - began)  # nothing is left to do but to read the store and to write: kill it there
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
        code = contest(room / "home", room / "out", brought, options.without).wait()
        print(f"{kills} kills, undisturbed contest {seconds:.0f} s, last exit code {code}")
        problems = differences(strip(load(room / "calm")), strip(load(room / "out"))) + sound(room / "home" / "etude.sqlite")
        print("\n".join(problems) or "equal in all but times and memory; the store is sound; no run is there twice")
        return 1 if problems or code else 0


def contest(home: Path, out: Path, brought: dict[str, str], without: list[str]) -> subprocess.Popen[bytes]:
    """Start the contest in a process of its own."""
    command = [sys.executable, "-m", "etude", "compare", "laser", "--model", brought["model"], "--data", brought["data"], "--out", str(out)]
    command += [f"--without={name}" for name in without]
    environment = os.environ | {"ETUDE_HOME": str(home)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def load(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def strip(value: Any) -> Any:
    """Without what a clock or a meter gave."""
    if isinstance(value, dict):
        return {key: strip(one) for key, one in value.items() if key not in TIMED}
    return [strip(one) for one in value] if isinstance(value, list) else value


def differences(one: Any, other: Any, where: str = "results") -> list[str]:
    """Where two results differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [d for key in sorted(one.keys() | other.keys()) for d in differences(one.get(key), other.get(key), f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one!r} against {other!r}"]


def sound(store: Path) -> list[str]:
    """What is wrong with a store."""
    with sqlite3.connect(store) as connection:
        check = connection.execute("PRAGMA integrity_check").fetchone()[0]
        total, distinct = connection.execute("SELECT count(*), count(DISTINCT id) FROM records").fetchone()
    return ([f"integrity_check: {check}"] if check != "ok" else []) + ([f"{total - distinct} runs are there twice"] if total != distinct else [])


if __name__ == "__main__":
    sys.exit(main())
