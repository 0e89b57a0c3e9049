"""The page of `rhostream view` in a real browser: brushes, samples, history, SQL, a run that goes on, hostile names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit_fixtures import CLASSES, HOSTILE, World, make_rows, make_run, make_world
from tests.support.browser import WIDTHS, chromium, opened, serious, shot
from tests.support.growing_run import GrowingRun

pytestmark = pytest.mark.slow
SCRIPT = "<img src=x onerror=\"document.body.dataset.hacked='yes'\">"
NAMES = [SCRIPT, "</script><script>document.body.dataset.hacked='yes'</script>", 'it\'s "quoted" & <b>bold</b>']
PATIENCE = 15_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    HOSTILE[1:3] = [SCRIPT, "</script><script>document.body.dataset.hacked='yes'</script>"]
    return make_world(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def runs(made: World) -> list[str]:
    rho = make_run(made, str(made.root / "rho"), make_rows(made, 40), class_names=NAMES[:CLASSES])
    uniform = make_rows(made, 40, rule="uniform", seed=3)
    return [rho, make_run(made, str(made.root / "uniform <b>"), uniform, rule="uniform")]


@contextmanager
def viewing(*folders: str) -> Iterator[str]:
    """The address that the command prints; ends it by Ctrl-C, quietly."""
    command = [sys.executable, "-c", "from rhostream.cli import main; main()", "view", *folders, "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors, errors


@contextmanager
def page_of(browser: Any, *folders: str, width: int = 1400) -> Iterator[Any]:
    with viewing(*folders) as url, opened(browser, url, width=width) as page:
        page.wait_for_selector("body:not([data-painted='0'])", timeout=PATIENCE)
        yield page


def painted(page: Any) -> int:
    return int(page.get_attribute("body", "data-painted"))


def after(page: Any, act: Any) -> None:
    """Do something and wait for the charts to be painted again, with the last of what was selected."""
    before = painted(page)
    act()
    end = time.monotonic() + PATIENCE / 1000
    while painted(page) == before or page.get_attribute("#charts", "aria-busy") != "false":
        assert time.monotonic() < end, "the charts were not painted again"
        page.wait_for_timeout(20)


def drag(page: Any, chart: str, from_: float, to: float) -> None:
    """Draw a range between two shares of a chart's width."""
    drawn = page.locator(f"[data-chart={chart}] svg").first
    drawn.scroll_into_view_if_needed()
    box = drawn.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + from_ * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (from_ + to) / 2 * box["width"], y)
    page.mouse.move(box["x"] + to * box["width"], y)
    page.mouse.up()


def test_a_brush_in_one_chart_selects_for_all_and_goes_as_it_came(browser: Any, runs: list[str]) -> None:
    with page_of(browser, runs[0]) as page:
        everything = page.inner_text("#counts")
        after(page, lambda: drag(page, "loss", 0.4, 0.8))
        assert "of 494 rows" in page.inner_text("#counts") and "loss" in page.inner_text("#chips")
        after(page, lambda: page.click("[data-chart=reason] button[data-key=kept]"))
        assert "100 % kept" in page.inner_text("#counts")
        after(page, lambda: page.click("text=clear all"))
        assert page.inner_text("#counts").split("samples")[0] == everything.split("samples")[0]
        after(page, lambda: (page.fill("[data-range=step-from]", "10"), page.press("[data-range=step-from]", "Enter")))
        assert "from 10" in page.inner_text("#chips")
        after(page, lambda: drag(page, "cell", 0.2, 0.6))
        assert page.locator("#chips .chip").count() >= 2


def test_the_gallery_shows_the_samples_and_a_click_their_history(browser: Any, runs: list[str]) -> None:
    with page_of(browser, *runs) as page:
        page.locator("#gallery").scroll_into_view_if_needed()
        page.wait_for_selector("#gallery[data-filled]", timeout=PATIENCE)
        assert page.locator(".tile img").count() >= 20
        assert page.locator(".tile img").first.bounding_box()["width"] >= 140
        page.click("text=more ›")
        page.wait_for_selector("#gallery header:has-text('25 to')", timeout=PATIENCE)
        page.locator(".tile").first.click()
        page.wait_for_selector("dialog .told table", timeout=PATIENCE)
        assert page.locator("dialog tbody tr").count() >= 2 and page.locator("dialog img").count() >= 1
        shot(page, "view-history")
        page.keyboard.press("Escape")
        assert page.locator("dialog").count() == 0


def test_a_question_in_sql_is_answered_and_leads_to_samples(browser: Any, runs: list[str]) -> None:
    with page_of(browser, runs[0]) as page:
        page.fill(
            "#sql-text", "SELECT shard, ordinal, key, max(loss) AS loss FROM selections GROUP BY ALL ORDER BY loss DESC"
        )
        page.click(".ask")
        page.wait_for_selector(".answer:not([hidden]) tbody tr", timeout=PATIENCE)
        page.locator(".answer button").first.click()
        page.wait_for_selector("dialog .told", timeout=PATIENCE)
        page.keyboard.press("Escape")
    with viewing(runs[0]) as url, opened(browser, url, quiet=False) as page:  # the browser notes each refused request
        page.fill("#sql-text", "DROP VIEW selections")
        page.click(".ask")
        page.wait_for_selector("#sql .note:has-text('SELECT')", timeout=PATIENCE)


def test_no_name_key_or_caption_runs_as_a_script(browser: Any, runs: list[str]) -> None:
    with page_of(browser, *runs) as page:
        page.locator("#gallery").scroll_into_view_if_needed()
        page.wait_for_selector("#gallery[data-filled]", timeout=PATIENCE)
        for order in ("loss_high", "oldest"):
            page.select_option("#gallery select[aria-label='order of samples']", order)
            page.wait_for_timeout(1000)
        page.fill(
            "#sql-text", "SELECT DISTINCT key, shard, ordinal FROM selections WHERE shard LIKE '%000%' ORDER BY ordinal"
        )
        page.click(".ask")
        page.wait_for_selector(".answer:not([hidden]) tbody tr", timeout=PATIENCE)
        assert "onerror" in page.inner_text(".answer") and "<b>" in page.inner_text("#runs")
        assert "onerror" in page.inner_text("[data-chart=label]")
        assert page.get_attribute("body", "data-hacked") is None and page.locator("img[src=x]").count() == 0


def test_a_run_that_goes_on_comes_in_within_two_seconds_of_a_commit(browser: Any, made: World, tmp_path: Path) -> None:
    rows = [row for row in make_rows(made, 12) if row["step"] is not None]
    run = GrowingRun(made, str(tmp_path / "live"))
    with page_of(browser, run.url) as page:
        assert "no commit yet" in page.inner_text("#runs")
        after(page, lambda: drag(page, "step", 0.0, 1.0))
        for step in range(0, 12, 2):
            run.add([row for row in rows if step <= row["step"] < step + 2])
            page.wait_for_selector(f"body[data-rows='{12 * (step + 2)}']", timeout=2000)
        assert "step 12" in page.inner_text("#runs")


def test_runs_without_losses_and_classes_say_so(browser: Any, made: World, tmp_path: Path) -> None:
    rows = [{**row, "il": None, "label": -1} for row in make_rows(made, 12, rule="uniform")]
    run = make_run(made, str(tmp_path / "bare"), rows, rule="uniform")
    with page_of(browser, run) as page:
        for chart, words in (
            ("il", "an irreducible loss"),
            ("loss", "a loss"),
            ("label", "has a class"),
            ("cell", "None"),
        ):
            assert words in page.locator(f"[data-chart={chart}]").inner_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_keeps_nobody_out(browser: Any, runs: list[str], width: int) -> None:
    for name, folders in (("view", runs[:1]), ("view-two", runs)):
        with page_of(browser, *folders, width=width) as page:
            after(page, lambda: drag(page, "il", 0.2, 0.7))
            page.locator("#gallery").scroll_into_view_if_needed()
            page.wait_for_selector("#gallery[data-filled]", timeout=PATIENCE)
            page.locator("details summary").first.click()
            page.evaluate("scrollTo(0, 0)")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            shot(page, name)
            assert serious(page) == []
            page.locator(".tile").first.click()
            page.wait_for_selector("dialog .told table", timeout=PATIENCE)
            assert serious(page) == []


def test_without_the_token_the_page_says_what_to_open(browser: Any, runs: list[str]) -> None:
    with viewing(runs[0]) as url, opened(browser, url.partition("#")[0], quiet=False) as page:
        page.wait_for_selector("#problems:has-text('whole address')", timeout=PATIENCE)
        assert json.loads(page.evaluate("JSON.stringify(document.cookie)")) == ""
