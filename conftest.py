"""Shapes and types of techniques and measures are checked at run time in every test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

from etude import catalogue

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent / "tests"))
CHECKED = [entry.module for entry in catalogue.entries().values() if entry.source in ("paper", "baseline")]
HOOK = install_import_hook([*CHECKED, "etude.measure", "etude.nn"], "typechecker.checked")
