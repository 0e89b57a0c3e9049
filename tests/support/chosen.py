"""What `--ratio auto` must have kept at each step, made again out of a run's tables alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import rhostream
from rhostream.selection import trial
from rhostream.selection.ratio import MARGIN, WINDOW

CLASSES = 4  # of the world


def recomputed(run: Path, sizes: list[int], *, outside: bool = False, fails: bool | None = None) -> list[int]:
    """How many were to be kept at each step that chose; `outside`: by an IL model of others; `fails`: of `verdicts`."""
    kept, weight = ("excess", "4 * greatest(2 * exp(-loss) - 1, 0)") if outside else ("greatest(excess, 0)", "2")
    # one row a step and share, by SQL: rows with a score, and what the share gains
    question = f"""
        WITH scored AS (
            SELECT step, score, ordinal, shard, least(loss, ln({CLASSES})) - least(il, ln({CLASSES})) AS excess,
                   {weight} * least(excess, 0) AS mistake
            FROM selections WHERE score IS NOT NULL),
        ranked AS (
            SELECT *, row_number() OVER (PARTITION BY step ORDER BY score DESC) AS best,
                   row_number() OVER (PARTITION BY step ORDER BY mistake) AS worst FROM scored),
        size AS (SELECT unnest({sizes}) AS n)
        SELECT step, n, count(*) AS rows,
               sum({kept}) FILTER (best <= n) + sum(mistake) FILTER (worst <= n) AS gain,
               3 * least(n, count(*)) + CASE WHEN n < {sizes[-1]} THEN count(*) ELSE 0 END AS price
        FROM ranked, size GROUP BY step, n ORDER BY step, n"""
    with rhostream.open_ledger(str(run)) as ledger:
        found = ledger.sql(question).to_pylist()
        steps = ledger.sql("SELECT step, ratio FROM steps WHERE ratio IS NOT NULL ORDER BY step").to_pylist()
    out, chosen = _held(run, fails) if outside else set[int](), list[int]()
    for one in steps:
        before = [row for row in found if row["step"] < one["step"]]
        window = sorted({row["step"] for row in before})[-WINDOW:]
        worth = {
            n: sum(row["gain"] for row in before if row["step"] in window and row["n"] == n)
            / sum(row["price"] for row in before if row["step"] in window and row["n"] == n)
            for n in sizes
            if window
        }
        back = one["step"] in out
        worth = {n: v for n, v in worth.items() if (n < sizes[-1] if back else v > 0 or n == sizes[-1])}
        best = max(worth, key=lambda n: worth[n], default=sizes[0])
        held = worth.get(chosen[-1]) if chosen else None
        chosen.append(chosen[-1] if held is not None and worth[best] <= held + MARGIN * abs(held) else best)
    return chosen


def _held(run: Path, fails: bool | None) -> set[int]:
    """The steps at which everything was out of the question, since a trial of it had failed."""
    out = set[int]()
    for at, failed, length in verdicts(run, fails):
        if failed:
            out |= set(range(at, at + length))
    return out


def verdicts(run: Path, fails: bool | None = None) -> Iterator[tuple[int, bool, int]]:
    """Of each trial that came to its end: the step after it, whether it failed, and how long a run then looks.

    `fails`: what every verdict was made to be.
    """
    question = f"""
        SELECT s.step, s.ratio = 1 AS whole, count(l.correct) > 0 AS looked,
               avg(least(l.loss, ln({CLASSES}))) FILTER (l.il < ln(2)) AS unlearned,
               avg((l.loss < ln(2))::int) AS agreed
        FROM steps s JOIN selections l USING (step) WHERE l.score IS NOT NULL GROUP BY ALL ORDER BY s.step"""
    with rhostream.open_ledger(str(run)) as ledger:
        steps = ledger.sql(question).to_pylist()
    length = trial.HELD
    phases: list[list[dict[str, Any]]] = []
    for one in steps:
        if not phases or phases[-1][0]["whole"] != one["whole"]:
            phases.append([])
        phases[-1].append(one)
    for before, whole in itertools.pairwise(phases):
        looks = [one for one in before if one["looked"] and one["unlearned"] is not None][-trial.LOOKS :]
        if not whole[0]["whole"] or len(looks) < trial.LOOKS or len(whole) < trial.TRIAL:
            continue
        proof = [one for one in whole[: trial.TRIAL] if one["looked"]]
        assert [one["step"] for one in proof] == [one["step"] for one in whole[trial.TRIAL - trial.PROOF : trial.TRIAL]]
        rises = []
        for name in ("unlearned", "agreed"):
            old, new = ([one[name] for one in some] for some in (looks, proof))
            error = np.sqrt(np.var(old, ddof=1) / len(old) + np.var(new, ddof=1) / len(new))
            rises.append(np.mean(new) - np.mean(old) > trial.SURE * error)
        failed = bool(rises[0] and not rises[1]) if fails is None else fails
        yield whole[trial.TRIAL - 1]["step"] + 1, failed, length
        length *= 2 if failed else 1
