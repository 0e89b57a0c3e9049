"""Tables without shards and runs without a model, of as many rows as one likes, as a job and a trainer leave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rhostream import storage
from rhostream.reasons import Reason
from rhostream.runs import chain
from rhostream.runs.link import Link
from rhostream.runs.record import write_record
from rhostream.runs.tensors import payload
from rhostream.tables import il, parquet, selections
from rhostream.tables.segments import segment_record

ROOT = "s3://elsewhere/train"  # nothing lies there


def make_table(
    table: str,
    parts: int,
    rows: int,
    *,
    class_names: Mapping[int, str] | None = None,
    alike: bool = False,
    threads: int = 16,
) -> tuple[str, list[str]]:
    """An IL table of so many parts of so many rows, which may be `alike`; its URL and those of its shards."""
    info = il.TableInfo(kind="il", roots={"train": ROOT}, ingredients={"made": "for tests"}, classes=10_000)
    il.make_or_match(table, info)
    with ThreadPoolExecutor(threads) as pool:
        numbers = iter(range(parts))
        while some := list(islice(numbers, 1024)):
            list(pool.map(lambda number: _put(table, info, number, rows, class_names or {}, alike), some))
    return table, list(shard_urls(parts))


def shard_urls(parts: int) -> Iterator[str]:
    return (f"{ROOT}/{number:06d}.tar" for number in range(parts))


def _put(table: str, info: il.TableInfo, number: int, rows: int, class_names: Mapping[int, str], alike: bool) -> None:
    facts, data = part(info, number, rows, class_names, alike=alike)
    storage.create(il.part_url(table, facts.shard), data)


def part(
    info: il.TableInfo, number: int, rows: int, class_names: Mapping[int, str] | None = None, *, alike: bool = False
) -> tuple[il.PartFacts, bytes]:
    """Facts and bytes of the part of shard `number`; rows that are `alike` are those of every other shard."""
    rng = np.random.default_rng(number)
    facts = il.PartFacts(
        fingerprint=info.fingerprint, kind=info.kind, shard=f"train/{number:06d}.tar", shard_size=1 << 31,
        shard_tag=rng.bytes(16).hex(), samples=rows, statuses={il.OK: rows}, members_seen=rows,
        members_used=rows, members_ignored=0, il_rows=rows, shard_sha256=rng.bytes(32).hex(),
        class_names=dict(class_names or {}),
    )  # fmt: skip
    return facts, il.encode_part(_rows(0 if alike else number, rows).cast(info.schema), facts)


@lru_cache(maxsize=16)
def _rows(number: int, rows: int) -> pa.Table:
    rng, row = np.random.default_rng(number), np.arange(rows)
    size = rng.integers(80_000, 120_000, rows)
    offset = 512 + np.concatenate([[0], np.cumsum(size + 1024)[:-1]]) if rows else row
    members = pa.ListArray.from_arrays(
        pa.array(np.arange(rows + 1, dtype=np.int32)),
        pa.StructArray.from_arrays(
            [pa.array(["jpg"] * rows, pa.string()), pa.array(offset, pa.int64()), pa.array(size, pa.int64())],
            fields=list(il.MEMBER),
        ),
    )
    columns = {
        "key": pa.array([f"{number:06d}{at:06d}" for at in row.tolist()], pa.string()),
        "ordinal": pa.array(row, pa.int32()),
        "members": members,
        "label": pa.array(rng.integers(0, 1_000, rows), pa.int32()),
        "il": pa.array(rng.exponential(1, rows).astype(np.float32)),
        "predicted": pa.array(rng.integers(0, 1_000, rows), pa.int32()),
        "fold": pa.nulls(rows, pa.int8()),
        "in_holdout": pa.array(np.zeros(rows, bool)),
        "status": pa.array([il.OK] * rows, pa.string()),
        "error": pa.nulls(rows, pa.string()),
        "il_tokens": pa.nulls(rows, il.SCHEMA.field("il_tokens").type),
    }
    return pa.table(columns, schema=il.SCHEMA)


# -- runs ------------------------------------------------------------------------------------------------------------

BUFFER, CLASSES, LANES = 320, 14, 32


def make_run(run: str, segments: int, rows: int, *, distinct: int = 8, shards: int = 1_000) -> str:
    """A run with so many log segments of so many rows, of which `distinct` differ; nothing else is in it."""
    bodies = [selections.encode(segment(number, rows, shards)) for number in range(min(distinct, segments))]
    counts, listed = np.zeros(len(Reason), np.int64), list[dict[str, Any]]()
    for number in range(segments):
        data, path = bodies[number % distinct], f"log/attempt=0/rank=0/{number:010d}.parquet"
        storage.create(storage.join(run, path), data)
        listed.append(segment_record(path, data, rows))
    for body in bodies:
        reason = parquet.parse(body, "")[0]["reason"].combine_chunks()
        counts += np.bincount(reason.indices, minlength=len(Reason)) * segments // len(bodies)
    write_record(run, {"settings": {"rule": "rho"}, "fingerprints": {}})
    done = Link(
        step=segments * rows // BUFFER, pass_index=0, buffer=0, attempt=0, complete=True, log=listed,
        counts={reason.name: int(counts[reason]) for reason in Reason if counts[reason]},
    )  # fmt: skip
    chain.commit(run, chain.save_files(run, done, payload({"w": torch.zeros(1)}, {})))
    return run


def segment(number: int, rows: int, shards: int) -> pa.Table:
    """The log of consecutive steps, as a rank of a run with 32 lanes writes it."""
    rng, row = np.random.default_rng(number), np.arange(number * rows, (number + 1) * rows)
    shard = np.repeat(rng.integers(0, shards, LANES), BUFFER // LANES)[row % BUFFER].astype(np.int32)
    reason = np.where(rng.random(rows) < 0.1, Reason.kept, Reason.below).astype(np.int8)
    reason[rng.random(rows) < 0.01] = Reason.quarantined
    never = reason == Reason.quarantined
    loss, il_ = (rng.exponential(1, rows).astype(np.float32) for _ in range(2))
    columns = [
        pa.array(np.zeros(rows, np.int32)), pa.array(row // BUFFER),
        pa.array([f"{key:09d}" for key in rng.integers(0, 10**9, rows).tolist()]),
        pa.DictionaryArray.from_arrays(pa.array(shard), [f"train/{n:06d}.tar" for n in range(shards)]),
        pa.array(rng.integers(0, 10_000, rows).astype(np.int32)),
        pa.array(rng.integers(0, CLASSES, rows).astype(np.int32)), pa.array(loss, mask=never),
        pa.array(il_, mask=never), pa.array(loss - il_, mask=never), pa.array(loss < 0.7, mask=never),
        pa.array(reason == Reason.kept),
        pa.DictionaryArray.from_arrays(pa.array(reason), selections.REASONS), pa.array(np.ones(rows, np.float32)),
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=selections.SCHEMA)
