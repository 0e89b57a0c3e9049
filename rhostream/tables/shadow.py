"""The shadow log: what other rules would have kept from the same forward; segments beside the selection log.

    pass int32 | step int64 | shard string | ordinal int32 | score_0 float32, kept_0 bool, score_1, kept_1, ...

One row for each sample that reached the target's forward, one pair of columns for each shadow rule, in the order in
which run.json names them (`settings.shadow`). `<run>/shadow/attempt=K/rank=R/<first step>-<last step>.parquet`, listed
by the checkpoint like the log: what stands in a folder means nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream.tables import parquet
from rhostream.tables.segments import RowsWriter, SegmentQueue

VERSION = 1
MAX_ROWS = 1_000_000
ENCODINGS = {"step": "DELTA_BINARY_PACKED", "ordinal": "BYTE_STREAM_SPLIT"}
DICTIONARY = ["pass", "shard"]


def rules_of(settings: Mapping[str, Any]) -> list[str]:
    """The names of a run's shadow rules, from its run.json."""
    return [name for name in str(settings.get("shadow") or "").split(",") if name]


def schema_of(rules: int) -> pa.Schema:
    """The columns for so many shadow rules."""
    pairs = [pair for number in range(rules) for pair in ((f"score_{number}", pa.float32()),
                                                          (f"kept_{number}", pa.bool_()))]  # fmt: skip
    return pa.schema(
        [
            ("pass", pa.int32()),
            ("step", pa.int64()),
            ("shard", pa.dictionary(pa.int32(), pa.string())),
            ("ordinal", pa.int32()),
            *pairs,
        ]
    )


def encodings_of(schema: pa.Schema) -> dict[str, str]:
    """How the columns are written."""
    return {**ENCODINGS, **{name: "BYTE_STREAM_SPLIT" for name in schema.names if name.startswith("score_")}}


@dataclass(frozen=True, slots=True)
class _Rows:
    """One buffer's rows, as references that must not change until they are written."""

    pass_index: int
    step: int
    shard: npt.NDArray[np.int32]
    shard_names: pa.StringArray
    ordinal: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]  # (rules, m); NaN where a rule had nothing to rank by
    kept: npt.NDArray[np.bool_]  # (rules, m)


class ShadowWriter:
    """Collects the shadow rows of an attempt; like `LogWriter`."""

    def __init__(self, run: str, attempt: int, rank: int = 0, *, max_rows: int = MAX_ROWS) -> None:
        self._writer: RowsWriter[_Rows] = RowsWriter(
            f"shadow/attempt={attempt}/rank={rank}", _encoded, _bytes_of, SegmentQueue(run), max_rows
        )

    def take(
        self,
        pass_index: int,
        step: int,
        shard: npt.NDArray[np.int32],
        shard_names: pa.StringArray,
        ordinal: npt.NDArray[np.int32],
        score: npt.NDArray[np.float32],
        kept: npt.NDArray[np.bool_],
    ) -> None:
        """Add one step: shard and ordinal (m,), score and kept (rules, m)."""
        self._writer.add(_Rows(pass_index, step, shard, shard_names, ordinal, score, kept), len(ordinal), step)

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending; returns the segments made since the last flush, for the checkpoint to list."""
        return self._writer.flush()


def _bytes_of(item: _Rows) -> int:
    return int(item.shard.nbytes + item.ordinal.nbytes + item.score.nbytes + item.kept.nbytes)


def _encoded(items: Sequence[_Rows]) -> bytes:
    """The bytes of a segment; the same rows give the same bytes."""
    rows = np.array([len(item.ordinal) for item in items])
    score, kept = (np.concatenate([getattr(item, name) for item in items], 1) for name in ("score", "kept"))
    schema = schema_of(len(score))
    used = pa.array(np.concatenate([item.shard for item in items]), pa.int32()).dictionary_encode()
    pairs = [
        column
        for number in range(len(score))
        for column in (pa.array(score[number], pa.float32(), from_pandas=True), pa.array(kept[number]))
    ]
    columns = [
        pa.array(np.repeat(np.array([item.pass_index for item in items], np.int32), rows)),
        pa.array(np.repeat(np.array([item.step for item in items], np.int64), rows)),
        pa.DictionaryArray.from_arrays(used.indices, items[0].shard_names.take(used.dictionary)),
        pa.array(np.concatenate([item.ordinal for item in items]), pa.int32()),
        *pairs,
    ]
    encodings = encodings_of(schema)
    return parquet.encode(
        pa.Table.from_arrays(columns, schema=schema), {"version": VERSION, "artifact": "shadow"}, encodings, DICTIONARY
    )
