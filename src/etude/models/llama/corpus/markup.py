"""Markup that is no text: LaTeX of arXiv, HTML of StackExchange, wikitext."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from html.parser import HTMLParser
from typing import Any

NAME = r"\\[A-Za-z@]+"
ROUNDS = 5  # macros within macros


def clean_latex(tex: str) -> str:
    """A paper's source as the paper reads it: from the first section on, without comments and bibliography, the author's macros expanded.

    "" where there is no section.
    """
    tex = strip_comments(tex)
    macros = macros_of(tex)
    start = re.search(r"\\(?:section|chapter)\*?\s*[\[{]", tex)
    if start is None:
        return ""
    body = re.sub(r"\\begin\{thebibliography\}.*?(?:\\end\{thebibliography\}|\Z)", "", tex[start.start() :], flags=re.DOTALL)
    body = re.sub(
        r"\\(?:bibliography|bibliographystyle|printbibliography)\b\s*(?:\[[^\]]*\])?(?:\{[^}]*\})?|\\end\{document\}.*", "", body, flags=re.DOTALL
    )
    return expand(_without_definitions(body), macros).strip()


def strip_comments(tex: str) -> str:
    r"""Without % and what follows in its line; \% stays, and a line that was all comment goes."""
    lines = (re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", line) if "%" in line else line for line in tex.split("\n"))
    return "\n".join(line for line, old in zip(lines, tex.split("\n"), strict=True) if line.strip() or not old.strip())


def macros_of(tex: str) -> dict[str, tuple[int, str]]:
    r"""\newcommand, \renewcommand and \def: name -> (number of arguments, what stands for it). Those with a default argument are left alone."""
    found = dict[str, tuple[int, str]]()
    pattern = rf"\\(?:re)?newcommand\*?\s*(?:\{{({NAME})\}}|({NAME}))\s*(?:\[(\d)\])?\s*\{{|\\def\s*({NAME})((?:#\d)*)\s*\{{"
    for match in re.finditer(pattern, tex):
        name = match[1] or match[2] or match[4]
        end = _closing(tex, match.end() - 1)
        if end is not None:
            found[name] = (int(match[3] or len(match[5] or "") // 2), tex[match.end() : end])
    return found


def expand(tex: str, macros: Mapping[str, tuple[int, str]]) -> str:
    """Every macro replaced by what it stands for, arguments filled in; a few rounds, so that one that names itself ends."""
    if not macros:
        return tex
    pattern = re.compile("(" + "|".join(re.escape(name) for name in sorted(macros, key=len, reverse=True)) + r")(?![A-Za-z@])")
    for _ in range(ROUNDS):
        tex, changed = _expanded_once(tex, pattern, macros)
        if not changed:
            break
    return tex


def _expanded_once(tex: str, pattern: re.Pattern[str], macros: Mapping[str, tuple[int, str]]) -> tuple[str, bool]:
    out, last = list[str](), 0
    for match in pattern.finditer(tex):
        if match.start() < last:
            continue
        count, body = macros[match[1]]
        arguments, end = _arguments(tex, match.end(), count)
        if arguments is None:
            continue
        out += [tex[last : match.start()], _filled(body, arguments)]
        last = end
    return "".join(out) + tex[last:], last > 0


def _filled(body: str, arguments: Sequence[str]) -> str:
    return re.sub(r"#(\d)", lambda number: arguments[int(number[1]) - 1] if int(number[1]) <= len(arguments) else number[0], body)


def _arguments(tex: str, place: int, count: int) -> tuple[list[str] | None, int]:
    """So many {...} from here on; None where they are not there."""
    found = list[str]()
    for _ in range(count):
        opening = re.compile(r"\s*\{").match(tex, place)
        end = None if opening is None else _closing(tex, opening.end() - 1)
        if opening is None or end is None:
            return None, place
        found.append(tex[opening.end() : end])
        place = end + 1
    return found, place


def _closing(tex: str, opening: int) -> int | None:
    """The place of the bracket that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(tex, opening):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.start()
    return None


def _without_definitions(tex: str) -> str:
    out, last = list[str](), 0
    for match in re.finditer(rf"\\(?:re)?newcommand\*?\s*(?:\{{{NAME}\}}|{NAME})\s*(?:\[\d\])?\s*\{{|\\def\s*{NAME}(?:#\d)*\s*\{{", tex):
        end = _closing(tex, match.end() - 1)
        if end is not None and match.start() >= last:
            out.append(tex[last : match.start()])
            last = end + 1
    return "".join(out) + tex[last:]


class _Text(HTMLParser):
    """Collects text; block tags end lines, scripts and styles are skipped."""

    BLOCKS = frozenset(("p", "br", "li", "ul", "ol", "pre", "blockquote", "h1", "h2", "h3", "h4", "div", "tr", "hr"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out, self.hidden = list[str](), 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag in ("script", "style")
        self.out += ["\n"] if tag in self.BLOCKS else []

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style") and self.hidden > 0
        self.out += ["\n"] if tag in self.BLOCKS else []

    def handle_data(self, data: str) -> None:
        self.out += [] if self.hidden else [data]


def strip_html(html: str) -> str:
    """The text of a piece of HTML."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(parser.out)).strip()


def question_page(question: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> str:
    """A StackExchange question (title, body) and its answers (body, score), the best first, tags stripped."""
    ordered = sorted(answers, key=lambda answer: -float(answer["score"]))
    parts = [unescape(str(question.get("title", ""))), strip_html(str(question["body"])), *(strip_html(str(answer["body"])) for answer in ordered)]
    return "\n\n".join(part for part in parts if part)


def clean_wikitext(text: str) -> str:
    """An article without templates, tables, references, comments, files and categories; links keep their words."""
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(gallery|math|timeline)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = _innermost(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}", text, lambda match: "")
    text = _innermost(r"\[\[([^\[\]]*)\]\]", text, _link_words)
    text = re.sub(r"\[https?://\S+\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"^=+\s*(.*?)\s*=+\s*$", r"\1", re.sub(r"'{2,}|<[^>]+>|__\w+__", "", text), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", unescape(text))).strip()


def _innermost(pattern: str, text: str, change: Callable[[re.Match[str]], str]) -> str:
    """Replace until nothing matches: brackets within brackets go from the inside out."""
    while True:
        text, count = re.subn(pattern, change, text, flags=re.DOTALL)
        if not count:
            return text


def _link_words(match: re.Match[str]) -> str:
    inside = match[1]
    if re.match(r"\s*:?(?:file|image|category|datei|fichier|archivo|kategorie)\s*:", inside, flags=re.IGNORECASE):
        return ""
    return inside.split("|")[-1]
