"""One self-contained HTML file, escaped by construction: only what `h` made is markup, every other string is text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


Child = str | Iterable[str | Iterable[str] | None] | None
Attribute = str | int | float | bool | None


def h(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """An element; `class_` is class, underscores are hyphens, None and False leave an attribute out."""
    parts = []
    for key, value in attributes.items():
        if value is not None and value is not False:
            name = key.rstrip("_").replace("_", "-")
            parts.append(f" {name}" if value is True else f' {name}="{escape(str(value))}"')
    inner = "".join(text(child) for child in children)
    return Markup(f"<{tag}{''.join(parts)}>" + ("" if tag in VOID else f"{inner}</{tag}>"))


def text(child: Child) -> str:
    """A child as HTML: markup as it is, anything else escaped."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escape(child)
    return "".join(text(part) for part in child)


def clean(value: object) -> object:
    """The value as JSON can hold it: no NaN or infinity, keys are strings."""
    if isinstance(value, Mapping):
        return {str(key): clean(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [clean(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def embedded(value: object) -> Markup:
    """JSON that is safe inside a script element."""
    dumped = json.dumps(clean(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        dumped = dumped.replace(character, f"\\u{ord(character):04x}")
    return Markup(dumped)


def asset(name: str) -> str:
    """A style sheet or script that is shipped beside this module."""
    return (files("etude.harness") / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def page(title: str, body: Iterable[str], scripts: Iterable[str], data: Mapping[str, object] | None = None) -> str:
    """The file: styles and scripts inside, and a policy that forbids the browser every request and every other script."""
    style, codes = asset("report.css"), [asset(name) for name in scripts]

    def digests(texts: Iterable[str]) -> str:
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts) or "'none'"

    policy = f"default-src 'none'; img-src data:; style-src {digests([style])}; script-src {digests(codes)}; base-uri 'none'; form-action 'none'"
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=policy),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("link", rel="icon", href="data:,"),
        h("title", title),
        h("style", Markup(style)),
    )
    holders = [h("script", embedded(value), type="application/json", id=name) for name, value in (data or {}).items()]
    ends = [*holders, *(h("script", Markup(code)) for code in codes)]
    return "<!doctype html>\n" + h("html", head, h("body", *body, *ends), lang="en") + "\n"


def table(heads: Iterable[Child], lines: Iterable[Iterable[Child]], class_: str = "") -> Markup:
    """A plain table in a container of its own that scrolls."""
    top = h("thead", h("tr", *(h("th", head, scope="col") for head in heads)))
    body = h("tbody", *(h("tr", *(h("td", cell) for cell in line)) for line in lines))
    grid = h("table", top, body, class_=class_ or None)
    return h("div", grid, class_="scroll", tabindex=0, role="region", aria_label="Table")


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Names and values; those without a value are left out."""
    parts = [h("div", h("dt", name), h("dd", value)) for name, value in pairs if value not in (None, "", [], ())]
    return h("dl", *parts, class_="facts")


def code(value: object) -> Markup:
    """A value as JSON in code."""
    return h("code", value if isinstance(value, str) else json.dumps(clean(value), ensure_ascii=False))
