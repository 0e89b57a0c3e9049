"""The steps table: what each step cost and gave; written and committed exactly like the selection log.

    step int64 | pass int32 | candidates int32 | kept int32 | loss_kept float32 | loss_candidates float32 (nats, means)
    accuracy_candidates float32
    effective_classes float32: exp(entropy) of the labels of the kept batch (selection/balance.py); version 2
    effective_classes_uniform float32: expected of as many drawn by chance from what the rule could choose from
    learning_rate float64 | forward_units float64 (so far; one unit = one sample forward)
    seconds_wait, seconds_score, seconds_train, seconds_log float32
    test_loss float32, test_accuracy float32, class_accuracy list<float32> (null where there was no evaluation)
    test_samples int64
    image_to_text_1, image_to_text_10, text_to_image_1, text_to_image_10 float32: recalls of pairs, of which the two at
    1 have their mean as test_accuracy (compute/retrieval.py); zero_shot_accuracy float32, of labelled pictures, and
    class_accuracy is of these; version 3
shortlist_recall float32: the share of fresh scores' choice that a shortlist of old scores held, every 50th step, where
    there is one (selection/lagged.py); version 4
ratio float32, ratio_worth list<float32>: of --ratio auto, the share of the buffer that was to be kept, and what each
    share was worth when that was decided, nats a forward unit (selection/ratio.py); null on uniform steps; version 5

An evaluation stands at the step after which it was made. `<run>/steps/attempt=K/rank=R/...`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import RhostreamError
from rhostream.tables import parquet
from rhostream.tables.segments import segment_record

VERSION = 5  # 1 had no effective classes, 2 no recalls, 3 none of shortlists, 4 no ratios: they are read with nulls
SINCE_2 = ("effective_classes", "effective_classes_uniform")
RECALLS = ("image_to_text_1", "image_to_text_10", "text_to_image_1", "text_to_image_10")
OF_PAIRS = (*RECALLS, "zero_shot_accuracy")
RECALL = "shortlist_recall"
RATIO, WORTH = "ratio", "ratio_worth"
LATER = (*SINCE_2, *OF_PAIRS, RECALL, RATIO, WORTH)  # columns that older segments don't have
EVALUATION = ("step", "test_loss", "test_accuracy", "class_accuracy", "test_samples", *OF_PAIRS)
SEEN_SECONDS = 15.0  # after a commit the first rows are written so soon, the next ones after twice the time
_LAST = re.compile(r"/\d{10}-(\d{10})\.parquet\Z")
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
        *((name, pa.float32()) for name in (*OF_PAIRS, RECALL, RATIO)),
        (WORTH, pa.list_(pa.float32())),
    ]
)


class StepsWriter:
    """Collects one row a step; `flush` writes them as a segment.

    Between commits rows are written too, at growing intervals, so that one can see how far a run is that commits
    seldom; like every segment they count once a commit names them.
    """

    def __init__(self, run: str, attempt: int, rank: int = 0) -> None:
        self._run = run
        self._folder = f"steps/attempt={attempt}/rank={rank}"
        self._rows: list[dict[str, Any]] = []
        self._written: list[dict[str, Any]] = []  # segments since the last flush
        self._flushed = time.monotonic()
        self._wait = SEEN_SECONDS  # since then, until rows are written

    def append(self, row: dict[str, Any]) -> None:
        """Add a step; missing columns are null."""
        # A mean of certain predictions is -0.0; -0.0 + 0.0 is 0.0.
        self._rows.append({name: value + 0.0 if isinstance(value, float) else value for name, value in row.items()})
        if time.monotonic() - self._flushed >= self._wait:
            self._wait *= 2  # a few small segments a commit, however long it takes
            with contextlib.suppress(RhostreamError):  # the commit will write them, or raise
                self._write()

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending; returns the segments since the last flush."""
        self._write()
        written, self._written = self._written, []
        self._flushed, self._wait = time.monotonic(), SEEN_SECONDS
        return written

    def _write(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, SCHEMA)
        path = f"{self._folder}/{self._rows[0]['step']:010d}-{self._rows[-1]['step']:010d}.parquet"
        data = parquet.encode(table, {"version": VERSION, "artifact": "steps"}, ENCODINGS, DICTIONARY)
        storage.create(storage.join(self._run, path), data)
        crash_point("steps: segment committed")
        self._rows = []
        self._written.append(segment_record(path, data, table.num_rows))


def steps_seen(run: str, attempt: int) -> tuple[int, str] | None:
    """How many steps an attempt's segments tell of, committed or not, and the URL of the newest; None before the
    first. Nothing is read.
    """
    folder = storage.join(run, f"steps/attempt={attempt}")
    found = [(int(match[1]) + 1, url) for url in storage.list_files(folder, ".parquet") if (match := _LAST.search(url))]
    return max(found, default=None)


def last_evaluation(run: str, segments: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{step, test_loss, test_accuracy, class_accuracy, test_samples} of the newest evaluation, None before the first.

    Raises TableError for a segment that can't be read.
    """
    for segment in reversed(segments):
        rows = parquet.read(storage.join(run, str(segment["path"])))[0]
        rows = rows.select([name for name in EVALUATION if name in rows.schema.names])
        for row in reversed(rows.to_pylist()):
            if any(value is not None for name, value in row.items() if name != "step"):
                return {name: _shortest(row.get(name)) for name in EVALUATION}
    return None


def newest_ratio(run: str, segments: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{step, ratio, ratio_worth} of the newest step with a share of its own, in the newest segment; None without one.

    Raises TableError for a segment that can't be read.
    """
    for segment in segments[-1:]:
        rows = parquet.read(storage.join(run, str(segment["path"])))[0]
        if RATIO in rows.schema.names:
            for row in reversed(rows.select(["step", RATIO, WORTH]).to_pylist()):
                if row[RATIO] is not None:
                    return {name: _shortest(value) for name, value in row.items()}
    return None


def _shortest(value: Any) -> Any:
    """float32 numbers as the shortest decimals that mean them: 0.9, where a double would say 0.8999999761581421."""
    if isinstance(value, list):
        return [_shortest(one) for one in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def balances(run: str, segments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, float, float]]:
    """(step, effective classes of the kept batch, those of chance) of the steps that have them. Raises TableError."""
    for segment in segments:
        rows = parquet.read(storage.join(run, str(segment["path"])))[0]
        if not set(SINCE_2) <= set(rows.schema.names):
            continue
        for step, kept, chance in zip(*(rows[name].to_pylist() for name in ("step", *SINCE_2)), strict=True):
            if kept is not None and chance is not None:
                yield step, kept, chance
