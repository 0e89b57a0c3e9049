"""Segments on their way to disk: encoded, hashed and committed in order by a thread of their own, so training goes on.

What waits stays in memory up to a bound ("spill"). Beyond it the run waits for the disk, says so once, and stops with
one clear error when nothing moves: a log that isn't written is a run that can't be trusted.
"""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import RhostreamError, StorageError

SPILL_BYTES, SPILL_ROWS = 512 << 20, 4_000_000  # what may wait before the run does
PATIENCE_SECONDS = 120.0  # how long the run waits for a disk that finishes nothing
Commit = Callable[[str, bytes], None]
T = TypeVar("T")


def segment_record(path: str, data: bytes, rows: int) -> dict[str, Any]:
    """How a checkpoint names a committed file: enough to prove it later."""
    return {"path": path, "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@dataclass(frozen=True)
class Segment:
    """A finished segment that waits: where it goes, how its bytes are made, and what it holds in memory until then."""

    path: str  # below the run
    encode: Callable[[], bytes]
    rows: int
    bytes: int


class SegmentQueue:
    """Commits segments one after another in the background; not for more than one caller.

    An error of the disk or the store is raised by the next call, and by every later one: after a hole in the log
    nothing may be committed. The thread ends when nothing waits, and dies with the process.
    """

    def __init__(
        self,
        run: str,
        *,
        spill_bytes: int = SPILL_BYTES,
        spill_rows: int = SPILL_ROWS,
        patience: float = PATIENCE_SECONDS,
        commit: Commit = storage.create,
    ) -> None:
        self._run, self._commit = run, commit
        self._spill_bytes, self._spill_rows, self._patience = spill_bytes, spill_rows, patience
        self._waiting: deque[Segment] = deque()  # its first one is being written
        self._done: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._warned = False

    def put(self, segment: Segment) -> None:
        """Hand over a segment; waits while more than the bound is in memory. Raises StorageError, NotWritableError."""
        with self._changed:
            self._wait_while(self._is_full, warn=True)
            self._waiting.append(segment)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rhostream-log", daemon=True)
                self._thread.start()

    def raise_if_failed(self) -> None:
        """Raise the error that stopped the thread, if there was one."""
        if self._error is not None:
            raise self._stop(self._error) from self._error

    def drain(self) -> list[dict[str, Any]]:
        """Wait until all is on disk; the records of the segments written since the last call, in order."""
        with self._changed:
            self._wait_while(lambda: bool(self._waiting), warn=False)
            done, self._done = self._done, []
        return done

    def _is_full(self) -> bool:
        # A segment that is larger than the bound still goes, alone.
        return bool(self._waiting) and (sum(s.bytes for s in self._waiting) >= self._spill_bytes
                                        or sum(s.rows for s in self._waiting) >= self._spill_rows)  # fmt: skip

    def _wait_while(self, busy: Callable[[], bool], *, warn: bool) -> None:
        self.raise_if_failed()
        left, deadline = len(self._waiting), time.monotonic() + self._patience
        while busy():
            if warn and not self._warned:
                self._warned = True
                warnings.warn(f"the log's disk is slower than the run: {self._says()}, so the run waits for it (up to "
                              f"{self._patience:g} s each time)", stacklevel=4)  # fmt: skip
            self._changed.wait(max(deadline - time.monotonic(), 0))
            self.raise_if_failed()
            if len(self._waiting) < left:
                left, deadline = len(self._waiting), time.monotonic() + self._patience
            elif time.monotonic() >= deadline and busy():
                raise StorageError(
                    f"the log's disk is slower than the run: nothing was written for {self._patience:g} s and "
                    f"{self._says()}; free or mend the disk (or store), or use a faster one, then run the same "
                    "command, which resumes from the newest checkpoint"
                )

    def _says(self) -> str:
        rows, size = sum(s.rows for s in self._waiting), sum(s.bytes for s in self._waiting)
        folder = storage.redact(storage.join(self._run, self._waiting[0].path.rpartition("/")[0]))
        return (f"{len(self._waiting)} segments ({rows:,} rows, {size / 2**20:,.1f} MiB in memory) wait to be written "
                f"to {folder}")  # fmt: skip

    def _stop(self, error: BaseException) -> BaseException:
        if not isinstance(error, RhostreamError):
            return error
        return type(error)(f"{error}; {self._says()} and are lost: mend it, then run the same command, which resumes "
                           "from the newest checkpoint")  # fmt: skip

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                segment = self._waiting[0]
            try:
                data = segment.encode()
                crash_point("log: segment encoded")
                self._commit(storage.join(self._run, segment.path), data)
                crash_point("log: segment committed")
                record = segment_record(segment.path, data, segment.rows)
            except BaseException as exc:
                with self._changed:
                    self._error = exc
                    self._changed.notify_all()
                return
            with self._changed:
                self._waiting.popleft()
                self._done.append(record)
                self._changed.notify_all()


class RowsWriter(Generic[T]):
    """Collects the rows of an attempt step by step and cuts them into segments of `folder`, below the run.

    `encode` makes the bytes of a segment of its items, `size_of` says what an item holds in memory. What was not
    flushed dies with the process. Every method raises the error of a disk or store that failed meanwhile.
    """

    def __init__(
        self,
        folder: str,
        encode: Callable[[Sequence[T]], bytes],
        size_of: Callable[[T], int],
        queue: SegmentQueue,
        max_rows: int,
    ) -> None:
        self._folder, self._encode, self._size_of = folder, encode, size_of
        self._queue, self._max_rows = queue, max_rows
        self._items: list[T] = []
        self._rows = 0
        self._first: int | None = None
        self._last = 0
        self._cuts: list[str] = []  # names of the segments cut since the last flush

    def add(self, item: T, rows: int, step: int) -> None:
        """Add the rows of one step; costs microseconds, and the item must not change afterwards."""
        self._queue.raise_if_failed()
        if self._rows and self._rows + rows > self._max_rows:
            self._cut()
        if self._first is None:
            self._first = step
        self._last = step
        self._items.append(item)
        self._rows += rows

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending; returns the segments made since the last flush, for the checkpoint to list."""
        if self._rows:
            self._cut()
        self._cuts = []
        return self._queue.drain()

    def _cut(self) -> None:
        name = f"{self._folder}/{self._first:010d}-{self._last:010d}"
        # A tail can follow a step that was cut off by size under the same numbers.
        taken = self._cuts.count(name)
        path, items, encode = name + (f"-{taken}" if taken else "") + ".parquet", self._items, self._encode
        size = sum(self._size_of(item) for item in (items[0], items[-1])) * len(items) // 2  # steps are alike
        self._queue.put(Segment(path, lambda: encode(items), self._rows, size))
        self._cuts.append(name)
        self._items, self._rows, self._first = [], 0, None
