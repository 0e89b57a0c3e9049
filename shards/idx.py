"""The idx.gz files of the MNIST family, read strictly: all that the header promises, or one clear error."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from rhostream.errors import UsageError
from shards.sample import Pixels

MAX_BYTES = 4 << 30  # a few KB of gzip can promise any size


def read_idx(path: Path, dimensions: int) -> Pixels:
    """The array of unsigned bytes in an idx.gz file: 3 dimensions for images (N, H, W), 1 for labels (N,).

    Raises UsageError that names the file, what was found and what was expected.
    """
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _shape(path, header, dimensions)
            data = file.read(math.prod(shape) + 1)
            if len(data) == math.prod(shape) + 1:
                raise _wrong(path, "more bytes than its header promises", f"{math.prod(shape):,}")
    except FileNotFoundError as exc:
        raise UsageError(
            f"{path} does not exist; give the folder of the four idx.gz files as --source"
        ) from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise _wrong(path, f"bytes that gzip can't read ({exc})", "an idx.gz file") from exc
    if len(data) != math.prod(shape):
        raise _wrong(path, f"{len(data):,} bytes of data", f"{math.prod(shape):,} for shape {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * dimensions:
        raise _wrong(path, f"a header of {len(header)} bytes", f"{4 + 4 * dimensions}")
    magic = bytes([0, 0, 0x08, dimensions])  # two zeros, unsigned bytes, number of dimensions
    if header[:4] != magic:
        raise _wrong(path, f"the magic number {header[:4].hex()}", magic.hex())
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if not 0 < math.prod(shape) <= MAX_BYTES:
        raise _wrong(path, f"the shape {shape}", f"at least one and at most {MAX_BYTES:,} bytes")
    return shape


def _wrong(path: Path, got: str, expected: str) -> UsageError:
    return UsageError(f"{path} has {got}, expected {expected}; copy the file again")
