"""Results of contests and records of études as the harness writes them, made up for the tests of what shows them."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.harness.scoreboard import scoreboard

EVIL = "<script>document.title='evil'</script>"
CUT = "</script><img src=x onerror=\"document.title='evil'\">"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@dataclass(frozen=True)
class Paper:
    id: str
    family: str
    name: str
    title: str


PAPERS = [Paper("2312.13558", "compress", "laser", "LASER"), Paper("2203.15556", "study", "chinchilla", "Chinchilla")]
PAPERS += [Paper(f"2401.{i:05}", "adapt", f"paper{i}", f"Paper {EVIL} {i}") for i in range(98)]

AXES = {
    "bits_per_byte": {"unit": "bits/byte", "better": "lower", "title": "bits per byte"},
    "perplexity": {"unit": "per token", "better": "lower", "title": "perplexity"},
    "agreement": {"unit": "share", "better": "higher", "title": "top-1 agreement with the untouched model"},
    "bytes": {"unit": "bytes", "better": "lower", "title": "bytes on disk"},
    "load": {"unit": "s", "better": "lower", "title": "load time"},
    "memory": {"unit": "bytes", "better": "lower", "title": "peak memory"},
    "decode": {"unit": "tokens/s", "better": "higher", "title": "decode speed"},
}
FIELD = {  # name: source, title, megabytes, quality, traits
    "untouched": ("baseline", "The model as it is", 269.0, 1.153, ()),
    "laser": ("paper", "The Truth is in There: LASER", 251.0, 1.171, ("low rank", "layerwise")),
    "gptq": ("baseline", "GPTQ, 4 bits, groups of 32", 113.0, 1.196, ("quantises",)),
    "round_to_nearest": ("baseline", "Round to nearest, groups of 32", 113.2, 1.221, ("quantises",)),
    "svd": ("baseline", "Activation-weighted SVD", 190.0, 1.43, ("low rank",)),
    "magnitude": ("baseline", "Unstructured magnitude pruning", 269.0, 1.39, ()),
    "block_drop": ("baseline", "Block dropping by influence", 212.0, 1.92, ()),
    "mine": ("file", "A method of my own", 150.0, 3.4, ()),
}


def contender(name: str, seed: int = 0) -> dict[str, Any]:
    """One contender with points, trials and seeds."""
    source, title, size, quality, traits = FIELD[name]
    draw = random.Random(f"{name}{seed}")

    def metrics(share: float = 1.0) -> dict[str, Any]:
        loss = quality + (quality - 1.14) * (1 / share - 1) + draw.gauss(0, 0.002)
        numbers = {"perplexity": 2 ** (loss * 4.1), "agreement": max(0.1, 1 - (loss - 1.15)), "load": 0.2 * share, "memory": size * 3e6 * share}
        return {"bits_per_byte": loss, "bytes": size * 1e6 * share, "decode": 18 / share, **numbers}

    shares = [1.0] if name in ("untouched", "mine") else [0.8, 0.9, 1.0, 1.15]
    tested = metrics()

    def blocks(seed: int) -> dict[str, Any]:
        top = [tested["bits_per_byte"] * 600.0 * (1 + 0.01 * (i - 1.5) * (seed - 1.3)) for i in range(4)]
        return {"ids": [str(i) for i in range(4)], "top": top, "bottom": [600.0] * 4}

    summary = {key: {"value": value, "low": value * 0.99, "high": value * 1.012} for key, value in tested.items()}
    summary["bytes"] = {"value": tested["bytes"], "low": tested["bytes"], "high": tested["bytes"]}
    trials = [
        {"options": {"module": "mlp.down_proj", "layers": [i], "rho": rho}, "score": 1.2 + draw.random() * 0.1}
        for i in (18, 20)
        for rho in (0.1, 0.3)
    ]
    return {
        "name": name,
        "title": title,
        "paper": "2312.13558" if source == "paper" else "",
        "role": "contender",
        "source": source,
        "licence": "MIT" if source == "paper" else "Apache-2.0",
        "traits": list(traits),
        "mark": "the weights lie on a Q4_1 grid: low rank may only strip its rounding noise" if "low rank" in traits else "",
        "deterministic": name != "mine",
        "options": {"rho": 0.1, "layers": [20, 21]} if source == "paper" else {"bits": 4},
        "error": None,
        "reached": quality < 1.22,
        "describe": {"loads in": "transformers" if "low rank" not in traits else "transformers, after import etude"},
        "points": [{"options": {"share": share}, "metrics": metrics(share), "error": None, "chosen": share == 1.0} for share in shares],
        "tuning": trials
        if source == "paper"
        else [{"options": {"damp": d}, "score": 1.2 + abs(d - 0.03)} for d in (0.003, 0.01, 0.03, 0.1, 0.3)]
        if name == "gptq"
        else [],
        "seeds": [{"seed": s, "built": f"b{s}", "metrics": tested | {"bits_per_byte": blocks(s)}, "error": None} for s in (1, 2)],
        "summary": summary,
        "run_ids": [f"{draw.getrandbits(64):016x}" for _ in range(5)],
        "wall": 12.5,
        "memory": 8.1e8,
    }


def failed(name: str, error: str) -> dict[str, Any]:
    """A contender whose every run raised."""
    base = contender("mine") | {"name": name, "title": "", "error": error, "reached": False, "tuning": [], "seeds": [], "summary": {}}
    return base | {"points": [{"options": {}, "metrics": {}, "error": error, "chosen": False}]}


def contest(names: tuple[str, ...] = tuple(FIELD), errors: dict[str, str] | None = None) -> dict[str, Any]:
    """A contest that ended with a recommendation."""
    against = [name for name in names if name not in ("gptq", "mine")]
    comparisons = [
        {
            "against": name,
            "difference": 0.05 - 0.03 * i,
            "low": 0.03 - 0.03 * i,
            "high": 0.07 - 0.03 * i,
            "p": min(1.0, 0.0004 * 10**i),
            "beats": i < 1,
            "test": "better bits_per_byte",
        }
        for i, name in enumerate(against)
    ]
    return {
        "etude": "0.1.0",
        "schema": 1,
        "contest": "compress/LanguageModels",
        "title": "Compressed language models",
        "command": "etude compare laser --model smollm2-rotated --data english --out out",
        "created": "2025-11-25T12:00:00+00:00",
        "settings": {
            "budget": [{"text": "200MB", "axis": "bytes", "limit": 2e8, "reference": 2.69e8, "at_least": False}],
            "max_loss": 0.02,
            "prefer": None,
        }
        | {"seeds": 2, "jobs": 2, "dev": False, "trials": 16, "threads": {"quality": 1, "timed": 2}, "dtype": "bfloat16", "device": "cpu"},
        "quality": "bits_per_byte",
        "main_axis": "bytes",
        "axes": AXES,
        "model": {
            "name": "smollm2-rotated",
            "digest": "ab12cd34",
            "parameters": 134515008,
            "architecture": "LlamaForCausalLM",
            "grid": "",
            "license": "Apache-2.0",
        },
        "data": {
            "name": "english",
            "digest": "12ab34cd",
            "notes": ["column text holds the text", "3 duplicate rows were dropped"],
            "splits": {
                "train": {"rows": 700, "bytes": 812345},
                "validation": {"rows": 100, "bytes": 99000},
                "choice": {"rows": 100},
                "test": {"rows": 100},
            },
        },
        "machine": {"processor": "x86_64", "cores": 2, "memory": 8_000_000_000},
        "versions": {"torch": "2.13.0", "transformers": "5.24.0"},
        "contenders": [contender(name) for name in names] + [failed(name, error) for name, error in (errors or {}).items()],
        "reference": "untouched",
        "noise": 0.0004,
        "floor": {"value": 4.6, "what": "unigram entropy"},
        "recommendation": {
            "line": "Recommended: gptq (113 MB, 1.196 bits per byte)",
            "status": "recommended",
            "name": "gptq",
            "winner": "gptq",
            "options": {"bits": 4},
            "close": [],
            "sentence": "It gives up 3.7 % of quality against untouched and is 58 % smaller.",
            "command": "etude apply gptq --model smollm2-rotated --data english --out best",
            "comparisons": comparisons,
            "more": "",
            "provisional": "",
        },
        "openings": 1,
        "failures": [{"name": name, "seed": 1, "step": "build", "error": error} for name, error in (errors or {}).items()],
    }


def nothing() -> dict[str, Any]:
    """A contest in which everything failed: no numbers, no recommendation."""
    results = contest((), {"laser": "it ran out of memory", "gptq": "killed after 60 s"})
    results["recommendation"] = {
        "line": "No recommendation: no contender finished.",
        "status": "none",
        "name": None,
        "command": None,
        "comparisons": [],
    }
    return results | {"noise": 0.0, "floor": {}, "openings": 0}


def record(name: str = "laser", paper: str = "2312.13558") -> dict[str, Any]:
    """A recorded desk run with one claim of each status."""

    def claim(row: str, status: str, estimate: float, half: float, **more: Any) -> dict[str, Any]:
        base = {"title": f"{name} gains at least 2 % (row {row})", "row": row, "status": status, "estimate": estimate}
        return base | {"low": estimate - half, "high": estimate + half, "over": "seeds", "margin": "above 0.02", "seeds": 3, "p": 0.004} | more

    first = [claim("1", "reproduced", 0.051, 0.01), claim("2", "not reproduced", -0.02, 0.01, p=1.0, over="items", units=400)]
    second = [claim("3", "inconclusive", 0.03, 0.04, p=0.3, needed=9, reason="the interval's half-width of 0.04 does not decide")]
    return {
        "paper": paper,
        "name": name,
        "scale": "desk",
        "date": "2025-11-24T10:00:00+00:00",
        "machine": {"processor": "x86_64", "cores": 2},
        "versions": {"torch": "2.13.0"},
        "closure": "abcd",
        "experiments": {"Intervention": {"claims": first, "runs": []}, "Facts": {"claims": second, "runs": []}},
        "verdict": "reproduced",
    }


def bare() -> dict[str, Any]:
    """A contender of which nothing but the name is known."""
    return contest() | {"contenders": [{"name": "bare"}]}


def choosing() -> dict[str, Any]:
    """A contest that stopped before the test split."""
    results = contest()
    results["settings"]["dev"] = True
    return results | {"contenders": [one | {"summary": {}, "seeds": []} for one in results["contenders"]], "openings": 0}


def pointless() -> dict[str, Any]:
    """Contenders without points and trials."""
    results = contest()
    return results | {"contenders": [one | {"points": [], "tuning": []} for one in results["contenders"]]}


MISSING = {"empty": dict, "nothing": nothing, "bare": bare, "choosing": choosing, "pointless": pointless}


def board(folder: Path) -> str:
    """A scoreboard with a fresh record that has a plot, a stale one, and a paper that was never recorded."""
    picture = folder / "desk.png"
    picture.write_bytes(base64.b64decode(PIXEL))
    fresh = record() | {"plot": str(picture), "fresh": True}
    stale = record("chinchilla", "2203.15556") | {"fresh": False, "verdict": "inconclusive"}
    return scoreboard([fresh, stale], PAPERS, folder / "board", implemented=("paper3",)).read_text()
