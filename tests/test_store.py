"""The store of records: identity, what takes the place of what, bad files, full disks, locks; and closures."""

from __future__ import annotations

import json
import resource
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from etude.harness import closure as closures
from etude.harness.closure import closure, sources
from etude.harness.contract import Run
from etude.harness.machine import LIBRARIES, cards, cores, in_words, machine, rss_anon, versions
from etude.harness.store import Record, Store, identity, lock

RUN = Run("contest:compress/LanguageModels", "laser", "user", 0, inputs=(("model", "ab"), ("train", "cd")))
words = some.text(max_size=8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home" / "store.sqlite")


def test_a_record_comes_back_as_it_was_put(store: Store) -> None:
    record = Record(RUN, "done", {"metrics": {"kl": 0.1 + 0.2}}, artifact="ef", wall=1.5, cpu=1.0, memory={"hwm": 7}, machine=machine(), call="m:f")
    assert store.get(RUN) is None
    store.put(record)
    assert store.get(RUN) == record
    assert store.get(replace(RUN, seed=1)) is None
    assert store.maker("ef") == record and store.maker("gh") is None
    assert list(store.records()) == list(store.records(RUN.target, "done")) == [record] and not list(store.records("other"))
    assert store.check() == "ok"


def test_a_light_record_reads_its_value_when_asked(store: Store) -> None:
    record = Record(RUN, "done", {"numbers": [1, 2, 3]})
    store.put(record)
    light = store.light(record)
    assert light.value["numbers"] == [1, 2, 3] and dict(light.value) == {"numbers": [1, 2, 3]} and light == record


@given(words, words, some.integers(0, 2**40), some.lists(some.tuples(words, words), max_size=3), some.sampled_from(["float32", "bfloat16"]))
def test_identity_is_of_all_that_a_run_holds(target: str, arm: str, seed: int, inputs: list[tuple[str, str]], dtype: str) -> None:
    run = Run(target, arm, "user", seed, inputs=tuple(inputs), dtype=dtype)
    assert identity(run) == identity(replace(run))
    others = [replace(run, seed=seed + 1), replace(run, arm=arm + "x"), replace(run, closure="x"), replace(run, inputs=(*run.inputs, ("a", "b")))]
    others += [replace(run, threads=2), replace(run, processes=2), replace(run, step="x"), replace(run, settings="x"), replace(run, device="mps")]
    assert len({identity(one) for one in [run, *others]}) == 1 + len(others)


def test_identity_holds_library_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(RUN)
    for name in LIBRARIES:
        monkeypatch.setattr("etude.harness.store.versions", lambda name=name: versions() | {name: "0.0"})
        assert identity(RUN) != before


def test_done_takes_the_place_of_failed_and_not_the_other_way(store: Store) -> None:
    failed, done = Record(RUN, "failed", error="ValueError: too odd", traceback="Traceback..."), Record(RUN, "done", {"x": 1})
    store.put(failed)
    kept = store.get(RUN)
    assert kept == failed and kept is not None and kept.reason == "too odd"
    store.put(done)
    store.put(failed)
    assert store.get(RUN) == done and len(list(store.records())) == 1


def test_two_stores_on_one_file_see_each_other(store: Store) -> None:
    other = Store(store.path)
    for seed in range(20):
        (store if seed % 2 else other).put(Record(replace(RUN, seed=seed), "done", {"seed": seed}))
    assert [record.run.seed for record in store.records()] == [record.run.seed for record in other.records()] == list(range(20))


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be taken for one\n" * 100)
    with pytest.raises(ValueError, match="cannot be used as the store"):
        Store(tmp_path / "text.sqlite")
    newer = sqlite3.connect(tmp_path / "newer.sqlite")
    newer.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(ValueError, match="newer etude"):
        Store(tmp_path / "newer.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        Store(tmp_path / "file" / "store.sqlite")


FULL = """
import resource, sys
from pathlib import Path
from etude.harness.contract import Run
from etude.harness.store import Record, Store
store = Store(Path(sys.argv[1]))
store.put(Record(Run("t", "first", "user", 0), "done", {"x": 1}))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    store.put(Record(Run("t", "second", "user", 0), "done", {"x": "y" * 1_000_000}))
except ValueError as error:
    print(error)
"""


def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    said = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True).stdout
    assert "free some disk" in said and str(path) in said
    store = Store(path)
    assert store.check() == "ok" and [record.run.arm for record in store.records()] == ["first"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


HOLD = """
import sys, time
from pathlib import Path
from etude.harness.store import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_kept_to_one_process(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"{other.pid}.*give another --out"), lock(tmp_path):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with lock(tmp_path), pytest.raises(ValueError, match="another process"), lock(tmp_path):
        pass
    with lock(tmp_path):
        assert (tmp_path / "lock").exists()


def test_machine_facts_are_plain_and_stable() -> None:
    facts = machine()
    assert json.loads(json.dumps(facts)) == facts == machine() and facts["cores"] == cores() >= 1 and facts["memory"] > 1e8
    assert versions()["torch"] and versions()["python"].startswith("3.")
    assert in_words(1.5e9) == "1.5 GB" and in_words(2e3) == "2 kB" and rss_anon(2**22 + 1) == 0


@pytest.mark.parametrize(("visible", "expected"), [("", []), ("-1", []), ("1,3", ["1", "3"]), ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"])])
def test_cards_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cards() == expected


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of its own beside etude."""
    root = tmp_path / "toyhouse"
    files = {
        "__init__.py": "",
        "a.py": "from . import b\nimport toyhouse.sub.c as c\nimport os, etude.harness.runner\n",
        "b.py": "def late():\n    from .sub import d\n    return d\n",
        "sub/__init__.py": "from ..e import value\n",
        "sub/c.py": "from etude.data.contract import Data\n",
        "sub/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toyhouse import types_only\n",
        "e.py": "value = 1\n",
        "types_only.py": "",
        "apart.py": "from toyhouse.e import value\n",
        "broken.py": "from toyhouse.nowhere import x\n",
        "wrong.py": "def f(:\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def test_closure_follows_imports_of_every_form(package: Path) -> None:
    found = sources(["toyhouse.a"])
    ours = {name for name in found if name.startswith("toyhouse")}
    assert ours == {"toyhouse", "toyhouse.a", "toyhouse.b", "toyhouse.sub", "toyhouse.sub.c", "toyhouse.sub.d", "toyhouse.e"}
    assert {"etude", "etude.data", "etude.data.contract"} <= set(found) and "etude.harness.runner" not in found
    assert "toyhouse" not in sys.modules


def test_closure_changes_with_its_sources_only(package: Path) -> None:
    before = closure(["toyhouse.a"])
    assert closure(["toyhouse.a", "toyhouse.b"]) == before == closure(iter(["toyhouse.a"]))
    (package / "apart.py").write_text("other = 2\n")
    assert closure(["toyhouse.a"]) == before
    assert closure(["toyhouse.a"], edges=["toyhouse.apart"]) != before
    (package / "e.py").write_text("value = 22\n")
    assert closure(["toyhouse.a"]) != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toyhouse.none", "'toyhouse.none'.*the caller"),
        ("toyhouse.broken", "'toyhouse.nowhere', which toyhouse.broken"),
        ("toyhouse.wrong", "line 1"),
    ],
)
def test_closure_names_what_is_missing(package: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        closure([name])


def test_closure_of_an_unknown_package_is_refused() -> None:
    with pytest.raises(ValueError, match="no package 'no_such_package_at_all'"):
        closure(["no_such_package_at_all.x"])


def test_closure_of_etude_leaves_harness_and_cli_out() -> None:
    found = sources(["etude.data.contract", "etude.measure.contract", "etude.harness.contract"])
    assert {"etude.data.contract", "etude.measure.contract"} <= set(found) and not any(closures.apart(name) for name in found)
