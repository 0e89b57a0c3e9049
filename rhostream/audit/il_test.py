"""How right the IL model is on the test set: asked of an IL table of the test shards that the same model made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rhostream import storage
from rhostream.audit.il_quality import il_quality
from rhostream.audit.runs import RunFolder, is_table
from rhostream.audit.views import open_ledger
from rhostream.errors import MismatchError, UsageError


@dataclass(frozen=True)
class ILTest:
    """The share of test samples whose label the IL model predicts, and of how many."""

    accuracy: float
    samples: int
    fingerprint: str  # of the table: what made its il


def il_on_test_set(table: str, runs: Mapping[str, RunFolder], roots: Mapping[str, str] | None = None) -> ILTest:
    """The IL model's accuracy on the test shards that `table` is of: compute-il's, with the model of the runs' il.

    Raises UsageError for what is no IL table with classes, or a table of the shards that a run was trained on,
    MismatchError where no run's il is of that model.
    """
    url = storage.resolve(table)
    shown = storage.redact(url)
    if not is_table(url):
        raise UsageError(f"--il-test {shown} is no IL table: make one of the test shards with compute-il")
    with open_ledger(url, roots=roots) as ledger:
        found = il_quality(ledger)
        shards = set(ledger.sql("SELECT DISTINCT shard FROM il")["shard"].to_pylist())
    if found["accuracy"] is None:
        raise UsageError(f"--il-test {shown}: no row has both a label and an il, so there is no accuracy")
    pinned = {name: (run.record.get("fingerprints") or {}).get("il") for name, run in runs.items()}
    if found["fingerprint"] not in pinned.values():
        have = ", ".join(sorted({str(il) for il in pinned.values() if il})) or "none"
        raise MismatchError(f"--il-test {shown} has the fingerprint {found['fingerprint']}, the il of these runs "
                            f"{have}: another IL model made it")  # fmt: skip
    for name, run in runs.items():
        if both := sorted(shards & set(run.shards)):
            raise UsageError(f"--il-test {shown} is of shards that {name} was trained on, such as {both[0]}: give a "
                             "table of the test shards")  # fmt: skip
    return ILTest(float(found["accuracy"]), int(found["rows"]), str(found["fingerprint"]))


def of_runs(tested: ILTest | None, facts: Any) -> ILTest | None:
    """The test of the IL model that these runs' il is of; None where it isn't known."""
    if tested is None:
        return None
    pinned = {(one.folder.record.get("fingerprints") or {}).get("il") for one in facts}
    return tested if pinned == {tested.fingerprint} else None


def accuracy_of(tested: ILTest | None, facts: Any) -> float | None:
    """How right the IL model of these runs is on the test set; None where it isn't known."""
    known = of_runs(tested, facts)
    return None if known is None else known.accuracy
