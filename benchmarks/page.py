"""`python -m benchmarks.page`: docs/performance.md, a record a benchmark and plots, of the newest results.

    results.newest > render (text: page_intro.md) > performance.md (claims, what was missed) and performance/NAME.md
                   > plots.draw (docs/figures)                                               the same bytes each time

A claim is a line of page_intro.md; what stands there as {benchmark; case; figure} becomes the median with the smallest
and the largest. A benchmark without words there gets its record, and no plot unless `plots.PLOTS` has one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import plots, results
from benchmarks.gpu import page as gpu
from benchmarks.gpu.record import newest
from benchmarks.measure import Figure, short

DOCS = Path(__file__).resolve().parents[1] / "docs"
WORDS = Path(__file__).with_name("page_intro.md")
VERDICTS = {"ok": "met", "MISSED": "missed", "absent": "absent", "": ""}
Row = dict[str, Any]


def write(folder: Path = results.FOLDER, docs: Path = DOCS) -> Path:
    """Render the newest results of `folder` as `docs`/performance.md, `docs`/performance and `docs`/figures/*.png."""
    rows = results.newest(folder)
    for place in ("figures", "performance"):
        (docs / place).mkdir(parents=True, exist_ok=True)
    for (device, name), own in sections(rows).items():
        plots.draw(name, results.figures_of(own), docs / "figures" / f"{record_name(device, name, rows)}.png")
    for name, text in render(rows).items():
        (docs / name).write_text(text)
    return docs / "performance.md"


def render(rows: Sequence[Row]) -> dict[str, str]:
    """The pages as Markdown by their path below docs: the first, then a record a benchmark and device."""
    words, parts = _words(), sections(rows)
    several = len({row["device"] for row in rows}) > 1
    pages, listed = {}, []
    for (device, name), own in parts.items():
        title, _, text = words.get(name, f"## {name.capitalize()}").partition("\n")
        title, record = title.strip("# "), f"performance/{record_name(device, name, rows)}.md"
        figures = results.figures_of(own)
        plot = f"![{title}](../figures/{record_name(device, name, rows)}.png)" if plots.can_draw(name, figures) else ""
        title = f"{title} ({device})" if several else title
        pages[record] = _joined([f"# {title}", text.strip(), plot, _table(figures), _origin(own[0])])
        listed.append(f"| [{title}]({record}) | {own[0]['date']} | {device} | `{own[0]['command']}` |")
    front = ["# Performance", words.get("opening", ""), _claims(words.get("claims", ""), parts), "## Where we lose",
             _missed(parts), words.get("losses", ""), "## The records",
             "\n".join(["| record | date | machine | command |", "|---|---|---|---|", *listed]),
             "```{toctree}\n:hidden:\n:glob:\n\nperformance/*\n```"]  # fmt: skip
    return {"performance.md": _joined(front), **pages, "performance/gpu.md": gpu.render(newest())}


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _claims(text: str, parts: dict[tuple[str, str], list[Row]]) -> str:
    """The claims with their figures, numbered; one of which a figure wasn't measured is left out."""
    measured: dict[tuple[str, ...], Figure] = {}
    for (_, name), own in parts.items():
        for f in results.figures_of(own):
            if f.values:
                measured.setdefault((name, f.case, f.what), f)
    claims: list[str] = []
    for claim in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
        words = re.split(r"\{([^}]+)\}", " ".join(claim.split()))  # what is asked for stands at every second place
        words[1::2] = [_span(measured.get(tuple(asked.split("; ")))) for asked in words[1::2]]
        if all(words):
            claims.append(f"{len(claims) + 1}. {''.join(words)}")
    return "\n".join(["## What is claimed", "", *claims]) if claims else ""


def _span(figure: Figure | None) -> str:
    """A figure's median with the smallest and the largest where they differ; "" for none."""
    if figure is None:
        return ""
    low, high = (_value(figure, end(figure.values)) for end in (min, max))
    return f"**{_value(figure, figure.median)}**" + (f" ({low} to {high})" if low != high else "")


def sections(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by (device, benchmark): those that page_intro.md knows in its order, then the others as they come."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["device"], row["benchmark"]), []).append(row)
    order = list(_words())
    place = {name: order.index(name) if name in order else len(order) for _, name in found}
    return dict(sorted(found.items(), key=lambda item: place[item[0][1]]))


def record_name(device: str, name: str, rows: Sequence[Row]) -> str:
    """The name of a benchmark's record and plot; with the device when there are results of several."""
    several = len({row["device"] for row in rows}) > 1
    return f"{results.slug(name)}-{results.slug(device)}" if several else results.slug(name)


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
            case = "" if f.verdict == "absent" else f" {_cell(f.case)},"  # what is absent is absent in every case
            lines.append(f"- {where},{case} {_cell(_what(f))}: {found}")
    lines = [*dict.fromkeys(lines)]
    return "\n".join(["Targets missed in these results:", "", *lines]) if lines else "No target is missed here."


def _what(figure: Figure) -> str:
    """What was measured; of why it could not be, which may be an installer's whole message, the first words."""
    what, absent, why = figure.what.partition("; absent: ")
    return what + absent + why.partition(":")[0]


def _table(figures: Sequence[Figure]) -> str:
    lines = ["| case | figure | median | min | max | target | |", "|---|---|---|---|---|---|---|"]
    case = ""
    for f in figures:
        if f.what.startswith("curve, "):
            continue  # drawn, not listed
        same, case = f.case == case, f.case  # told once, above the figures that are of it
        numbers = (f.median, min(f.values, default=f.median), max(f.values, default=f.median))
        cells = ["" if same else _cell(f.case), _cell(_what(f)), *(_value(f, number) for number in numbers),
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
    """Write DOCS/performance.md, DOCS/performance and DOCS/figures from the newest results in a folder."""
    click.echo(write(folder, docs))


if __name__ == "__main__":
    main()
