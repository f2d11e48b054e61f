"""Contests that are killed or interrupted, as processes of their own."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etude.compress.planted import plant

FEW = ("gptq", "svd", "magnitude", "block_drop")
SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_contest.py"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.timeout(900)
def test_a_contest_that_is_killed_again_and_again_ends_as_an_undisturbed_one():
    few = [f"--without={name}" for name in ("gptq", "svd", "magnitude")]
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "2", *few], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "equal in all but times and memory" in done.stdout, done.stdout + done.stderr


@linux
def test_ctrl_c_stops_a_contest_with_130_and_says_how_to_go_on(tmp_path):
    brought = plant(tmp_path, steps=5)
    command = [
        sys.executable,
        "-m",
        "etude",
        "compare",
        "laser",
        "--model",
        brought["model"],
        "--data",
        brought["data"],
        "--out",
        str(tmp_path / "out"),
    ]
    contest = subprocess.Popen(
        command,
        env=os.environ | {"ETUDE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a script starts in the background ignores it
    )
    journals = tmp_path / "journals"
    until = time.monotonic() + 120
    while not (journals.is_dir() and any(journals.iterdir())) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(contest.pid, signal.SIGINT)  # as a terminal sends it: to everybody
    said, error = contest.communicate(timeout=60)
    assert contest.returncode == 130, said + error
    assert "the same command goes on from there" in error and "Traceback" not in error
    until = time.monotonic() + 10  # the server of the workers sees that its pipe was closed
    while (left := members(contest.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, "processes outlived the contest"


def test_a_disk_that_fills_up_stops_with_one_line_and_loses_nothing(tmp_path):
    brought = plant(tmp_path, steps=5)
    flags = [f"--{name}={value}" for name, value in (brought | {"out": str(tmp_path / "out")}).items()]
    command = [sys.executable, "-m", "etude", "compare", "round_to_nearest", *flags, *(f"--without={name}" for name in FEW)]
    home = os.environ | {"ETUDE_HOME": str(tmp_path / "home")}

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    full = subprocess.run(command, env=home, preexec_fn=little_room, capture_output=True, text=True, check=False)
    assert full.returncode == 1 and "the disk is full" in full.stderr and "set ETUDE_HOME" in full.stderr, full.stdout + full.stderr
    assert "Traceback" not in full.stderr and not (tmp_path / "out" / "results.json").exists()
    again = subprocess.run(command, env=home, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and (tmp_path / "out" / "results.json").exists(), again.stderr


def members(group):
    """Running processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found
