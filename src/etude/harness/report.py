"""A contest as one HTML file that works from file:// without a network: recommendation, table, Pareto plot, and every run's settings."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etude.harness.card import named
from etude.harness.contenders import identity, section
from etude.harness.display import (
    SCALES,
    Results,
    Row,
    Value,
    axis,
    digits,
    finite,
    front,
    interval,
    leader,
    limits,
    metrics,
    parts,
    places,
    rows,
    scale,
    shown,
    unit,
)
from etude.harness.page import Child, Markup, code, facts, h, page, table
from etude.harness.terminal import provisional

COLOURS = 8  # of the palette in report.css
SHOWN = 2  # columns before the marks: quality and the main cost


def write(results: Results, folder: Path) -> Path:
    """Write `report.html` into the folder, whole or not at all."""
    path = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".report.{os.getpid()}.part"
    part.write_text(render(results), encoding="utf-8")
    os.replace(part, path)
    return path


def render(results: Results) -> str:
    """The report as HTML. It holds no text of the user's data unless the results hold samples."""
    title = (
        f"{results.get('title') or results.get('contest') or 'Contest'}: {(results.get('model') or {}).get('name') or results.get('contest') or ''}"
    )
    listed = rows(results)
    body = [
        h("header", h("p", "etude compare", class_="brand"), h("h1", results.get("title") or results.get("contest") or "Contest"), subtitle(results)),
        h(
            "main",
            verdict(results),
            h("section", h("h2", "Quality against cost"), pareto(results, listed), aria_label="Pareto plot"),
            h("section", h("h2", "Contenders"), standings(results, listed), id="table"),
            comparisons(results),
            h("section", h("h2", "Every contender"), *(section(results, contender) for contender in results.get("contenders") or ())),
            samples(results),
            set_up(results),
        ),
        h("div", id="tip", class_="tip", role="status", hidden=True),
    ]
    return page(title, body, ("report_table.js", "report_plot.js"), {"plot-data": plot_data(results, listed)})


def subtitle(results: Results) -> Markup:
    """Model, data and date in one line."""
    model, data, created = results.get("model") or {}, results.get("data") or {}, str(results.get("created") or "")
    date = f"{created[:16].replace('T', ' ')} UTC" if created.endswith("+00:00") else created
    return h(
        "p", " · ".join(filter(None, (named(model.get("name") or ""), f"on {named(data['name'])}" if data.get("name") else "", date))), class_="sub"
    )


def verdict(results: Results) -> Markup:
    """The recommendation's line, sentence and command, and what limits it."""
    chosen: dict[str, Any] = dict(results.get("recommendation") or {})
    status = chosen.get("status") if chosen.get("status") in ("recommended", "close", "none") else "none"
    notes: list[Markup] = [h("p", provisional(results), class_="warn")] if provisional(results) else []
    if (results.get("settings") or {}).get("dev"):
        notes.append(h("p", "Development run: the test split was not opened.", class_="warn"))
    if chosen.get("more"):
        notes.append(h("p", f"To tell them apart: {chosen['more']}"))
    command = chosen.get("command")
    if command:
        copy = h("button", "Copy", type="button", class_="copy", data_copy="command")
        notes.append(
            h("div", h("pre", h("code", str(command), id="command"), tabindex=0, aria_label="The command that applies it"), copy, class_="command")
        )
    return h(
        "section",
        h("p", str(chosen.get("line") or "No recommendation: the contest did not finish."), class_="line"),
        h("p", str(chosen["sentence"])) if chosen.get("sentence") else None,
        notes,
        class_=f"verdict {status}",
        aria_label="Recommendation",
    )


def head(results: Results, metric: str) -> Markup:
    """A column head that sorts, with its unit and which way is better."""
    about = axis(results, metric)
    hint = " · ".join(filter(None, (unit(results, metric), f"{about['better']} is better")))
    return h("th", h("button", h("span", about["title"]), h("small", hint), type="button"), scope="col", aria_sort="none", class_="n")


def standings(results: Results, listed: list[Row]) -> Markup:
    """The sortable table; failures are rows with their errors."""
    if not listed:
        return h("p", "Nothing was run.")
    columns, allowed = metrics(results), limits(results)
    tops = [head(results, metric) for metric in columns]
    tops.insert(SHOWN, h("th", "Marks", scope="col"))
    first = h("th", h("button", h("span", "Contender"), type="button"), scope="col", aria_sort="none")
    fronts = front(results, str(results.get("main_axis") or ""))
    lines = [standing(results, row, place, columns, fronts) for place, row in enumerate(listed)]
    said = f"Below a number its 95 % interval, on the test split.{f' Limits: {allowed}.' if allowed else ''} Click a heading to sort."
    grid = h("table", h("thead", h("tr", first, *tops)), h("tbody", *lines), class_="sortable standings")
    return h("div", h("p", said, class_="sub"), h("div", grid, class_="scroll", tabindex=0, role="region", aria_label="Contenders"))


def standing(results: Results, row: Row, place: int, columns: list[str], fronts: list[str]) -> Markup:
    """One row: swatch and name, numbers, marks; or the error over all columns."""
    swatch = h("span", class_=f"swatch c{place % COLOURS} {row.kind}", aria_hidden="true")
    title = h("small", row.title) if row.title else None
    link = h("a", row.name, href=f"#{identity(row.name)}")
    name = h("th", h("span", swatch, link, class_="name"), title, scope="row", data_key=row.name)
    badges = [h("span", mark, class_="badge" + emphasis(mark)) for mark in row.marks]
    if row.name in fronts:
        badges.append(h("span", "on the front", class_="badge"))
    error = h("p", "Failed: " + row.error, class_="error") if row.error else None
    if not row.values and error:
        return h("tr", name, h("td", error, badges, colspan=len(columns) + 1, class_="failed"), data_name=row.name)
    cells = [cell(row.values.get(metric), axis(results, metric)["unit"]) for metric in columns]
    cells.insert(SHOWN, h("td", badges, error, class_="marks"))
    return h("tr", name, *cells, data_name=row.name)


def cell(value: Value | None, kind: str) -> Markup:
    """A number with its interval below."""
    if value is None:
        return h("td", "–", class_="n")
    number, span = parts(value, kind)
    return h("td", number, h("small", span) if span else None, class_="n", data_key=value.value)


def emphasis(mark: str) -> str:
    """The style of a badge: its words say the same."""
    if mark == "recommended" or mark.startswith("taken"):
        return " good"
    return "" if mark in ("reference", "too close to call") else " care"


def pareto(results: Results, listed: list[Row]) -> Markup:
    """The frame that report_plot.js draws in, with its selectors and its legend."""
    costs = [metric for metric in metrics(results) if metric != results.get("quality")]
    if not costs or not any(row.values for row in listed):
        return h("p", "There is no contender with quality and cost measured, so there is nothing to plot.", id="no-plot")
    options = [h("option", axis(results, metric)["title"], value=metric, selected=metric == results.get("main_axis")) for metric in costs]
    views = [h("option", "all points", value="all"), h("option", "near the reference", value="near")]
    marks = [("paper", "a paper's method"), ("baseline", "baseline"), ("own", "your own or a plug-in")]
    key = [h("span", h("span", class_=f"swatch {kind}", aria_hidden="true"), name) for kind, name in marks]
    keys = [
        *key,
        h("span", h("span", class_="swatch hollow", aria_hidden="true"), "hollow, thin line: settings tried, on the choice split"),
        h("span", h("span", class_="swatch rule", aria_hidden="true"), "thick line: Pareto front"),
        h("span", "▲ beyond the shown range", id="beyond", hidden=True),
    ]
    return h(
        "div",
        h("div", h("label", "Cost ", h("select", *options, id="axis")), h("label", "Show ", h("select", *views, id="view")), class_="controls"),
        h("div", id="pareto", class_="plot"),
        h("p", *keys, class_="legend"),
        h("noscript", h("p", "The plot needs JavaScript; the table below holds the same numbers.")),
        class_="pareto",
    )


def plot_data(results: Results, listed: list[Row]) -> dict[str, Any]:
    """What the plot draws: numbers, ready texts, no items and no data of the user's."""
    quality, chosen = str(results.get("quality") or ""), results.get("recommendation") or {}
    names = metrics(results)
    points = {str(contender["name"]): contender.get("points") or () for contender in results.get("contenders") or ()}
    everything: dict[str, list[float]] = {name: [row.values[name].value for row in listed if name in row.values] for name in names}
    axes = {}
    for name in names:
        about = axis(results, name)
        divisor, scaled = scale(everything[name], about["unit"])
        axes[name] = {**about, "divisor": divisor, "shown": scaled if about["unit"] in SCALES else unit(results, name)}
    settings = results.get("settings") or {}
    floor = results.get("floor") or {}
    return {
        "quality": quality,
        "main": results.get("main_axis"),
        "axes": axes,
        "reference": results.get("reference"),
        "picked": chosen.get("name") if chosen.get("status") != "none" else None,
        "loss": finite(settings.get("max_loss")),
        "limits": {str(limit.get("axis")): finite(limit.get("limit")) for limit in settings.get("budget") or () if isinstance(limit, dict)},
        "floor": {"value": finite(floor.get("value")), "what": floor.get("what") or "floor"},
        "fronts": {name: front(results, name) for name in names if name != quality},
        "series": [series(results, row, place, points.get(row.name, ())) for place, row in enumerate(listed)],
    }


def series(results: Results, row: Row, place: int, points: Iterable[Any]) -> dict[str, Any]:
    """One contender in the plot: its tested point with intervals, and the curve of what it offered."""
    curve = []
    for point in points:
        numbers = {name: finite(value) for name, value in (point.get("metrics") or {}).items()}
        texts = {name: shown(value, axis(results, name)["unit"], 4) for name, value in numbers.items() if value is not None}
        options = ", ".join(f"{key}={value}" for key, value in (point.get("options") or {}).items() if value is not None)
        curve.append({"metrics": numbers, "texts": texts, "options": options, "chosen": bool(point.get("chosen"))})
    tested = {
        name: {"value": v.value, "low": v.low, "high": v.high, "text": interval(v, axis(results, name)["unit"])} for name, v in row.values.items()
    }
    place %= COLOURS
    return {"name": row.name, "kind": row.kind, "colour": place, "marks": row.marks, "tested": tested if row.tested else {}, "points": curve}


def comparisons(results: Results) -> Markup | None:
    """The leader against every other: difference, interval, p, and whether it beats it."""
    listed = (results.get("recommendation") or {}).get("comparisons") or ()
    if not listed:
        return None
    about, first, noise = axis(results, str(results.get("quality") or "")), leader(results), finite(results.get("noise"))
    said = [
        f"What {first} gains in {lowered(about['title'])} over each other contender: above zero, {first} is better. ",
        "Paired over seeds and evaluation items or blocks, intervals of 95 %; p is of the test named beside it, after Holm.",
    ]
    if noise is not None:
        said.append(f" The reference measured twice differs by {digits(noise, 2)}: no difference below that counts.")
    reach = max((abs(x) for entry in listed for key in ("difference", "low", "high") if (x := finite(entry.get(key))) is not None), default=0.0)
    grid = table((f"{first} against", "Gain", "Interval", "", "Tested", "p", "Verdict"), [compared(entry, reach) for entry in listed], "comparisons")
    return h("section", h("h2", "Comparisons"), h("p", said), grid, id="comparisons")


def lowered(title: str) -> str:
    """A title inside a sentence; an abbreviation stays as it is."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def compared(entry: Results, reach: float) -> list[Child]:
    """One comparison's cells."""
    difference, low, high, p = (finite(entry.get(key)) for key in ("difference", "low", "high", "p"))
    count = places(low, high) if low is not None and high is not None else 4
    texts = ["–" if number is None else f"{number:+.{count}f}" for number in (difference, low, high)]
    chance = "–" if p is None else "< 0.001" if p < 0.001 else digits(p, 2)
    beats = h("strong", "beats it") if entry.get("beats") else "does not beat it"
    return [
        str(entry.get("against")),
        texts[0],
        f"[{texts[1]}, {texts[2]}]",
        bar(difference, low, high, reach),
        str(entry.get("test") or "–"),
        chance,
        beats,
    ]


def bar(value: float | None, low: float | None, high: float | None, reach: float) -> Markup | None:
    """A difference and its interval beside zero, as a small picture."""
    if value is None or low is None or high is None or reach <= 0:
        return None
    x = [60 + 54 * number / reach for number in (value, low, high)]
    zero = h("line", x1=60, x2=60, y1=1, y2=15, class_="zero")
    line = h("line", x1=f"{x[1]:.1f}", x2=f"{x[2]:.1f}", y1=8, y2=8, class_="span")
    return h(
        "svg", zero, line, h("circle", cx=f"{x[0]:.1f}", cy=8, r=3), viewBox="0 0 120 16", width=120, height=16, class_="forest", aria_hidden="true"
    )


def samples(results: Results) -> Markup | None:
    """Continuations, only where the user asked for them."""
    found = results.get("samples")
    if not found:
        return None
    parts = [h("details", h("summary", name), *(h("pre", str(one), class_="sample") for one in each)) for name, each in found.items()]
    return h("section", h("h2", "Samples"), *parts, id="samples")


def set_up(results: Results) -> Markup:
    """Model, data, splits, settings, machine, versions: what it takes to run it again."""
    model, data, splits = results.get("model") or {}, results.get("data") or {}, (results.get("data") or {}).get("splits") or {}
    shares = [[name, *(str((split or {}).get(key, "–")) for key in split_keys(splits))] for name, split in splits.items()]
    floor, opened = results.get("floor") or {}, results.get("openings")
    model_facts = [
        (key, f"{int(value):,}" if isinstance(value, str) and key == "parameters" and value.isdigit() else value) for key, value in listing(model)
    ]
    judged: list[tuple[str, Child]] = [
        ("decided by", axis(results, str(results.get("quality")))["title"]),
        ("reference", str(results.get("reference") or "")),
        ("floor", f"{shown(finite(floor.get('value')), '', 4)} ({floor.get('what')})" if floor else None),
        ("test split opened", None if opened is None else "once" if opened == 1 else f"{opened} times"),
    ]
    command = results.get("command")
    again = h("pre", h("code", str(command)), tabindex=0) if command else None
    return h(
        "section",
        h("h2", "Set-up"),
        h("h3", "Command"),
        again,
        h("div", block("Model", model_facts), block("Judged", judged), class_="columns"),
        h("h3", "Data"),
        facts([("name", named(data.get("name") or "")), ("digest", h("code", str(data["digest"])) if data.get("digest") else None)]),
        h("ul", *(h("li", str(note)) for note in data.get("notes") or ())) if data.get("notes") else None,
        table(("Split", *(key.capitalize() for key in split_keys(splits))), shares) if shares else None,
        h(
            "div",
            *(block(name, listing(results.get(name.lower()))) for name in ("Settings", "Machine", "Versions")),
            class_="columns",
        ),
        h("p", f"etude {results.get('etude') or ''}. The same numbers for programs: results.json beside this file.", class_="sub"),
        id="set-up",
    )


def split_keys(splits: Results) -> list[str]:
    """What is recorded of the splits, in the order it first appears."""
    return list(dict.fromkeys(key for split in splits.values() for key in split or ()))


def listing(entries: Any) -> list[tuple[str, Child]]:
    """Names and values of a recorded mapping."""
    pairs = entries.items() if isinstance(entries, dict) else [("", entries)] if entries else []
    return [(str(key).replace("_", " "), told(value)) for key, value in pairs if value not in (None, [])]


def told(value: Any) -> Child:
    """A recorded value in words; of limits, what the user wrote."""
    if isinstance(value, list) and all(isinstance(part, dict) and "text" in part for part in value):
        return ", ".join(str(part["text"]) for part in value)
    if isinstance(value, dict) and all(isinstance(part, str | int | float) for part in value.values()):
        return ", ".join(f"{str(key).replace('_', ' ')} {part}" for key, part in value.items())
    return str(value) if isinstance(value, str | int | float) else code(value)


def block(name: str, pairs: list[tuple[str, Child]]) -> Markup | None:
    """A titled list of facts, where there are any."""
    return h("div", h("h3", name), facts(pairs)) if pairs else None
