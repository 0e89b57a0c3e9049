"""`vectors/`: what the network that made an il saw of each pair of a shard, beside the part of an IL table.

    TABLE/vectors/<shard>.bin
    header    4096 bytes: magic, a JSON record, zeros
    rows      one a sample of the shard, in its order, all of `stride` bytes, so a row is one read at a known place
    seal      32 bytes: the sha256 of all before

    float16   crc32 | image D x float16 | text D x float16                          4 + 4 D bytes
    int8      crc32 | scale of each, 2 x float32 | image D x int8 | text D x int8   12 + 2 D bytes

A row's checksum is over its ordinal and its bytes: one that is damaged, or that lies at another's place, is found when
it is read. A sample without an il has a row of zeros, which is read as NaN. The part's footer holds the seal, so the
two are of one making. Written before the part and create-only: what a job left that died in between is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rhostream import foreign, storage
from rhostream.errors import NotFoundError, TableError
from rhostream.tables.il.part import PartFacts
from rhostream.tables.names import SUFFIX, file_of

VERSION = 1
TYPES = ("float16", "int8")
MAGIC = b"rhostream vectors\n"
HEADER, SEAL = 4096, 32  # bytes
MOST = 65_536  # numbers of a vector
UNIT = 0.1  # by how much the length of a vector that was rounded may differ from 1
Rows = npt.NDArray[np.integer[Any]]
Float32 = npt.NDArray[np.float32]


def vectors_url(table: str, shard: str) -> str:
    """Where the vectors of a shard lie; the path mirrors the shard's name, as that of its part does."""
    return storage.join(table, "vectors", file_of(shard).removesuffix(SUFFIX) + ".bin")


@dataclass(frozen=True, kw_only=True)
class VectorsInfo:
    """The header: which samples of which making, and how their rows are written."""

    fingerprint: str  # of the table
    shard: str
    shard_size: int
    samples: int
    width: int  # D; 0 where no sample has vectors
    dtype: str
    scale: float  # a and b of the network, the same for every pair
    bias: float
    version: int = VERSION

    @property
    def row(self) -> np.dtype[np.void]:
        """A row's layout."""
        kind, scales = ("<f2", []) if self.dtype == "float16" else ("i1", [("scale", "<f4", (2,))])
        return np.dtype([("crc", "<u4"), *scales, ("vectors", kind, (2, self.width))])

    @property
    def stride(self) -> int:
        """Bytes of a row."""
        return self.row.itemsize

    def header(self) -> bytes:
        record = json.dumps(asdict(self), sort_keys=True).encode()
        return (MAGIC + len(record).to_bytes(4, "little") + record).ljust(HEADER, b"\0")

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """The inverse of `header`. Raises TableError for what is none."""
        if not data.startswith(MAGIC) or len(data) < HEADER:
            raise TableError(f"{where} is no file of vectors, or it is cut: its first {HEADER:,} bytes are no header")
        try:
            length = int.from_bytes(data[len(MAGIC) :][:4], "little")
            record = foreign.read_object(data[len(MAGIC) + 4 :][:length])
            if int(record.get("version", 0)) > VERSION:
                raise TableError(
                    f"{where} was written by a newer rhostream (version {record['version']} of vectors, this one reads "
                    f"up to {VERSION}); upgrade rhostream"
                )
            info = cls(**record)
            for name in ("fingerprint", "shard"):
                foreign.require_type(getattr(info, name), str, name)
            foreign.checked_count(info.samples, "samples", 0, foreign.MAX_SAMPLES)
            foreign.checked_count(info.width, "width", 0, MOST)
            foreign.checked_count(info.shard_size, "shard_size", 0, 2**62)
            foreign.checked_numbers([info.scale, info.bias], "scale and bias", 2)
            if info.dtype not in TYPES:
                raise ValueError(f"vectors of {str(info.dtype)[:40]!r}, expected {' or '.join(TYPES)}")
        except (TypeError, ValueError, AttributeError) as exc:
            raise TableError(f"{where}: its header can't be understood: {str(exc)[:200]}") from exc
        return info


def checksums(rows: npt.NDArray[np.void], ordinals: Iterable[int]) -> npt.NDArray[np.uint32]:
    """(n,) crc32 over each row's ordinal and its bytes behind the checksum."""
    flat = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)[:, 4:]
    return np.array(
        [zlib.crc32(row, zlib.crc32(int(at).to_bytes(8, "little"))) for row, at in zip(flat, ordinals, strict=True)],
        np.uint32,
    )


# -- reading ---------------------------------------------------------------------------------------------------------


class VectorsReader:
    """The vectors of a shard, held open; a row is read by its ordinal. A context manager."""

    def __init__(self, table: str, facts: PartFacts) -> None:
        """`facts`: of the shard's part. Raises TableError for a file that is cut, damaged or of another making, and
        where there is none."""
        self.url = vectors_url(table, facts.shard)
        self._shown = storage.redact(self.url)
        if not facts.vectors:
            raise TableError(
                f"the part of shard {facts.shard} in {storage.redact(table)} has no vectors: make the table with "
                "compute-il --vectors"
            )
        self._reader = storage.open_reader(self.url)
        try:
            self.info = VectorsInfo.parse(self._pread(HEADER, 0), self._shown)
            require_of(self.info, facts, self._reader.size, self._shown)
            if (seal := self._pread(SEAL, self._reader.size - SEAL).hex()) != facts.vectors:
                raise _other_seal(self._shown, seal, facts.vectors)
        except BaseException:
            self._reader.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def read(self, ordinal_n: Rows) -> Float32:
        """(n, 2 D + 2) float32: image vector, text vector, a, b of each, NaN for a sample without vectors.

        Neighbours are one read. Raises TableError for a row that is damaged or lies at another's place.
        """
        info = self.info
        rows = np.empty(len(ordinal_n), info.row)
        cuts = np.flatnonzero(np.diff(ordinal_n) != 1) + 1
        for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(ordinal_n)], strict=True):
            if start < stop:
                place = HEADER + int(ordinal_n[start]) * info.stride
                data = self._pread((stop - start) * info.stride, place)
                rows[start:stop] = np.frombuffer(data, info.row)
        return decoded(rows, ordinal_n, info, self._shown)

    def _pread(self, size: int, offset: int) -> bytes:
        data = self._reader.pread(size, offset) if 0 <= offset <= self._reader.size - size else b""
        if len(data) != size:
            raise TableError(f"{self._shown} is cut: it has {self._reader.size:,} bytes, and a header has {HEADER:,}")
        return data


def decoded(rows: npt.NDArray[np.void], ordinal_n: Rows, info: VectorsInfo, where: str) -> Float32:
    """(n, 2 D + 2) of rows as they lie in a file. Raises TableError."""
    if (bad := np.flatnonzero(checksums(rows, ordinal_n.tolist()) != rows["crc"])).size:
        raise TableError(
            f"{where}: the row of sample {int(ordinal_n[bad[0]])} has another checksum: it is damaged, or lies at "
            "another sample's place; `rhostream verify TABLE --repair` makes it again"
        )
    vectors = rows["vectors"].astype(np.float32)
    if info.dtype == "int8":
        vectors *= rows["scale"][:, :, None]
    length = np.linalg.norm(vectors, axis=2, keepdims=True)
    there = (length != 0).any((1, 2))
    if (bad := np.flatnonzero(there & ~(np.abs(length - 1) <= UNIT).all((1, 2)))).size:
        raise TableError(f"{where}: the vectors of sample {int(ordinal_n[bad[0]])} hold NaN or aren't of length 1")
    output = np.full((len(rows), 2 * info.width + 2), np.nan, np.float32)
    output[there, :-2] = (vectors[there] / length[there]).reshape(int(there.sum()), 2 * info.width)
    output[there, -2:] = info.scale, info.bias
    return output


def proved(data: bytes, where: str) -> tuple[VectorsInfo, str]:
    """The header and the seal (hex) of a whole file, its seal and every row of it looked at. Raises TableError."""
    info = VectorsInfo.parse(data[:HEADER], where)
    _require_size(info, len(data), where)
    if hashlib.sha256(data[:-SEAL]).digest() != data[-SEAL:]:
        raise TableError(f"{where} is damaged: its sha256 isn't the one that it ends with")
    decoded(np.frombuffer(data[HEADER:-SEAL], info.row), np.arange(info.samples), info, where)
    return info, data[-SEAL:].hex()


def prove_vectors(table: str, facts: PartFacts, has_il_N: npt.NDArray[np.bool_]) -> None:
    """Hold the vectors of a part against it, every row: exactly the samples with an il (N,) have vectors.

    Raises TableError.
    """
    url = vectors_url(table, facts.shard)
    shown = storage.redact(url)
    try:
        data = storage.read_bytes(url)
    except NotFoundError as exc:
        raise TableError(f"{shown} is gone, and its part names it") from exc
    info, seal = proved(data, shown)
    require_of(info, facts, len(data), shown)
    if seal != facts.vectors:
        raise _other_seal(shown, seal, facts.vectors)
    rows = np.frombuffer(data[HEADER:-SEAL], info.row)
    there: npt.NDArray[np.bool_] = (rows["vectors"] != 0).sum((1, 2)) > 0
    if (bad := np.flatnonzero(there != has_il_N)).size:
        has = "vectors and no il" if there[bad[0]] else "an il and no vectors"
        raise TableError(f"{shown}: {len(bad)} samples have one of il and vectors alone; sample {bad[0]} has {has}")


def require_of(info: VectorsInfo, facts: PartFacts, size: int, where: str) -> None:
    """Raise TableError for vectors of another part, or a file of another size than they take."""
    for name in ("fingerprint", "shard", "shard_size", "samples"):
        if (has := getattr(info, name)) != (expected := getattr(facts, name)):
            raise TableError(f"{where} is of another making: its {name} is {has!r}, that of its part {expected!r}")
    _require_size(info, size, where)


def _require_size(info: VectorsInfo, size: int, where: str) -> None:
    if size != (expected := HEADER + info.samples * info.stride + SEAL):
        raise TableError(
            f"{where} has {size:,} bytes, and {info.samples:,} samples of {info.stride:,} bytes take {expected:,}: "
            f"it is {'cut' if size < expected else 'longer than it was made'}"
        )


def _other_seal(where: str, seal: str, expected: str) -> TableError:
    return TableError(f"{where} isn't what its part was made with: it ends with the sha256 {seal[:12]}, the part names "
                      f"{expected[:12]}")  # fmt: skip
