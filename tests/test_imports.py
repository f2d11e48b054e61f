"""Imports run one way: what import-linter's contracts cannot say because it follows from the catalogue."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

import etude
from etude import catalogue

ROOT = Path(etude.__file__).parent
GRAPH = grimp.build_graph("etude", exclude_type_checking_imports=True, cache_dir=None)
MODULES = sorted(GRAPH.modules)
TECHNIQUES = sorted(entry.module for entry in catalogue.entries().values() if entry.source in ("paper", "baseline"))
APART = ("experiment", "benchmark", "conftest")


def parts(module: str) -> set[str]:
    """A technique's own modules, without its étude, benchmark and tests."""
    below = {m for m in MODULES if m == module or m.startswith(f"{module}.")}
    return {m for m in below if m.rpartition(".")[2] not in APART and not m.rpartition(".")[2].startswith("test_")}


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_technique_never_imports_harness_contest_experiment_or_command_line(technique: str) -> None:
    reached = {m for part in parts(technique) for m in GRAPH.find_upstream_modules(part)}
    forbidden = {m for m in reached if m.startswith(("etude.harness", "etude.cli")) or m.rpartition(".")[2] in ("contest", "experiment", "benchmark")}
    assert not forbidden


@pytest.mark.parametrize("family", catalogue.with_contests())
def test_a_contest_imports_no_technique(family: str) -> None:
    assert not set(TECHNIQUES) & GRAPH.find_upstream_modules(f"etude.{family}.contest")


def test_nothing_imports_in_a_circle() -> None:
    for technique in TECHNIQUES:
        assert technique not in {m for part in parts(technique) for m in GRAPH.find_upstream_modules(part)} - parts(technique)


def test_init_files_outside_techniques_hold_no_code() -> None:
    for path in ROOT.rglob("__init__.py"):
        module = ".".join(("etude", *path.parent.relative_to(ROOT).parts))
        if path.parent == ROOT or any(module == t or module.startswith(f"{t}.") for t in TECHNIQUES):
            continue
        loose = [n for n in ast.parse(path.read_text()).body if not isinstance(n, ast.Expr | ast.Import | ast.ImportFrom | ast.ClassDef | ast.If)]
        assert not loose, path


def test_no_source_unpickles_or_trusts_remote_code() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle"} & set(names), path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "eval", "exec"), path
                assert not any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords), path
