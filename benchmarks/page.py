"""`python -m benchmarks.page`: docs/performance.md and its plots from the newest results, the same bytes each time.

    results.newest > render (text: page_intro.md, tables, what was missed) and plots.draw (docs/figures) > write

A benchmark that page_intro.md has no words for gets its table, and no plot unless `plots.PLOTS` has one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import plots, results
from benchmarks.measure import Figure, short

DOCS = Path(__file__).resolve().parents[1] / "docs"
WORDS = Path(__file__).with_name("page_intro.md")
VERDICTS = {"ok": "met", "MISSED": "missed", "absent": "absent", "": ""}
Row = dict[str, Any]


def write(folder: Path = results.FOLDER, docs: Path = DOCS) -> Path:
    """Render the newest results of `folder` as `docs`/performance.md and `docs`/figures/*.png."""
    rows = results.newest(folder)
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for (device, name), own in sections(rows).items():
        plots.draw(name, results.figures_of(own), docs / "figures" / plot_name(device, name, rows))
    path = docs / "performance.md"
    path.write_text(render(rows))
    return path


def render(rows: Sequence[Row]) -> str:
    """The page as Markdown."""
    words, parts = _words(), sections(rows)
    page = ["# Performance", words.get("opening", ""), "## Where we lose", _missed(parts), words.get("losses", "")]
    for (device, name), own in parts.items():
        title, _, text = words.get(name, f"## {name.capitalize()}").partition("\n")
        several = len({row["device"] for row in rows}) > 1
        page += [f"{title} ({device})" if several else title, text.strip()]
        figures = results.figures_of(own)
        if plots.can_draw(name, figures):
            page.append(f"![{title.strip('# ')}](figures/{plot_name(device, name, rows)})")
        page += [_table(figures), _origin(own[0])]
    return "\n\n".join(part for part in page if part) + "\n"


def sections(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by (device, benchmark): those that page_intro.md knows in its order, then the others as they come."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["device"], row["benchmark"]), []).append(row)
    order = list(_words())
    place = {name: order.index(name) if name in order else len(order) for _, name in found}
    return dict(sorted(found.items(), key=lambda item: place[item[0][1]]))


def plot_name(device: str, name: str, rows: Sequence[Row]) -> str:
    """The file of a benchmark's plot; with the device when there are results of several."""
    several = len({row["device"] for row in rows}) > 1
    return f"{results.slug(name)}-{results.slug(device)}.png" if several else f"{results.slug(name)}.png"


def _words() -> dict[str, str]:
    """The hand-written parts: what follows each `<!-- name -->` line."""
    _, *pieces = re.split(r"^<!-- (\w+) -->$", WORDS.read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[::2], (text.strip() for text in pieces[1::2]), strict=True))


def _missed(parts: dict[tuple[str, str], list[Row]]) -> str:
    lines, several = [], len({device for device, _ in parts}) > 1
    for (device, name), own in parts.items():
        for f in results.figures_of(own):
            if f.verdict == "MISSED":
                found = f"{_value(f, f.median)}, target {_bound(f)} ({_value(f, min(f.values))} to " \
                        f"{_value(f, max(f.values))} over {len(f.values)})"  # fmt: skip
            elif f.verdict == "absent":
                found = f"not measured, target {_bound(f)}"
            else:
                continue
            where = f"{name} on {device}" if several else name
            lines.append(f"- {where}, {_cell(f.case)}, {_cell(f.what)}: {found}")
    return "\n".join(["Targets missed in these results:", "", *lines]) if lines else "No target is missed here."


def _table(figures: Sequence[Figure]) -> str:
    lines = ["| case | figure | median | min | max | target | |", "|---|---|---|---|---|---|---|"]
    for f in figures:
        if f.what.startswith("curve, "):
            continue  # drawn, not listed
        numbers = (f.median, min(f.values, default=f.median), max(f.values, default=f.median))
        cells = [_cell(f.case), _cell(f.what), *(_value(f, number) for number in numbers),
                 "" if f.target is None else _bound(f), VERDICTS[f.verdict]]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _origin(row: Row) -> str:
    commit = f"commit {row['commit']}, " if row["commit"] else ""
    return (f"`{row['command']}` on {row['date']}, {commit}{row['device']}, torch {row['torch']} with {row['threads']} "
            f"threads, load average {row['load_before']:g} when it began.")  # fmt: skip


def _value(figure: Figure, value: float) -> str:
    return short(value) if figure.unit == "x" or value != value else f"{short(value)} {figure.unit}"


def _bound(figure: Figure) -> str:
    return f"{'≥' if figure.at_least else '≤'} {figure.target:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


@click.command()
@click.option("--results", "folder", default=results.FOLDER, type=click.Path(path_type=Path, exists=True))
@click.option("--docs", default=DOCS, type=click.Path(path_type=Path))
def main(folder: Path, docs: Path) -> None:
    """Write DOCS/performance.md and DOCS/figures from the newest results in a folder."""
    click.echo(write(folder, docs))


if __name__ == "__main__":
    main()
