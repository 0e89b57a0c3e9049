"""The steps table: what each step cost and gave; written and committed exactly like the selection log.

    step int64 | pass int32 | candidates int32 | kept int32 | loss_kept float32 | loss_candidates float32 (nats, means)
    accuracy_candidates float32
    effective_classes float32: exp(entropy) of the labels of the kept batch (selection/balance.py); version 2
    effective_classes_uniform float32: expected of as many drawn by chance from what the rule could choose from
    learning_rate float64 | forward_units float64 (so far; one unit = one sample forward)
    seconds_wait, seconds_score, seconds_train, seconds_log float32
    test_loss float32, test_accuracy float32, class_accuracy list<float32> (null where there was no evaluation)
    test_samples int64

An evaluation stands at the step after which it was made. `<run>/steps/attempt=K/rank=R/...`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.tables import parquet
from rhostream.tables.segments import segment_record

VERSION = 2  # 1 had no effective classes: its segments are read with nulls there
SINCE_2 = ("effective_classes", "effective_classes_uniform")
ENCODINGS: dict[str, str] = {}
DICTIONARY = ["pass"]
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("pass", pa.int32()),
        ("candidates", pa.int32()),
        ("kept", pa.int32()),
        ("loss_kept", pa.float32()),
        ("loss_candidates", pa.float32()),
        ("accuracy_candidates", pa.float32()),
        ("effective_classes", pa.float32()),
        ("effective_classes_uniform", pa.float32()),
        ("learning_rate", pa.float64()),
        ("forward_units", pa.float64()),
        ("seconds_wait", pa.float32()),
        ("seconds_score", pa.float32()),
        ("seconds_train", pa.float32()),
        ("seconds_log", pa.float32()),
        ("test_loss", pa.float32()),
        ("test_accuracy", pa.float32()),
        ("class_accuracy", pa.list_(pa.float32())),
        ("test_samples", pa.int64()),
    ]
)


class StepsWriter:
    """Collects one row a step; `flush` writes them as a segment."""

    def __init__(self, run: str, attempt: int, rank: int = 0) -> None:
        self._run = run
        self._folder = f"steps/attempt={attempt}/rank={rank}"
        self._rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Add a step; missing columns are null."""
        # A mean of certain predictions is -0.0; -0.0 + 0.0 is 0.0.
        self._rows.append({name: value + 0.0 if isinstance(value, float) else value for name, value in row.items()})

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending; returns the new segments."""
        if not self._rows:
            return []
        table = pa.Table.from_pylist(self._rows, SCHEMA)
        path = f"{self._folder}/{self._rows[0]['step']:010d}-{self._rows[-1]['step']:010d}.parquet"
        data = parquet.encode(table, {"version": VERSION, "artifact": "steps"}, ENCODINGS, DICTIONARY)
        storage.create(storage.join(self._run, path), data)
        crash_point("steps: segment committed")
        self._rows = []
        return [segment_record(path, data, table.num_rows)]


def balances(run: str, segments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, float, float]]:
    """(step, effective classes of the kept batch, those of chance) of the steps that have them. Raises TableError."""
    for segment in segments:
        rows = parquet.read(storage.join(run, str(segment["path"])))[0]
        if not set(SINCE_2) <= set(rows.schema.names):
            continue
        for step, kept, chance in zip(*(rows[name].to_pylist() for name in ("step", *SINCE_2)), strict=True):
            if kept is not None and chance is not None:
                yield step, kept, chance
