"""Runs without a model: an attempt that logs four rows a step and commits, and chains of any length made at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from rhostream.runs import chain, compaction
from rhostream.runs.attempt import Attempt
from rhostream.runs.link import BLOCK, Link, Place, url_of
from rhostream.runs.tensors import payload
from tests.support.audit_fixtures import log_rows

ROWS = 4  # of a step; the first is kept
STATE = payload({"w": torch.zeros(2)}, {})
PINNED = {"selection": "global"}
RECORD = {"settings": {"rule": "loss", "buffer_size": ROWS}, "shards": []}


def begin(run: str, start: Link | None = None) -> Attempt:
    """The next attempt at a run, from the state in force or another one, ready to take steps."""
    attempt = Attempt(run, dict(PINNED))
    attempt.open(RECORD, start=None if start is None else start.place)
    attempt.claim()
    return attempt


def rows(step: int, label: int) -> list[dict[str, Any]]:
    return [
        {
            "pass": 0,
            "step": step,
            "key": f"k{step}-{n}",
            "shard": "web/0.tar",
            "ordinal": ROWS * step + n,
            "label": label,
            "loss": 1.0,
            "il": None,
            "score": 1.0,
            "correct": False,
            "kept": n == 0,
            "reason": "below" if n else "kept",
            "weight": 1.0,
        }
        for n in range(ROWS)
    ]


def take(attempt: Attempt, steps: int = 1) -> None:
    """Take steps; each of their rows says by its label which attempt took it."""
    for _ in range(steps):
        log_rows(attempt.log, rows(attempt.step, attempt.attempt), attempt.step)
        attempt.steps.append({"step": attempt.step, "pass": 0, "kept": 1})
        for reason, n in (("kept", 1), ("below", ROWS - 1)):
            attempt.counts[reason] = attempt.counts.get(reason, 0) + n
        attempt.step += 1


def commit(attempt: Attempt, *, keep: int = 2, handed_out: bool = False) -> Link:
    return attempt.commit(
        {} if handed_out else STATE,
        pass_index=0,
        buffer=attempt.step,
        complete=False,
        keep=keep,
        selector={},
        handed_out=handed_out,
    )


def two_ranks(rank: int, run: str) -> list[str]:
    """Six commits of two ranks, each of which logs half of every step; every second one is whole."""
    from rhostream.selection.ranks import Ranks
    from tests.support.ranks import join_group, leave_group

    chain.WHOLE_EVERY = 2
    ranks = Ranks(join_group())
    attempt = Attempt(run, dict(PINNED), ranks)
    attempt.open(RECORD)
    attempt.claim()
    digests = []
    for step in range(6):
        log_rows(attempt.log, rows(step, rank)[2 * rank : 2 * rank + 2], step)
        attempt.counts["below"] = attempt.counts.get("below", 0) + 2 - (rank == 0)
        if ranks.first:
            attempt.counts["kept"] = attempt.counts.get("kept", 0) + 1
            attempt.steps.append({"step": step, "pass": 0, "kept": 1})
        attempt.step += 1
        digests.append(
            attempt.commit(
                STATE if ranks.first else {}, pass_index=0, buffer=step + 1, complete=False, keep=1, selector={}
            ).digest
        )
    leave_group()
    return digests


def long_chain(links: int, ranks: int = 8, segment_bytes: int = 4096) -> Iterator[tuple[str, bytes]]:
    """(path below the run, bytes) of a run with that many commits of one step each, compacted; segments are named and
    aren't there, but for who commits behind it."""
    yield "run.json", json.dumps({"version": 1, "fingerprints": PINNED, **RECORD}).encode()
    yield "attempts/0.json", json.dumps({"from": None}).encode()
    whole: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
    before: Place | None = None
    for number in range(links):
        fresh = [
            _segment(f"log/attempt=0/rank={r}/{number:010d}-{number:010d}.parquet", segment_bytes, 1)
            for r in range(ranks)
        ]
        if number % BLOCK == 0:
            for rank, segments in enumerate(whole):
                _compact(segments, rank, number, segment_bytes)
        listed = [s for segments in whole for s in segments] + fresh if number % BLOCK == 0 else fresh
        link = Link(
            step=number + 1,
            pass_index=0,
            buffer=number + 1,
            attempt=0,
            complete=False,
            number=number,
            previous=before,
            whole=number % BLOCK == 0,
            log=listed,
        )
        data = link.encode()
        before = replace(link, digest=hashlib.sha256(data).hexdigest()).place
        yield url_of("", 0, number).lstrip("/"), data


def _segment(path: str, size: int, count: int) -> dict[str, Any]:
    return {"path": path, "rows": ROWS * count, "bytes": size * count, "sha256": "0" * 64}


def _compact(segments: list[dict[str, Any]], rank: int, number: int, size: int) -> None:
    """What compaction leaves of a block: a tail that grows until it is full."""
    for _ in range(BLOCK if number else 0):
        if not segments or segments[-1]["bytes"] + size > compaction.TARGET:
            segments.append(
                _segment(f"log/attempt=0/rank={rank}/merged={number:010d}/{number:010d}-{number:010d}.parquet", 0, 0)
            )
        segments[-1]["bytes"] += size
        segments[-1]["rows"] += ROWS


def branch(run: str) -> list[tuple[int, int]]:
    """(step, who took it) of every step that counts, by the first row of each."""
    from rhostream.runs import checkpoint
    from rhostream.tables import selections

    latest = checkpoint.latest(run)
    log = selections.read(run, latest.log if latest else []).to_pylist()
    assert [row["ordinal"] for row in log] == list(range(len(log)))
    return [(row["step"], row["label"]) for row in log[::ROWS]]


__all__ = ["PINNED", "RECORD", "STATE", "begin", "branch", "chain", "commit", "long_chain", "rows", "take"]
