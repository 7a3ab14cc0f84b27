"""Report, comparison and live view in a real browser: what is drawn, no complaint, live, by keyboard, many devices."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tierfed.report import write_report
from ui.browser import Browser
from unit.test_report import write_grid, write_run

Serve = Callable[[Path], str]
TAB, ENTER, ESCAPE, RIGHT = "\ue004", "\ue007", "\ue00c", "\ue014"


def test_report_in_both_themes_and_on_paper(tmp_path: Path, browser: Browser) -> None:
    path = write_report(write_run(tmp_path / "run", devices=20, teams=4, rounds=12))
    browser.theme("light")
    browser.open(path.as_uri())
    browser.until("document.documentElement.hasAttribute('data-drawn')")
    count = browser.js("document.querySelectorAll('.chart').length")
    assert count > 10
    assert browser.js("document.querySelectorAll('.chart .main-svg').length") >= count
    # what can be read comes before the charts: the script that draws them is unpacked after the first paint
    painted = browser.js("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < browser.js("performance.now()")
    background = "getComputedStyle(document.body).backgroundColor"
    light = browser.js(background)
    browser.shoot("report-light")
    axis = "document.querySelector('.chart').layout.font.color"
    ink = browser.js(axis)
    browser.theme("dark")
    browser.until(f"{axis} !== {json.dumps(ink)}")
    assert browser.js(background) != light
    browser.shoot("report-dark")
    # the slider of the tree
    slider = "[...document.querySelectorAll('.chart')].find(e => e.layout.sliders && e.layout.sliders.length)"
    teams = f"{slider}.data[2].text.join()"
    before = browser.js(teams)
    browser.js(f"Plotly.restyle({slider}, ...{slider}.layout.sliders[0].steps[0].args)")
    assert browser.js(teams) != before
    paper = browser.driver.print_page()
    assert len(paper) > 10_000
    assert browser.complaints() == []


def test_comparison(tmp_path: Path, browser: Browser) -> None:
    browser.theme("dark")
    browser.open(write_report(write_grid(tmp_path / "grid", seeds=1, devices=12)).as_uri())
    browser.until("document.documentElement.hasAttribute('data-drawn')")
    hidden = browser.js("document.querySelectorAll('details.card .chart .main-svg').length")
    assert hidden == 0
    browser.js("document.querySelector('details.card').open = true")
    browser.until("document.querySelector('details.card .chart .main-svg')")
    browser.shoot("comparison-dark")
    browser.theme("light")
    browser.shoot("comparison-light")
    assert browser.complaints() == []


def test_live_by_keyboard(tmp_path: Path, browser: Browser, serve: Serve) -> None:
    """From the list to a run and its points without a mouse; a run that grows is seen to grow."""
    write_run(tmp_path / "one", "jobfed", rounds=2)
    write_run(tmp_path / "two", "ditto")
    browser.theme("light")
    address = serve(tmp_path)
    browser.open(address)
    browser.until("document.querySelectorAll('tbody a').length === 2")
    browser.until("document.getElementById('live').textContent === 'live'")
    browser.shoot("live-runs")
    # a run that begins is there by itself
    write_run(tmp_path / "three", "fedavg")
    browser.until("document.querySelectorAll('tbody a').length === 3")
    browser.press("/", *"jobfed")
    browser.until("document.querySelectorAll('tbody a').length === 1")
    browser.press(TAB)
    wanted = "document.activeElement"
    for _ in range(3):  # the table that can be scrolled has the focus first
        if browser.js(f"{wanted}.tagName") == "A":
            break
        browser.press(TAB)
    assert browser.js(f"{wanted}.textContent") == "one"
    browser.press(ENTER)
    browser.until("location.pathname === '/run/one' && document.querySelector('.chart[data-drawn]')")
    assert browser.js("document.querySelector('h1').textContent") == "jobfed on digits"

    browser.js("document.querySelector('.chart').focus()")
    browser.press(RIGHT)
    first = browser.until("document.getElementById('said').textContent")
    browser.press(RIGHT)
    browser.until(f"document.getElementById('said').textContent !== {json.dumps(first)}")

    ends = "Math.max(...document.querySelector('.chart').data.flatMap(t => t.x))"
    assert browser.js(ends) == 2
    browser.js("document.querySelector('.numbers').open = true")
    longer = write_run(tmp_path / ".longer", "jobfed", rounds=9)
    for name in ("config.toml", "events.jsonl", "metrics.parquet"):
        os.replace(longer / name, tmp_path / "one" / name)
    browser.until(f"{ends} === 9")
    assert "9 rounds" in browser.js("document.querySelector('.facts').textContent")
    # what the reader has opened stays open, and the focus where it was
    assert browser.js("document.querySelector('.numbers').open && document.activeElement.className.includes('chart')")
    browser.js("dispatchEvent(new Event('beforeprint'))")  # which draws what is out of sight
    browser.until("document.querySelectorAll('.chart:not([data-drawn])').length === 0")
    browser.shoot("live-run-light")
    browser.theme("dark")
    browser.shoot("live-run-dark")
    assert browser.complaints() == []
    browser.press(ESCAPE)
    browser.until("location.pathname === '/'")


def test_a_thousand_devices(tmp_path: Path, browser: Browser, serve: Serve) -> None:
    write_run(tmp_path / "large", devices=1000, teams=20, rounds=10)
    browser.open(serve(tmp_path) + "run/large")
    browser.until("document.querySelector('.chart[data-drawn]')")
    # what is out of sight waits until it is scrolled to
    total = browser.js("document.querySelectorAll('.chart').length")
    assert 0 < browser.js("document.querySelectorAll('.chart[data-drawn]').length") < total
    browser.js("document.getElementById('the-tree').scrollIntoView()")
    tree = "document.querySelector('#the-tree .chart')"
    browser.until(f"{tree}.data && {tree}.data[2].x.length === 1000")
    for title in ("devices", "faults", "data"):
        browser.js(f"document.getElementById({title!r}).scrollIntoView()")
        browser.until(f"document.querySelector('#{title} .chart[data-drawn]')")
    # the page stays small: tables are made when they are opened, and are cut
    assert browser.js("document.querySelectorAll('tr').length") < 100
    browser.js("document.querySelector('#devices details').open = true")
    browser.until("document.querySelectorAll('#devices tr').length === 201")
    browser.shoot("live-thousand")
    assert browser.complaints() == []


def test_odd_names_stay_text(tmp_path: Path, browser: Browser, serve: Serve) -> None:
    name = "<img src=x onerror=alert(1)> & c%20"
    write_run(tmp_path / name, "fedavg", devices=2, teams=0, rounds=1)
    browser.open(serve(tmp_path))
    link = browser.until("document.querySelector('tbody a')")
    assert link.text == name
    assert browser.js("document.querySelectorAll('main img').length") == 0
    link.click()
    browser.until("document.querySelector('.chart[data-drawn]')")
    assert browser.js("document.getElementById('crumb').textContent") == name
    assert browser.complaints() == []
    browser.open(browser.js("location.origin") + "/run/nowhere")
    assert "no run 'nowhere' here" in browser.until("document.querySelector('.problem')?.textContent")
