"""The site's settings: `make docs` makes site/ of README.md, the pages of docs/ and the public names' docstrings.

The source folder is the repository's root, so that pages keep their paths and the links of README.md work on the site
as they do in the repository. Nothing is fetched when a page is built or read.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.parsers.rst import Directive

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, whichever is installed

project = "rhostream"
copyright = "the authors of rhostream"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [".*", "data", "demo", "site", "build", "dist", "tests", "reproduce", "**/.venv"]
highlight_language = "text"  # indented blocks; fenced ones name theirs
nitpicky = False  # annotations name types of torch and numpy, whose sites are not asked

myst_heading_anchors = 4  # as GitHub makes them
suppress_warnings = ["myst.header"]  # a page may step from a title to a small heading

default_role = "code"  # docstrings mark code with one backtick
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88

linkcheck_timeout = 20  # seconds; `make docs-links`
linkcheck_anchors = False  # of pages that scripts make
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)"]

html_theme = "furo"
html_title = "rhostream"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/rho.svg"
html_copy_source = False
html_show_sphinx = False
html_permalinks_icon = "#"

SIDEWAYS = re.compile(r'(<div class="table-wrapper[^"]*"|<pre)(?=>)')
SIGNATURE = re.compile(r'<dt class="sig .*?</dt>', re.DOTALL)
LISTS = re.compile(r"</?d[ld]>")
FOLDER_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)\)")


class Help(Directive):
    """`{help} train`: what `rhostream train --help` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-c", "from rhostream.cli import main; main()", self.arguments[0], "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise self.error(f"rhostream {self.arguments[0]} --help failed: {done.stderr.strip()}")
        text = re.sub(r"Usage: \S+", "Usage: rhostream", done.stdout.rstrip())
        return [nodes.literal_block(text, text, language="text")]


def without_folder_links(app: Sphinx, name: str, source: list[str]) -> None:
    """A link to a folder leads somewhere in the repository only; on the site its words stay."""
    here = (ROOT / name).parent
    source[0] = FOLDER_LINK.sub(lambda link: link[1] if (here / link[2]).is_dir() else link[0], source[0])


def open_to_all(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: nodes.document) -> None:
    """What keeps somebody out of a page that the theme and Sphinx make, mended.

    A wide table and a wide block of code are reached by the keyboard, a signature over several lines is no list of
    definitions without a term, and the headings of the navigation have their level.
    """
    if "body" in context:
        body = SIDEWAYS.sub(r'\1 tabindex="0"', context["body"])
        context["body"] = SIGNATURE.sub(lambda found: LISTS.sub(_plain, found[0]), body)
    navigation = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')


def _plain(tag: re.Match[str]) -> str:
    return {"<dl>": '<div class="sig-lines">', "<dd>": "<div>"}.get(tag[0], "</div>")


def front_door(app: Sphinx, failure: Exception | None) -> None:
    """site/index.html leads to the first page."""
    if failure is None and app.builder.name == "html":
        page = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>rhostream</title>\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("help", Help)
    app.connect("source-read", without_folder_links)
    app.connect("html-page-context", open_to_all, priority=900)  # behind the theme's
    app.connect("build-finished", front_door)
    return {"parallel_read_safe": True}
