"""The account of a first run: what reaching uniform's best accuracy costs with the IL model on the bill.

Two prices, from the runs' own ledgers: forwards of the target (a backward counts two), and seconds of reading, scoring,
training and logging. The IL model is charged whole to each run that selects: its fit, its looks at itself and the
scoring of all samples. Nothing here knows who wins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rhostream.audit.metrics import best, steps_to_reach

NAMES = ("forwards", "seconds")
_STEPS = """
SELECT step + 1 AS step, test_accuracy, forward_units, sum(seconds) OVER (ORDER BY step) AS seconds
FROM steps WHERE run = $run ORDER BY step
"""


@dataclass(frozen=True)
class Bill:
    """What a way to choose costs, means over seeds: (forwards, seconds)."""

    way: str
    steps: float  # to the accuracy; infinite where a seed never has it
    reach: tuple[float, float]  # until then, the IL model left out
    whole: tuple[float, float]  # of the run
    il: tuple[float, float]  # of the IL model, 0 of a way that needs none

    @property
    def total(self) -> tuple[float, float]:
        """Until the accuracy is reached, the IL model included."""
        return self.reach[0] + self.il[0], self.reach[1] + self.il[1]

    @property
    def il_share(self) -> tuple[float, float]:
        """The IL model's cost as a share of the run's."""
        return self.il[0] / self.whole[0], self.il[1] / self.whole[1]


def account(
    ledger: Any, table: str, baselines: Sequence[str], ways: Sequence[str], seeds: Iterable[int], window: int
) -> list[Bill]:
    """Bills of `baselines`, the first of which sets the accuracy, its best, and of `ways`; runs are called WAY-SEED."""
    il_seconds = _il_seconds(Path(table))
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in seeds:
        rows = {way: ledger.sql(_STEPS, {"run": f"{way}-{seed}"}).to_pylist() for way in (*baselines, *ways)}
        goal = best([row["test_accuracy"] for row in _looked(rows[baselines[0]])], window)
        for way, mine in rows.items():
            looks = _looked(mine)
            at = steps_to_reach([r["step"] for r in looks], [r["test_accuracy"] for r in looks], goal, window)
            spent = next(((r["forward_units"], r["seconds"]) for r in mine if r["step"] == at), (math.inf, math.inf))
            (il,) = ledger.sql("SELECT il_units FROM runs WHERE run = $run", {"run": f"{way}-{seed}"})[
                "il_units"
            ].to_pylist()
            last = mine[-1]
            found.setdefault(way, []).append(
                (at or math.inf, *spent, last["forward_units"], last["seconds"],
                 *((il or 0.0, il_seconds) if way in ways else (0.0, 0.0)))
            )  # fmt: skip
    means = {way: [fmean(values) for values in zip(*each, strict=True)] for way, each in found.items()}
    return [
        Bill(way, m[0], (m[1], m[2]), (m[3], m[4]), (m[5], m[6])) for way, m in means.items()
    ]  # fmt: skip


def _looked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["test_accuracy"] is not None]


def _il_seconds(table: Path) -> float:
    """Of the fit, as the model beside the table says, and of the job that made the table."""
    model = json.loads((table.parent / "il-model" / "model.json").read_text())
    jobs = [json.loads(path.read_text())["seconds"] for path in (table / "jobs").glob("*.json")]
    return float(model["cost"]["seconds"]) + max(jobs, default=0.0)  # a second job found it made


def in_words(bills: Sequence[Bill]) -> list[str]:
    """The account as a table, and of each way that selects a sentence: does its first run pay, and if not, why."""
    first, *others = bills
    lines = [
        f"A first run, everything on the bill, to {first.way}'s best accuracy (a forward: of one sample by the target)",
        f"  {'':12}" + "".join(f"{name:>48}" for name in NAMES),
        f"  {'':12}" + "".join(f"{'to there':>12}{'IL model':>12}{'of the run':>12}{'together':>12}" for _ in NAMES),
    ]
    for bill in bills:
        cells = ""
        for kind in range(len(NAMES)):
            share = f"{bill.il_share[kind]:.1%}" if bill.il[kind] else "-"
            cells += f"{_figure(bill.reach[kind]):>12}{_figure(bill.il[kind]):>12}{share:>12}"
            cells += f"{_figure(bill.total[kind]):>12}"
        lines.append(f"  {bill.way:12}{cells}")
    selects = [bill for bill in others if any(bill.il)]
    baselines = [bill for bill in bills if not any(bill.il)]
    return [*lines, *(f"  {_verdict(bill, other, kind)}" for bill in selects for other in baselines for kind in (0, 1))]


def _figure(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:,.0f}" if value else "-"


def _verdict(mine: Bill, other: Bill, kind: int) -> str:
    """Whether a way pays on its first run beside one that needs no IL model, in one kind of price."""
    name, (ours, theirs) = NAMES[kind], (mine.total[kind], other.total[kind])
    begin = f"{mine.way} against {other.way}, in {name}:"
    if math.isinf(ours):
        return f"{begin} it doesn't pay: it never gets there in its {_figure(mine.whole[kind])} {name}."
    if ours < theirs:
        much = f"{other.way} never gets there" if math.isinf(theirs) else f"it costs {theirs / ours:.2f} times less"
        return f"{begin} the first run pays: {much}."
    room = theirs - mine.reach[kind]
    fewer, dearer = other.steps / mine.steps, (mine.reach[kind] / mine.steps) / (other.reach[kind] / other.steps)
    if room <= 0:
        return (
            f"{begin} no run pays: it needs {fewer:.2f} times fewer steps, and each costs {dearer:.2f} times as much."
        )
    runs = math.ceil(mine.il[kind] / room)
    return (
        f"{begin} the first run doesn't pay, as its IL model costs {mine.il[kind] / room:.1f} times what it saves; "
        f"{runs} runs that share it do."
    )
