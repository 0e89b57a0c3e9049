"""`python -m jobs.reproduce.tables`: what the results files say, as Markdown: claims of the paper, and arms by world.

It reads what experiments have written and computes nothing: the same figures with all their seeds are in
`<out>/results/<experiment>-<scale>.parquet`.

    --claims            only the claims
    --moved DIR         every claim's figure in older results (the Parquet files of DIR) beside today's
    --page PATH         fill the blocks of a Markdown page, or of a folder's pages, in place, each between two comments:

    <!-- made: claims -->                                        what stands here is replaced
    <!-- end -->
    <!-- made: our claims -->                                    this library's own
    <!-- made: moved 2026-11-26 -->                              a folder below <out>/results
    <!-- made: every arm -->                                     all claims and arms of all experiments
    <!-- made: opposite -->                                      the paper's claims that point the other way here
    <!-- made: opening pretrained -->                            accuracy and all it cost, against everything
    <!-- made: verdict pretrained -->                            the same in words
    <!-- made: break-even pretrained -->                         where selection would begin to pay
    <!-- made: equal table2 -->                                  at equal units, IL charged and not
    <!-- made: cost equal_cost -->                               accuracy against forward units, by world
    <!-- made: regret equal_cost, table2 -->                     whether a run with selection is regretted
    <!-- made: regret-in-short equal_cost, table2 -->            the same in a sentence
    <!-- made: arms table3; final accuracy; times fewer steps -->  worlds and arms, these columns
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.reproduce.at_cost import cost_tables, regret_in_short, regret_table
from jobs.reproduce.command import SCALES, guarded
from jobs.reproduce.compare import EQUAL, POINTS, in_words
from jobs.reproduce.measure import IL_ACCURACY, SAYS
from jobs.reproduce.opening import break_even_tables, brief_table, opening_tables, verdicts
from jobs.reproduce.published import judged, require_shared
from jobs.reproduce.results import SCHEMA
from jobs.reproduce.statistics import NR, bounds
from jobs.reproduce.suite import EXPERIMENTS
from rhostream.errors import UnknownNameError, UsageError

Row = dict[str, Any]
NAMES = (*EXPERIMENTS, "table1", "lag")
TITLES = ("The paper's claims", "Claims of our own")
NOT_YET = "Not measured yet."
OURS = "not in the paper"  # how a claim says that it is this library's


@click.command()
@click.option("--out", default="reproduce", show_default=True, help="The folder that the experiments wrote to.")
@click.option("--scale", default="small", show_default=True, type=click.Choice(SCALES), help="Which of their results.")
@click.option("--only", help="Names of experiments, separated by commas; by default all that have results.")
@click.option("--claims", is_flag=True, help="Only the table of claims.")
@click.option("--moved", metavar="DIR", help="Only what moved since the results files of DIR.")
@click.option("--page", metavar="PATH", help="Fill the blocks of a Markdown page, or of a folder's pages, instead.")
def main(out: str, scale: str, only: str | None, claims: bool, moved: str | None, page: str | None) -> None:
    """What the experiments found, as Markdown: the paper's claims beside our figures, then every arm."""
    names = only.split(",") if only else None
    if page is not None:
        guarded(lambda: fill(page, out, scale))
    elif moved is not None:
        guarded(lambda: click.echo(told_moved(out, scale, moved, names)))
    else:
        guarded(lambda: click.echo(told(out, scale, names, claims)))


def told(out: str, scale: str, only: Sequence[str] | None = None, claims: bool = False) -> str:
    """The tables as one text. Raises UnknownNameError for an experiment, UsageError for no or bad results."""
    found = _results(Path(out, "results"), scale, only)
    if not found:
        raise UsageError(f"no results of scale {scale} in {out}/results: run python -m jobs.reproduce --{scale} --out "
                         f"{out} first")  # fmt: skip
    parts = claim_tables(judged(row for rows in found.values() for row in rows))
    if not claims:
        for name, rows in found.items():
            parts += [f"## {name}", *arm_tables(rows), *equal_tables(rows)]
    return "\n\n".join(parts)


def _results(folder: Path, scale: str, only: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Experiment -> its rows, of those that have results there. Raises UnknownNameError, UsageError for a bad file."""
    for name in only or ():
        if name not in NAMES:
            raise UnknownNameError.of("experiment", name, NAMES)
    paths = {name: folder / f"{name}-{scale}.parquet" for name in only or NAMES}
    return {name: _read(path) for name, path in paths.items() if path.exists()}


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
    for ours, title in enumerate(TITLES):
        mine = [r for r in rows if r["kind"] == "claim" and (r["paper"] == OURS) == bool(ours)
                and r["state"] != "not measured"]  # fmt: skip
        if not mine:
            continue
        same = in_words([(r["claim"], r["state"]) for r in mine])
        told = [[r["claim"], *([] if ours else [r["paper"]]), _ours(r, compared), r["state"],
                 f"{r['experiment']}, {r['world']}: {r['arm']}"] for r in mine]  # fmt: skip
        head = ["claim", *([] if ours else ["paper"]), "ours", "direction", "from"]
        parts += [f"## {title}: {same}", table(head, told)]
    return parts


def opposite(rows: Sequence[Row]) -> str:
    """The paper's claims that point the other way here in a setting at least: what it says, what was found."""
    compared = [row for row in rows if row["kind"] == "comparison"]
    lines = [[row["claim"], row["paper"], _ours(row, compared), f"{row['experiment']}, {row['world']}: {row['arm']}"]
             for row in rows if row["kind"] == "claim" and row["paper"] != OURS
             and row["state"].startswith("other")]  # fmt: skip
    return table(["claim", "paper", "ours", "from"], lines)


def _ours(claim: Row, compared: Sequence[Row], with_il: bool = True) -> str:
    """The figure that a claim is judged by, with its interval or its seeds; beside an accuracy its IL model's."""
    one = next(
        (
            row
            for row in compared
            if all(row[name] == claim[name] for name in ("experiment", "world", "arm"))
            and row["metric"].startswith(claim["metric"])
            and row["baseline"] in (None, claim["baseline"])
        ),
        None,
    )
    if one is None:
        return ""
    if one["metric"].startswith(("times", "steps", "share of")):
        known = [value for value in one["values"] if value is not None]
        ratio = with_il and one["metric"].startswith("times") and len(known) == len(one["values"]) > 1
        low, high = bounds(known, logarithmic=True) if ratio else (0.0, 0.0)
        return _times(one) + (f", interval {low:.2f} to {high:.2f}" if ratio else "")
    told = f"{_value(one, one['middle'])}, {_difference(one)} against {one['baseline']}"
    if not with_il or not one["metric"].startswith(("final accuracy", "accuracy")):
        return told
    known = [row for row in compared if row["metric"] == IL_COLUMN
             and all(row[name] == claim[name] for name in ("experiment", "world", "arm"))]  # fmt: skip
    return told + (f"; IL model {_value(known[0], known[0]['middle'])}" if known else "")


IL_COLUMN = SAYS[IL_ACCURACY]
NOT_KNOWN = "not known"
HOW = ("Not known: these runs are of before IL models were measured on the test set; running the experiment again "
       "measures them.")  # fmt: skip


def _il_cell(rows: Sequence[Row], world: str, arm: str) -> str:
    """How right an arm's IL model is on the test set; "none" where none is on its bill, "" where there is no run."""
    mine = [row for row in rows if row["world"] == world and row["arm"] == arm]
    for row in mine:
        if row["kind"] == "comparison" and row["metric"] == IL_COLUMN and row["middle"] is not None:
            return _value(row, row["middle"])
    bills = [row["il_units"] for row in mine if row["kind"] == "evaluation"]
    return "" if not bills else NOT_KNOWN if any(bills) else "none"


def told_moved(out: str, scale: str, older: str, only: Sequence[str] | None = None) -> str:
    """Claim, its older figure, today's: where either moved. Raises as `told`."""
    now, before = _results(Path(out, "results"), scale, only), _results(Path(older), scale, only)
    if not now or not before:
        raise UsageError(f"no results of scale {scale} in {older if now else f'{out}/results'}")
    lines, same = [], 0
    for name in NAMES:
        found, known = ({_key(r): r for r in of.get(name, []) if r["kind"] == "claim"} for of in (now, before))
        for key in {**found, **known}:
            if all(key not in of or of[key]["state"] == "not measured" for of in (found, known)):
                continue
            cells = [_figure(of.get(key), rows.get(name, [])) for of, rows in ((known, before), (found, now))]
            same += cells[0] == cells[1]
            if cells[0] != cells[1]:
                about = found.get(key) or known[key]
                lines.append([about["claim"], *cells, f"{name}, {about['world']}: {about['arm']}"])
    kept = [name for name in now if str(now[name]) == str(before.get(name))]
    parts = [table(["claim", "before", "now", "from"], lines)] if lines else []
    parts += [f"{same} settings of claims did not move."]
    return "\n\n".join(parts + ([f"Not run again: {', '.join(kept)}."] if kept else []))


def _key(claim: Row) -> tuple[Any, ...]:
    """What a claim is about, whatever its words."""
    return tuple(claim[name] for name in ("world", "arm", "baseline", "metric"))


def _figure(claim: Row | None, rows: Sequence[Row]) -> str:
    """A claim's figure and its direction; a dash where there is none."""
    if claim is None or claim["state"] == "not measured":
        return "-"
    compared = [row for row in rows if row["kind"] == "comparison"]
    return f"{_ours(claim, compared, with_il=False)}: {claim['state']}"


EQUAL_UNITS = "accuracy at equal units"


def equal_tables(rows: Sequence[Row]) -> list[str]:
    """Each arm against a baseline that has spent as much, with and without the arm's IL model; nothing where none is.

    "ends before": the baseline was not trained for so long.
    """
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "comparison" and row["metric"].startswith(EQUAL_UNITS):
            found.setdefault((row["world"], row["arm"], row["baseline"]), {})[row["metric"]] = row
    if not found:
        return []
    spent = {(r["world"], r["arm"]): r for r in rows if r["kind"] == "evaluation" and r["forward_units"] is not None}
    lines = []
    for (world, arm, baseline), mine in found.items():
        require_shared(rows, (world, arm), (world, baseline))
        last = spent[world, arm]  # rows are in the order of steps
        cells = []
        for metric in EQUAL.values():
            one = mine.get(metric)
            cells += (["ends before", ""] if one is None or one["difference"] is None else
                      [_value(one, one["middle"] - one["difference"]), _difference(one)])  # fmt: skip
        own = next(iter(mine.values()))
        il = last["il_units"] or 0.0
        units = last["forward_units"]
        lines.append([world, arm, _value(own, own["middle"]), _il_cell(rows, world, arm), f"{units:,.0f}",
                      f"{il:,.0f} ({il / units:.2f}x)", baseline, *cells])  # fmt: skip
    return [
        "### at equal units",
        table(
            [
                "world",
                "arm",
                "final accuracy",
                IL_COLUMN,
                "units of the run",
                "units of its IL",
                "against",
                "IL not charged",
                "difference",
                "IL charged",
                "difference",
            ],
            lines,
        ),
    ]


REGRET = {"regret": regret_table, "regret-in-short": regret_in_short}
_BLOCK = re.compile(r"(<!-- made: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, out: str, scale: str) -> str:
    """A page with its blocks made anew. Raises UsageError for a block that can't be made, and as `told`."""
    return _BLOCK.sub(lambda block: f"{block[1]}{_block(block[2], out, scale)}\n{block[3]}", page)


def fill(page: str, out: str, scale: str) -> None:
    """Write the page, or every page below a folder, with its blocks made anew. Raises as `filled`."""
    for path in sorted(Path(page).rglob("*.md")) if Path(page).is_dir() else [Path(page)]:
        if _BLOCK.search(text := path.read_text()):
            path.write_text(filled(text, out, scale))
            click.echo(f"filled   {path}")


def _block(asked: str, out: str, scale: str) -> str:
    what, *columns = (part.strip() for part in asked.split(";"))
    kind, _, rest = what.partition(" ")
    if what in ("claims", "our claims"):
        title = TITLES[what == "our claims"]
        parts = claim_tables(judged(row for rows in _results(Path(out, "results"), scale).values() for row in rows))
        at = next((n for n, part in enumerate(parts) if part.startswith(f"## {title}")), None)
        if at is None:
            raise UsageError(f"made: {asked}: no such claim was measured")
        return f"**{parts[at].removeprefix('## ')}.**\n\n{parts[at + 1]}"
    if kind in ("opening", "brief", "verdict", "break-even"):
        rows = _results(Path(out, "results"), scale, [rest]).get(rest, [])
        if kind == "verdict":
            return "\n\n".join(verdicts(rows)) or NOT_YET
        if kind == "brief":
            return table(*brief_table(rows, columns)) if rows else NOT_YET
        made = opening_tables(rows, columns) if kind == "opening" else break_even_tables(rows)
        return "\n\n".join(f"**{world}**\n\n{table(head, lines)}" for world, head, lines in made) or NOT_YET
    if kind == "moved":
        return told_moved(out, scale, str(Path(out, "results", rest)))
    if what == "every arm":
        return told(out, scale)
    if what == "opposite":
        return opposite(judged(row for rows in _results(Path(out, "results"), scale).values() for row in rows))
    if kind not in ("equal", "arms", "cost", *REGRET):
        raise UsageError(f"made: {asked}: expected claims, our claims, every arm, opposite, opening, brief, verdict, "
                         f"break-even, moved, equal, cost, {', '.join(REGRET)} or arms")  # fmt: skip
    names = [name.strip() for name in rest.split(",")]
    found = _results(Path(out, "results"), scale, names)
    if kind in REGRET:
        return REGRET[kind](found) if found else NOT_YET
    rows = found.get(rest, [])
    if kind == "cost" and not rows:
        return NOT_YET
    if kind == "cost":
        return "\n\n".join(f"**{part[4:]}**" if part.startswith("### ") else part for part in cost_tables(rows))
    if kind == "equal":
        return "\n\n".join(equal_tables(rows)[1:]) or NOT_YET
    return "\n\n".join(f"**{part[4:]}**" if part.startswith("### ") else part for part in arm_tables(rows, columns))


FIRST = ("final accuracy", "times fewer steps",
         "accuracy at equal forward units", "kept with a wrong label")  # fmt: skip


def arm_tables(rows: Sequence[Row], only: Sequence[str] = ()) -> list[str]:
    """One table a world: every arm with what was measured of it, paired with its first baseline.

    What was read at equal units has another baseline and a table of its own. `only`: these columns, and always how
    right the arm's IL model is on the test set.
    """
    compared = [row for row in rows if row["kind"] == "comparison" and not row["metric"].startswith(EQUAL_UNITS)
                and row["metric"] != IL_COLUMN and (not only or _column(row) in only)]  # fmt: skip
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
            lines.append([arm + "".join(f" ({one})" for one in why), cells.get(metrics[0], ""),
                          _il_cell(rows, world, arm), *(cells.get(m, "") for m in metrics[1:])])  # fmt: skip
        made = table(["arm", *metrics[:1], IL_COLUMN, *metrics[1:]], lines)
        parts += [f"### {world}", f"{made}\n\n{HOW}" if NOT_KNOWN in made else made]
    return parts


def _column(row: Row) -> str:
    name: str = row["metric"]
    return "times fewer steps" if name.startswith("times") else name.partition(" (")[0]


def _cell(row: Row) -> str:
    if row["metric"].startswith(("times", "steps", "share of", "forward")):
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
