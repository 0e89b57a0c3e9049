"""The report in a browser at three widths: only tables scroll sideways, pictures are large, axe finds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream.audit.il_quality import write_il_report
from tests.support import browser
from tests.support.audit_fixtures import N_B, make_rows, make_run, make_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LEAST = 160  # pixels of a picture's side on the screen
_WIDE = """() => ({
    page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    out: [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') &&
        e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    sides: [...document.querySelectorAll('.gallery img, .gallery .none')].map(e => e.getBoundingClientRect().width),
    alts: [...document.querySelectorAll('.plots img')].map(e => e.alt.length),
    scopes: [...document.querySelectorAll('th')].filter(e => !e.scope).length,
})"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pages")
    made, runs = make_world(root), root / "runs"
    log, chance = make_rows(made, 24), make_rows(made, 24, rule="uniform", seed=1)
    slow = {"rule": "uniform", "accuracy": lambda step: 0.5 + 0.01 * step}
    rho = [make_run(made, str(runs / f"rho-{seed}"), log, seed=seed) for seed in (0, 1)]
    long = {"a-setting-with-a-long-name": "x" * 90}
    other = make_run(made, str(runs / "capped"), log, arguments=long, il_model={"accuracy": 0.75},
                     accuracy=lambda step: 0.4)  # fmt: skip
    against = [make_run(made, str(runs / "uniform"), chance, **slow),
               make_run(made, str(runs / "everything"), chance, n_b=N_B, **slow)]  # fmt: skip
    return {
        "report": rhostream.write_report(rho[:1], str(root / "report.html"), against=against),
        "comparison": rhostream.write_report([*rho, other], str(root / "comparison.html"), against=against),
        "il-table": write_il_report(str(made.table), str(root / "il.html")),
    }


@pytest.mark.parametrize("width", [*browser.WIDTHS, 400])
@pytest.mark.parametrize("name", ["report", "comparison", "il-table"])
def test_a_page_reads_well_at_each_width(chromium: Any, pages: dict[str, str], name: str, width: int) -> None:
    with browser.opened(chromium, Path(pages[name]).as_uri(), width=width) as page:
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
        browser.shot(page, name)
        seen = page.evaluate(_WIDE)
        assert seen["page"] <= 0 and seen["out"] == [] and seen["scopes"] == 0
        assert all(side >= LEAST for side in seen["sides"]) and (name == "il-table" or len(seen["sides"]) > 12)
        assert seen["alts"] and min(seen["alts"]) > 40
        assert browser.serious(page) == []
