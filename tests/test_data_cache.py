"""The cache: whole or not at all, whatever is killed, and once for two processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import Tensor

from etude.data import cache


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, env=dict(os.environ))


def test_a_folder_is_named_by_its_content() -> None:
    def fill(folder: Path) -> None:
        (folder / "below").mkdir()
        (folder / "below" / "a.txt").write_text("a")

    digest = cache.store_folder(fill)
    assert digest == cache.store_folder(fill) == cache.digest_of(cache.artifact(digest))
    assert (cache.artifact(digest) / "below" / "a.txt").read_text() == "a"


def test_a_key_is_filled_once() -> None:
    calls = list[int]()

    def fill(folder: Path) -> None:
        calls.append(1)
        (folder / "a").write_text("a")

    assert cache.store_folder(fill, "some key") == cache.store_folder(fill, "some key")
    assert calls == [1]


def test_nothing_is_kept_of_a_fill_that_raises(own_home: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        cache.store_folder(fill, "k")
    assert not list((own_home / "tmp").iterdir())
    assert not (own_home / "artifacts").exists()


FILL = """
import sys, time
from pathlib import Path
from etude.data.cache import store_folder
def fill(folder):
    with open({log!r}, "a") as log: log.write("filled\\n")
    (folder / "a").write_text("a" * 1000)
    time.sleep({pause})
    (folder / "b").write_text("b" * 1000)
print(store_folder(fill, "shared key"))
"""


def test_two_processes_at_once_fill_once(tmp_path: Path) -> None:
    code = FILL.format(log=str(tmp_path / "log"), pause=0.5)
    both = [start(code), start(code)]
    digests = {process.communicate()[0].strip() for process in both}
    assert len(digests) == 1
    assert (tmp_path / "log").read_text() == "filled\n"
    assert sorted(path.name for path in cache.artifact(digests.pop()).iterdir()) == ["a", "b"]


def test_a_kill_in_mid_fill_leaves_no_folder_and_no_lock(tmp_path: Path, own_home: Path) -> None:
    process = start(FILL.format(log=str(tmp_path / "log"), pause=60))
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (own_home / "artifacts").exists()
    done = start(FILL.format(log=str(tmp_path / "log"), pause=0))
    assert (cache.artifact(done.communicate()[0].strip()) / "b").exists()


def test_what_a_killed_process_left_is_swept_and_what_works_is_not(own_home: Path) -> None:
    with cache.scratch() as working:
        dead = own_home / "tmp" / "dead"
        dead.mkdir()
        for folder in (working, dead):
            os.utime(folder, (0, 0))
        with cache.scratch():
            assert working.exists() and not dead.exists()
    assert not working.exists()


def test_memo_computes_once_and_keeps_types_and_views() -> None:
    import torch

    calls = list[int]()

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        base = torch.arange(12, dtype=torch.float64).reshape(3, 4)
        return {"view": base.T, "row": base[1], "half": base.half(), "parameter": torch.nn.Parameter(base)}

    first, second = cache.memo("k", make), cache.memo("k", make)
    assert calls == [1]
    for name, tensor in make().items():
        assert torch.equal(second[name], tensor) and second[name].dtype == tensor.dtype
        assert torch.equal(first[name], second[name])


def test_memo_of_two_processes_computes_once(tmp_path: Path) -> None:
    code = f"""
import time, torch
from etude.data.cache import memo
def make():
    open({str(tmp_path / "log")!r}, "a").write("made\\n")
    time.sleep(0.5)
    return {{"x": torch.ones(3)}}
print(memo("k", make)["x"].sum().item())
"""
    both = [start(code), start(code)]
    assert [process.communicate()[0].strip() for process in both] == ["3.0", "3.0"]
    assert (tmp_path / "log").read_text() == "made\n"


def test_memo_that_raises_keeps_nothing() -> None:
    def broken() -> dict[str, Tensor]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.memo("k", broken)
    import torch

    assert cache.memo("k", lambda: {"x": torch.ones(1)})["x"].item() == 1


def test_a_full_disk_leaves_nothing(own_home: Path) -> None:
    code = """
import resource, sys
from etude.data.cache import store_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    store_folder(lambda folder: (folder / "big").write_bytes(bytes(4 << 20)), "big")
except OSError as error:
    print(error.strerror)
"""
    assert "too large" in start(code).communicate()[0]
    assert not list((own_home / "tmp").iterdir()) and not (own_home / "artifacts").exists()


def test_the_digest_of_a_large_file_is_remembered_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "REMEMBERED", 10)
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    first = cache.digest_of(file)
    monkeypatch.setattr(cache, "_digest_of_file", lambda path: "computed again")
    assert cache.digest_of(file) == first
    file.write_bytes(b"y" * 100)
    os.utime(file, (1, 1))
    assert cache.digest_of(file) == "computed again"


def test_trim_removes_the_longest_unused_and_spares_the_pinned() -> None:
    for i, name in enumerate("abcd"):
        folder = cache.artifact(name)
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(bytes(100))
        os.utime(folder, (i, i))
    assert cache.trim("artifacts", 200, pinned=["a"]) == ["b", "c"]
    assert cache.usage()["artifacts"] == (2, 200)


def test_digests_of_json_do_not_depend_on_the_order_of_keys() -> None:
    assert cache.digest_json({"a": 1, "b": [1.5, None]}) == cache.digest_json({"b": [1.5, None], "a": 1})
    assert cache.digest_json({"a": 1}) != cache.digest_json({"a": "1"})


def test_importing_the_cache_is_light() -> None:
    modules = "etude.data.cache, etude.data.assets, etude.data.sources, etude.data.split"
    code = f"import sys, {modules}; print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    assert start(code).communicate()[0].strip() == "[]"
