"""Shapes and types of techniques and measures are checked at run time in every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from etude import catalogue

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent / "tests"))
CHECKED = [entry.module for entry in catalogue.entries().values() if entry.source in ("paper", "baseline")]
HOOK = install_import_hook([*CHECKED, "etude.measure", "etude.nn"], "typechecker.checked")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a test, or a command run in this process, sets in the environment ends with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
