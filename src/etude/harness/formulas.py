"""Formulas of the pages as plain text: Greek letters and signs in place of TeX's commands."""

from __future__ import annotations

import re
import unicodedata

SIGNS = {  # of formulas, as a terminal shows them
    "approx": "≈",
    "Big": "",
    "bar": "",
    "big": "",
    "ell": "l",
    "lVert": "‖",
    "mathbb": "",
    "min": "min",
    "qquad": "  ",
    "rVert": "‖",
    "cdot": "·",
    "dots": "...",
    "ge": "≥",
    "geq": "≥",
    "hat": "",
    "in": "∈",
    "infty": "∞",
    "lceil": "⌈",
    "ldots": "...",
    "le": "≤",
    "left": "",
    "leftarrow": "←",
    "leq": "≤",
    "lfloor": "⌊",
    "ll": "≪",
    "mathrm": "",
    "neq": "≠",
    "odot": "⊙",
    "partial": "∂",
    "pm": "±",
    "prod": "Π",
    "propto": "∝",
    "quad": " ",
    "rceil": "⌉",
    "rfloor": "⌋",
    "right": "",
    "sim": "~",
    "sqrt": "√",
    "succ": "≻",
    "sum": "Σ",
    "text": "",
    "tilde": "",
    "times": "×",
    "to": "→",
    "top": "T",
}


def untex(text: str) -> str:
    r"""The text with its formulas, between \\( and \\) or double dollars, as a terminal can show them."""
    return re.sub(r"(?s)\\[(\[](.*?)\\[)\]]|\$\$(.*?)\$\$", _formula, text)


def _formula(match: re.Match[str]) -> str:
    inside = re.sub(r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1", match[1] or match[2])
    inside = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", inside)
    return re.sub(r"\\([A-Za-z]+)", _word, re.sub(r"\\[,;! ]", " ", inside.replace(r"\|", "‖"))).replace("{", "(").replace("}", ")")


def _word(match: re.Match[str]) -> str:
    name = match[1]
    try:
        return unicodedata.lookup(f"GREEK {'SMALL' if name.islower() else 'CAPITAL'} LETTER {name.upper()}")
    except KeyError:
        return SIGNS.get(name, name)
