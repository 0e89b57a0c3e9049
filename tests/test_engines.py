"""Who makes the parts of a job: one value goes to any process, and a process that dies takes no other shard with it."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import rhostream
from rhostream.errors import MissingExtraError, ShardError, UsageError
from rhostream.irreducible import Summary
from rhostream.irreducible.engines import local
from rhostream.irreducible.work import Outcome, Shard, ShardWork, Watch
from rhostream.stream import scan
from tests.support import poison
from tests.support.forks import CONTEXT

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


def taken(work: ShardWork, shard: Shard) -> Outcome:
    """In another process."""
    torch.set_num_threads(work.threads)
    return local.one(work.open(), shard)


def test_the_work_of_a_job_goes_to_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pickle, its networks with it; each shard's outcome comes back, and the bytes of the parts are the same."""

    def elsewhere(engine: local.Local, work: ShardWork, shards: Sequence[Shard], watch: Watch) -> Iterator[Outcome]:
        with CONTEXT.Pool(1) as pool:
            for shard in shards:
                outcome = pool.apply(taken, (work, shard))
                watch.admit(outcome)
                yield outcome

    shards = [poison.shard(tmp_path / f"{n}.tar", 20 + n) for n in range(3)]
    here = scored(shards, tmp_path / "here", threads=1)
    monkeypatch.setattr(local.Local, "outcomes", elsewhere)
    there = scored(shards, tmp_path / "there", threads=1)
    assert parts(tmp_path / "there") == parts(tmp_path / "here") and here.made == there.made == 3
    assert (there.ok, there.scored, there.labels) == (here.ok, here.scored, here.labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"actors": 2}, "--actors goes with --engine ray"),
        ({"gpus_per_actor": 0.5}, "--gpus-per-actor goes with --engine ray"),
        ({"engine": "ray", "workers": 2}, "--workers 2: with --engine ray an actor reads its shard itself"),
        ({"engine": "ray", "actors": 0}, "--actors 0: expected 1 or more"),
        ({"engine": "ray", "cpus_per_actor": 0.0}, "--cpus-per-actor 0"),
        ({"engine": "rya"}, "unknown 'rya', expected one of local, ray"),
    ],
)
def test_options_of_an_engine_are_refused_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        scored([poison.shard(tmp_path / "a.tar", 2)], tmp_path / "t", **options)
    assert not (tmp_path / "t").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed here")
def test_without_ray_its_engine_says_how_to_have_it(tmp_path: Path) -> None:
    shard = poison.shard(tmp_path / "a.tar", 2)
    with pytest.raises(MissingExtraError, match=r"rhostream\[ray\]"):
        scored([shard], tmp_path / "t", engine="ray")
    with pytest.raises(MissingExtraError, match=r"rhostream\[ray\]"):
        rhostream.index([shard], str(tmp_path / "t"), kind=JUDGED["kind"], engine="ray")


def test_one_file_of_the_library_imports_ray() -> None:
    library = Path(rhostream.__file__).parent
    found = {
        str(path.relative_to(library))
        for path in library.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == "ray" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and str(node.module).partition(".")[0] == "ray")
    }
    assert found == {"irreducible/engines/ray.py"}
