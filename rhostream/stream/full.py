"""Kept samples at full size: where the stream decoded a cheap view, the few that go on are read and decoded again.

Decoding releases the interpreter's lock, so a few threads in the trainer's process do it; shards are opened as the
workers open them, with the same checks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.errors import UsageError
from rhostream.selection.hardware import cores
from rhostream.stream.decode import OK
from rhostream.stream.inputs import AnyPreprocess, decoder_for
from rhostream.stream.join import Join, Joined, JoinSettings
from rhostream.tables import il

THREADS = 4


class FullSize:
    """Reads rows of joined buffers at `preprocess`'s size."""

    def __init__(self, table: il.Table, preprocess: AnyPreprocess, decoder_name: str, lanes: int) -> None:
        self._join = Join(table, JoinSettings(needs_il=False, keep_holdout=True), open_shards=2 * lanes + 2)
        self._shape, self._decode = preprocess.shape, decoder_for(preprocess, decoder_name)[1]
        self._pool = ThreadPoolExecutor(min(THREADS, cores()), "full-size")

    def __call__(self, joined: Joined, rows: npt.NDArray[np.int64]) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """uint8 (n, H, W, C), and (n,) whether each row could be decoded. Raises as the stream does."""
        image = torch.empty((len(rows), *self._shape), dtype=torch.uint8)
        pixels = image.numpy()
        # Shards are opened and read here, one by one: readers aren't made for several threads.
        data = [self._join.reader(int(joined.rows.shard[row])).pread(int(joined.size[row]), int(joined.offset[row]))
                for row in rows.tolist()]  # fmt: skip
        ok = np.array([status == OK for status in self._pool.map(self._decode, data, pixels)], bool)
        return image, ok

    def close(self) -> None:
        """Close the shards and end the threads."""
        self._pool.shutdown(wait=False)
        self._join.close()


def require_smaller(view: int, full: int, source: int | None) -> None:
    """Raise UsageError for a view that isn't cheaper than what it stands for."""
    if not 1 <= view < full:
        raise UsageError(f"--view-size {view}: expected less than the full size of {full} pixels")
    if source is not None and view > source:
        raise UsageError(f"--view-size {view} is larger than the images themselves ({source} pixels)")
