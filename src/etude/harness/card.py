"""The model card that `etude apply` writes: what was done, what it cost, what it was measured to be worth, and under which licences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from etude.harness.display import plain, shown

TUNING = 8  # trials listed, the best first


def card(done: Mapping[str, Any]) -> str:
    """README.md for the folder of what was applied.

    Args:
        done: name, title, paper, licence, options, model, data, describe, wall, memory; from a contest also measured, axes, quality; tuning.
    """
    parts = [front(done), f"# {plain(model_name(done))}, {plain(done['name'])}", opening(done), *sections(done)]
    return "\n\n".join(part for part in parts if part) + "\n"


def model_name(done: Mapping[str, Any]) -> str:
    """What it was made from; the data where there was no model. Of a path only its end: the rest is nobody's business."""
    return named((done.get("model") or {}).get("name") or (done.get("data") or {}).get("name") or "result")


def named(name: object) -> str:
    """A hub or embedded name as it is, a path by its last part."""
    text = str(name)
    return PurePath(text).name if text.startswith(("/", "~", "./", "../")) else text


def front(done: Mapping[str, Any]) -> str:
    """The YAML head that the hub reads."""
    model = done.get("model") or {}
    lines = ["library_name: transformers"] if model else []
    if model.get("licence"):
        lines.append(f"license: {json.dumps(str(model['licence']))}")
    if "/" in str(model.get("name", "")) and not str(model["name"]).startswith(("/", ".", "~")):
        lines.append(f"base_model: {json.dumps(str(model['name']))}")
    return "\n".join(["---", *lines, "tags:", "- etude", f"- {json.dumps(str(done['name']))}", "---"])


def opening(done: Mapping[str, Any]) -> str:
    """Two sentences: what this is, and the command that makes it again."""
    paper = f" ([arXiv {done['paper']}](https://arxiv.org/abs/{done['paper']}))" if done.get("paper") else ""
    said = f"Made with etude by **{plain(done['name'])}**: {plain(done.get('title') or done['name'])}{paper}."
    command = done.get("command")
    return said + (f"\n\n    {plain(command)}" if command else "")


def sections(done: Mapping[str, Any]) -> list[str]:
    """What was done, what it loads in, what it was measured to be, what it cost, the licences."""
    found = [section("What was done", facts(done))]
    found.append(section("How to use it", [f"{plain(k)}: {plain(v)}" for k, v in (done.get("describe") or {}).items()]))
    found.append(section("Measured on held-out data", measured(done)))
    found.append(section("What was tried", tuning(done)))
    found.append(section("What it cost", cost(done)))
    found.append(section("Licences", licences(done)))
    return [part for part in found if part]


def section(title: str, lines: Iterable[str]) -> str:
    """A heading and its list; nothing without lines."""
    listed = "\n".join(f"- {line}" for line in lines)
    return f"## {title}\n\n{listed}" if listed else ""


def facts(done: Mapping[str, Any]) -> list[str]:
    """Model, data and options."""
    model, data = done.get("model") or {}, done.get("data") or {}
    lines = [f"options: `{json.dumps(done.get('options') or {}, ensure_ascii=False)}`"]
    if model:
        known = [f"{key} {plain(model[key])}" for key in ("architecture", "parameters") if model.get(key)]
        lines.append(
            f"model: {plain(named(model.get('name')))}{' (' + ', '.join(known) + ')' if known else ''}, digest `{str(model.get('digest'))[:16]}`"
        )
    if model.get("grid"):
        lines.append(f"the model's weights lay on a quantisation grid already ({plain(model['grid'])}): read its numbers with care")
    if data:
        lines.append(f"data: {plain(named(data.get('name')))}, digest `{str(data.get('digest'))[:16]}`")
    return lines


def measured(done: Mapping[str, Any]) -> list[str]:
    """The contest's numbers with intervals."""
    lines, axes = [], done.get("axes") or {}
    for metric, value in (done.get("measured") or {}).items():
        if metric not in axes:
            continue  # what stands behind a number, not a number to read
        about = axes[metric]
        unit = {"seconds": "s"}.get(about.get("unit", ""), about.get("unit", ""))
        number, low, high = (value.get(key) for key in ("value", "low", "high"))
        range_ = f" [{shown(low, unit)}, {shown(high, unit)}]" if low is not None and low != high else ""
        said = shown(number, unit, 4) + ("" if unit in ("bytes", "s", "share") or not unit else f" {unit}")
        lines.append(f"{about.get('title') or metric}: {said}{range_}")
    return lines


def tuning(done: Mapping[str, Any]) -> list[str]:
    """The best trials of a search."""
    trials = [trial for trial in done.get("tuning") or () if isinstance(trial.get("score"), int | float)]
    best = sorted(trials, key=lambda trial: float(trial["score"]))
    more = [f"and {len(best) - TUNING} more"] if len(best) > TUNING else []
    return [f"`{json.dumps(trial['options'])}`: {trial['score']:.5g} on validation data" for trial in best[:TUNING]] + more


def cost(done: Mapping[str, Any]) -> list[str]:
    """Time and memory."""
    lines = [f"{shown(done['wall'], 's')} of work"] if done.get("wall") else []
    return lines + ([f"{shown(done['memory'], 'bytes')} of memory at the peak"] if done.get("memory") else [])


def licences(done: Mapping[str, Any]) -> list[str]:
    """Of the model that was brought and of the method's code."""
    model = done.get("model") or {}
    lines = (
        [f"the model that this was made from: {plain(model.get('licence') or 'not stated in its folder; look where you got it')}"] if model else []
    )
    return [*lines, f"the code of {plain(done['name'])}: {plain(done.get('licence') or 'not stated')}"]
