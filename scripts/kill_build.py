"""Kill a training run of a family with SIGKILL at random moments, start it again each time, and compare its end with an undisturbed run's.

    python scripts/kill_build.py adapt --kills 10

What comes out must be equal to the last bit (one thread), and no more steps may be done twice than kills times the steps between checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

RUNS: dict[str, tuple[str, dict[str, Any]]] = {  # the contender whose build is killed, and its options
    "adapt": ("lora", {}),
    "models": ("llama", {}),
    "align": ("dpo", {}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(RUNS))
    parser.add_argument("--kills", type=int, default=10, help="how often the run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--model", default="", help="instead of the contest's embedded one")
    parser.add_argument("--data", default="", help="instead of the contest's embedded ones")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # the run itself, in this folder
    options = parser.parse_args()
    if options.work:
        return work(options)
    with tempfile.TemporaryDirectory(prefix="etude-kill-") as name:
        room, start = Path(name), time.monotonic()
        if start_run(options, room / "calm").wait():
            print("the undisturbed run failed")
            return 1
        needed, seconds = steps_of(room / "calm"), time.monotonic() - start
        late = sum(kill(options, room / "hurt", needed, random.Random(options.seed + i)) for i in range(options.kills))
        code = start_run(options, room / "hurt").wait()
        done, every = steps_of(room / "hurt"), json.loads((room / "calm" / "told.json").read_text())["every"]
        print(f"{options.kills} kills, {late} of them after a checkpoint; undisturbed {needed} steps in {seconds:.0f} s, last exit code {code}")
        print(f"{done - needed} steps were done twice, at most {options.kills * every} may be ({every} between checkpoints)")
        calm, hurt = (json.loads((room / which / "told.json").read_text())["digest"] if code == 0 else "" for which in ("calm", "hurt"))
        print("equal to the last bit" if calm == hurt != "" else f"NOT equal: {calm} against {hurt}")
        return 0 if calm == hurt != "" and done - needed <= options.kills * every and code == 0 else 1


def start_run(options: argparse.Namespace, room: Path) -> subprocess.Popen[bytes]:
    """The training run in a process of its own."""
    room.mkdir(exist_ok=True)
    command = [sys.executable, __file__, options.family, "--work", str(room), "--model", options.model, "--data", options.data]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def kill(options: argparse.Namespace, room: Path, needed: int, dice: random.Random) -> bool:
    """Let the run make some steps and kill it; whether a checkpoint was there."""
    process, before = start_run(options, room), steps_of(room)
    wanted = before + dice.randint(1, max(2, 2 * needed // (options.kills + 2)))
    while steps_of(room) < wanted and process.poll() is None:
        time.sleep(0.005)
    time.sleep(dice.uniform(0.0, 0.2))
    there = any((room / "journal.checkpoints").glob("**/*.safetensors"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return there


def steps_of(room: Path) -> int:
    """Training steps that were made so far."""
    path = room / "steps"
    return path.stat().st_size if path.exists() else 0


def work(options: argparse.Namespace) -> int:
    """Build the contender as a contest does, counting every training step."""
    import torch
    import transformers

    import etude.fit.loop
    from etude import catalogue
    from etude.data.cache import digest_of
    from etude.data.contract import Journal
    from etude.harness.contract import Run
    from etude.harness.inputs import gather
    from etude.harness.request import Request

    torch.set_num_threads(1)
    steps = (options.work / "steps").open("ab", buffering=0)

    def counting(function: Any) -> Any:
        def counted(*given: Any, **named: Any) -> Any:
            answer = function(*given, **named)
            steps.write(b".")
            return answer

        return counted

    etude.fit.loop._step = counting(etude.fit.loop._step)
    transformers.Trainer.training_step = counting(transformers.Trainer.training_step)
    name, set_ = RUNS[options.family]
    contest = catalogue.contest(options.family)
    brought = {key: value for key, value in (("model", options.model), ("data", options.data)) if value}
    inputs = gather(Request(out=options.work, brought=brought), contest, lambda line: None, whole=True)
    given = inputs.pick("model", "tokenizer", "train", "validation")
    run = Run(f"contest:{options.family}/{contest.name}", name, "user", 0, step="build", inputs=given)
    data = replace(contest.data(run), journal=Journal(options.work / "journal.jsonl"))
    folder = options.work / "built"
    contest.build(catalogue.make(catalogue.find(name), set_), contest.subject(run), data, folder)
    trainer = import_module(f"etude.{options.family}._train")
    every = trainer.EVERY if hasattr(trainer, "EVERY") else trainer.Settings().every
    (options.work / "told.json").write_text(json.dumps({"digest": digest_of(folder), "every": every}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
