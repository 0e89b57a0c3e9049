"""The tables and tiles of a report, as rows of text: shares and means of groups of runs, never a number unknown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rhostream.audit.account import mean
from rhostream.audit.compare import NOT_REACHED, UNIFORM, Comparison
from rhostream.audit.facts import RunFacts
from rhostream.audit.verdict import final_accuracy, of_evaluations
from rhostream.inert import one_line
from rhostream.tables.classes import named

Groups = Mapping[str, Sequence[RunFacts]]
UNKNOWN = "–"
SHOWN_CLASSES = 40
MOST_CHANGED = 3  # sources whose change is told in words
PHASES = ("wait", "score", "train", "log", "evaluate", "checkpoint")


def percent(value: float | None) -> str:
    """A share of 1 as per cent."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """A count, in full below a million and short above."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def class_name(run: RunFacts, label: int | None) -> str:
    """The label, with its class's name where run.json has one."""
    return UNKNOWN if label is None else named(run.folder.class_names, label)


def recalls(facts: Iterable[RunFacts]) -> list[list[str]]:
    """The names of the columns, then a row for each run of pairs that was evaluated; [] where there is none."""
    known = [one for one in facts if one.recalls]
    names = list(dict.fromkeys(name for one in known for name in one.recalls))
    rows = [[one.name, *(percent(one.recalls.get(name)) for name in names)] for one in known]
    return [["run", *(name.replace("_", " ") for name in names)], *rows] if rows else []


def compared(found: Mapping[str, Mapping[str, Sequence[Comparison]]]) -> list[list[str]]:
    """A row for every run and baseline."""
    return [
        [c.run, c.baseline, percent(c.target), f"{c.baseline_steps:,} of {c.budget:,}",
         NOT_REACHED if c.steps is None else f"{c.steps:,}", NOT_REACHED if c.speedup is None else f"{c.speedup:.2f}x",
         f"{c.even:.2f}x" if math.isfinite(c.even) and c.kind == UNIFORM else UNKNOWN, number(c.baseline_units),
         NOT_REACHED if c.steps is None else number(c.units)]
        for kinds in found.values() for pairs in kinds.values() for c in pairs
    ]  # fmt: skip


def costs(groups: Groups, window: int) -> dict[str, Any]:
    """What every group did and spent: means over its runs, and the names of the columns."""
    rows = []
    smoothed = [f"final accuracy, {of_evaluations(window)}"] if window > 1 else []
    for name, runs in groups.items():
        spent = [run.folder.cost for run in runs]
        units = mean(c.get("forward_units") for c in spent)
        macs = mean(run.row["macs"] for run in runs)
        work = None if units is None or not macs else units * macs
        rows.append([
            name, f"{len(runs)}", number(mean(run.row["steps"] for run in runs)),
            *(percent(final_accuracy(runs, size)) for size in ((window, 1) if window > 1 else (1,))),
            number(mean(c.get("scored") for c in spent)),
            number(mean(c.get("trained") for c in spent)), number(units), number(work),
            number(mean(c.get("il_units") for c in spent)),
        ])  # fmt: skip
    head = ["group (means of its runs)", "runs", "steps", *smoothed, "last evaluation", "samples scored",
            "samples trained", "forward units", "multiply-adds", "IL, in units"]  # fmt: skip
    return {"head": head, "rows": rows}


def seconds(groups: Groups) -> list[list[str]]:
    """Where every group's time went: means over its runs, and per step."""
    rows = []
    for name, runs in groups.items():
        spent = [run.folder.cost.get("seconds") or {} for run in runs]
        phases = [mean(s.get(phase) for s in spent) for phase in PHASES]
        known = [s for s in phases if s is not None]
        steps = mean(run.row["steps"] for run in runs)
        each = f"{1000 * sum(known) / steps:,.1f}" if known and steps else UNKNOWN
        total = f"{sum(known):,.1f}" if known else UNKNOWN
        rows.append([name, *(UNKNOWN if s is None else f"{s:,.1f}" for s in phases), total, each])
    return rows


def test_losses(facts: Iterable[RunFacts]) -> list[list[str]]:
    """A row a run whose evaluations give a mean loss and no accuracy: the first, the last and the lowest."""
    rows = []
    for one in facts:
        if one.test_losses and not one.curve.steps:
            (_, first), (_, last) = one.test_losses[0], one.test_losses[-1]
            at, lowest = min(one.test_losses, key=lambda each: each[1])
            rows.append([one.name, f"{first:.4f}", f"{last:.4f}", f"{lowest:.4f}", f"{at:,}"])
    return rows


def reasons(groups: Groups) -> dict[str, Any]:
    """Share of every reason, by group."""
    totals = {}
    for name, runs in groups.items():
        total: dict[str, int] = {}
        for run in runs:
            for reason, count in run.reasons.items():
                total[reason] = total.get(reason, 0) + count
        totals[name] = total
    rows = []
    for reason in sorted({r for total in totals.values() for r in total}, key=_common_first):
        shares = [total.get(reason, 0) / max(1, sum(total.values())) for total in totals.values()]
        rows.append(
            {
                "reason": reason,
                "says": MEANINGS.get(reason, ""),
                "cells": [percent(share) if share else UNKNOWN for share in shares],
            }
        )
    return {"groups": list(totals), "rows": rows}


def _common_first(reason: str) -> tuple[int, str]:
    return ({"kept": 0, "below": 1}.get(reason, 2), reason)


MEANINGS = {
    "kept": "the batch: a gradient step was taken on it",
    "below": "looked at, but others were worth more (for uniform: not drawn)",
    "band": "its irreducible loss, or the column that the band is of, is outside the band",
    "shortlist": "a cheaper score left it out",
    "tail": "the end of a pass, too few for a buffer",
    "missing_il": "the table has no irreducible loss for it",
    "quarantined": "the table says that it can't be used",
    "unreadable": "its bytes couldn't be decoded",
    "nonfinite": "its loss was NaN or infinite",
    "holdout": "the IL model had learned from it",
    "unlisted": "there was a keep-list, and it wasn't on it",
    "denied": "a deny-list names it",
    "duplicate": "a near-duplicate of one that scored better in the same buffer",
}


def noisy(groups: Groups) -> list[list[str]]:
    """Shares of wrong labels, by group, where they are known."""
    return [[name, percent(mean(r.noisy.get(True) for r in runs)), percent(mean(r.noisy.get(False) for r in runs))]
            for name, runs in groups.items() if any(r.noisy for r in runs)]  # fmt: skip


def balance(groups: Groups) -> list[list[str]]:
    """Effective classes of kept batches beside those of chance, by group: over the first steps, and over all."""
    rows = []
    for name, runs in groups.items():
        known = [run.balance for run in runs if run.balance and run.balance[0][1] is not None]
        if known:
            means = [mean(of[part][at] for of in known) for part in (0, 1) for at in (1, 2)]
            rows.append([name, *(UNKNOWN if value is None else f"{value:.2f}" for value in means)])
    return rows


def classes(main: RunFacts, groups: Groups) -> dict[str, Any]:
    """Kept rates of the main run's group and accuracies of all groups, worst class first; and what stands out."""
    own = next((list(runs) for runs in groups.values() if main in runs), [main])
    planned: dict[int, list[int]] = {}
    for run in own:
        for label, (seen, kept) in run.classes.items():
            at = planned.setdefault(label, [0, 0])
            at[0], at[1] = at[0] + seen, at[1] + kept
    accuracy = {name: class_means(runs) for name, runs in groups.items() if any(r.class_accuracy for r in runs)}
    first = next(iter(accuracy.values()), {})
    rates = {label: kept / seen for label, (seen, kept) in planned.items() if seen}
    labels = sorted({*planned, *first}, key=lambda label: (first.get(label, 2.0), rates.get(label, 2.0), label))
    top = max(rates.values(), default=0) or 1
    rows = [
        {"name": class_name(main, label), "planned": number(planned.get(label, [0])[0]),
         "rate": percent(rates.get(label)), "bar": round(100 * rates.get(label, 0) / top),
         "accuracy": [percent(a.get(label)) for a in accuracy.values()]}
        for label in labels[:SHOWN_CLASSES]
    ]  # fmt: skip
    return {"groups": list(accuracy), "rows": rows, "hidden": max(0, len(labels) - SHOWN_CLASSES),
            "says": _stands_out(main, rates, accuracy)}  # fmt: skip


def sources(facts: Iterable[RunFacts]) -> dict[str, Any]:
    """Each run's sources, the largest change of the mixture first, and that change in words."""
    rows, says = list[list[str]](), list[str]()
    for run in facts:
        for one in run.sources[:SHOWN_CLASSES]:
            shares = [percent(one[name]) for name in ("kept_rate", "share_planned", "share_kept")]
            means = [UNKNOWN if one[name] is None else f"{one[name]:.3f}" for name in ("mean_il", "mean_loss")]
            counts = [number(one[name]) for name in ("planned", "candidates", "kept")]
            rows.append([run.name, one["source"], *counts, *shares, *means])
        changes = [one for one in run.sources if one["share_kept"] is not None][:MOST_CHANGED]
        if len(run.sources) > 1 and changes:
            each = [
                f"{one_line(c['source'], 40)} {percent(c['share_planned'])} of the looks and "
                f"{percent(c['share_kept'])} of what was kept"
                for c in changes
            ]
            says.append(f"{run.name}: {', '.join(each)}.")
    hidden = sum(max(0, len(run.sources) - SHOWN_CLASSES) for run in facts)
    return {"rows": rows, "says": says, "hidden": hidden}


def class_means(runs: Sequence[RunFacts]) -> dict[int, float]:
    """{label: mean accuracy at the last evaluation} of a group; classes of which nothing is known are left out."""
    if not any(run.class_accuracy for run in runs):
        return {}
    size = max(len(r.class_accuracy) for r in runs)
    means = {label: mean(r.class_accuracy[label] if label < len(r.class_accuracy) else None for r in runs)
             for label in range(size)}  # fmt: skip
    return {label: value for label, value in means.items() if value is not None}


def _stands_out(main: RunFacts, rates: Mapping[int, float], accuracy: Mapping[str, Mapping[int, float]]) -> list[str]:
    says = []
    if len(rates) > 1:
        least, most = min(rates, key=lambda k: (rates[k], k)), max(rates, key=lambda k: (rates[k], -k))
        says.append(f"Least kept is class {class_name(main, least)} ({percent(rates[least])} of its looks), most kept "
                    f"class {class_name(main, most)} ({percent(rates[most])}).")  # fmt: skip
    worst = [f"{name} {percent(min(a.values()))} (class {class_name(main, min(a, key=lambda k: (a[k], k)))})"
             for name, a in accuracy.items() if a]  # fmt: skip
    if worst:
        says.append(f"Worst class at the last evaluation: {'; '.join(worst)}.")
    return says


def runs(facts: Iterable[RunFacts]) -> list[list[str]]:
    """What every run of the page was."""
    rows = []
    for one in facts:
        row, record = one.row, one.folder.record
        rows.append([one.name, one.kind, str(row["model"] or UNKNOWN), f"{row['batch_size']} of {row['buffer_size']}",
                     one.images or "-", UNKNOWN if row["seed"] is None else str(row["seed"]), f"{row['steps']:,}",
                     "yes" if row["complete"] else "no", str(record.get("precision") or UNKNOWN),
                     str(record.get("device") or UNKNOWN)])  # fmt: skip
    return rows
