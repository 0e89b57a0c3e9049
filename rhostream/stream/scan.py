"""Whole shards in tar order, for the offline wing and for evaluation: every sample a row, every row a status.

    storage.open_reader > tar.walk > examine (label, json) > decode into a slot > Chunk, ..., Chunk, End

Worker w takes shards w, w + W, ...; a chunk never spans shards, so what a shard gives depends on nothing but its own
bytes. Slots are shared and reused as in `dataset`; see there for why `PREFETCH + 2` of them are enough.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AccessError, ChangedError, RhostreamError, StorageError, UsageError
from rhostream.signals import settle_worker, working
from rhostream.storage import Identity, RangeReader, Reader
from rhostream.stream import examine
from rhostream.stream.batch import Batch
from rhostream.stream.columns import Columns
from rhostream.stream.dataset import PREFETCH, slots
from rhostream.stream.decode import MAX_BYTES, OK, Decoder, Preprocess, decoder
from rhostream.stream.examine import BadSample
from rhostream.stream.tar import TarWalk, walk
from rhostream.stream.windows import Windows
from rhostream.tables.il import IMAGE_EXTENSIONS, KEEP_TYPES

CHUNK = 512
CHUNK_BYTES = 32 << 20
AHEAD = 2  # shards that a worker has fetched while it reads one
Mark = Callable[[str, str, str | None], int]


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """What to read of each sample; picklable, because it goes to the workers."""

    preprocess: Preprocess | None = None  # None: images are not decoded
    decoder_name: str = "auto"
    classes: int | None = None  # labels beyond it are label:range; negative ones always are
    keep: dict[str, str] = field(default_factory=dict)  # field of the json -> bool | int | float | str
    group_by: str | None = None
    mark: Mark | None = None  # (shard name, key, group or None) to a small integer that comes with the row
    quota: int | None = None  # only that many random rows a shard, of those whose mark is not negative
    seed: int = 0  # of the quota
    watch: str | None = None  # count the samples whose json has a value here (a cheap look, nothing more)
    wanted: Callable[[str], bool] | None = None  # asked of a shard's name right before it is opened

    @property
    def chunk(self) -> int:
        """Rows in a message: a function of the image size alone, so that results are too."""
        if self.preprocess is None:
            return CHUNK
        return max(16, min(CHUNK, CHUNK_BYTES // int(np.prod(self.preprocess.shape))))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Up to `ScanSettings.chunk` rows of one shard, in the order of the shard.

    `rows` has the columns key, members, label (int32, null unless valid), status, error and the kept fields.
    """

    shard: int  # index into the list of shards
    ordinal: npt.NDArray[np.int32]  # (n,)
    label: npt.NDArray[np.int64]  # (n,) -1 where null
    ok: npt.NDArray[np.bool_]  # (n,) status is "ok"
    mark: npt.NDArray[np.int64]  # (n,) 0 without `ScanSettings.mark`
    rows: pa.RecordBatch
    slot: int = -1
    image: Tensor | None = None  # (n, H, W, C) uint8, valid until the next message; meaningless where not ok

    def __len__(self) -> int:
        return len(self.ordinal)


@dataclass(frozen=True, kw_only=True)
class End:
    """A shard is over: its accounts, or the error that ended it."""

    shard: int
    identity: Identity = field(default_factory=lambda: Identity(0, ""))
    sha256: str = ""  # of the shard's bytes
    samples_seen: int = 0
    members_seen: int = 0
    members_used: int = 0
    members_ignored: int = 0
    bad_fields: dict[str, int] = field(default_factory=dict)
    watched: int = 0
    retried: dict[str, dict[str, int]] = field(default_factory=dict)  # as `storage.retried`, of a worker's share
    skipped: bool = False  # not read, as `ScanSettings.wanted` said no
    error: RhostreamError | None = None


def scan(shards: Sequence[tuple[str, str]], settings: ScanSettings, *, workers: int = 0,
         context: str | None = None) -> Generator[Chunk | End]:
    """Read `shards` ((URL, name) pairs): the chunks of each, then its End. With workers, shards interleave.

    A shard that can't be read ends with an End that carries the error. Raises UsageError for what no shard can change.
    """
    if workers < 0:
        raise UsageError(f"--workers {workers}: expected 0 or more")
    workers = min(workers, len(shards))
    dataset = _Scan(shards, settings, workers)
    if not workers:
        yield from _received(dataset, dataset)
        return
    loader = DataLoader(dataset, batch_size=None, collate_fn=_as_is, num_workers=workers, prefetch_factor=PREFETCH,
                        worker_init_fn=settle_worker, multiprocessing_context=context or "forkserver")
    with working(loader) as messages:
        yield from _received(dataset, messages)


def _received(dataset: _Scan, messages: Iterable[Chunk | End]) -> Iterator[Chunk | End]:
    """With the pixels of their slots."""
    for message in messages:
        if isinstance(message, Chunk):
            if dataset.slots is not None:
                message = replace(message, image=dataset.slots[message.slot, : len(message)])
        else:
            storage.add_retried(message.retried)
            error, remote = message.error, not storage.is_local(dataset.url(message.shard))
            # Refused credentials are refused for every shard of a store: the others aren't asked for.
            if isinstance(error, UsageError) or (isinstance(error, AccessError) and remote):
                raise error
        yield message


def _as_is(message: Any) -> Any:
    return message


class _Scan(IterableDataset[Chunk | End]):
    """What runs in the workers."""

    def __init__(self, shards: Sequence[tuple[str, str]], settings: ScanSettings, workers: int) -> None:
        self._shards, self._settings, self._carried = list(shards), settings, storage.Carried()
        self.slots: Tensor | None = None
        if settings.preprocess is not None:
            self.slots = slots(max(workers, 1) * (PREFETCH + 2), settings.chunk, settings.preprocess.shape,
                               shared=workers > 0)

    def url(self, shard: int) -> str:
        """Of the shard of this number."""
        return self._shards[shard][0]

    def __iter__(self) -> Iterator[Chunk | End]:
        with storage.ReadAhead() as ahead:
            for message in self._messages(ahead):
                if isinstance(message, End) and get_worker_info() is not None:
                    message = replace(message, retried=storage.take_retried())
                yield message

    def _messages(self, ahead: storage.ReadAhead) -> Iterator[Chunk | End]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        own, turn, columns = PREFETCH + 2, 0, Columns()
        for number in range(worker, len(self._shards), workers):
            url, name = self._shards[number]
            ahead.want([self._shards[n][0] for n in range(number + workers, len(self._shards), workers)[:AHEAD]])
            if self._settings.wanted is not None and not self._settings.wanted(name):
                yield End(shard=number, skipped=True)
                continue
            shard = _ShardScan(number, url, name, self._settings, columns)
            try:
                for rows in shard.chunks():
                    slot = worker * own + turn % own
                    turn += 1
                    yield shard.finish(rows, slot, None if self.slots is None else self.slots[slot].numpy())
                yield shard.end()
            except RhostreamError as exc:
                yield End(shard=number, error=shard.changed() or exc)
            except OSError as exc:
                yield End(shard=number, error=StorageError(f"shard {storage.redact(name)}: {exc.strerror}"))
            finally:
                shard.close()


@dataclass(slots=True)
class _Rows:
    """A chunk in the making: the batch of the walk, and what its small members say, one entry a row in each list."""

    batch: Batch
    ordinal: npt.NDArray[np.int32]
    label: list[int | None]  # -1 unless valid; None only until it is examined
    mark: list[int] | None  # None: all 0
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> (status, why)
    kept: dict[str, list[Any]] = field(default_factory=dict)


class _ShardScan:
    """One shard, from its first byte to its accounts."""

    def __init__(self, number: int, url: str, name: str, settings: ScanSettings, columns: Columns) -> None:
        self._number, self._url, self._name, self._settings, self._columns = number, url, name, settings, columns
        self._decode: Decoder = decoder(settings.decoder_name)[1] if settings.preprocess else _no_decode
        self._seen: set[bytes] = set()
        self._bad_fields = dict.fromkeys(settings.keep, 0)
        self._watched = 0
        self._watch = f'"{settings.watch}"'.encode() if settings.watch else b""
        self._needs_json = bool(settings.keep) or settings.group_by is not None
        self._reader: Reader | None = None

    def chunks(self) -> Iterator[_Rows]:
        """Rows as they come, their labels read and their images not yet. Raises ShardError, StorageError."""
        self._reader = storage.open_reader(self._url)
        self._identity = self._reader.version
        self._source = Windows(self._reader, whole=True)
        self._walk: TarWalk = walk(self._source, self._name)
        chunk = self._settings.chunk
        if self._settings.quota is not None:
            for ordinals, batch in self._drawn(chunk):
                yield self._examined(batch, np.array(ordinals, np.int32))
        else:
            start = 0
            for batch in self._walk.batches(chunk):
                crash_point("scan: rows read")
                yield self._examined(batch, np.arange(start, start + len(batch), dtype=np.int32))
                start += len(batch)
        self._sha256 = self._source.sha256()
        ranged = isinstance(self._reader, RangeReader)
        if (not self._reader.unchanged() or self._reader.size != self._identity.size
                or not (self._sha256 or ranged)):
            raise self._changed()

    def changed(self) -> ChangedError | None:
        """Whether the shard is another one than was opened: then what was wrong with its bytes means nothing."""
        try:
            return None if self._reader is None or self._reader.unchanged() else self._changed()
        except OSError:
            return None

    def _changed(self) -> ChangedError:
        return ChangedError(f"shard {storage.redact(self._name)} changed its size while it was read; run again")

    def end(self) -> End:
        """The accounts of a shard that was read to its end."""
        seen, ignored = self._walk.members_seen, self._walk.members_ignored
        return End(shard=self._number, identity=self._identity, sha256=self._sha256,
                   samples_seen=self._walk.samples_seen,
                   members_seen=seen, members_used=seen - ignored, members_ignored=ignored,
                   bad_fields={k: v for k, v in self._bad_fields.items() if v}, watched=self._watched)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _drawn(self, chunk: int) -> Iterator[tuple[list[int], Batch]]:
        """The quota: the rows with the lowest hash of (seed, shard, key), in the order of the shard."""
        quota, heap = self._settings.quota or 0, list[tuple[int, int, Batch]]()
        words = f"quota\0{self._settings.seed}\0{self._name}\0".encode("utf-8", "surrogateescape")
        seen, ordinal = set[bytes](), -1
        for batch in self._walk.batches(CHUNK):
            for row, raw in enumerate(batch.key):
                ordinal += 1
                if raw in seen:
                    continue
                seen.add(raw)
                if self._settings.mark is not None:
                    key = raw.decode("utf-8", "backslashreplace")
                    if self._settings.mark(self._name, key, self._group(batch, row, key)) < 0:
                        continue
                entry = (-int.from_bytes(hashlib.blake2b(words + raw, digest_size=8).digest(), "big"), ordinal)
                if len(heap) < quota:
                    heapq.heappush(heap, (*entry, batch.row(row)))
                elif entry[0] > heap[0][0]:
                    heapq.heapreplace(heap, (*entry, batch.row(row)))
        chosen = sorted(((ordinal, own) for _, ordinal, own in heap), key=lambda pair: pair[0])
        for start in range(0, len(chosen), chunk):
            some = chosen[start : start + chunk]
            yield [ordinal for ordinal, _ in some], Batch.of((own, 0) for _, own in some)

    def _group(self, batch: Batch, row: int, key: str) -> str | None:
        if self._settings.group_by is None:
            return None
        try:
            fields = examine.parse_json(self._read_json(batch, row))
        except BadSample:
            return key
        return examine.group_of(fields, self._settings.group_by, key)

    def _read_json(self, batch: Batch, row: int) -> bytes:
        member = batch.json[row]
        return b"" if member < 0 else examine.read_json(batch.size[member], batch.offset[member], self._source)

    def _examined(self, batch: Batch, ordinal: npt.NDArray[np.int32]) -> _Rows:
        """What the small members of a batch say. Labels are looked up: there are few texts that a .cls can hold."""
        n, keys, seen = len(batch), set(batch.key), self._seen
        twice = len(keys) < n or not seen.isdisjoint(keys)
        label = list(map(self._columns.labels.get, batch.cls))
        rows = _Rows(batch, ordinal, label, None)
        fields: list[dict[str, Any]] = []
        if twice or self._needs_json or self._watch:
            fields = [self._examine(rows, row, seen) for row in range(n)]
        elif None in label:
            for row, known in enumerate(label):
                if known is None:
                    self._examine(rows, row, seen)
        seen |= keys
        for name, kind in self._settings.keep.items():
            rows.kept[name], misfits = examine.fit_column([f.get(name) for f in fields], kind)
            self._bad_fields[name] += misfits
        if (mark := self._settings.mark) is not None:
            rows.mark = []
            for row, raw in enumerate(batch.key):
                key, group = raw.decode("utf-8", "backslashreplace"), None
                if self._settings.group_by is not None:
                    group = examine.group_of(fields[row], self._settings.group_by, key)
                rows.mark.append(mark(self._name, key, group))
        return rows

    def _examine(self, rows: _Rows, row: int, seen: set[bytes]) -> dict[str, Any]:
        """Put a row's label, or the status against it, into `rows`; returns the fields of its json where needed."""
        batch, fields = rows.batch, dict[str, Any]()
        number = rows.label[row]
        try:
            if batch.key[row] in seen:
                raise BadSample("dup", "the key came before in this shard; the first one counts")
            seen.add(batch.key[row])
            text = batch.cls[row]
            if number is None and text is None:
                size_offset = next(((n, o) for e, o, n in batch.members(row) if e == "cls"), None)
                if size_offset is not None:
                    raise examine.too_long_cls(*size_offset)
            known: int | None = number
            if known is None and text is not None:
                known = examine.parse_cls(text)
            fields = self._fields(batch, row, known is None)
            if number is None:
                label = examine.label_of_json(fields) if known is None else known
                label = rows.label[row] = examine.check_range(label, self._settings.classes)
                if text is not None:
                    self._columns.remember(text, label)
        except BadSample as bad:
            rows.label[row] = -1
            rows.bad[row] = bad.status, bad.why
        return fields

    def _fields(self, batch: Batch, row: int, label_wanted: bool) -> dict[str, Any]:
        """The json's fields where anybody asks for one."""
        needed = label_wanted or self._needs_json
        if not needed and not self._watch:
            return {}
        try:
            raw = self._read_json(batch, row)
            if not needed and self._watch not in raw:
                return {}
            fields = examine.parse_json(raw)
        except BadSample:
            if needed:
                raise
            return {}
        if self._settings.watch is not None:
            self._watched += fields.get(self._settings.watch) is not None
        return fields

    def finish(self, rows: _Rows, slot: int, pixels: npt.NDArray[np.uint8] | None) -> Chunk:
        """Decode the images of usable rows into the slot and hand the chunk over."""
        batch, bad = rows.batch, rows.bad
        decode, pread, sizes, offsets = self._decode, self._source.pread, batch.size, batch.offset
        for row, member in enumerate(batch.image):
            if member < 0:
                if row not in bad:
                    bad[row] = "image:missing", f"no member is one of {', '.join(IMAGE_EXTENSIONS)}"
                continue
            size = sizes[member]
            if pixels is None and size:
                continue
            if row in bad:
                continue
            if size == 0:
                verdict = "decode:empty"
            elif size > MAX_BYTES:
                verdict = "image:too_large"
            else:
                assert pixels is not None
                verdict = decode(pread(size, offsets[member]), pixels[row])
                crash_point("scan: image decoded")
            if verdict != OK:
                bad[row] = verdict, f".{batch.extension[member]} of {size:,} bytes at offset {offsets[member]:,}"
        n = len(batch)
        ok = np.ones(n, bool)
        ok[list(bad)] = False
        label = np.array(rows.label, np.int64)
        columns = {
            "key": self._columns.keys(batch.key),
            "members": self._columns.members(batch),
            "label": pa.array(label.astype(np.int32), mask=label < 0),
        } | self._columns.verdicts(n, bad) | {
            name: pa.array(column, KEEP_TYPES[self._settings.keep[name]]) for name, column in rows.kept.items()
        }
        mark = np.zeros(n, np.int64) if rows.mark is None else np.array(rows.mark, np.int64)
        return Chunk(shard=self._number, ordinal=rows.ordinal, label=label, ok=ok, mark=mark,
                     rows=pa.RecordBatch.from_pydict(columns), slot=slot)


def _no_decode(data: bytes, out: npt.NDArray[np.uint8]) -> str:
    raise AssertionError("no slot to decode into")
