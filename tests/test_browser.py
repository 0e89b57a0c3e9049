"""The rig of the tests in a browser: it sees a fault of a page, so that a page without one says something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SOUND = "<!doctype html><html lang=en><title>Sound</title><main><h1>Sound</h1><p>Words.</p></main>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as found:
        yield found


def test_axe_finds_nothing_in_a_sound_page_and_names_what_keeps_somebody_out(chromium: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(SOUND)
    with browser.opened(chromium, page.as_uri()) as sound:
        assert browser.serious(sound) == []
    page.write_text(SOUND.replace("<p>", "<img src='data:,'><p style='color: #ccc; background: #fff'>"))
    with browser.opened(chromium, page.as_uri()) as faulty:
        assert {fault.split(":")[0] for fault in browser.serious(faulty)} == {"image-alt", "color-contrast"}


def test_a_page_whose_script_fails_fails_the_test(chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(SOUND + "<script>nothing.there()</script>")
    page = (tmp_path / "page.html").as_uri()
    with pytest.raises(AssertionError, match="nothing is not defined"), browser.opened(chromium, page):
        pass


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_a_picture_is_as_wide_as_the_page(chromium: Any, tmp_path: Path, width: int) -> None:
    from PIL import Image

    (tmp_path / "page.html").write_text(SOUND)
    with browser.opened(chromium, (tmp_path / "page.html").as_uri(), width=width) as page:
        path = browser.shot(page, "rig")
    with Image.open(path) as image:
        assert image.width == width
