"""The conformance suite: what holds for every method, ours or anyone's, that wants to compete."""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import tempfile
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from etude import catalogue
from etude.harness.contract import Contest, Run

TOLERANCE = 2e-2  # of the largest answer: what saving in the folder's own precision may change
SECONDS = 120.0


def conformance(entry: catalogue.Entry, contest: Contest[Any, Any]) -> list[str]:
    """What keeps a method from competing, one sentence each; empty when nothing does."""
    try:
        cls = entry.load()
    except Exception as error:  # anything may happen in a file of the user's
        return [f"it cannot be imported ({type(error).__name__}: {error})"]
    if problems := list(shape(cls, contest)):
        return problems
    kinds = [name for name in contest.tiny() if not contest.unfit({"kind": name}, entry.traits)]
    at_each = {name: list(at_work(entry, contest, name)) for name in kinds}
    if entry.source == "file" and not all(at_each.values()):
        at_each = {}  # a method of the user's own may be for one architecture only
    return [*options(entry), *(problem for problems in at_each.values() for problem in problems)]


def shape(cls: type, contest: Contest[Any, Any]) -> Iterator[str]:
    """A frozen dataclass with defaults and the family's verb."""
    if not dataclasses.is_dataclass(cls):
        yield f"{cls.__name__} is no dataclass: write @dataclass(frozen=True) above it, its fields are the options"
        return
    if cls.__setattr__ is object.__setattr__:
        yield f"{cls.__name__} is not frozen: write @dataclass(frozen=True)"
    if not callable(getattr(cls, contest.verb, None)):
        what = "model" if contest.verb == "compress" else "subject"
        yield f"{cls.__name__} lacks the verb of {contest.family}: a method {contest.verb}(self, {what}, data)"
    without = [field.name for field in dataclasses.fields(cls) if field.default is field.default_factory is dataclasses.MISSING]
    if without:
        yield f"option {without[0]} has no default: every option needs one"


def options(entry: catalogue.Entry) -> Iterator[str]:
    """Options survive JSON, and unknown ones are refused by name."""
    method = catalogue.make(entry, {})
    if catalogue.make(entry, catalogue.to_options(method)) != method:
        yield "its options do not survive a round trip through JSON: use numbers, strings, tuples, or None"
    try:
        catalogue.make(entry, {"no_such_option": 1})
    except ValueError as error:
        if "no_such_option" not in str(error):
            yield f"an unknown option is refused without naming it ({error})"
    else:
        yield "an unknown option is accepted"


def at_work(entry: catalogue.Entry, contest: Contest[Any, Any], kind: str) -> Iterator[str]:
    """On a tiny subject: the verb works, the caller's state is left as it was, the result reloads in a new process and answers alike."""
    import numpy as np

    make_subject, data = contest.tiny()[kind]
    subject, method = make_subject(), catalogue.make(entry, {})
    before = caller_state()
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "built"
        try:
            made = contest.call(method, subject, data)
            if made is None:
                yield f"{contest.verb} returned nothing on a tiny {kind}: it must return what it made"
                return
            folder.mkdir()
            contest.save(made, data, folder)
            answered = contest.answers(made)
        except Exception as error:  # the method is anyone's code
            yield f"{contest.verb} failed on a tiny {kind} ({type(error).__name__}: {error})"
            return
        if caller_state() != before:
            yield f"{contest.verb} changed the caller's random state or gradient mode on a tiny {kind}: draw from a generator of your own"
        if getattr(made, "training", False):
            yield f"{contest.verb} left the tiny {kind} in training mode, it came in evaluation mode"
        again = reloaded(contest, folder)
        if isinstance(again, str):
            yield f"what it made of a tiny {kind} does not reload in a new process: {again}"
        elif not np.allclose(again, answered, atol=TOLERANCE * float(abs(answered).max()), rtol=0):
            yield f"what it made of a tiny {kind} answers differently after reloading (by up to {float(abs(again - answered).max()):.3g})"


def caller_state() -> tuple[Any, ...]:
    """What a verb must leave as it was: random states and the gradient mode."""
    import numpy as np
    import torch

    drawn: Any = np.random.get_state()
    return (torch.get_rng_state().numpy().tobytes(), random.getstate(), drawn[1].tobytes(), drawn[2], torch.is_grad_enabled())


def reloaded(contest: Contest[Any, Any], folder: Path) -> Any:
    """The answers of a saved folder in a new process, or the error as text."""
    forkserver.set_forkserver_preload(["etude.harness.preload"])
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(contest.family, contest.name, folder, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else f"nothing came within {SECONDS:.0f} s"
    except EOFError:
        return "the process died"
    finally:
        process.kill()
        process.join()


def _answer(family: str, name: str, folder: Path, sender: Any) -> None:
    contest = catalogue.contest(family, name)
    try:
        sender.send(contest.answers(contest.load(folder, Run(f"contest:{family}/{name}", "", "tiny", 0))))
    except Exception as error:  # told to the parent
        sender.send(f"{type(error).__name__}: {error}")
