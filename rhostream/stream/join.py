"""The join: planned rows meet their label, il and offsets before a byte of image is read, so a dropped sample is free.

A part is the index of its shard, so joining is array indexing. Only the parts of open shards are in memory, however
large the table is.
"""

from __future__ import annotations

import resource
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhostream import storage
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import MissingPartError, ShardError, UsageError
from rhostream.inert import one_line
from rhostream.samples.registry import IMAGES
from rhostream.storage import Reader, redact
from rhostream.stream.coming import Coming
from rhostream.stream.plan import Rows
from rhostream.stream.sources import Sources
from rhostream.tables import il

POLICIES = ("error", "skip")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Joined:
    """The planned rows of one buffer with what the table knows of them; (B,) unless said otherwise."""

    rows: Rows
    key: pa.StringArray
    label: npt.NDArray[np.int64]  # -1 where null
    il: npt.NDArray[np.float32]  # nats; NaN where null
    offset: npt.NDArray[np.int64]  # (M, B) of each member of a sample
    size: npt.NDArray[np.int64]  # (M, B)
    reason: npt.NDArray[np.uint8]  # CANDIDATE, or why it is dropped unread
    fold: npt.NDArray[np.int8] | None = None  # which IL model scored it; where the join was asked for it
    il_tokens: npt.NDArray[np.float16] | None = None  # (B, T) nats, NaN where there is no token; where asked for
    source: npt.NDArray[np.int16] | None = None  # the number of its source; where asked for
    columns: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # of the table; where asked for

    def slice(self, start: int, stop: int) -> Joined:
        """The rows from `start` up to `stop`."""
        at = slice(start, stop)
        return Joined(Rows(self.rows.shard[at], self.rows.ordinal[at]), self.key[at], self.label[at], self.il[at],
                      self.offset[:, at], self.size[:, at], self.reason[at],
                      None if self.fold is None else self.fold[at],
                      None if self.il_tokens is None else self.il_tokens[at],
                      None if self.source is None else self.source[at],
                      {name: column[at] for name, column in self.columns.items()})  # fmt: skip


class Denied(Protocol):
    """Samples that are to be left out whatever else holds; see `stream/deny_list.py`."""

    @property
    def samples(self) -> int: ...

    @property
    def digest(self) -> str | None: ...

    def named(self, rows: Rows) -> npt.NDArray[np.bool_]: ...


class Prefilter(Protocol):
    """A decision before decode: given the joined rows, change CANDIDATE into a Reason in `reason`, in place.

    It runs in the loader's workers, so it must be picklable and a function of (pass, index) and the rows alone. Over
    several ranks it sees the rows of its rank, or those of all where it has a true attribute `whole_buffer`.
    """

    def __call__(self, joined: Joined, pass_index: int, index: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class JoinSettings:
    """What the join decides by."""

    needs_il: bool = True
    missing_il: str = "error"
    keep_holdout: bool = False
    classes: int | None = None  # a label beyond it is quarantined, whatever the table says of it
    with_fold: bool = False  # carry the fold of each sample along
    members: tuple[tuple[str, ...], ...] = (IMAGES.main,)  # of a sample: the extensions of each
    labelled: bool = True  # whether a row without a label is of no use
    tokens: int = 0  # T: the il of so many tokens of each sample is joined too
    denied: Denied | None = None  # what a deny-list names
    sources: Sources | None = None  # how samples' sources are named
    columns: tuple[str, ...] = ()  # columns of the table that a rule looks at; see `checked_columns`
    filters: tuple[str, ...] = ()  # those that prefilters look at, of which a null is no reason to leave a row out
    vectors: int = 0  # D: the vectors of the table's reference come along; see `vectors.width_of`

    def __post_init__(self) -> None:
        if self.missing_il not in POLICIES:
            raise UsageError(f"--missing-il {self.missing_il!r}: expected one of {', '.join(POLICIES)}")

    @property
    def joined_columns(self) -> tuple[str, ...]:
        """All that come along, each once."""
        return tuple(dict.fromkeys([*self.columns, *self.filters]))


def checked_columns(names: Sequence[str], table: il.Table, option: str = "--column") -> tuple[str, ...]:
    """Columns of numbers that a rule or `option` may look at, each once. Raises UsageError for one that the table
    doesn't have."""
    fitting = table.info.numbers
    for name in names:
        if name not in fitting:
            kind = table.info.keep.get(name)
            raise UsageError(
                f"{option} {one_line(name)}: {redact(table.url)} "
                + (f"keeps it as {kind}, and a score is a number" if kind else "keeps no such field")
                + f"; there are {', '.join(map(one_line, fitting)) or 'none'} (compute-il or index, --keep FIELD:float)"
            )
    return tuple(dict.fromkeys(names))


def _fill_tokens(part: il.Part, at: npt.NDArray[np.int32], out: npt.NDArray[np.float16]) -> None:
    """The il of the tokens of some rows of a part into (n, T); what goes beyond T is cut."""
    assert part.il_tokens is not None
    chosen = part.il_tokens.take(pa.array(at))
    length = np.minimum(pc.list_value_length(chosen).fill_null(0).to_numpy(zero_copy_only=False), out.shape[1])
    ends = chosen.offsets.to_numpy()
    values = chosen.values.to_numpy(zero_copy_only=False)
    for row, n in enumerate(length.tolist()):
        out[row, :n] = values[ends[row] : ends[row] + n]


def _handles() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class Join:
    """Parts and shards of a table, opened when first needed and kept while their lanes need them.

    `open_shards` bounds both; it must be at least twice the lanes, or shards would be opened again every buffer. Of a
    process that may open few files (macOS: 256) shards take a quarter at most, and are opened again when they must.
    """

    def __init__(self, table: il.Table, settings: JoinSettings, open_shards: int = 2 * 64) -> None:
        self._table = table
        self._settings = settings
        self._open_shards = open_shards
        self.most_readers = min(open_shards, max(8, _handles() // 4))
        self._parts: OrderedDict[int, il.Part] = OrderedDict()
        self._readers: OrderedDict[int, Reader] = OrderedDict()
        self._copies: dict[int, storage.Identity] = {}  # shards with a new time or ETag that are proved to be the same
        self._coming = Coming(table)

    def __call__(self, rows: Rows) -> Joined:
        """Join planned rows. Raises MissingPartError (policy `error`), TableError for a damaged part."""
        n = len(rows)
        label, il_B = np.full(n, -1, np.int64), np.full(n, np.nan, np.float32)
        offset, size = np.zeros((2, len(self._settings.members), n), np.int64)
        usable, in_holdout = np.empty((2, n), np.bool_)
        fold = np.full(n, -1, np.int8) if self._settings.with_fold else None
        keys: list[pa.StringArray] = []
        tokens = np.full((n, self._settings.tokens), np.nan, np.float16) if self._settings.tokens else None
        columns = {name: np.full(n, np.nan, np.float32) for name in self._settings.joined_columns}
        sources = self._settings.sources
        source = None if sources is None else np.zeros(n, np.int16)
        cuts = np.flatnonzero(np.diff(rows.shard)) + 1
        for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
            if start == stop:
                continue
            part, at = self._part(int(rows.shard[start])), rows.ordinal[start:stop]
            label[start:stop], il_B[start:stop] = part.label[at], part.il[at]
            offset[:, start:stop], size[:, start:stop] = part.offset[:, at], part.size[:, at]
            if fold is not None and part.fold is not None:
                fold[start:stop] = part.fold[at]
            keys.append(part.key.take(pa.array(at)))
            if source is not None and part.source is not None:
                source[start:stop] = part.source[at]
            for name, column in columns.items():
                column[start:stop] = part.columns[name][at]
            usable[start:stop], in_holdout[start:stop] = part.usable[at], part.in_holdout[at]
            if tokens is not None:
                _fill_tokens(part, at, tokens[start:stop])
        # Every buffer reads every lane, so a part that this one didn't need belongs to a shard that a lane has left.
        for shard in self._parts.keys() - set(rows.shard.tolist()):
            del self._parts[shard]
            if (left := self._readers.pop(shard, None)) is not None:
                left.close()  # a file of the spool that is held open can't make room for another
        key = pa.concat_arrays(keys) if keys else pa.array([], pa.string())
        reason = self._reasons(label, usable, in_holdout)
        if self._settings.denied is not None:
            reason[self._settings.denied.named(rows)] = Reason.denied
        if sources is not None and sources.by_shard is not None:
            source = sources.by_shard[rows.shard]
        joined = Joined(rows, key, label, il_B, offset, size, reason, fold, tokens, source, columns)
        if self._settings.needs_il:
            self._missing(joined, joined.il, "il in", "run `rhostream compute-il`")
        for name in self._settings.columns:
            self._missing(joined, columns[name], f"number in the column {one_line(name)} of", "name another --column")
        return joined

    def _reasons(self, label: npt.NDArray[np.int64], usable: Bools, in_holdout: Bools) -> npt.NDArray[np.uint8]:
        """CANDIDATE (n,), or why the table alone keeps a row out."""
        reason, classes = np.full(len(label), CANDIDATE, np.uint8), self._settings.classes
        if not self._settings.keep_holdout:
            reason[in_holdout] = Reason.holdout
        # A table that somebody else made may call any label good: of -100 torch's loss is 0.0, of others a crash.
        strange = (label < 0) & self._settings.labelled
        if classes is not None:
            strange |= label >= classes
        reason[~usable | strange] = Reason.quarantined
        return reason

    def _missing(self, joined: Joined, value_B: npt.NDArray[np.float32], what: str, instead: str) -> None:
        """Candidates without a finite value: an error, or `missing_il`, as the policy says."""
        missing = (joined.reason == CANDIDATE) & ~np.isfinite(value_B)
        if not missing.any():
            return
        if self._settings.missing_il == "error":
            row = int(np.flatnonzero(missing)[0])
            shard = self._table.names[joined.rows.shard[row]]
            raise MissingPartError(
                f"sample {joined.key[row].as_py()!r} of shard {shard} has no {what} {redact(self._table.url)}; "
                f"{instead}, or pass --missing-il skip"
            )
        joined.reason[missing] = Reason.missing_il

    def _part(self, shard: int) -> il.Part:
        part, sources = self._parts.pop(shard, None), self._settings.sources
        if part is None:
            part = self._table.read_part(
                shard, data=self._coming.part(shard), members=self._settings.members,
                with_fold=self._settings.with_fold, tokens=self._settings.tokens > 0,
                field=None if sources is None else sources.field, codes=None if sources is None else sources.codes,
                numbers=self._settings.joined_columns,
            )  # fmt: skip
            while len(self._parts) >= self._open_shards:
                self._parts.popitem(last=False)
        self._parts[shard] = part
        return part

    def reader(self, shard: int) -> Reader:
        """The shard of that index, open. Raises StaleShardError when it isn't the one that was indexed."""
        reader = self._readers.pop(shard, None)
        if reader is None:
            while len(self._readers) >= self.most_readers:
                self._readers.popitem(last=False)[1].close()
            reader = self._open(shard)
        elif not reader.unchanged():
            raise ShardError(f"shard {self._table.names[shard]} changed its size while it was read")
        self._readers[shard] = reader
        return reader

    def require_unchanged(self, shards: Iterable[int]) -> None:
        """That these shards, which nobody reads, are those that were indexed, by size and time or ETag.

        A new time or ETag is followed by a look at the bytes. Raises StaleShardError, NotFoundError.
        """
        known = {shard: self._part(shard).facts for shard in shards}
        with ThreadPoolExecutor(il.REMOTE_THREADS) as pool:
            today = pool.map(storage.identity, [self._table.shards[shard] for shard in known])
            for (shard, facts), found in zip(known.items(), today, strict=True):
                if (found.size, found.tag) != (facts.shard_size, facts.shard_tag):
                    self.reader(shard)

    def _open(self, shard: int) -> Reader:
        url, name, facts = self._table.shards[shard], self._table.names[shard], self._part(shard).facts
        reader = self._coming.shard(shard) or storage.open_reader(url)
        if reader.size != facts.shard_size:
            reader.close()
            il.require_unchanged(url, name, facts)
            return self._open(shard)  # it was being replaced just now
        if reader.version.tag != facts.shard_tag and self._copies.get(shard) != reader.version:
            il.same_bytes(reader, name, facts)  # a copy has a new time; another shard may have even the size
            self._copies[shard] = reader.version
            warnings.warn(
                f"shard {name} has a new time or ETag since it was indexed and the same bytes: it is taken for a copy",
                stacklevel=2,
            )
        return reader

    def ahead(self, shards: Iterable[int]) -> None:
        """Bring these shards into the spool meanwhile, the most urgent first, and their parts, but what is open."""
        self._coming.want(shards, self._readers, self._parts)

    def close(self) -> None:
        """Close every open shard."""
        self._coming.close()
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
