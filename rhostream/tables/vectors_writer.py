"""The vectors of one shard on their way into its file (`vectors.py`)."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream import storage
from rhostream.errors import AlreadyExistsError, MismatchError, TableError, UnknownNameError
from rhostream.tables.il.part import PartFacts
from rhostream.tables.vectors import SEAL, TYPES, Float32, VectorsInfo, checksums, proved, vectors_url

UNIT = 1e-3  # by how much the length of a vector may differ from 1


class VectorsWriter:
    """The vectors of one shard, chunk by chunk in its order, and the file of them. In memory until it is committed."""

    def __init__(self, *, fingerprint: str, shard: str, shard_size: int, dtype: str = "float16") -> None:
        if dtype not in TYPES:
            raise UnknownNameError.of("type of vectors", dtype, TYPES)
        self._facts: dict[str, Any] = {
            "fingerprint": fingerprint,
            "shard": shard,
            "shard_size": shard_size,
            "dtype": dtype,
        }
        self._chunks: list[tuple[Float32, npt.NDArray[np.bool_]]] = []
        self._of_all: npt.NDArray[np.float64] | None = None  # (D, a, b)
        self.samples = 0

    def add(self, output_nK: Float32, there_n: npt.NDArray[np.bool_]) -> None:
        """The next n samples: image vector, text vector, a, b of each (2 D + 2), and which of them have an il.

        Raises TableError for one that is there and has NaN, or vectors that are no unit vectors; MismatchError where a
        and b differ: vectors of several networks can't be held against each other.
        """
        rows, width = output_nK[there_n], output_nK.shape[1] // 2 - 1
        vectors = rows[:, :-2].reshape(len(rows), 2, width)
        length = np.linalg.norm(vectors, axis=2)
        bad = ~(np.abs(length - 1) <= UNIT).all(1) | ~np.isfinite(rows).all(1)
        if bad.any():
            at = self.samples + int(np.flatnonzero(there_n)[np.flatnonzero(bad)[0]])
            raise TableError(
                f"shard {self._facts['shard']}, sample {at}: its vectors hold NaN or aren't of length 1 "
                f"({length[bad][0]}); nothing was written"
            )
        if len(rows):
            of_rows = np.column_stack([np.full(len(rows), width), rows[:, -2:]])
            self._of_all = of_rows[0] if self._of_all is None else self._of_all
            if (of_rows != self._of_all).any():
                raise MismatchError(
                    f"shard {self._facts['shard']}: width, scale or bias of its vectors differ from sample to sample: "
                    "vectors of several networks (a cross-fit) can't be held against each other"
                )
        self._chunks.append((vectors.astype(np.float32), there_n.copy()))
        self.samples += len(output_nK)

    def encode(self) -> tuple[VectorsInfo, bytes]:
        """The header and the bytes of the whole file."""
        width, scale, bias = (0, 0.0, 0.0) if self._of_all is None else self._of_all.tolist()
        info = VectorsInfo(samples=self.samples, width=int(width), scale=scale, bias=bias, **self._facts)
        rows = np.zeros(self.samples, info.row)
        there = np.concatenate([there for _, there in self._chunks]) if self._chunks else np.zeros(0, bool)
        parts = [vectors for vectors, _ in self._chunks if len(vectors)]
        vectors = np.concatenate(parts) if parts else np.zeros((0, 2, 0), np.float32)
        if info.dtype == "int8":
            scale_n2 = np.abs(vectors).max(2, initial=0) / np.float32(127)
            rows["scale"][there] = scale_n2
            vectors = np.rint(vectors / scale_n2[:, :, None])
        rows["vectors"][there] = vectors
        rows["crc"] = checksums(rows, range(self.samples))
        data = info.header() + rows.tobytes()
        return info, data + hashlib.sha256(data).digest()

    def commit(self, table: str) -> str:
        """Write the file; returns the seal (hex) that the part is to name. What is there already, of the same making
        and whole, is taken. Raises MismatchError for another one, TableError for one that is damaged."""
        info, data = self.encode()
        url = vectors_url(table, info.shard)
        try:
            storage.create(url, data)
            return data[-SEAL:].hex()
        except AlreadyExistsError:
            there, seal = proved(storage.read_bytes(url), storage.redact(url))
        if there != info:
            raise MismatchError(
                f"{storage.redact(url)} is of another making ({there}) than what this job made ({info}): use another "
                "--out, or delete the file"
            )
        return seal


def copy_vectors(table: str, out: str, facts: PartFacts) -> None:
    """Give another table of the same making a part's vectors, where it has any. Raises TableError for damaged ones."""
    if not facts.vectors:
        return
    url = vectors_url(table, facts.shard)
    data = storage.read_bytes(url)
    if proved(data, storage.redact(url))[1] != facts.vectors:
        raise TableError(f"{storage.redact(url)} isn't what its part was made with")
    with contextlib.suppress(AlreadyExistsError):  # another job's, of the same bytes
        storage.create(vectors_url(out, facts.shard), data)
