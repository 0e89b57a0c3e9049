"""A sample as people see it: its picture or its beginning, its key, and what its part knows, read where it lies."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from rhostream import storage
from rhostream.audit.pictures import Picture, Pictures
from rhostream.audit.runs import RunFolder
from rhostream.audit.viewer.rows import Snapshot
from rhostream.errors import RhostreamError
from rhostream.tables import parquet

AGAIN_SECONDS = 20.0  # after which a shard that couldn't be had is tried again


class Samples:
    """Reads samples of one run; one thread at a time."""

    def __init__(self, run: RunFolder, roots: Mapping[str, str]) -> None:
        self._run, self._roots = run, roots
        self._pictures = Pictures(run, roots, large=True)
        self._failed: float | None = None  # when a sample first couldn't be shown
        self._segment: tuple[str, Any] = ("", None)  # path and rows of the one that was read last
        self._lock = threading.Lock()

    def look(self, shard: str, number: int, ordinal: int, snapshot: Snapshot) -> dict[str, Any]:
        """JSON of a sample: key, image and seen (data URIs), text, facts; `why` where nothing of it can be shown."""
        with self._lock:
            if self._failed is not None and time.monotonic() - self._failed > AGAIN_SECONDS:
                self._pictures.close()
                self._pictures, self._failed = Pictures(self._run, self._roots, large=True), None
            picture = Picture({"shard": shard, "ordinal": ordinal})
            self._pictures.fill(picture)
            why = ""
            if picture.image is None and picture.text is None:
                self._failed = self._failed or time.monotonic()
                why = self._pictures.reason
            key = picture.key if picture.key is not None else self._key_of(snapshot, number, shard, ordinal)
            return {"key": key, "image": picture.image, "seen": picture.seen, "text": picture.text,
                    "facts": picture.facts, "why": why}  # fmt: skip

    def _key_of(self, snapshot: Snapshot, number: int, shard: str, ordinal: int) -> str | None:
        """A sample's key as the log has it, for where its part can't be had."""
        for block, rows in snapshot.blocks:
            here = (block.columns["ordinal"][:rows] == ordinal) & (block.columns["shard"][:rows] == number)
            if not here.any():
                continue
            at = int(here.argmax())
            path = next(path for path, first, end in block.segments if first <= at < end)
            try:
                if self._segment[0] != path:
                    columns = ["shard", "ordinal", "key"]
                    self._segment = (path, parquet.read(storage.join(self._run.url, path), columns)[0])
            except RhostreamError:
                return None
            rows_of = pc.and_(
                pc.equal(self._segment[1]["ordinal"], ordinal), pc.equal(self._segment[1]["shard"], shard)
            )
            keys = self._segment[1].filter(rows_of)["key"].to_pylist()
            return str(keys[0]) if keys else None
        return None
