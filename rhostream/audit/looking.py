"""The account of `--ratio auto`: how often a run looked, what that would have bought as training, what it kept when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rhostream.audit.views import Ledger
from rhostream.runs.cost import Cost

if TYPE_CHECKING:  # which asks for this file's figures
    from rhostream.audit.facts import RunFacts

PARTS = 5  # of a run


@dataclass(frozen=True)
class Looking:
    """Of one run."""

    looked: int  # steps that scored their buffer
    whole: int  # steps that kept it all, without a look
    share: tuple[float, ...]  # of a buffer that was to be kept, means over `PARTS` of the run


def looking_of(ledger: Ledger) -> Looking | None:
    """Of the ledger's only run; None where no step had a share of its own."""
    parts = ledger.sql(
        "SELECT count(*) FILTER (loss_candidates IS NOT NULL) AS looked, "
        "count(*) FILTER (loss_candidates IS NULL) AS whole, avg(ratio)::DOUBLE AS share FROM steps "
        "CROSS JOIN (SELECT max(step) + 1 AS steps FROM steps) WHERE ratio IS NOT NULL "
        "GROUP BY step * $parts // greatest(steps, $parts) ORDER BY min(step)",
        {"parts": PARTS},
    ).to_pylist()
    if not parts:
        return None
    looked, whole = (sum(part[name] for part in parts) for name in ("looked", "whole"))
    return Looking(looked, whole, tuple(part["share"] for part in parts))


def looks_in_words(runs: Iterable[RunFacts]) -> list[tuple[str, str]]:
    """(run, sentence) of each run that decided by itself how much to keep."""
    return [(run.name, _words(run, run.looking)) for run in runs if run.looking is not None]


def _words(run: RunFacts, found: Looking) -> str:
    steps = found.looked + found.whole
    says = f"It looked at {found.looked:,} of {steps:,} buffers"
    if run.folder.cost:
        cost = Cost.from_json(run.folder.cost)
        units = cost.scored * cost.look_units
        says += (f", for {units:,.0f} of its {cost.forward_units:,.0f} forward units (training on {units / 3:,.0f} "
                 f"samples more would have cost as much; it trained on {cost.trained:,})")  # fmt: skip
    shares = ", ".join(f"{100 * share:.0f}" for share in found.share)
    return (f"{says}, and kept all of {found.whole:,} without a look; share of a buffer that it kept, from the run's "
            f"beginning to its end: {shares} %.")  # fmt: skip
