"""`python -m tests.faults.page` writes docs/faults.md from the fault table and the docstrings of its tests.

The first paragraph of a test's docstring is what its line of the page promises, in the words of a user.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from tests.faults.lines import LINES, SECTIONS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "faults.md"
INTRO = Path(__file__).with_name("page_intro.md")
NAME = re.compile(r"test_([A-F]\d+)_")


@functools.cache
def promises() -> dict[str, list[tuple[str, str, str, bool]]]:
    """line -> [(what its test promises, file, the test's name, whether it is slow)], read from the sources."""
    found: dict[str, list[tuple[str, str, str, bool]]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and (match := NAME.match(node.name)):
                doc = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                slow = any("slow" in ast.unparse(d) for d in node.decorator_list)
                found.setdefault(match[1], []).append((doc, path.name, node.name, slow))
    return found


def page() -> str:
    """The whole page."""
    tests, out = promises(), [INTRO.read_text(encoding="utf-8").rstrip(), ""]
    for section, title in SECTIONS.items():
        out += [f"## {title}", "", "| | what happens | what you get | test |", "|---|---|---|---|"]
        for line, (fault, _) in LINES.items():
            if line.startswith(section):
                made = tests.get(line, [])
                says = " ".join(dict.fromkeys(doc for doc, *_ in made if doc))
                links = ", ".join(
                    f"[{name}](../tests/faults/{file})" + (" (slow)" if slow else "") for _, file, name, slow in made
                )
                out.append(f"| {line} | {_cell(fault)} | {_cell(says)} | {links} |")
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
