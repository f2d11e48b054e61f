"""What lies on this disk: folders named by their content or key, memoised tensors, locks. Everything is written whole or not at all.

home()/artifacts/DIGEST/     folders (built models, converted models, splits), complete once they have their name
home()/memo/KEY.safetensors  dear intermediate results (SVDs, Hessians)
home()/wheels, home()/public downloaded archives and public data sets
home()/locks, home()/tmp     what processes at work need
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 20
REMEMBERED = 16 << 20  # digests of files from this size on are remembered by path, size and time of change
ABANDONED = 3600.0  # seconds after which an unlocked temporary folder is taken as left by a killed process


def home() -> Path:
    """The folder of everything that etude keeps: `ETUDE_HOME`, else ~/.cache/etude."""
    return Path(os.environ.get("ETUDE_HOME") or Path.home() / ".cache" / "etude").expanduser().absolute()


def artifact(digest: str) -> Path:
    """Where the folder of this digest lies (or would lie)."""
    return home() / "artifacts" / digest


def digest_json(value: Any) -> str:
    """Digest of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """Digest of a file's bytes, or of a folder's files by relative name and bytes."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_json([[file.relative_to(path).as_posix(), digest_of(file)] for file in files])
    about = path.stat()
    if about.st_size < REMEMBERED:
        return _digest_of_file(path)
    known = home() / "digests" / digest_json([str(path.resolve()), about.st_size, about.st_mtime_ns, about.st_ino])
    try:
        return known.read_text()
    except FileNotFoundError:
        digest = _digest_of_file(path)
        write_text(known, digest)
        return digest


def _digest_of_file(path: Path) -> str:
    running = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            running.update(block)
    return running.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place when the block ends well and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of this name; another process that wants it waits. A killed process holds nothing."""
    path = home() / "locks" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def scratch() -> Iterator[Path]:
    """A fresh folder on the cache's own disk, removed at the end; what killed processes left there is swept first."""
    root = home() / "tmp"
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder = Path(tempfile.mkdtemp(dir=root))
    folder.chmod(0o755)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        try:
            if time.time() - folder.stat().st_mtime < ABANDONED:
                continue
            handle = os.open(folder, os.O_RDONLY)
        except OSError:  # another process swept or renamed it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # at work
            continue
        finally:
            os.close(handle)


def store_folder(fill: Callable[[Path], None], key: str | None = None) -> str:
    """Let `fill` write a folder and keep it under its digest.

    Args:
        fill: writes into the empty folder that it is given; when it raises, nothing is kept.
        key: what names the folder when its bytes do not; `fill` is not called if the folder is there already,
            and of two processes at once the second waits for the first.

    Returns:
        The digest: `artifact(digest)` is the folder.
    """
    if key is None:
        return _filled(fill, None)
    digest = key if key.isalnum() and len(key) >= 32 else digest_json(key)
    with locked(f"artifact {digest}"):
        return digest if artifact(digest).is_dir() else _filled(fill, digest)


def _filled(fill: Callable[[Path], None], digest: str | None) -> str:
    with scratch() as room:
        folder = room / "folder"
        folder.mkdir()
        fill(folder)
        digest = digest or digest_of(folder)
        target = artifact(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(folder, target)
        except OSError:
            if not target.is_dir():  # else another process was first with the same content
                raise
        return digest


def memo(key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` returned for this key, computed once on this disk.

    Of two processes at once the second waits for the first; when `make` raises, nothing is kept.
    """
    from safetensors.torch import load_file, save_file

    path = home() / "memo" / f"{digest_json(key)}.safetensors"
    if not path.exists():
        with locked(f"memo {key}"):
            if not path.exists():
                tensors = {name: _own(tensor) for name, tensor in make().items()}
                with replacing(path) as part:
                    save_file(tensors, part)
    os.utime(path)
    return load_file(path)


def _own(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy that shares its storage with nobody (safetensors asks for it)."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def usage() -> dict[str, tuple[int, int]]:
    """What lies in the cache: by kind (artifacts, memo, wheels, ...) the number of entries and their bytes."""
    if not home().is_dir():
        return {}
    kinds = [folder for folder in sorted(home().iterdir()) if folder.is_dir() and folder.name != "locks"]
    return {kind.name: (sum(1 for _ in kind.iterdir()), bytes_of(kind)) for kind in kinds}


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def trim(kind: str, limit: int, pinned: Iterable[str] = ()) -> list[str]:
    """Remove the entries of a kind that were used longest ago until at most `limit` bytes are left.

    Args:
        kind: "artifacts" or "memo".
        limit: bytes that may stay.
        pinned: names that stay whatever the limit.

    Returns:
        The names removed.
    """
    root, keep, gone = home() / kind, set(pinned), list[str]()
    entries = sorted(root.iterdir(), key=lambda entry: entry.lstat().st_mtime) if root.is_dir() else []
    sizes = {entry: bytes_of(entry) for entry in entries}
    total = sum(sizes.values())
    for entry in entries:
        if total <= limit:
            break
        if entry.name not in keep:
            remove(entry)
            total -= sizes[entry]
            gone.append(entry.name)
    return gone


def remove(entry: Path) -> None:
    """Take an entry away whole: it loses its name first, so that nobody meets half of it."""
    with scratch() as room:
        try:
            os.replace(entry, room / "gone")
        except FileNotFoundError:  # another process was first
            return
