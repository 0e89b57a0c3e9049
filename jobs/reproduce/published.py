"""Results files read back: comparisons out of their rows, claims judged by today's rules, and what may be compared.

Verdicts are made of the single values that stand in the files, so a rule of judging that changes, or a claim that is
worded or counted otherwise, needs no run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.reproduce import lag, table1
from jobs.reproduce.compare import Comparison, derived, verdict
from jobs.reproduce.settings import Claim
from jobs.reproduce.statistics import Paired
from jobs.reproduce.suite import EXPERIMENTS
from rhostream.errors import MismatchError

Row = dict[str, Any]
CLAIMS: Mapping[str, Sequence[Claim]] = {
    **{name: experiment.claims for name, experiment in EXPERIMENTS.items()},
    "table1": table1.EXPERIMENT.claims,
    "lag": lag.EXPERIMENT.claims,
}
# What runs must share to stand at equal cost: name in the settings of a results file -> what it is.
SHARED = {"shards": "D", "test": "the test set"}


def comparison_of(row: Mapping[str, Any]) -> Comparison:
    """The comparison that a row of kind `comparison` was written from."""
    pair = None
    if row["difference"] is not None:
        low, high = (math.nan if row[name] is None else row[name] for name in ("low", "high"))
        pair = Paired(tuple(row["differences"] or ()), row["difference"], low, high)
    return Comparison(
        world=row["world"],
        arm=row["arm"],
        baseline=row["baseline"],
        metric=row["metric"],
        seeds=tuple(row["seeds"] or ()),
        values=tuple(row["values"] or ()),
        middle=row["middle"],
        difference=pair,
        claim=row["claim"] or "",
        budget=row["budget"] or 0,
    )


def judged(rows: Iterable[Row]) -> list[Row]:
    """The rows, their claims replaced by today's of the same experiments, each with its verdict from the comparisons.

    Rows of an experiment that isn't known here keep the claims that they have.
    """
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row["experiment"], []).append(row)
    made: list[Row] = []
    for name, mine in by.items():
        if name not in CLAIMS:
            made += mine
            continue
        rest = [row for row in mine if row["kind"] != "claim"]
        compared = [row for row in rest if row["kind"] == "comparison"]
        found = [comparison_of(row) for row in compared]
        more = derived(found)
        blank = dict.fromkeys({key for row in mine for key in row})
        scale = next((row.get("scale") for row in mine), None)
        head = {**blank, "experiment": name, "scale": scale}
        rest += [{**head, "kind": "comparison", **_cells(one)} for one in more]
        for claim in CLAIMS[name]:
            one, words = verdict(claim, [*found, *more])
            rest.append({**head, "kind": "claim", "world": claim.world, "arm": claim.arm, "baseline": claim.baseline,
                         "metric": claim.metric, "claim": claim.says, "paper": claim.paper, "state": words,
                         "middle": one.middle if one else None})  # fmt: skip
        made += rest
    return made


def _cells(one: Comparison) -> Row:
    return {"world": one.world, "arm": one.arm, "baseline": one.baseline, "metric": one.metric,
            "seeds": list(one.seeds), "values": list(one.values), "middle": one.middle}  # fmt: skip


def require_shared(rows: Iterable[Row], one: tuple[str, str], other: tuple[str, str]) -> None:
    """Raise MismatchError unless two arms (world, arm) share D and the test set; seeds and all else may differ.

    What no setting row says is not known, and no reason to refuse.
    """
    known = {(row["world"], row["arm"]): json.loads(row["settings"]) for row in rows
             if row["kind"] == "setting" and row["settings"]}  # fmt: skip
    mine, theirs = known.get(one), known.get(other)
    if mine is None or theirs is None:
        return
    for field, what in SHARED.items():
        if mine.get(field) != theirs.get(field):
            raise MismatchError(
                f"{': '.join(one)} and {': '.join(other)} can't stand at equal cost: they don't share {what} "
                f"({field}: {_shown(mine.get(field))} against {_shown(theirs.get(field))})"
            )


def _shown(arguments: Any) -> str:
    return " ".join(map(str, arguments)) if isinstance(arguments, list | tuple) else str(arguments)
