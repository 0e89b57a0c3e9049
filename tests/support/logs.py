"""What a run left behind: its log, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import rhostream
from rhostream.runs import checkpoint, tensors
from rhostream.tables import selections


def rows_of(run: Path) -> selections.pa.Table:
    latest = checkpoint.latest(str(run))
    assert latest is not None
    return selections.read(str(run), latest.log)


def log_of(run: Path) -> list[dict[str, object]]:
    latest = checkpoint.latest(str(run))
    assert latest is not None
    rows = selections.read(str(run), latest.log).to_pylist()
    return [{k: str(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    latest = checkpoint.latest(str(run))
    assert latest is not None
    return tensors.load_tensors(str(run), latest)[0]


def same(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return log_of(one) == log_of(other) and all(torch.equal(first[k], second[k]) for k in first)


def ask(folder: Path, question: str) -> list[dict[str, Any]]:
    with rhostream.open_ledger(str(folder)) as ledger:
        return ledger.sql(question).to_pylist()


def rows(folder: Path) -> list[str]:
    return [repr(row) for row in ask(folder, "SELECT * EXCLUDE (run) FROM selections ORDER BY step, shard, ordinal")]


def reasons(folder: Path) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for row in ask(folder, "SELECT DISTINCT step, reason FROM selections ORDER BY ALL"):
        found.setdefault(row["step"], set()).add(row["reason"])
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    latest = checkpoint.latest(str(folder))
    assert latest is not None
    return tensors.load_tensors(str(folder), latest)[0]


def same_weights(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return all(torch.equal(first[name], second[name]) for name in first)


def rates(folder: Path) -> list[float]:
    with rhostream.open_ledger(str(folder)) as ledger:
        return [round(v, 7) for v in ledger.sql("select learning_rate::double from steps order by step")[0].to_pylist()]
