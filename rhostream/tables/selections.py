"""The selection log: one row per planned sample, in segments that only a checkpoint makes count.

    pass int32 | step int64 (null for the tail) | key string | shard string | ordinal int32 | label int32
    loss float32 | il float32 | score float32 (nats, null when never computed) | correct bool | kept bool
    reason string | weight float32 | lag uint8

`<run>/log/attempt=K/rank=R/<first step>-<last step>.parquet`; a segment never spans a checkpoint and is cut at a
million rows. What stands in a folder means nothing by itself: a reader takes the list in the newest checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rhostream import storage
from rhostream.candidates import Candidates, Reason
from rhostream.errors import NotFoundError, TableError
from rhostream.tables import parquet

VERSION = 1
MAX_ROWS = 1_000_000
REASONS = pa.array([r.name for r in Reason])
SCHEMA = pa.schema(
    [
        ("pass", pa.int32()),
        ("step", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("ordinal", pa.int32()),
        ("label", pa.int32()),
        ("loss", pa.float32()),
        ("il", pa.float32()),
        ("score", pa.float32()),
        ("correct", pa.bool_()),
        ("kept", pa.bool_()),
        ("reason", pa.dictionary(pa.int8(), pa.string())),
        ("weight", pa.float32()),
        ("lag", pa.uint8()),
    ]
)
_ENCODINGS = {
    "step": "DELTA_BINARY_PACKED",
    "key": "DELTA_BYTE_ARRAY",
    "ordinal": "BYTE_STREAM_SPLIT",
    "loss": "BYTE_STREAM_SPLIT",
    "il": "BYTE_STREAM_SPLIT",
    "score": "BYTE_STREAM_SPLIT",
}
_DICTIONARY = ["pass", "shard", "label", "reason", "weight", "lag"]


def rows_of(candidates: Candidates, step: int | None, scored: Mapping[str, np.ndarray[Any, Any]]) -> pa.RecordBatch:
    """The log rows of one buffer.

    `scored` holds (B,) arrays: loss, score (float32, NaN where never computed), correct (bool), kept (bool), reason
    (uint8 of `Reason`), weight (float32), and lag (int).
    """
    n = len(candidates)
    label = candidates.label.cpu().numpy()
    il = candidates.il.cpu().numpy()
    loss, score = scored["loss"], scored["score"]
    reached = ~np.isnan(loss)
    columns = [
        pa.array(np.full(n, candidates.pass_index, np.int32)),
        pa.nulls(n, pa.int64()) if step is None else pa.array(np.full(n, step, np.int64)),
        candidates.key,
        pa.DictionaryArray.from_arrays(pa.array(candidates.shard), candidates.shard_names),
        pa.array(candidates.ordinal),
        pa.array(label.astype(np.int32), mask=label < 0),
        pa.array(loss, pa.float32(), mask=~reached),
        pa.array(il, pa.float32(), mask=np.isnan(il)),
        pa.array(score, pa.float32(), mask=np.isnan(score)),
        pa.array(scored["correct"], mask=~reached),
        pa.array(scored["kept"]),
        pa.DictionaryArray.from_arrays(pa.array(scored["reason"].astype(np.int8)), REASONS),
        pa.array(scored["weight"], pa.float32()),
        pa.array(scored["lag"], pa.uint8()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class LogWriter:
    """Collects the rows of an attempt and writes them as segments; what was not flushed dies with the process."""

    def __init__(self, run: str, attempt: int, rank: int = 0, *, max_rows: int = MAX_ROWS) -> None:
        self._run = run
        self._folder = f"log/attempt={attempt}/rank={rank}"
        self._max_rows = max_rows
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._first: int | None = None
        self._last = 0
        self._done: list[dict[str, Any]] = []

    def append(self, batch: pa.RecordBatch, step: int) -> None:
        """Add the rows of one step (`step` also for a tail: the number of the step that would come next)."""
        if self._rows and self._rows + batch.num_rows > self._max_rows:
            self._cut()
        if self._first is None:
            self._first = step
        self._last = step
        self._batches.append(batch)
        self._rows += batch.num_rows

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending; returns the segments made since the last flush, for the checkpoint to list."""
        if self._rows:
            self._cut()
        done, self._done = self._done, []
        return done

    def _cut(self) -> None:
        table = _compact(pa.Table.from_batches(self._batches))
        name = f"{self._folder}/{self._first:010d}-{self._last:010d}"
        # A tail can follow a step that was cut off by size under the same numbers.
        taken = sum(s["path"].startswith(name) for s in self._done)
        path = name + (f"-{taken}" if taken else "") + ".parquet"
        data = parquet.encode(table, {"version": VERSION, "artifact": "log"}, _ENCODINGS, _DICTIONARY)
        storage.create(storage.join(self._run, path), data)
        self._done.append(segment_record(path, data, table.num_rows))
        self._batches, self._rows, self._first = [], 0, None


def _compact(table: pa.Table) -> pa.Table:
    """Without the names of shards that no row of the segment needs: a run may know a million of them."""
    at = table.schema.get_field_index("shard")
    plain = table.unify_dictionaries().column("shard").cast(pa.string())
    return table.set_column(at, SCHEMA.field("shard"), plain.dictionary_encode())


def segment_record(path: str, data: bytes, rows: int) -> dict[str, Any]:
    """How a checkpoint names a committed file: enough to prove it later."""
    return {"path": path, "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def verified_paths(run: str, segments: Sequence[Mapping[str, Any]]) -> list[str]:
    """The URLs of the committed segments, each proved by sha256. Raises TableError naming the bad one."""
    urls = []
    for segment in segments:
        url = storage.join(run, str(segment["path"]))
        try:
            data = storage.read_bytes(url)
        except NotFoundError as exc:
            raise TableError(f"{storage.redact(url)} is listed by the checkpoint but is gone") from exc
        if len(data) != segment["bytes"] or hashlib.sha256(data).hexdigest() != segment["sha256"]:
            raise TableError(f"{storage.redact(url)} isn't the file that the checkpoint lists ({len(data):,} bytes, "
                             f"expected {segment['bytes']:,}, sha256 differs): it was damaged or replaced")
        urls.append(url)
    return urls


def read(run: str, segments: Sequence[Mapping[str, Any]]) -> pa.Table:
    """All committed rows of a run as one Arrow table, in the order in which the steps were taken."""
    tables = [parquet.read(url)[0] for url in verified_paths(run, segments)]
    return pa.concat_tables(tables).unify_dictionaries() if tables else SCHEMA.empty_table()
