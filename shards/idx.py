"""The idx files of the MNIST family, gzipped or not, read strictly: all that the header promises, or a clear error."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import UsageError
from shards.sample import Ints, Pixels

MAX_BYTES = 4 << 30  # a few KB of gzip can promise any size
UNSIGNED_BYTE, INT32 = 0x08, 0x0C
TYPES: dict[int, np.dtype[Any]] = {UNSIGNED_BYTE: np.dtype(np.uint8), INT32: np.dtype(">i4")}


def read_idx(path: Path, dimensions: int) -> Pixels:
    """The array of unsigned bytes in an idx.gz file: 3 dimensions for images (N, H, W), 1 for labels (N,).

    Raises UsageError that names the file, what was found and what was expected.
    """
    values: Pixels = _read(path, dimensions, UNSIGNED_BYTE)
    return values


def read_idx_integers(path: Path, dimensions: int) -> Ints:
    """The array of 32-bit integers in an idx.gz file, such as QMNIST's labels (N, 8); errors as `read_idx`."""
    return _read(path, dimensions, INT32).astype(np.int64)


def _read(path: Path, dimensions: int, kind: int) -> npt.NDArray[Any]:
    form = TYPES[kind]
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _shape(path, header, dimensions, kind)
            expected = math.prod(shape) * form.itemsize
            data = file.read(expected + 1)
            if len(data) == expected + 1:
                raise _wrong(path, "more bytes than its header promises", f"{expected:,}")
    except FileNotFoundError as exc:
        raise UsageError(f"{path} does not exist; give the folder of the four idx.gz files as --source") from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise _wrong(path, f"bytes that gzip can't read ({exc})", "an idx.gz file") from exc
    if len(data) != expected:
        raise _wrong(path, f"{len(data):,} bytes of data", f"{expected:,} for shape {shape}")
    values: npt.NDArray[Any] = np.frombuffer(data, form).reshape(shape)
    return values


def _shape(path: Path, header: bytes, dimensions: int, kind: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * dimensions:
        raise _wrong(path, f"a header of {len(header)} bytes", f"{4 + 4 * dimensions}")
    magic = bytes([0, 0, kind, dimensions])  # two zeros, the type of a number, number of dimensions
    if header[:4] != magic:
        raise _wrong(path, f"the magic number {header[:4].hex()}", magic.hex())
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if not 0 < math.prod(shape) * TYPES[kind].itemsize <= MAX_BYTES:
        raise _wrong(path, f"the shape {shape}", f"at least one and at most {MAX_BYTES:,} bytes")
    return shape


def _wrong(path: Path, got: str, expected: str) -> UsageError:
    return UsageError(f"{path} has {got}, expected {expected}; copy the file again")
