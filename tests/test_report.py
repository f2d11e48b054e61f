"""The report and the scoreboard: as files, and in a real browser from file:// without a network."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_results import contender, contest, failed, nothing, record

from etude.harness.display import Value, axis, front, interval, rows, shown
from etude.harness.recommend import recommend
from etude.harness.report import render, write
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


def text_of(html: str) -> str:
    """What a reader sees: markup, styles and scripts taken away."""
    return re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", html))


# ---- as a file ----


def test_everything_asked_for_is_there() -> None:
    html = render(contest(errors={"broken": "ValueError: rank 7 is above 4"}))
    seen = text_of(html)
    wanted = [
        "Recommended: gptq",
        "It gives up 3.7 %",
        "etude apply gptq --model smollm2-rotated",
        "not within budget",
        "Failed: ",
        "rank 7 is above 4",
    ]
    wanted += [
        "2312.13558",
        "Apache-2.0",
        "MIT",
        "low rank, layerwise",
        "Tuning, on the validation split",
        "4 trials",
        "Operating points",
        "Seeds, on the test",
    ]
    wanted += ["3 duplicate rows were dropped", "134,515,008", "torch", "2.13.0", "unigram entropy", "once", "200MB", "beats it", "Holm", "1.196"]
    assert [part for part in wanted if part not in seen] == []
    for run in contest()["contenders"][0]["run_ids"]:
        assert run in seen


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render(contest())
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", html)
    assert not re.findall(r"url\(|@import", html)
    assert "default-src &#x27;none&#x27;" in html


def test_strings_are_escaped_everywhere() -> None:
    results = contest(("untouched", "laser", "gptq"), {EVIL: CUT})
    results |= {
        "title": EVIL,
        "command": CUT,
        "created": EVIL,
        "samples": {EVIL: [CUT]},
        "axes": results["axes"] | {"bytes": {"unit": EVIL, "title": CUT}},
    }
    results["recommendation"] |= {"line": EVIL, "sentence": CUT, "command": EVIL, "more": CUT, "provisional": EVIL}
    results["recommendation"]["comparisons"][0] |= {"against": EVIL, "test": CUT}
    results["model"]["name"], results["data"]["notes"], results["machine"] = CUT, [EVIL], {EVIL: CUT}
    for one in results["contenders"]:
        one |= {"mark": EVIL, "licence": CUT, "traits": [EVIL], "title": CUT, "options": {EVIL: CUT}, "run_ids": [EVIL], "describe": {EVIL: CUT}}
        one["tuning"] = [{"options": {EVIL: CUT}, "score": 1.0}, {"options": {EVIL: 2}, "score": 0.5}]
    html = render(results)
    assert html.count("<script") == 3 and html.count("</script>") == 3  # the data and our two
    assert "<img" not in html


def test_data_inside_the_page_is_json_without_items() -> None:
    results = contest()
    results["contenders"][0]["seeds"][0]["metrics"]["bits_per_byte"]["ids"][0] = "a line of the user's text"
    results["contenders"][1]["summary"]["load"]["value"] = float("nan")
    results["contenders"][1]["points"][0]["metrics"]["bits_per_byte"] = float("inf")
    html = render(results)
    found = re.search(r'(?s)id="plot-data">(.*?)</script>', html)
    assert found
    data = json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["fronts"]["bytes"] and {s["name"] for s in data["series"]} == {c["name"] for c in results["contenders"]}
    assert "a line of the user's text" not in html and "a line of the user&#x27;s text" not in html


def test_samples_stand_in_the_report_only_when_asked_for() -> None:
    text = "Once upon a time there was a user"
    assert text in render(contest() | {"samples": {"gptq": [text]}})
    assert "Samples" not in text_of(render(contest()))


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


@pytest.mark.parametrize("name", MISSING)
def test_missing_pieces_render(name: str, tmp_path: Path) -> None:
    path = write(MISSING[name](), tmp_path / "new")
    assert path.name == "report.html" and path.read_text().startswith("<!doctype html>")
    assert [other.name for other in path.parent.iterdir()] == ["report.html"]


def test_only_failures() -> None:
    seen = text_of(render(nothing()))
    assert "No recommendation: no contender finished." in seen and "it ran out of memory" in seen and "killed after 60 s" in seen
    assert "nothing to plot" in seen


def test_a_run_without_the_test_split_says_so() -> None:
    seen = text_of(render(choosing()))
    assert "the test split was not opened" in seen and "measured on the choice split only" in seen


def test_the_front_is_what_nothing_beats_in_both() -> None:
    results = contest()
    assert front(results, "bytes") == ["gptq", "laser", "untouched"]
    values = {row.name: row.values for row in rows(results)}
    for metric in ("bytes", "decode", "agreement"):
        sign = -1 if axis(results, metric)["better"] == "higher" else 1
        at = {name: (sign * value[metric].value, value["bits_per_byte"].value) for name, value in values.items()}
        beaten = {a for a, x in at.items() for y in at.values() if y[0] <= x[0] and y[1] <= x[1] and y != x}
        assert set(front(results, metric)) == set(at) - beaten


def test_numbers_read_well() -> None:
    assert [shown(x, "bytes") for x in (113.2e6, 1.5e9, 12, 0)] == ["113 MB", "1.50 GB", "12.0 bytes", "0 bytes"]
    assert [shown(x, "s") for x in (0.0123, 3.456, 75, 7200)] == ["12.3 ms", "3.46 s", "1.25 min", "2.00 h"]
    assert shown(0.875, "share") == "87.5 %" and shown(None) == "-" and shown(1234567.0) == "1234567"
    assert interval(Value(1.23456, 1.21, 1.26)) == "1.235 [1.210, 1.260]"
    assert interval(Value(113e6, 113e6, 113e6), "bytes") == "113.0 MB"


def test_failures_stand_last_and_errors_are_said_once() -> None:
    results = contest(("untouched", "gptq"), {"broken": "boom"})
    results["failures"] += [
        {"name": "gptq", "seed": 2, "step": "build", "error": "killed"},
        {"name": "gone", "seed": 0, "step": "points", "error": "left"},
    ]
    listed = rows(results)
    assert [row.name for row in listed] == ["untouched", "gptq", "broken", "gone"]
    assert [row.error for row in listed] == ["", "build, seed 2: killed", "boom", "points, seed 0: left"]


def test_what_the_referee_recommends_is_shown_whole() -> None:
    results = contest()
    chosen = results["recommendation"] = recommend(results)
    seen = " ".join(text_of(render(results)).split())
    assert [chosen[key] for key in ("line", "sentence", "command") if " ".join(unescape(chosen[key]).split()) not in unescape(seen)] == []
    assert all(comparison["test"] in unescape(seen) for comparison in chosen["comparisons"]) and len(chosen["comparisons"]) > 3


def test_the_same_results_give_the_same_file() -> None:
    assert render(contest()) == render(contest())


# ---- the scoreboard as a file ----


def board(folder: Path) -> str:
    """A scoreboard with a fresh record that has a plot, a stale one, and a paper that was never recorded."""
    picture = folder / "desk.png"
    picture.write_bytes(base64.b64decode(PIXEL))
    fresh = record() | {"plot": str(picture), "fresh": True}
    stale = record("chinchilla", "2203.15556") | {"fresh": False, "verdict": "inconclusive"}
    return scoreboard([fresh, stale], PAPERS, folder / "board", implemented=("paper3",)).read_text()


def test_scoreboard_shows_all_papers_and_all_claims(tmp_path: Path) -> None:
    html = board(tmp_path)
    seen = text_of(html)
    assert html.count('<th scope="row"') == 100 and seen.count("missing") == 97
    wanted = ["3 of 100", "etude play laser --scale desk --fresh", "Benjamini and Hochberg", "over the 6 claims", "9 seeds would decide", "400 items"]
    wanted += ["above 0.02", "[0.0410, 0.0610]", "fresh", "stale", "not reproduced", "not recorded yet", "2025-11-24"]
    assert [part for part in wanted if part not in seen] == []
    assert html.count(f"data:image/png;base64,{PIXEL}") == 1
    assert html.count("<script") == 1


def test_scoreboard_without_records(tmp_path: Path) -> None:
    seen = text_of(scoreboard([], PAPERS, tmp_path).read_text())
    assert "0 of 100" in seen and "Nothing is recorded yet" in seen


def test_scoreboard_with_broken_records(tmp_path: Path) -> None:
    odd = record() | {
        "experiments": {EVIL: {"claims": [{"title": CUT, "status": EVIL}]}, "Empty": {}},
        "verdict": "",
        "plot": str(tmp_path / "gone.png"),
    }
    html = scoreboard([odd, {"name": "unknown"}], PAPERS, tmp_path).read_text()
    assert html.count("<script") == 1 and "<img" not in html


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless; without it the tests are skipped, but in CI they fail."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        reason = "no Chromium here: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(found[0])
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1200,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(found[1])))
    try:
        yield driver
    finally:
        driver.quit()


def show(browser: Any, path: Path) -> None:
    """Open a file afresh, the logs emptied."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    drawn = "const p = document.getElementById('pareto'); return document.readyState === 'complete' && (!p || p.querySelector('svg') !== null)"
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(drawn))


def quiet(browser: Any, path: Path) -> None:
    """No message on the console, no script of another's, no request but for the file itself."""
    assert browser.get_log("browser") == []
    assert "evil" not in browser.title
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:") and url.partition("#")[0] != path.as_uri()] == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with an evil contender in it."""
    results = contest(errors={EVIL: CUT})
    results["contenders"].append(contender("mine", 1) | {"name": CUT})
    return write(results, tmp_path_factory.mktemp("report"))


def column(browser: Any, place: int) -> list[str]:
    """The first line of each cell of a column of the table."""
    script = "return [...document.querySelectorAll('.standings tbody tr')].map(r => (r.cells[arguments[0]] || r.cells[0]).innerText.split('\\n')[0])"
    found: list[str] = browser.execute_script(script, place)
    return found


def test_the_table_sorts_by_mouse_and_keyboard(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, report)
    heads = browser.find_elements("css selector", ".standings thead th")
    size = heads[2].find_element("css selector", "button")
    size.click()
    numbers = [float(text.split()[0]) for text in column(browser, 2) if text.endswith("MB")]
    assert len(numbers) == 9 and numbers == sorted(numbers)
    assert [head.get_attribute("aria-sort") for head in heads[:3]] == ["none", "none", "ascending"]
    size.send_keys(Keys.ENTER)
    numbers = [float(text.split()[0]) for text in column(browser, 2) if text.endswith("MB")]
    assert numbers == sorted(numbers, reverse=True) and heads[2].get_attribute("aria-sort") == "descending"
    assert column(browser, 0)[-1] == EVIL  # a failure is last either way
    heads[0].find_element("css selector", "button").send_keys(Keys.SPACE)
    names = column(browser, 0)
    assert names[1:-1] == sorted(names[1:-1])
    quiet(browser, report)


def test_the_plot_is_there_with_curves_front_and_labels(browser: Any, report: Path) -> None:
    show(browser, report)

    def count(selector: str) -> int:
        return len(browser.find_elements("css selector", f"#pareto {selector}"))

    assert (count("svg"), count(".point"), count("#front"), count(".picked")) == (1, 9, 1, 1)
    assert count(".curve") >= 3 and count(".tried") >= 8 and count(".whisker") >= 3
    labels = [label.text for label in browser.find_elements("css selector", "#pareto .label")]
    assert {"gptq", "laser", "untouched"} <= set(labels) and len(labels) == len(set(labels))
    axes = [text.text for text in browser.find_elements("css selector", "#pareto .axis")]
    assert axes == ["Bytes on disk (MB) ← better", "Bits per byte ← better"]
    assert [note.text for note in browser.find_elements("css selector", "#pareto .note")] == ["2 % loss", "budget"]
    quiet(browser, report)


def test_the_plot_takes_another_axis_and_all_points(browser: Any, report: Path) -> None:
    from selenium.webdriver.support.select import Select

    show(browser, report)
    before = browser.find_element("css selector", "#pareto svg").get_attribute("outerHTML")
    for option in [option.get_attribute("value") for option in Select(browser.find_element("id", "axis")).options]:
        Select(browser.find_element("id", "axis")).select_by_value(option)
        assert len(browser.find_elements("css selector", "#pareto .point")) == 9
    assert "Decode speed (tokens/s) → better" in browser.find_element("css selector", "#pareto .axis").text
    Select(browser.find_element("id", "view")).select_by_value("all")
    assert len(browser.find_elements("css selector", "#pareto .whisker")) >= 9  # nothing lies beyond the range
    Select(browser.find_element("id", "axis")).select_by_value("bytes")
    Select(browser.find_element("id", "view")).select_by_value("near")
    assert browser.find_element("css selector", "#pareto svg").get_attribute("outerHTML") == before
    quiet(browser, report)


def test_hover_and_focus_tell_the_numbers(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    show(browser, report)
    tip = browser.find_element("id", "tip")
    assert not tip.is_displayed()
    hit = browser.find_element("css selector", '#pareto [data-name="laser"] .hit')
    ActionChains(browser).move_to_element(hit).perform()
    assert tip.is_displayed() and tip.text.startswith("laser") and "Bits per byte: 1.1" in tip.text and "251.0 MB" in tip.text
    assert browser.find_element("css selector", '.standings tr[data-name="laser"]').get_attribute("class") == "on"
    ActionChains(browser).move_to_element(browser.find_element("css selector", "h1")).perform()
    assert not tip.is_displayed()
    browser.execute_script("document.querySelector('#pareto [data-name=\"gptq\"] .hit').focus()")
    assert tip.is_displayed() and "recommended" in tip.text
    assert "gptq. Bits per byte" in browser.find_element("css selector", '#pareto [data-name="gptq"] .hit').get_attribute("aria-label")
    quiet(browser, report)


def test_a_name_leads_to_its_settings(browser: Any, report: Path) -> None:
    show(browser, report)
    browser.find_element("css selector", '.standings tr[data-name="gptq"] a').click()
    details = browser.find_element("id", "c-gptq")
    assert details.get_attribute("open") and details.find_element("css selector", "svg.tuning").is_displayed()
    assert "damp (log scale)" in details.text
    quiet(browser, report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone_in_light_and_dark(browser: Any, report: Path, scheme: str) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})
    try:
        show(browser, report)
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390  # only the table scrolls
        assert browser.execute_script("const s = document.querySelector('#table .scroll'); return s.scrollWidth > s.clientWidth")
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 380) == (scheme == "light")
        quiet(browser, report)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("name", MISSING)
def test_missing_pieces_make_no_errors(browser: Any, name: str, tmp_path: Path) -> None:
    path = write(MISSING[name](), tmp_path)
    show(browser, path)
    quiet(browser, path)
    points = len(browser.find_elements("css selector", "#pareto .tried" if name == "choosing" else "#pareto .point"))
    assert points > 3 if name in ("choosing", "pointless") else points == 0


def test_one_contender_alone(browser: Any, tmp_path: Path) -> None:
    path = write(contest(("untouched",)) | {"contenders": [contender("untouched"), failed("b", "c")]}, tmp_path)
    show(browser, path)
    assert len(browser.find_elements("css selector", "#pareto .point")) == 1
    assert "NaN" not in browser.find_element("id", "pareto").get_attribute("innerHTML")
    quiet(browser, path)


def test_the_scoreboard_in_a_browser(browser: Any, tmp_path: Path) -> None:
    board(tmp_path)
    path = tmp_path / "board" / "index.html"
    show(browser, path)
    assert browser.execute_script("return document.querySelector('img').decode().then(() => document.querySelector('img').naturalWidth)") == 1
    browser.find_element("id", "filter").send_keys("compress reproduced")
    seen = [row for row in browser.find_elements("css selector", ".standings tbody tr") if row.is_displayed()]
    assert [row.text.split()[0] for row in seen] == ["laser"]
    browser.find_element("id", "filter").clear()
    browser.find_elements("css selector", ".standings thead button")[1].click()
    families = column(browser, 1)
    assert families == sorted(families)
    quiet(browser, path)
