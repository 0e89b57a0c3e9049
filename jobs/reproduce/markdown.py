"""The results files' rows as Markdown: claims of the paper and our own, and arms by world. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from jobs.reproduce.compare import EQUAL, POINTS, in_words
from jobs.reproduce.measure import IL_ACCURACY, SAYS
from jobs.reproduce.published import require_shared
from jobs.reproduce.statistics import NR, bounds

Row = dict[str, Any]
TITLES = ("The paper's claims", "Claims of our own")
OURS = "not in the paper"  # how a claim says that it is this library's


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
        told = [[r["claim"], *([] if ours else [r["paper"]]), ours_of(r, compared), r["state"],
                 f"{r['experiment']}, {r['world']}: {r['arm']}"] for r in mine]  # fmt: skip
        head = ["claim", *([] if ours else ["paper"]), "ours", "direction", "from"]
        parts += [f"## {title}: {same}", table(head, told)]
    return parts


def opposite(rows: Sequence[Row]) -> str:
    """The paper's claims that point the other way here in a setting at least: what it says, what was found."""
    compared = [row for row in rows if row["kind"] == "comparison"]
    lines = [[row["claim"], row["paper"], ours_of(row, compared), f"{row['experiment']}, {row['world']}: {row['arm']}"]
             for row in rows if row["kind"] == "claim" and row["paper"] != OURS
             and row["state"].startswith("other")]  # fmt: skip
    return table(["claim", "paper", "ours", "from"], lines)


def ours_of(claim: Row, compared: Sequence[Row], with_il: bool = True) -> str:
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
