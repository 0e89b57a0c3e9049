"""The site: every page is in its navigation, every link leads somewhere, and it is built without a warning."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import rhostream
from rhostream.cli import cli
from tests.support.browser import WIDTHS, chromium, opened, serious, shot

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def toctree(page: Path) -> list[Path]:
    """The pages that a page's navigation names."""
    found = []
    for body in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for entry in body.splitlines():
            if entry and not entry.startswith(":"):
                found += sorted(page.parent.glob(f"{entry}.md")) if "*" in entry else [page.parent / f"{entry}.md"]
    return [path.resolve() for path in found]


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`", text)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation_once() -> None:
    listed = toctree(DOCS / "index.md")
    for page in list(listed):
        listed += toctree(page)
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.resolve() for path in PAGES} - {DOCS / "index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


WORDS = 1500  # of a page that somebody reads from the top
# Pages to look something up in, most of them made of the code or of results.
LOOKED_UP = {
    "CHANGELOG.md", "docs/faults.md", "docs/reference.md", "docs/settings.md", "docs/results/claims.md",
    "docs/results/moved.md", "docs/results/no-regret.md", "docs/results/search-library.md",
    "docs/results/small.md",
}  # fmt: skip


def test_no_page_is_longer_than_one_reads() -> None:
    long = {
        path.relative_to(ROOT).as_posix() for path in PAGES if len(path.read_text(encoding="utf-8").split()) > WORDS
    }
    assert long == LOOKED_UP


def test_every_word_of_the_first_page_of_the_site_is_in_the_glossary() -> None:
    """Where a page says a word of ours for the first time it says what it means; the glossary has them all."""
    defined = set(re.findall(r"^\*\*(.*?)\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE))
    words = {word for head in defined for word in re.split(r", ", head)}
    for name in ("index.md", "tutorial-text.md", "tutorial-pairs.md"):
        (box,) = re.findall(
            r"^\*\*(?:The words|Words) .*?(?=\n\n)", (DOCS / name).read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        met = {word.lower().rstrip("s") for word in re.findall(r"(?<!\*)\*(\w+)\*(?!\*)", box)}
        assert len(met) >= 4 and met <= {word.rstrip("s") for word in words}, name


def test_every_public_name_is_on_the_page_of_the_library() -> None:
    names = re.findall(r"auto(?:class|function):: rhostream\.(\w+)", (DOCS / "api.md").read_text(encoding="utf-8"))
    assert sorted(names) == sorted(rhostream.__all__)


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{help\} (\S+)$", page, re.MULTILINE) == re.findall(r"^## (\S+)$", page, re.MULTILINE)
    assert sorted(re.findall(r"^## (\S+)$", page, re.MULTILINE)) == sorted(cli.commands)


# -- the site as it is built, in an environment of its own -------------------------------------------------------------


@pytest.fixture(scope="module")
def python() -> Path:
    made = subprocess.run(["make", ".venv-docs/.done"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    if made.returncode:
        pytest.skip(f"the environment of the site can't be made here: {made.stderr.strip()[-200:]}")
    return ROOT / ".venv-docs" / "bin" / "python"


def build(python: Path, source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs", ".", str(site)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    done = build(python, ROOT, made)
    assert (done.returncode, done.stderr) == (0, "")
    return made


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder on a port of loopback: from a file a browser lets no script read the styles."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


# A page of each make: navigation, prose, code, wide tables, figures, help, docstrings, generated lists.
SEEN = ("index", "tutorial-text", "method", "results", "results/table2", "settings", "command-line", "api")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pages_keep_nobody_out_and_fit_narrow_screens(site: Path) -> None:
    """Of axe-core what is serious or critical, at both widths; and no page as a whole has to be moved sideways."""
    faults = []
    with served(site) as url, chromium() as browser:
        for name in SEEN:
            for width in WIDTHS:
                with opened(browser, f"{url}/docs/{name}.html", width=width) as page:
                    shot(page, f"docs-{name.replace('/', '-')}")
                    faults += [f"{name} at {width}: {fault}" for fault in serious(page)]
                    wide = page.evaluate("document.documentElement.scrollWidth")
                    faults += [f"{name} is {wide} pixels wide at {width}"] if wide > width else []
    assert faults == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_site_is_built_without_a_warning_and_takes_nothing_from_a_network(python: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    done = build(python, ROOT, tmp_path / "site")
    print(f"the site was built in {time.perf_counter() - start:.1f} s")
    assert (done.returncode, done.stderr) == (0, "")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//|<link[^>]*href=\"(?:https?:)?//", text)
    for style in (tmp_path / "site" / "_static").rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text(encoding="utf-8"))
    library = (tmp_path / "site" / "docs" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="rhostream.{name}"' in library for name in rhostream.__all__)
    assert "--buffer-size" in (tmp_path / "site" / "docs" / "command-line.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("link", ["no-such-page.md", "rules.md#no-such-heading"])
def test_a_broken_link_is_an_error_of_the_build_that_names_the_page(python: Path, tmp_path: Path, link: str) -> None:
    for page in ROOT.glob("*.md"):
        shutil.copy(page, tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.parquet"))
    for folder in ("rhostream", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    with (tmp_path / "docs" / "stores.md").open("a", encoding="utf-8") as page:
        page.write(f"\nSee [there]({link}).\n")
    done = build(python, tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "stores.md" in done.stderr and "no-such" in done.stderr
