"""The table and the recommendation as plain lines for a terminal of 80 to 100 columns."""

from __future__ import annotations

import textwrap

from etude.harness.display import Results, Row, axis, interval, limits, metrics, plain, rows, shown, unit

SHORT = {"bytes on disk": "disk", "load time": "load", "peak memory": "memory", "prefill speed": "prefill", "decode speed": "decode"}
NAME, MARK = 24, 22  # the widest name before it is cut; the room that marks need
GAP = "  "


def heading(results: Results, metric: str) -> str:
    """A short column head, with the unit where the cells do not carry it."""
    title = axis(results, metric)["title"]
    return f"{SHORT.get(title.lower(), title)} {unit(results, metric)}".strip()


def cut(text: str, width: int) -> str:
    """The text within the width, with three points where something is missing."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def column(results: Results, listed: list[Row], metric: str) -> list[str]:
    """A metric's heading and cells, aligned; the deciding metric with its interval."""
    kind = axis(results, metric)["unit"]
    texts = [heading(results, metric)]
    for row in listed:
        value = row.values.get(metric)
        texts.append("-" if value is None else interval(value, kind) if metric == results.get("quality") else shown(value.value, kind))
    width = max(map(len, texts))
    return [text.rjust(width) for text in texts]


def columns(results: Results, listed: list[Row], width: int) -> list[list[str]]:
    """Quality, the main cost, and of the other costs, in the contest's order, those that fit."""
    order, main = metrics(results), results.get("main_axis")
    axes = list(results.get("axes") or ())
    costs = axes[axes.index(main) + 1 :] if main in axes else []
    chosen = list[list[str]]()
    for metric in [m for m in (results.get("quality"), main) if m in order] + [m for m in costs if m in order and m != results.get("quality")]:
        texts = column(results, listed, str(metric))
        if len(chosen) < 2 or len(texts[0]) + len(GAP) <= width:
            chosen.append(texts)
            width -= len(texts[0]) + len(GAP)
    return chosen


def table_lines(results: Results, width: int = 100) -> list[str]:
    """The contest's table: name, quality with its interval, size, further costs as far as they fit, and marks.

    Failures stand in it with their errors, cut to the width; the report holds them whole. What a mark means stands below the table.
    """
    listed = rows(results)
    if not listed:
        return ["Nothing was run."]
    names = min(NAME, max(4, *(len(plain(row.name)) for row in listed)))
    fitting = columns(results, listed, width - names - len(GAP) - MARK)
    notes: list[str] = []
    lines = [GAP.join(["name".ljust(names), *(texts[0] for texts in fitting), "mark"])]
    for place, row in enumerate(listed, 1):
        numbers = [texts[place] for texts in fitting] if row.values else []
        name = cut(plain(row.name), names).ljust(names)
        lines.append(cut(GAP.join([name, *numbers, marked(row, notes)]).rstrip(), width))
    lines.insert(1, "-" * max(map(len, lines)))
    allowed = limits(results)
    below = [f"[{place}] {note}" for place, note in enumerate(notes, 1)] + ([f"Limits: {plain(allowed)}."] if allowed else [])
    return lines + [line for note in below for line in textwrap.wrap(note, width, subsequent_indent="    ")]


def marked(row: Row, notes: list[str]) -> str:
    """A row's marks in a few words; longer ones become notes below the table."""
    said = [f"failed: {plain(row.error)}"] if row.error else []
    for mark in map(plain, row.marks):
        if len(mark) <= MARK:
            said.append(mark)
            continue
        if mark not in notes:
            notes.append(mark)
        said.append(f"[{notes.index(mark) + 1}]")
    return ", ".join(said)


def recommendation_lines(results: Results, width: int = 100) -> list[str]:
    """The recommendation: its line, what is given up, and the command that applies it."""
    chosen = results.get("recommendation") or {}
    texts = [chosen.get("line") or "No recommendation: the contest did not finish.", chosen.get("sentence"), provisional(results)]
    if chosen.get("more"):
        texts.append(f"To tell them apart: {chosen['more']}")
    lines = [line for text in texts if text for line in textwrap.wrap(plain(text), width, break_long_words=False, break_on_hyphens=False)]
    return [*lines, f"  {plain(chosen['command'])}"] if chosen.get("command") else lines


def provisional(results: Results) -> str:
    """Why the recommendation is not final; empty when it is."""
    why = (results.get("recommendation") or {}).get("provisional")
    if not why:
        return ""
    return why if isinstance(why, str) else "Provisional: the model's weights lie on a quantisation grid, from which the marked contenders profit."
