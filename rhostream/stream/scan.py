"""Whole shards in tar order, for the offline wing and for evaluation: every sample a row, every row a status.

    storage.open_reader > tar.walk > examine (label, json) > decode into a slot > Chunk, ..., Chunk, End

Worker w takes shards w, w + W, ...; a chunk never spans shards, so what a shard gives depends on nothing but its own
bytes. Slots are shared and reused as in `dataset`; see there for why `PREFETCH + 2` of them are enough.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rhostream import storage
from rhostream.errors import RhostreamError, ShardError, StorageError, UsageError
from rhostream.storage import Identity, Reader
from rhostream.stream import examine
from rhostream.stream.dataset import PREFETCH
from rhostream.stream.decode import MAX_BYTES, OK, Decoder, Preprocess, decoder
from rhostream.stream.examine import BadSample
from rhostream.stream.tar import TarSample, TarWalk, walk
from rhostream.tables.il import IMAGE_EXTENSIONS, KEEP_TYPES, MEMBER

CHUNK = 512
CHUNK_BYTES = 32 << 20
AHEAD = 4 << 20
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
    error: RhostreamError | None = None


def scan(shards: Sequence[tuple[str, str]], settings: ScanSettings, *, workers: int = 0,
         context: str | None = None) -> Iterator[Chunk | End]:
    """Read `shards` ((URL, name) pairs): the chunks of each, then its End. With workers, shards interleave.

    A shard that can't be read ends with an End that carries the error. Raises UsageError for what no shard can change.
    """
    if workers < 0:
        raise UsageError(f"--workers {workers}: expected 0 or more")
    workers = min(workers, len(shards))
    dataset = _Scan(shards, settings, workers)
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _as_is, "num_workers": workers}
    if workers:
        options |= {"prefetch_factor": PREFETCH, "multiprocessing_context": context or "forkserver"}
    for message in DataLoader(dataset, **options):
        if isinstance(message, Chunk):
            if dataset.slots is not None:
                message = replace(message, image=dataset.slots[message.slot, : len(message)])
        elif isinstance(message.error, UsageError):
            raise message.error
        yield message


def _as_is(message: Chunk | End) -> Chunk | End:
    return message


class _Scan(IterableDataset[Chunk | End]):
    """What runs in the workers."""

    def __init__(self, shards: Sequence[tuple[str, str]], settings: ScanSettings, workers: int) -> None:
        self._shards, self._settings = list(shards), settings
        self.slots: Tensor | None = None
        if settings.preprocess is not None:
            shape = (max(workers, 1) * (PREFETCH + 2), settings.chunk, *settings.preprocess.shape)
            self.slots = torch.empty(shape, dtype=torch.uint8)
            if workers:
                self.slots.share_memory_()

    def __iter__(self) -> Iterator[Chunk | End]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        own, turn = PREFETCH + 2, 0
        for number in range(worker, len(self._shards), workers):
            url, name = self._shards[number]
            shard = _ShardScan(number, url, name, self._settings)
            try:
                for rows in shard.chunks():
                    slot = worker * own + turn % own
                    turn += 1
                    yield shard.finish(rows, slot, None if self.slots is None else self.slots[slot].numpy())
                yield shard.end()
            except RhostreamError as exc:
                yield End(shard=number, error=exc)
            except OSError as exc:
                yield End(shard=number, error=StorageError(f"shard {storage.redact(name)}: {exc.strerror}"))
            finally:
                shard.close()


class _Ahead(Reader):
    """A reader that looks 4 MiB ahead: headers and data of small members cost no system call (or request) each."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self.url, self.size, self._fd = reader, reader.url, reader.size, -1
        self._window, self._start = b"", 0

    def pread(self, n: int, offset: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + n > len(self._window):
            if n > AHEAD // 4:
                return self._reader.pread(n, offset)
            if self._start + len(self._window) < self.size or at < 0:  # else the end of the file is at hand
                self._window, self._start, at = self._reader.pread(AHEAD, offset), offset, 0
        return self._window[at : at + n]


@dataclass(slots=True)
class _Rows:
    """A chunk in the making: one entry a row in each list."""

    samples: list[TarSample] = field(default_factory=list)
    ordinal: list[int] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    error: list[str | None] = field(default_factory=list)
    mark: list[int] = field(default_factory=list)
    kept: dict[str, list[Any]] = field(default_factory=dict)


class _ShardScan:
    """One shard, from its first byte to its accounts."""

    def __init__(self, number: int, url: str, name: str, settings: ScanSettings) -> None:
        self._number, self._url, self._name, self._settings = number, url, name, settings
        self._decode: Decoder = decoder(settings.decoder_name)[1] if settings.preprocess else _no_decode
        self._seen: set[bytes] = set()
        self._bad_fields = dict.fromkeys(settings.keep, 0)
        self._watched = 0
        self._watch = f'"{settings.watch}"'.encode() if settings.watch else b""
        self._reader: Reader | None = None

    def chunks(self) -> Iterator[_Rows]:
        """Rows as they come, their labels read and their images not yet. Raises ShardError, StorageError."""
        self._identity = storage.identity(self._url)
        self._reader = storage.open_reader(self._url)
        self._source = _Ahead(self._reader)
        self._walk: TarWalk = walk(self._source, self._name)
        samples = self._drawn() if self._settings.quota is not None else enumerate(self._walk)
        rows = self._new()
        for ordinal, sample in samples:
            self._add(rows, ordinal, sample)
            if len(rows.key) == self._settings.chunk:
                yield rows
                rows = self._new()
        if rows.key:
            yield rows
        self._sha256 = storage.sha256_of(self._reader)  # the walk has just read it all
        if not self._reader.unchanged() or self._reader.size != self._identity.size:
            raise ShardError(f"shard {storage.redact(self._name)} changed its size while it was read; run again")

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

    def _new(self) -> _Rows:
        return _Rows(kept={name: [] for name in self._settings.keep})

    def _drawn(self) -> list[tuple[int, TarSample]]:
        """The quota: the rows with the lowest hash of (seed, shard, key), in the order of the shard."""
        quota, heap = self._settings.quota or 0, list[tuple[int, int, TarSample]]()
        words = f"quota\0{self._settings.seed}\0{self._name}\0".encode("utf-8", "surrogateescape")
        seen: set[bytes] = set()
        for ordinal, sample in enumerate(self._walk):
            if sample.key in seen:
                continue
            seen.add(sample.key)
            if self._settings.mark is not None:
                key = sample.key.decode("utf-8", "backslashreplace")
                if self._settings.mark(self._name, key, self._group(sample, key)) < 0:
                    continue
            digest = hashlib.blake2b(words + sample.key, digest_size=8).digest()
            entry = (-int.from_bytes(digest, "big"), ordinal, sample)
            if len(heap) < quota:
                heapq.heappush(heap, entry)
            elif entry[0] > heap[0][0]:
                heapq.heapreplace(heap, entry)
        return sorted(((ordinal, sample) for _, ordinal, sample in heap), key=lambda pair: pair[0])

    def _group(self, sample: TarSample, key: str) -> str | None:
        if self._settings.group_by is None:
            return None
        try:
            fields = examine.parse_json(examine.read_json(sample, self._source))
        except BadSample:
            return key
        return examine.group_of(fields, self._settings.group_by, key)

    def _add(self, rows: _Rows, ordinal: int, sample: TarSample) -> None:
        settings = self._settings
        key = sample.key.decode("utf-8", "backslashreplace")
        fields: dict[str, Any] = {}
        label, status, error = -1, OK, None
        try:
            if sample.key in self._seen:
                raise BadSample("dup", "the key came before in this shard; the first one counts")
            self._seen.add(sample.key)
            number = examine.read_cls(sample, self._source)
            fields = self._fields(sample, number is None)
            label = examine.check_range(examine.label_of_json(fields) if number is None else number, settings.classes)
        except BadSample as bad:
            status, error = bad.status, bad.why
        for name, column in rows.kept.items():
            value, misfit = examine.fit_value(fields.get(name), settings.keep[name])
            column.append(value)
            self._bad_fields[name] += misfit
        mark = 0
        if settings.mark is not None:
            group = None if settings.group_by is None else examine.group_of(fields, settings.group_by, key)
            mark = settings.mark(self._name, key, group)
        rows.samples.append(sample)
        rows.ordinal.append(ordinal)
        rows.key.append(key)
        rows.label.append(label)
        rows.status.append(status)
        rows.error.append(error)
        rows.mark.append(mark)

    def _fields(self, sample: TarSample, label_wanted: bool) -> dict[str, Any]:
        """The json's fields where anybody asks for one."""
        needed = label_wanted or bool(self._settings.keep) or self._settings.group_by is not None
        if not needed and not self._watch:
            return {}
        try:
            raw = examine.read_json(sample, self._source)
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
        status, error = rows.status, rows.error
        for row, sample in enumerate(rows.samples):
            if status[row] != OK:
                continue
            image = next((m for m in sample.members if m[0] in IMAGE_EXTENSIONS), None)
            if image is None:
                status[row], error[row] = "image:missing", f"no member is one of {', '.join(IMAGE_EXTENSIONS)}"
                continue
            extension, offset, size = image
            if size == 0:
                verdict = "decode:empty"
            elif pixels is None:
                continue
            elif size > MAX_BYTES:
                verdict = "image:too_large"
            else:
                verdict = self._decode(self._source.pread(size, offset), pixels[row])
            if verdict != OK:
                status[row], error[row] = verdict, f".{extension} of {size:,} bytes at offset {offset:,}"
        label = np.array(rows.label, np.int64)
        columns = {
            "key": pa.array(rows.key, pa.string()),
            "members": _members(rows.samples),
            "label": pa.array(label.astype(np.int32), mask=label < 0),
            "status": pa.array(status, pa.string()),
            "error": pa.array(error, pa.string()),
        } | {name: pa.array(column, KEEP_TYPES[self._settings.keep[name]]) for name, column in rows.kept.items()}
        ok = np.array([s == OK for s in status], bool)
        ordinal, mark = np.array(rows.ordinal, np.int32), np.array(rows.mark, np.int64)
        return Chunk(shard=self._number, ordinal=ordinal, label=label, ok=ok, mark=mark,
                     rows=pa.RecordBatch.from_pydict(columns), slot=slot)


def _no_decode(data: bytes, out: npt.NDArray[np.uint8]) -> str:
    raise AssertionError("no slot to decode into")


def _members(samples: Sequence[TarSample]) -> pa.ListArray:
    """The table's column of (extension, offset, size) lists; built flat, ten times faster than from dicts."""
    flat = [member for sample in samples for member in sample.members]
    ends = np.cumsum([0] + [len(sample.members) for sample in samples], dtype=np.int32)
    fields = [pa.array([m[0] for m in flat], pa.string()), pa.array([m[1] for m in flat], pa.int64()),
              pa.array([m[2] for m in flat], pa.int64())]
    return pa.ListArray.from_arrays(pa.array(ends), pa.StructArray.from_arrays(fields, fields=list(MEMBER)))
