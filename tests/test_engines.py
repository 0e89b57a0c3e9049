"""Who makes the parts of a job: one value goes to any process, and a process that dies takes no other shard with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream.errors import ShardError
from rhostream.irreducible import Summary
from rhostream.stream import scan
from tests.support import poison

JUDGED: dict[str, Any] = {
    "reference": "tests.support.poison:judge",
    "kind": "tests.support.poison:Deadly",
    "classes": 3,
}


def parts(table: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (table / "parts").rglob("*.parquet")}


def scored(shards: list[str], table: Path, **options: Any) -> Summary:
    return rhostream.compute_il(shards, None, str(table), **JUDGED, **options)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shard_that_ends_its_worker_is_named_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """One that did so once is read again; three times, and it is a bad shard. No row is lost and none comes twice."""
    monkeypatch.setattr(scan, "LOOK_SECONDS", 0.1)
    monkeypatch.setenv("RHOSTREAM_TEST_ONCE", str(tmp_path / "once"))
    (tmp_path / "s").mkdir()
    shards = [poison.shard(tmp_path / "s" / f"{n}.tar", 700) for n in range(3)]
    once = poison.shard(tmp_path / "s" / "once.tar", 700, poison.ONCE)
    deadly = poison.shard(tmp_path / "s" / "deadly.tar", 700, poison.DEADLY)
    summary = scored([deadly, *shards, once], tmp_path / "t", workers=workers)
    assert summary.bad_shards == {deadly: "ended its worker 3 times"}
    assert (summary.made, summary.samples, summary.ok) == (4, 2800, 2800)
    assert "deadly.tar ended the process that read it, 3 of 3" in caplog.text
    # Of two workers the one may be ended for the other's sake before its own death is seen.
    assert workers == 2 or "once.tar ended the process that read it, 1 of 3" in caplog.text
    (account,) = (tmp_path / "t" / "jobs").iterdir()
    assert json.loads(account.read_text())["bad_shards"] == summary.bad_shards
    assert scored([*shards, once], tmp_path / "whole", threads=summary.threads).made == 4
    assert parts(tmp_path / "t") == parts(tmp_path / "whole")


@pytest.mark.slow
def test_fail_fast_stops_at_a_shard_that_ends_its_worker(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="ended its worker 3 times"):
        scored([poison.shard(tmp_path / "a.tar", 9, poison.DEADLY)], tmp_path / "t", workers=1, fail_fast=True)


@pytest.mark.slow
def test_a_fit_reads_on_behind_a_shard_that_ends_its_worker(tmp_path: Path) -> None:
    good = [poison.shard(tmp_path / f"{n}.tar", 300) for n in range(2)]
    deadly = poison.shard(tmp_path / "deadly.tar", 900, poison.DEADLY)
    options: dict[str, Any] = {"model": "tests.support.own_kinds:net", "kind": JUDGED["kind"], "epochs": 1}
    told = rhostream.fit_il([*good, deadly], str(tmp_path / "m"), workers=2, fit_samples=400, **options)
    assert told.read["bad_shards"] == {deadly: "ended its worker 3 times"}
    alone = rhostream.fit_il(good, str(tmp_path / "alone"), fit_samples=400, **options)
    assert [fold["sha256"] for fold in told.folds] == [fold["sha256"] for fold in alone.folds]
