"""`python -m jobs.reproduce.tables`: what the results files say, as Markdown: claims of the paper, and arms by world.

It reads what experiments have written and computes nothing: the same figures with all their seeds are in
`<out>/results/<experiment>-<scale>.parquet`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.reproduce.command import SCALES, guarded
from jobs.reproduce.compare import POINTS
from jobs.reproduce.results import SCHEMA
from jobs.reproduce.statistics import NR
from jobs.reproduce.suite import EXPERIMENTS
from rhostream.errors import UnknownNameError, UsageError

Row = dict[str, Any]
NAMES = (*EXPERIMENTS, "table1", "lag")
OURS = "not in the paper"  # how a claim says that it is this library's


@click.command()
@click.option("--out", default="reproduce", show_default=True, help="The folder that the experiments wrote to.")
@click.option("--scale", default="small", show_default=True, type=click.Choice(SCALES), help="Which of their results.")
@click.option("--only", help="Names of experiments, separated by commas; by default all that have results.")
@click.option("--claims", is_flag=True, help="Only the table of claims.")
def main(out: str, scale: str, only: str | None, claims: bool) -> None:
    """What the experiments found, as Markdown: the paper's claims beside our figures, then every arm."""
    guarded(lambda: click.echo(told(out, scale, only.split(",") if only else None, claims)))


def told(out: str, scale: str, only: Sequence[str] | None = None, claims: bool = False) -> str:
    """The tables as one text. Raises UnknownNameError for an experiment, UsageError for no or bad results."""
    for name in only or ():
        if name not in NAMES:
            raise UnknownNameError.of("experiment", name, NAMES)
    paths = {name: Path(out, "results", f"{name}-{scale}.parquet") for name in only or NAMES}
    found = {name: _read(path) for name, path in paths.items() if path.exists()}
    if not found:
        raise UsageError(f"no results of scale {scale} in {out}/results: run python -m jobs.reproduce --{scale} --out "
                         f"{out} first")  # fmt: skip
    parts = claim_tables(row for rows in found.values() for row in rows)
    if not claims:
        for name, rows in found.items():
            parts += [f"## {name}", *arm_tables(rows)]
    return "\n\n".join(parts)


def _read(path: Path) -> list[Row]:
    try:
        found = pq.read_table(path)
    except (pa.ArrowException, OSError) as exc:
        raise UsageError(f"{path}: no results file ({str(exc).splitlines()[0]})") from exc
    if lacking := [name for name in SCHEMA.names if name not in found.column_names]:
        raise UsageError(f"{path}: no results file, it lacks the column {lacking[0]!r}")
    rows: list[Row] = found.to_pylist()
    return rows


def claim_tables(rows: Iterable[Row]) -> list[str]:
    """The paper's claims that were measured, then this library's own; with how many point the same way."""
    rows = list(rows)
    compared = [row for row in rows if row["kind"] == "comparison"]
    parts = []
    for title, ours in (("The paper's claims", False), ("Claims of our own", True)):
        mine = [r for r in rows if r["kind"] == "claim" and (r["paper"] == OURS) is ours
                and r["state"] != "not measured"]  # fmt: skip
        if not mine:
            continue
        same = sum(r["state"].startswith("same") for r in mine)
        told = [[r["claim"], *([] if ours else [r["paper"]]), _ours(r, compared), r["state"],
                 f"{r['experiment']}, {r['world']}: {r['arm']}"] for r in mine]  # fmt: skip
        head = ["claim", *([] if ours else ["paper"]), "ours", "direction", "from"]
        parts += [f"## {title}: {same} of {len(mine)} in the same direction", table(head, told)]
    return parts


def _ours(claim: Row, compared: Sequence[Row]) -> str:
    """The figure that a claim is judged by, with its interval or its seeds."""
    one = next((row for row in compared if all(row[name] == claim[name] for name in ("experiment", "world", "arm"))
                and row["metric"].startswith(claim["metric"]) and row["baseline"] in (None, claim["baseline"])), None)
    if one is None:
        return ""
    if one["metric"].startswith(("times", "steps", "share of rho")):
        return _times(one)
    return f"{_value(one, one['middle'])}, {_difference(one)} against {one['baseline']}"


FIRST = ("final accuracy", "times fewer steps", "accuracy at equal forward units", "kept with a wrong label")


def arm_tables(rows: Sequence[Row]) -> list[str]:
    """One table a world: every arm with what was measured of it, paired with its first baseline."""
    compared = [row for row in rows if row["kind"] == "comparison"]
    compared.sort(key=lambda row: FIRST.index(_column(row)) if _column(row) in FIRST else len(FIRST))  # stable
    order = {arm: n for n, arm in enumerate(dict.fromkeys(row["arm"] for row in rows))}
    states = {(r["world"], r["arm"], r["state"]) for r in rows if r["kind"] == "setting" and r["state"] != "complete"}
    parts = []
    for world in dict.fromkeys(row["world"] for row in compared):
        mine = [row for row in compared if row["world"] == world]
        metrics = list(dict.fromkeys(_column(row) for row in mine))
        lines = []
        for arm in sorted({row["arm"] for row in mine}, key=order.__getitem__):
            of_arm = [row for row in mine if row["arm"] == arm]
            first = next((row["baseline"] for row in of_arm if row["baseline"]), None)
            cells = {_column(row): _cell(row) for row in of_arm if row["baseline"] in (None, first)}
            why = sorted(state for *place, state in states if place == [world, arm])  # of any seed
            lines.append([arm + "".join(f" ({one})" for one in why), *(cells.get(m, "") for m in metrics)])
        parts += [f"### {world}", table(["arm", *metrics], lines)]
    return parts


def _column(row: Row) -> str:
    name: str = row["metric"]
    return "times fewer steps" if name.startswith("times") else name.partition(" (")[0]


def _cell(row: Row) -> str:
    if row["metric"].startswith(("times", "steps", "share of rho", "forward")):
        return _times(row)
    return _value(row, row["middle"]) + ("" if row["difference"] is None else f"; {_difference(row)}")


def _times(row: Row) -> str:
    """The middle, and every seed's value where they differ."""
    form, unit = (".0f", "") if row["metric"].startswith(("steps", "forward")) else (".2f", "")
    if row["metric"].startswith("times"):
        unit = "x"
    each = [NR if value is None else format(value, form) for value in row["values"]]
    middle = NR if row["middle"] is None else format(row["middle"], form) + unit
    return middle if len(set(each)) == 1 and each[0] == middle.removesuffix("x") else f"{middle} ({' '.join(each)})"


def _value(row: Row, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.1f} %" if row["metric"].startswith(POINTS) else f"{value:.3f}"


def _difference(row: Row) -> str:
    """The mean paired difference with its 95 % interval, in points where the metric is a share."""
    scale, form = (100, "+.1f") if row["metric"].startswith(POINTS) else (1, "+.3f")
    if row["difference"] is None:
        return "-"
    told = format(scale * row["difference"], form)
    if row["low"] is None or not math.isfinite(row["low"]):
        return told
    return f"{told} ({format(scale * row['low'], form)} to {format(scale * row['high'], form)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()
