"""The selection log: one row per planned sample, in segments that only a checkpoint makes count.

    pass int32 | step int64 (null for the tail) | key string | shard string | ordinal int32 | label int32
    loss float32 | il float32 | score float32 (nats, null when never computed) | correct bool | kept bool
    reason string | weight float32
    source string (only where sources were asked for)

`<run>/log/attempt=K/rank=R/<first step>-<last step>.parquet`; a segment never spans a checkpoint and is cut at a
million rows. What stands in a folder means nothing by itself: a reader takes the list in the newest checkpoint.
Segments of older versions have one more column, `lag`, which was always 0: readers leave it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream.reasons import Reason
from rhostream.tables import parquet, proofs
from rhostream.tables.segments import RowsWriter, SegmentQueue

if TYPE_CHECKING:  # who reads a log needs no torch
    from rhostream.candidates import Candidates

Array = npt.NDArray[Any]
VERSION = 1
MAX_ROWS = 1_000_000
LIST_COST = b"rhostream_cost"  # in the metadata of a Parquet list of samples: what making it cost
REASONS = pa.array([r.name for r in Reason])
COMMON = REASONS.slice(0, Reason.denied)  # a segment in which no row has a later one names only these
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
    ]
)
SOURCE = pa.field("source", pa.dictionary(pa.int32(), pa.string()))  # one more column, where sources were asked for
WITH_SOURCE = SCHEMA.append(SOURCE)
ENCODINGS = {
    "step": "DELTA_BINARY_PACKED",
    "key": "DELTA_BYTE_ARRAY",
    "ordinal": "BYTE_STREAM_SPLIT",
    "loss": "BYTE_STREAM_SPLIT",
    "il": "BYTE_STREAM_SPLIT",
    "score": "BYTE_STREAM_SPLIT",
}
DICTIONARY = ["pass", "shard", "label", "reason", "weight", SOURCE.name]


@dataclass(frozen=True, slots=True)
class _Step:
    """One buffer's columns, as references: what was not copied must not change until it is written."""

    pass_index: int
    step: int | None
    key: pa.StringArray
    shard: Array
    shard_names: pa.StringArray
    ordinal: Array
    label: Array
    il: Array
    scored: Mapping[str, Array]
    source: Array | None = None
    source_names: tuple[str, ...] | None = None

    def nbytes(self) -> int:
        """What it holds in memory."""
        arrays = (self.shard, self.ordinal, *self.scored.values())
        return int(self.key.nbytes + self.label.nbytes + self.il.nbytes + sum(array.nbytes for array in arrays))


def _step(candidates: Candidates, step: int | None, scored: Mapping[str, Array]) -> _Step:
    c = candidates  # and not its pixels: they stand in a slot that the loader will reuse
    il: Array = c.il.cpu().numpy()
    if "il" in scored:  # of a live IL model: what it didn't look at has the table's
        il = np.where(np.isnan(scored["il"]), il, scored["il"])
        scored = {name: column for name, column in scored.items() if name != "il"}
    label = c.label.cpu().numpy()
    return _Step(
        c.pass_index, step, c.key, c.shard, c.shard_names, c.ordinal, label, il, scored, c.source, c.source_names
    )


def _rows(steps: Sequence[_Step]) -> pa.RecordBatch:
    """The rows of steps that share their names of shards, as one batch: a few large arrays, not many small ones."""
    rows = np.array([len(s.ordinal) for s in steps])
    scored = {name: np.concatenate([s.scored[name] for s in steps]) for name in steps[0].scored}
    label = np.concatenate([s.label for s in steps])
    il, loss, score = np.concatenate([s.il for s in steps]), scored["loss"], scored["score"]
    reached = ~np.isnan(loss)
    il, loss, score = (values + np.float32(0) for values in (il, loss, score))  # a certain prediction's -0.0 is 0.0
    reason = scored["reason"]
    number = np.repeat([-1 if s.step is None else s.step for s in steps], rows)
    columns = [
        pa.array(np.repeat(np.array([s.pass_index for s in steps], np.int32), rows)),
        pa.array(number, pa.int64(), mask=np.repeat([s.step is None for s in steps], rows)),
        pa.concat_arrays([s.key for s in steps]),
        _named(np.concatenate([s.shard for s in steps]), steps[0].shard_names),
        pa.array(np.concatenate([s.ordinal for s in steps]), pa.int32()),
        pa.array(label.astype(np.int32), mask=label < 0),
        pa.array(loss, pa.float32(), mask=~reached),
        pa.array(il, pa.float32(), mask=np.isnan(il)),
        pa.array(score, pa.float32(), mask=np.isnan(score)),
        # Of a target that is no class nothing is right; -1 where losses were heard of the training, which tell nothing.
        pa.array(scored["correct"] == 1, mask=~reached | (label < 0) | (scored["correct"] < 0)),
        pa.array(scored["kept"]),
        pa.DictionaryArray.from_arrays(
            pa.array(reason.astype(np.int8)), COMMON if (reason < len(COMMON)).all() else REASONS
        ),
        pa.array(scored["weight"], pa.float32()),
    ]
    if steps[0].source is None or steps[0].source_names is None:
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    source = np.concatenate([s.source for s in steps if s.source is not None])
    columns.append(_named(source, pa.array(steps[0].source_names, pa.string())))
    return pa.RecordBatch.from_arrays(columns, schema=WITH_SOURCE)


def _named(index: Array, names: pa.StringArray) -> pa.DictionaryArray:
    """The names at these places, without those that no row needs: a run may know a million shards."""
    used = pa.array(index, pa.int32()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(used.indices, names.take(used.dictionary))


class LogWriter:
    """Collects the rows of an attempt and writes them as segments; what was not flushed dies with the process.

    Segments that were cut by size are encoded and committed in the background (see `segments`); `flush` waits for
    them all. Every method raises the error of a disk or store that failed meanwhile.
    """

    def __init__(
        self, run: str, attempt: int, rank: int = 0, *, max_rows: int = MAX_ROWS, queue: SegmentQueue | None = None
    ) -> None:
        self._writer: RowsWriter[_Step] = RowsWriter(
            f"log/attempt={attempt}/rank={rank}", _encoded, _Step.nbytes, queue or SegmentQueue(run), max_rows
        )

    def take(self, candidates: Candidates, step: int | None, columns: Mapping[str, Array], at_step: int) -> None:
        """Add one buffer's rows; `step` is None for a tail, `at_step` (of a tail the next one) names the file.

        `columns` holds (B,) arrays: loss, score (float32 nats, NaN where never computed), correct (bool), kept (bool),
        reason (uint8 of `Reason`), weight (float32), and il (float32) where another than the candidates' was used.
        Costs microseconds: the arrays are kept as they are and must not change afterwards. The pixels are not kept.
        """
        self._writer.add(_step(candidates, step, columns), len(candidates), at_step)

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending; returns the segments made since the last flush, for the checkpoint to list."""
        return self._writer.flush()


def _encoded(steps: Sequence[_Step]) -> bytes:
    """The bytes of a segment."""
    alike = [list(group) for _, group in groupby(steps, lambda step: id(step.shard_names))]
    table = pa.Table.from_batches([_rows(group) for group in alike]).unify_dictionaries()
    if len(alike) > 1:  # the names that are there, in their order
        at = table.schema.get_field_index("shard")
        plain = table.column("shard").cast(pa.string())
        table = table.set_column(at, SCHEMA.field("shard"), plain.dictionary_encode())
    return encode(table)


def encode(table: pa.Table) -> bytes:
    """The bytes of a segment of these rows, whose columns are those of `SCHEMA`, or of `WITH_SOURCE`."""
    dictionary = [name for name in DICTIONARY if name in table.schema.names]
    return parquet.encode(table.combine_chunks(), {"version": VERSION, "artifact": "log"}, ENCODINGS, dictionary)


def read(run: str, segments: Sequence[Mapping[str, Any]]) -> pa.Table:
    """All committed rows of a run as one Arrow table, in the order in which the steps were taken."""
    tables = [parquet.read(url, SCHEMA.names)[0] for url, _ in proofs.verified(run, segments)]
    return pa.concat_tables(tables).unify_dictionaries() if tables else SCHEMA.empty_table()
