"""Questions to a log of 100,000,000 rows, and proofs of a table in many parts: seconds on this machine, files cached.

The log has 100 segments of a million rows with keys of 9 digits, listed by a checkpoint as a run leaves them. It is
made once and kept below the folder for temporary files (about 2 GB); each round opens it anew, with all its proofs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.data import FOLDER
from benchmarks.measure import Figure
from benchmarks.memory import table
from rhostream import storage
from rhostream.audit.questions import run_question
from rhostream.audit.verify import verify
from rhostream.audit.views import open_ledger
from rhostream.candidates import Reason
from rhostream.runs import chain
from rhostream.runs.link import Link
from rhostream.runs.record import write_record
from rhostream.runs.tensors import payload
from rhostream.tables import selections
from rhostream.tables.segments import segment_record

SEGMENTS, ROWS, BUFFER, CLASSES, SHARDS, LANES = 100, 1_000_000, 320, 14, 1_000, 32
TARGET, VERIFY_TARGET = 5.0, 10.0  # seconds
SQL = "SELECT label, count(*) FILTER (kept) / count(*) AS kept_rate FROM selections GROUP BY label ORDER BY label"


def run(pairs: int) -> list[Figure]:
    """Seconds to open, to ask and to verify; the first round warms the page cache and is not counted."""
    folder, parts, many = str(log()), str(table(1_000_000, 1_000)), str(table(100_000_000, 10_000))
    rounds = [_ask(folder) for _ in range(pairs + 1)][1:]
    case = f"log of {SEGMENTS * ROWS:,} rows"
    found = [Figure("audit", case, "open and kept rate by class, in SQL", _sums(rounds, "open", "sql"), TARGET,
                    at_least=False, unit="s"),
             Figure("audit", case, "open and @kept_by_class", _sums(rounds, "open", "question"), TARGET, at_least=False,
                    unit="s")]  # fmt: skip
    for key, what in (
        ("open", "open, every segment proved"),
        ("sql", "kept rate by class"),
        ("question", "@kept_by_class"),
    ):
        found += [
            Figure("audit", case, what, _sums(rounds, key), unit="s"),
            Figure("audit", case, f"{what}, processor time", _sums(rounds, f"{key} cpu"), unit="s"),
        ]
    checks = [_timed(lambda: verify(parts)) for _ in range(pairs)]
    opens = [_timed(lambda: _count(many)) for _ in range(pairs)]
    return [
        *found,
        Figure("audit", "table of 1,000,000 rows in 1,000 parts", "verify", tuple(c[0] for c in checks), VERIFY_TARGET,
               at_least=False, unit="s"),
        Figure("audit", "table of 10,000 parts", "open and count parts", tuple(o[0] for o in opens), unit="s"),
    ]  # fmt: skip


def _sums(rounds: list[dict[str, float]], *keys: str) -> tuple[float, ...]:
    return tuple(sum(each[key] for key in keys) for each in rounds)


def _ask(folder: str) -> dict[str, float]:
    found = {}
    ledger = None

    def opened() -> None:
        nonlocal ledger
        ledger = open_ledger(folder)

    found["open"], found["open cpu"] = _timed(opened)
    assert ledger is not None
    with ledger:
        found["sql"], found["sql cpu"] = _timed(lambda: ledger.sql(SQL))
        found["question"], found["question cpu"] = _timed(lambda: run_question(ledger, "kept_by_class"))
    return found


def _count(folder: str) -> None:
    with open_ledger(folder) as ledger:
        ledger.sql("SELECT count(DISTINCT shard) FROM il WHERE ordinal = 0")


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def log() -> Path:
    """The run folder, made if it isn't there."""
    folder = FOLDER / f"log-{SEGMENTS * ROWS}"
    if not folder.exists():
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        _write_run(unfinished)
        unfinished.rename(folder)
    return folder


def _write_run(folder: Path) -> None:
    listed = list[dict[str, Any]]()
    counts = np.zeros(len(Reason), np.int64)
    for number in range(SEGMENTS):
        rows, path = _segment(number), f"log/attempt=0/rank=0/{number}.parquet"
        data = selections.encode(rows)
        storage.create(str(folder / path), data)
        counts += np.bincount(rows["reason"].combine_chunks().indices, minlength=len(Reason))
        listed.append(segment_record(path, data, ROWS))
    write_record(str(folder), {"settings": {"rule": "rho"}, "fingerprints": {}})
    done = Link(step=SEGMENTS * ROWS // BUFFER, pass_index=0, buffer=0, attempt=0, complete=True,
                      log=listed, counts={r.name: int(counts[r]) for r in Reason if counts[r]})  # fmt: skip
    chain.commit(str(folder), chain.save_files(str(folder), done, payload({"w": torch.zeros(1)}, {})))


def _segment(number: int) -> pa.Table:
    """A million rows of consecutive steps."""
    rng, row = np.random.default_rng(number), np.arange(number * ROWS, (number + 1) * ROWS)
    shard = np.repeat(rng.integers(0, SHARDS, LANES), BUFFER // LANES)[row % BUFFER].astype(np.int32)
    reason = np.select([rng.random(ROWS) < 0.1, rng.random(ROWS) < 0.01], [Reason.kept, Reason.quarantined],
                       Reason.below).astype(np.int8)  # fmt: skip
    never = reason == Reason.quarantined
    loss, il = rng.exponential(1, ROWS).astype(np.float32), rng.exponential(1, ROWS).astype(np.float32)
    keys = np.char.zfill(rng.integers(0, 10**9, ROWS).astype("U9"), 9)
    columns = [
        pa.array(np.zeros(ROWS, np.int32)), pa.array(row // BUFFER), pa.array(keys),
        pa.DictionaryArray.from_arrays(pa.array(shard), [f"bucket/train-{n:05d}.tar" for n in range(SHARDS)]),
        pa.array(rng.integers(0, 10_000, ROWS).astype(np.int32)),
        pa.array(rng.integers(0, CLASSES, ROWS).astype(np.int32)), pa.array(loss, mask=never), pa.array(il, mask=never),
        pa.array(loss - il, mask=never), pa.array(loss < 0.7, mask=never), pa.array(reason == Reason.kept),
        pa.DictionaryArray.from_arrays(pa.array(reason), selections.REASONS), pa.array(np.ones(ROWS, np.float32)),
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=selections.SCHEMA)
