"""A real browser for slow tests: the system's chromium, driven by Playwright, with axe-core to judge a page.

    browser = chromium()                          as a module's fixture: skips with the reason where there is none
    with opened(browser, url, width=700) as page:
        shot(page, "report")                      artifacts/screenshots/report-700.png
        assert serious(page) == []                of axe-core's findings those that keep somebody out

Playwright lies in an environment of its own (tests/support/environments.py) and takes the browser that is installed;
axe-core comes from npm into the same folder. Pages reach loopback and files alone.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import site
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments

AXE = "axe-core@4.14.1"
SCREENSHOTS = environments.ROOT / "artifacts" / "screenshots"
WIDTHS = (1400, 700)
# What chromium does behind a page would wait for hosts that a test doesn't have.
FLAGS = (
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
    "--no-first-run", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's `Browser`; skips the test where Playwright or a chromium can't be had."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium is installed")
    if why := environments.make("browser"):
        pytest.skip(f"Playwright's environment can't be made here: {why}")
    places = [environments.python("browser"), "-c", "import site; print(site.getsitepackages()[0])"]
    site.addsitedir(subprocess.run(places, check=True, capture_output=True, text=True).stdout.strip())
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str, *, width: int = 1400, height: int = 900, quiet: bool = True) -> Iterator[Any]:
    """A page of this width in a profile of its own. `quiet`: what it writes to its console as an error, or throws,
    fails the test when the page is closed."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    try:
        page.goto(url)
        yield page
        if quiet and errors:
            raise AssertionError("; ".join(errors))
    finally:
        context.close()


def shot(page: Any, name: str) -> Path:
    """The whole page as a picture, kept as an artifact of the test: NAME-WIDTH.png."""
    path: Path = SCREENSHOTS / f"{name}-{page.viewport_size['width']}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(path), full_page=True)
    return path


def serious(page: Any) -> list[str]:
    """What axe-core finds serious or critical, as "rule: selector: why"; skips where npm can't bring axe-core."""
    page.evaluate(_axe())  # by the debugger's door: a page's own policy lets no script in
    found = page.evaluate("async () => JSON.stringify((await axe.run(document)).violations)")
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in json.loads(found)
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def _axe() -> str:
    folder = environments.ROOT / ".venv-browser" / AXE
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core can't be had: no npm is installed")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", AXE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"axe-core can't be had: {done.stderr.strip()[-200:]}")
    return source.read_text(encoding="utf-8")
