"""Samples for a person to look at: decoded and encoded again by us, so no byte of a shard reaches a page.

Of a text its beginning is shown, which the page escapes, and of a pair the picture above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from rhostream import storage
from rhostream.audit.plots import uri
from rhostream.audit.runs import RunFolder
from rhostream.errors import RhostreamError
from rhostream.samples import registry
from rhostream.samples.kind import Kind
from rhostream.samples.registry import IMAGES
from rhostream.storage import Reader
from rhostream.tables import il as il_table
from rhostream.tables import parquet

HELD = 64  # parts and open shards
T = TypeVar("T")
FAILURES = 3  # unreadable shards after which the rest isn't tried: each try of a store that is down takes seconds


@dataclass
class Picture:
    """A sample of a gallery; `image` is a data URI, None where it can't be shown, and `facts` what its part knows."""

    row: dict[str, Any]  # shard, ordinal, key, label, step, loss, il, score
    image: str | None = None  # all of the picture
    seen: str | None = None  # what the model saw of it, where that differs
    text: str | None = None  # the beginning of a sample that is text, or of a pair's caption
    key: str | None = None  # as the part has it
    facts: dict[str, Any] = field(default_factory=dict)  # predicted, true_label, is_noisy


class Pictures:
    """Reads samples by the offsets of the parts; a part or shard that can't be had is tried once.

    `large`: as large as somebody wants to see a sample that is looked at alone.
    """

    def __init__(self, run: RunFolder, roots: Mapping[str, str], *, large: bool = False) -> None:
        self._run, self._roots, self._large = run, roots, large
        self._parts: dict[str, tuple[pa.Table, dict[str, Any]] | None] = {}
        self._readers: dict[str, Reader | None] = {}
        self._kinds: dict[str, Kind] = {}
        self.reason = "the sample has no image that can be decoded"

    def fill(self, picture: Picture) -> None:
        """Add what can be shown of a picture's sample; `reason` says why where nothing can."""
        shard, ordinal = picture.row["shard"], picture.row["ordinal"]
        part = self._part(shard)
        if part is None or not 0 <= ordinal < len(part[0]):
            return
        row = part[0].slice(ordinal, 1).to_pylist()[0]
        picture.facts = {k: row[k] for k in ("predicted", "true_label", "is_noisy") if k in row}
        picture.key = row.get("key")
        content = str(part[1].get("content", IMAGES.name))
        kind = self._kind(content)
        if kind is None or not kind.preview_bytes:
            self.reason = f"samples of the kind {content} have no picture"
            return
        held = {
            name: next((m for m in row["members"] or () if m["ext"] in extensions), None)
            for name, extensions in kind.members.items()
        }
        if None in held.values() or (reader := self._reader(shard, int(part[1]["shard_size"]))) is None:
            return
        try:
            data = {n: reader.pread(min(m["size"], kind.preview_bytes), m["offset"]) for n, m in held.items() if m}
            seen = kind.preview(data, self._run.settings, self._large)
            picture.image, picture.seen = (
                None if png is None else uri(png, "image/png") for png in (seen.image, seen.seen)
            )
            picture.text = seen.text
        except (RhostreamError, OSError) as exc:
            self.reason = _said(exc)

    def _kind(self, content: str) -> Kind | None:
        """The kind of that name as the table has it, or by its name alone; None for a user's own."""
        if content not in registry.BUILT_IN:
            return None
        if content not in self._kinds:
            self._kinds[content] = registry.undecided(content)
            try:
                info = il_table.open_info(self._run.il_url or "")
                if info.content == content:
                    self._kinds[content] = info.kind_of_samples()
            except RhostreamError:
                pass  # the part, which is there, says enough
        return self._kinds[content]

    def _part(self, shard: str) -> tuple[pa.Table, dict[str, Any]] | None:
        if shard not in self._parts:
            _forget_oldest(self._parts)
            self._parts[shard] = None
            if self._run.il_url and self._may_try(self._parts):
                try:
                    table, facts = parquet.read(il_table.part_url(self._run.il_url, shard))
                    self._parts[shard] = (table.sort_by("ordinal"), facts)
                except RhostreamError as exc:
                    self.reason = _said(exc)
        return self._parts[shard]

    def _reader(self, shard: str, size: int) -> Reader | None:
        if shard not in self._readers:
            if (old := _forget_oldest(self._readers)) is not None:
                old.close()
            self._readers[shard] = None
            if self._may_try(self._readers):
                try:
                    # No spool: a few ranges of a remote shard, not the whole of it for one picture.
                    reader = storage.open_reader(self._run.shard_url(shard, self._roots), spool_bytes=0)
                    if reader.size == size:
                        self._readers[shard] = reader
                    else:
                        self.reason = f"shard {shard} changed after it was indexed"
                        reader.close()
                except (RhostreamError, OSError) as exc:
                    self.reason = f"{_said(exc)}; say where the shards lie with --root NAME=URL"
        return self._readers[shard]

    def _may_try(self, tried: Mapping[str, object]) -> bool:
        """Whether another one is worth a try; the entry about to be tried is None already."""
        return sum(one is None for one in tried.values()) <= FAILURES

    def close(self) -> None:
        for reader in self._readers.values():
            if reader is not None:
                reader.close()


def _forget_oldest(held: dict[str, T | None]) -> T | None:
    """Make room for one more; gives what went. What couldn't be had stays known."""
    if sum(one is not None for one in held.values()) < HELD:
        return None
    return held.pop(next(name for name, one in held.items() if one is not None))


def _said(exc: Exception) -> str:
    return str(exc) if isinstance(exc, RhostreamError) else type(exc).__name__
