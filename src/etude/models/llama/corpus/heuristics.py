"""Rules of thumb: what C4 keeps of a web page, and which source files are code that somebody wrote."""

from __future__ import annotations

import re
from collections.abc import Collection

PERMISSIVE = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "mit")
TERMINAL = (".", "!", "?", '"', "”")
NOTICES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")
SENTENCE = re.compile(r"[.!?]+[\"')\]”]*(?:\s|$)")


def c4_page(text: str, forbidden: Collection[str] = ()) -> str:
    """What C4 keeps of a page, "" for nothing.

    Lines end with a full stop, question or exclamation mark or a quotation mark, have five words, and speak neither of JavaScript nor of cookies
    and policies; the page has three sentences, no curly bracket, no "lorem ipsum" and none of the forbidden words. Citation marks go.
    """
    low = text.lower()
    if "{" in text or "lorem ipsum" in low or any(re.search(rf"\b{re.escape(word.lower())}\b", low) for word in forbidden):
        return ""
    lines = (CITATION.sub("", line).strip() for line in text.split("\n"))
    kept = "\n".join(line for line in lines if _is_prose(line))
    return kept if len(SENTENCE.findall(kept)) >= 3 else ""


def _is_prose(line: str) -> bool:
    low = line.lower()
    return (
        line.endswith(TERMINAL)
        and not line.endswith("...")
        and len(line.split()) >= 5
        and "javascript" not in low
        and not any(notice in low for notice in NOTICES)
    )


def is_code_file(text: str, longest: int = 1000, mean: float = 100.0, least: float = 0.25) -> bool:
    """Whether a file looks written by hand: no line over `longest` characters, `mean` of them on average, a share of letters and digits."""
    lines = text.splitlines()
    if not lines or not text.strip():
        return False
    sizes = [len(line) for line in lines]
    return max(sizes) <= longest and sum(sizes) / len(sizes) <= mean and sum(map(str.isalnum, text)) / len(text) >= least


def is_permissive(licence: str) -> bool:
    """Whether the paper takes code under this licence (its SPDX name): Apache, BSD or MIT."""
    return licence.strip().lower() in PERMISSIVE


def strip_header(text: str) -> str:
    """A source file without the notice at its top: the first comment goes where it speaks of copyright or licence."""
    head = re.match(r"\s*(?:#![^\n]*\n)?\s*((?:(?:#|//|--|;)[^\n]*\n)+|/\*.*?\*/|<!--.*?-->|\"\"\".*?\"\"\")", text, flags=re.DOTALL)
    if head is None or not re.search(r"copyright|licen[cs]e|all rights reserved", head[1], flags=re.IGNORECASE):
        return text
    return (text[: head.start(1)] + text[head.end(1) :].lstrip("\n")).lstrip("\n")
