"""The Arrow columns of a chunk, built flat; what is equal from chunk to chunk is built once a worker."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rhostream.stream.batch import Batch
from rhostream.tables.il import MEMBER, OK

REMEMBERED = 1 << 16  # texts of labels


class Columns:
    """What is the same from chunk to chunk, made once a worker: labels by their text, columns of equal values."""

    def __init__(self) -> None:
        self.labels: dict[bytes | None, int] = {}  # what a .cls holds -> its valid label
        self._extension: tuple[list[str], pa.StringArray] = ([], pa.array([], pa.string()))
        self._ok: tuple[pa.StringArray, pa.StringArray] = (pa.array([], pa.string()), pa.array([], pa.string()))

    def remember(self, text: bytes, label: int) -> None:
        """The valid label that a .cls of these bytes means, under the settings of this scan."""
        if len(self.labels) < REMEMBERED:
            self.labels[text] = label

    def keys(self, raw: list[bytes]) -> pa.StringArray:
        """The column of keys; what is not UTF-8 in one is written as an escape."""
        ends = np.cumsum([0, *map(len, raw)], dtype=np.int64)
        if ends[-1] < 2**31:
            keys = pa.StringArray.from_buffers(
                len(raw), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(raw))
            )
            try:
                keys.validate(full=True)
                return keys
            except pa.ArrowInvalid:
                pass
        return pa.array([key.decode("utf-8", "backslashreplace") for key in raw], pa.string())

    def members(self, batch: Batch) -> pa.ListArray:
        """The table's column of (extension, offset, size) lists; built flat, ten times faster than from dicts."""
        if self._extension[0] != batch.extension:
            self._extension = batch.extension, pa.array(batch.extension, pa.string())
        starts = np.array([*batch.first, len(batch.size)], np.int32)
        fields = [
            self._extension[1],
            pa.array(np.array(batch.offset, np.int64)),
            pa.array(np.array(batch.size, np.int64)),
        ]
        return pa.ListArray.from_arrays(pa.array(starts), pa.StructArray.from_arrays(fields, fields=list(MEMBER)))

    def verdicts(self, rows: int, bad: dict[int, tuple[str, str]]) -> dict[str, pa.StringArray]:
        """The columns status and error."""
        if bad:
            status, error = [OK] * rows, list[str | None]([None] * rows)
            for row, (one, why) in bad.items():
                status[row], error[row] = one, why
            return {"status": pa.array(status, pa.string()), "error": pa.array(error, pa.string())}
        if len(self._ok[0]) != rows:
            self._ok = pa.array([OK] * rows, pa.string()), pa.nulls(rows, pa.string())
        return {"status": self._ok[0], "error": self._ok[1]}
