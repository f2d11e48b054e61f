"""The report and the scoreboard in a real browser, from file:// without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_results import CUT, EVIL, MISSING, board, contender, contest, failed

from etude.harness.report import write


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
