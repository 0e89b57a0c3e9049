"""A table opened for a list of shards: every part's facts known and held against the table and the shards."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhostream import storage
from rhostream.errors import MismatchError, MissingPartError, NotFoundError, StaleShardError, TableError
from rhostream.inert import one_line
from rhostream.storage import Identity
from rhostream.tables.classes import MOST, ClassNames
from rhostream.tables.il.catalogue import LOCAL_THREADS, REMOTE_THREADS, Catalogue, find_catalogue
from rhostream.tables.il.info import TableInfo, open_info
from rhostream.tables.il.names import names_in, part_url, roots_today, shard_name
from rhostream.tables.il.part import Part, PartFacts, read_part, read_part_facts
from rhostream.tables.names import by_name
from rhostream.tables.places import moved_hint
from rhostream.tables.strings import Strings, StringsBuilder

LOOKED_FOR = 5  # shards without a part that are looked for before it is said that they have none
SLICE = 128  # footers read at a time when a table is opened
RESCORE = "re-score what changed: `rhostream verify TABLE --repair --shards URL...`"


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """A table opened for a list of shards: their names and counts, not the rows.

    A few bytes a shard, in arrays: it goes to every loader worker, and a table may have a million parts.
    """

    url: str
    info: TableInfo
    shards: Strings  # URLs as of today
    names: Strings
    counts: npt.NDArray[np.int64]  # samples seen in each shard, (shards,)
    missing: Strings = field(default_factory=Strings)  # names of shards without a part; not among `names`
    il_rows: int = 0  # samples with an il, over all parts
    class_names: dict[int, str] = field(default_factory=dict)  # label -> name, as far as the shards say it

    def __repr__(self) -> str:
        what = f"{len(self.names):,} shards, {int(self.counts.sum()):,} samples"
        return f"<{self.info.kind} table {one_line(storage.redact(self.url))}: {what}>"

    def part_url(self, shard: int) -> str:
        """Of the part of the shard of that index."""
        return part_url(self.url, self.names[shard])

    def read_part(self, shard: int, **asked: Any) -> Part:
        """The part of the shard of that index, as `il.read_part`, which takes `asked`.

        What was known of it when the table was opened is held against the part itself: a catalogue may be stale or
        forged, and a part may have been replaced since. Raises TableError where they differ, before a row is used.
        """
        name, url = self.names[shard], self.part_url(shard)
        part = read_part(url, **asked)
        facts, count = part.facts, int(self.counts[shard])
        require_part_of(name, facts)
        renamed = any(self.class_names.get(label) != text for label, text in facts.class_names.items())
        if (
            (facts.fingerprint, facts.samples, facts.compression) != (self.info.fingerprint, count, "")
            or (renamed and len(self.class_names) < MOST)
        ):  # fmt: skip
            raise TableError(
                f"{storage.redact(url)} isn't the part that the table was opened with ({facts.samples:,} samples of "
                f"fingerprint {facts.fingerprint}, expected {count:,} of {self.info.fingerprint}): it was replaced "
                "meanwhile, or its catalogue is stale or forged; `rhostream verify TABLE --repair` writes another"
            )
        return part


def open_table(
    url: str, shards: Iterable[str], roots: Mapping[str, str] | None = None, *, allow_missing: bool = False
) -> Table:
    """Open the table for these shards (resolved URLs): by its catalogue, and the footer of every part that it lacks.

    Raises MissingPartError listing the first five shards without a part (unless `allow_missing`) and those of them that
    don't exist (in any case), MismatchError for a part of another making or a shard that changed after it was indexed,
    TableError for a damaged part.
    """
    url = storage.resolve(url)
    info = open_info(url)
    opened, listed = _Opened(url, info), list(shards)
    todays, catalogue = roots_today(url, info, roots), find_catalogue(url, info, len(listed))
    # Slice by slice: a future, a footer and two strings for each of a million shards would never be given back.
    with ThreadPoolExecutor(LOCAL_THREADS if storage.is_local(url) else REMOTE_THREADS) as pool:
        for start in range(0, len(listed), SLICE):
            wanted = listed[start : start + SLICE]
            named = [shard_name(shard, todays) for shard in wanted]
            opened.add(wanted, named, _facts(pool, catalogue, [part_url(url, name) for name in named]))
    return opened.table(allow_missing)


def _facts(pool: ThreadPoolExecutor, catalogue: Catalogue | None, urls: list[str]) -> list[PartFacts | None]:
    """Of each part, None where there is none."""
    known = catalogue.facts(urls) if catalogue else [None] * len(urls)
    asked = pool.map(_facts_or_none, [url for url, facts in zip(urls, known, strict=True) if facts is None])
    return [next(asked) if facts is None else facts for facts in known]


class _Opened:
    """A table while it is opened, slice by slice."""

    def __init__(self, url: str, info: TableInfo) -> None:
        self._url, self._info, self._il_rows = url, info, 0
        self._shards, self._names, self._missing = StringsBuilder(), StringsBuilder(), StringsBuilder()
        self._counts = array("q")
        self._lost = list[str]()  # the URLs of the first shards without a part
        self._compressed: str | None = None  # the first shard that can't be read by offset
        self._stranger: tuple[str, str] | None = None  # the first part of another making, and its fingerprint
        self._classes = ClassNames(dict(info.class_names))

    def add(self, shards: list[str], names: list[str], found: list[PartFacts | None]) -> None:
        """The footers of some shards, None where there is no part."""
        for shard, name, facts in zip(shards, names, found, strict=True):
            if facts is None:
                self._missing.extend([name])
                self._lost += [shard] if len(self._lost) < LOOKED_FOR else []
                continue
            require_part_of(name, facts)
            if self._stranger is None and facts.fingerprint != self._info.fingerprint:
                self._stranger = name, facts.fingerprint
            self._compressed = self._compressed or (name if facts.compression else None)
            self._shards.extend([shard])
            self._names.extend([name])
            self._counts.append(facts.samples)
            self._il_rows += facts.il_rows
            self._classes.add(facts.class_names.items(), name)

    def table(self, allow_missing: bool) -> Table:
        """What was opened. Raises MissingPartError, MismatchError."""
        missing, counts = self._missing.build(), np.array(self._counts, np.int64)
        if missing:
            _require_there(self._lost, len(missing))
        if missing and not allow_missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise MissingPartError(
                f"{storage.redact(self._url)} has no part for {len(missing)} of "
                f"{len(counts) + len(missing)} shards: {listed}; "
                f"{moved_hint(self._lost[:1], names_in(self._url))}run `rhostream compute-il` (or "
                "`index`) on them, or pass --missing-il skip"
            )
        if self._stranger is not None:
            raise MismatchError(
                f"the part of {self._stranger[0]} has fingerprint {self._stranger[1]}, its table has "
                f"{self._info.fingerprint}: `rhostream verify --repair` makes it again"
            )
        if self._compressed is not None:
            raise MismatchError(
                f"shard {self._compressed} is gzip-compressed: its table can be asked, but a stream "
                "reads by offset and needs plain tars: decompress the shards (gunzip) and make a "
                "table of those"
            )
        shards, names = self._shards.build(), self._names.build()
        if int(pc.count_distinct(pa.array(names)).as_py()) < len(names):
            by_name(shards, names)  # which says so
        # Without roots a local shard's name is its path: kept once.
        urls = names if shards == names else shards
        return Table(self._url, self._info, urls, names, counts, missing, self._il_rows, self._classes.names)


def _require_there(shards: Sequence[str], missing: int) -> None:
    """Raise MissingPartError for shards that lack a part because they don't exist: no table would help these."""
    if absent := [shard for shard in shards if not storage.exists(shard)]:
        others = f" ({missing} shards have no part, and {len(shards)} of these were looked for)" if missing > 1 else ""
        raise MissingPartError(
            f"no such shard: {', '.join(map(storage.redact, absent))}{others}; correct the list, or bring the data back"
        )


def _facts_or_none(url: str) -> PartFacts | None:
    try:
        return read_part_facts(url)
    except NotFoundError:
        return None


def require_part_of(name: str, facts: PartFacts) -> None:
    """Raise MismatchError when a part is that of another shard, whose name its file system takes for the same."""
    if facts.shard != name:
        raise MismatchError(
            f"the part of shard {name} is that of {facts.shard}: a file system that doesn't tell case "
            "apart takes the two for one; name their folders with --root NAME=URL, or keep the table "
            "elsewhere"
        )


def require_unchanged(shard: str, name: str, facts: PartFacts) -> None:
    """Raise StaleShardError when the shard's size isn't the one that was indexed."""
    _require_size(storage.identity(shard), name, facts)


def require_same_shard(shard: str, name: str, facts: PartFacts) -> bool | None:
    """Whether a shard is a copy of the one that was indexed: a new time or ETag, and the same bytes.

    Time, ETag and size tell that a look is due; only then it is read, and its sha256 decides. None where none was
    recorded, or the shard is too large for the spool: nobody can tell. Raises StaleShardError for another shard.
    """
    today = storage.identity(shard)
    _require_size(today, name, facts)
    if today == facts.shard_identity:
        return False
    with storage.open_reader(shard) as reader:
        return same_bytes(reader, name, facts)


def same_bytes(reader: storage.Reader, name: str, facts: PartFacts) -> bool | None:
    """True for the bytes that were indexed, None where nobody can tell. Raises StaleShardError for other ones."""
    digest = storage.sha256_of(reader) if facts.shard_sha256 else ""
    if not digest:
        return None
    if digest != facts.shard_sha256:
        raise StaleShardError(
            f"shard {name} changed after it was indexed (sha256 {facts.shard_sha256[:12]} != {digest[:12]}): {RESCORE}"
        )
    return True


def _require_size(today: Identity, name: str, facts: PartFacts) -> None:
    if today.size != facts.shard_size:
        raise StaleShardError(
            f"shard {name} has {today.size:,} bytes, it had {facts.shard_size:,} when it was "
            f"indexed; its offsets are worthless: {RESCORE}"
        )
