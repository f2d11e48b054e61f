"""The scoreboard of all papers as one static page: what is implemented, what held up, and the command that makes each number again."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from etude.harness.display import digits, finite
from etude.harness.page import Child, Markup, facts, h, page, table

Record = Mapping[str, Any]
STYLES = {"reproduced": "good", "not reproduced": "bad", "inconclusive": "care"}
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
FALSE = 0.05  # the share of false discoveries that Benjamini and Hochberg's procedure allows


class Listed(Protocol):
    """What is needed of a paper: `etude.catalogue.Paper` has it."""

    @property
    def id(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...


def scoreboard(records: Iterable[Record], papers: Iterable[Listed], folder: Path, implemented: Collection[str] = ()) -> Path:
    """Write `index.html` into the folder, whole or not at all.

    Args:
        records: what `desk.json` (or `gpu.json`) holds, one a paper and scale. Two keys may be added: "plot", the path of its picture, and
            "fresh", whether the installed code is still the code that made it.
        papers: all papers, implemented or not.
        implemented: names of papers that have a folder; those with a record are taken as implemented anyway.
    """
    kept, listed = list(records), list(papers)
    adjusted = discoveries(kept)
    done = {*implemented, *(str(record.get("name")) for record in kept)}
    body = [
        h(
            "header",
            h("p", "etude", class_="brand"),
            h("h1", "Scoreboard"),
            h("p", "Published claims, checked against a fair baseline over seeds.", class_="sub"),
        ),
        h("main", tally(kept, listed, done), h("section", h("h2", "All papers"), overview(kept, listed, done)), details(kept, listed, adjusted)),
    ]
    path = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".index.{os.getpid()}.part"
    part.write_text(page("etude: scoreboard", body, ("report_table.js",)), encoding="utf-8")
    os.replace(part, path)
    return path


def claims(record: Record) -> list[tuple[str, Mapping[str, Any]]]:
    """All claims of a record, each with its experiment's name."""
    return [(name, claim) for name, experiment in (record.get("experiments") or {}).items() for claim in experiment.get("claims") or ()]


def status(record: Record) -> str:
    """A paper's verdict: that of its first claim."""
    first = next((claim for _, claim in claims(record)), {})
    return str(record.get("verdict") or first.get("status") or "no verdict")


def discoveries(records: Iterable[Record]) -> dict[int, float]:
    """Adjusted p-values over all claims of all records that have a test, by the claim's identity."""
    from etude.harness.intervals import benjamini_hochberg

    tested = [(id(claim), p) for record in records for _, claim in claims(record) if (p := finite(claim.get("p"))) is not None]
    return dict(zip((key for key, _ in tested), benjamini_hochberg([p for _, p in tested]), strict=True))


def tally(records: list[Record], papers: list[Listed], done: set[str]) -> Markup:
    """How many of each, in large figures."""
    counts = Counter(status(record) for record in records)
    stale = sum(record.get("fresh") is False for record in records)
    figures = [(f"{sum(p.name in done for p in papers)} of {len(papers)}", "implemented"), *((str(counts[name]), name) for name in STYLES)]
    figures += [(str(stale), "stale: the code has changed since")] if stale else []
    return h("div", *(h("div", h("b", number), name) for number, name in figures), class_="tally")


def overview(records: list[Record], papers: list[Listed], done: set[str]) -> Markup:
    """One row a paper, sortable and filtered by a word."""
    heads = [
        h("th", h("button", h("span", name), type="button"), scope="col", aria_sort="none")
        for name in ("Paper", "Family", "State", "First claim", "Recorded")
    ]
    heads.insert(4, h("th", "All claims", scope="col"))
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(str(record.get("name")), []).append(record)
    lines = [summary(paper, by_name.get(paper.name, []), paper.name in done) for paper in papers]
    box = h("p", h("label", "Filter ", h("input", id="filter", type="search", placeholder="compress reproduced")), class_="controls")
    grid = h("table", h("thead", h("tr", *heads)), h("tbody", *lines), class_="sortable standings")
    return h("div", box, h("div", grid, class_="scroll", tabindex=0, role="region", aria_label="All papers"))


def summary(paper: Listed, records: list[Record], done: bool) -> Markup:
    """One paper's row."""
    record = next(iter(records), None)
    link = h("a", paper.name, href=f"#p-{paper.name}") if record else paper.name
    name = h("th", link, h("small", f"{paper.title} · arXiv {paper.id}"), scope="row", data_key=paper.name)
    state = "implemented" if done else "missing"
    cells = [h("td", paper.family, data_key=paper.family), h("td", state, data_key=state)]
    if record is None:
        word = "not recorded yet" if done else "–"
        return h("tr", name, *cells, h("td", word), h("td"), h("td"))
    counts = Counter(str(claim.get("status")) for _, claim in claims(record))
    cells.append(h("td", badge(status(record)), data_key=status(record)))
    cells.append(h("td", ", ".join(f"{number} {word}" for word, number in counts.items())))
    cells.append(h("td", str(record.get("date") or "")[:10], " ", freshness(record), data_key=str(record.get("date") or "")))
    return h("tr", name, *cells)


def badge(word: str) -> Markup:
    """A verdict: the colour repeats the word."""
    return h("span", word, class_=f"badge {STYLES.get(word, '')}".rstrip())


def freshness(record: Record) -> Markup | None:
    """Whether the installed code is the code that made the record."""
    fresh = record.get("fresh")
    if fresh is None:
        return None
    return h(
        "span",
        "fresh" if fresh else "stale",
        class_="badge" if fresh else "badge care",
        title="made by the installed code" if fresh else "the code has changed since",
    )


def details(records: list[Record], papers: list[Listed], adjusted: Mapping[int, float]) -> Markup | None:
    """Every record with all its claims, its plot and its command."""
    if not records:
        return h("section", h("h2", "Claims"), h("p", "Nothing is recorded yet: etude play PAPER --scale desk makes a record."))
    note = (
        f"Intervals are of 95 %. q is the p-value after Benjamini and Hochberg over the {len(adjusted)} claims here that have a test: of those "
        f"with q below {FALSE}, at most {FALSE:.0%} are expected to be false. A verdict rests on the interval and the margin alone."
    )
    seen: set[str] = set()
    parts = []
    for record in records:
        name = str(record.get("name"))
        paper = next((p for p in papers if p.name == name), None)
        parts.append(study(record, paper, adjusted, f"p-{name}" if name not in seen else None))
        seen.add(name)
    return h("section", h("h2", "Claims"), h("p", note, id="benjamini-hochberg"), *parts)


def study(record: Record, paper: Listed | None, adjusted: Mapping[int, float], anchor: str | None) -> Markup:
    """One record."""
    name, scale = str(record.get("name")), str(record.get("scale") or "desk")
    several = len(record.get("experiments") or {}) > 1
    heads = (*(("Experiment",) if several else ()), "Claim", "Margin", "Estimate", "Interval", "q", "Verdict", "Rests on")
    lines = [[*((experiment,) if several else ()), *line(claim, adjusted)] for experiment, claim in claims(record)]
    made = [
        ("paper", f"{paper.title} (arXiv {paper.id}, {paper.family})" if paper else f"arXiv {record.get('paper')}"),
        ("again", h("code", f"etude play {name} --scale {scale} --fresh")),
        ("recorded", h("span", str(record.get("date") or "–")[:16].replace("T", " "), " ", freshness(record))),
        ("machine", described(record.get("machine"))),
        ("versions", described(record.get("versions"))),
    ]
    return h(
        "article",
        h("h3", f"{name} ", badge(status(record))),
        table(heads, lines, "claims"),
        picture(record, name),
        facts(made),
        class_="study",
        id=anchor,
    )


def line(claim: Mapping[str, Any], adjusted: Mapping[int, float]) -> list[Child]:
    """One claim's cells."""
    low, estimate, high = (finite(claim.get(key)) for key in ("low", "estimate", "high"))
    span = "–" if low is None and high is None else f"[{'-∞' if low is None else digits(low)}, {'∞' if high is None else digits(high)}]"
    q = adjusted.get(id(claim))
    said: list[Child] = [badge(str(claim.get("status")))]
    if claim.get("status") == "inconclusive":
        unit = "seeds" if claim.get("over", "seeds") == "seeds" else str(claim.get("over"))
        needed = f"{claim['needed']} {unit} would decide" if claim.get("needed") else ""
        said.append(h("small", "; ".join(filter(None, (str(claim.get("reason") or ""), needed)))))
    over = str(claim.get("over") or "seeds")
    rests = [f"{claim.get('seeds')} seed{'' if claim.get('seeds') == 1 else 's'}"]
    if over != "seeds":
        rests.append(f"{claim['units']} {over}" if claim.get("units") and over != "none" else "no interval" if over == "none" else over)
    title = f"{claim['row']}: {claim['title']}" if claim.get("row") else str(claim.get("title"))
    shown = "–" if q is None else "< 0.001" if q < 0.001 else digits(q, 2)
    cells = [h("span", title, class_="claim"), str(claim.get("margin") or ""), "–" if estimate is None else digits(estimate)]
    return [*cells, h("span", span, class_="whole"), h("span", shown, class_="whole"), h("span", *said), ", ".join(rests)]


def described(value: Any) -> str:
    """A recorded mapping in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {part}" for key, part in value.items() if part not in (None, ""))
    return str(value) if value else ""


def picture(record: Record, name: str) -> Markup | None:
    """The recorded plot inside the page."""
    path = Path(str(record["plot"])) if record.get("plot") else None
    if path is None or path.suffix not in KINDS or not path.is_file():
        return None
    coded = base64.b64encode(path.read_bytes()).decode()
    return h("img", src=f"data:{KINDS[path.suffix]};base64,{coded}", alt=f"What {name} measured, as its étude plots it")
