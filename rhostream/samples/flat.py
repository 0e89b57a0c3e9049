"""Flat files of token ids, as pretraining has them: where the ids begin, how wide one is, and how many there are.

    numpy's      .npy: its header says all                    FineWeb-like shards, (n,), or packed, (n, T)
    llm.c's      .bin: 256 int32: 20240520, 1, n (uint16), or 20240801, 7, n (uint32)
    none         .bin (nanoGPT's uint16, the .bin of Megatron's pairs), .npy of OLMo's (a memmap): ids and nothing else

Without a header an id has 2 bytes where N ids fit, else 4, as all of these write them; but where every second number
of the beginning is 0 it has twice as many, for no text repeats one id so. Ids are little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rhostream.errors import UsageError
from rhostream.samples.npy import MAGIC, BadTokens, array_of
from rhostream.storage import redact

FLAT = (".bin", ".npy")  # what the names of flat files end in
BEGINNING = 64 << 10  # bytes that a layout is told by
_LEAST = 64  # numbers that can tell a width
_LLM_C = {20240520: (1, 2), 20240801: (7, 4)}  # the first number: the second one, and bytes of an id
_LLM_C_HEADER = 1024
# At least four bytes each: two are an id that a file may well begin with.
_OTHERS = {
    (20240522).to_bytes(4, "little"): "an evaluation file of llm.c's",
    b"LITPKDS": "a chunk of lit-gpt's packed dataset",
    b"MMIDIDX": "the index of a Megatron dataset (its .bin holds the ids)",
    b"PK\x03\x04": "a zip or .npz archive",
    b"\x1f\x8b\x08\x00": "gzip-compressed",
    b"\x1f\x8b\x08\x08": "gzip-compressed",
}


def is_flat(shard: str) -> bool:
    """Whether a shard of that name or URL is a flat file of ids."""
    path = shard.partition("?")[0] if "://" in shard else shard  # a URL may be signed
    return path.lower().endswith(FLAT)


def are_flat(shards: Sequence[str]) -> bool:
    """Whether shards of these names are flat files of ids. Raises UsageError where only some are."""
    flat = [shard for shard in shards if is_flat(shard)]
    if 0 < len(flat) < len(shards):
        other = next(shard for shard in shards if not is_flat(shard))
        raise UsageError(
            f"{redact(flat[0])} is a flat file of ids, and {redact(other)} is none: samples lie in tars or in flat "
            f"files ({', '.join(FLAT)}), not in both"
        )
    return bool(flat)


class BadLayout(Exception):
    """Why a file holds no ids that can be read, in words that go on behind its name."""


@dataclass(frozen=True)
class Layout:
    """Ids from the byte `start` on, `width` bytes each: `samples` of T, and `rest` behind them that fill no sample."""

    start: int
    width: int
    samples: int
    rest: int


@dataclass(frozen=True)
class Flat:
    """How flat files are cut: into samples of `length` ids, each below `ids`."""

    length: int
    ids: int

    def layout(self, beginning: bytes, size: int) -> Layout:
        """Of a file of `size` bytes that begins so.

        Raises BadLayout for what holds no ids, and for a header that doesn't say what is there.
        """
        if not size:
            raise BadLayout("is empty (0 bytes)")
        for magic, says in _OTHERS.items():
            if beginning.startswith(magic):
                raise BadLayout(f"is {says}, expected ids")
        found = _header(beginning, self.length)
        if found is None:
            width = width_of(beginning, self.ids)
            if size % width:
                raise BadLayout(
                    f"has {size:,} bytes, no whole number of ids of {width} bytes: it was cut, or holds something else"
                )
            return Layout(0, width, *divmod(size // width, self.length))
        start, width, count = found
        if start + count * width != size:
            raise BadLayout(
                f"has {size:,} bytes, and its header says {count:,} ids of {width} bytes, which end at byte "
                f"{start + count * width:,}: it was cut, or has grown"
            )
        return Layout(start, width, *divmod(count, self.length))


def _header(beginning: bytes, length: int) -> tuple[int, int, int] | None:
    """(start, width, ids) as numpy's header says, or llm.c's; None where there is neither."""
    if beginning.startswith(MAGIC):
        try:
            dtype, shape, start = array_of(beginning)
        except BadTokens:
            raise BadLayout(
                "has a header of numpy's that is no plain array of integers (an object array is never opened)"
            ) from None
        if dtype.byteorder == ">":
            raise BadLayout(f"has big-endian ids ({dtype.str}): write it with little-endian ones")
        if len(shape) != 1 and shape[1:] != (length,):
            raise BadLayout(
                f"is an array of shape {shape}, and a sample is {length} ids: give its width as --text-length"
            )
        return start, dtype.itemsize, int(np.prod(shape, dtype=object))
    if len(beginning) < _LLM_C_HEADER:
        return None
    first, version, count = np.frombuffer(beginning, "<i4", 3).tolist()
    if first not in _LLM_C:
        return None
    known, width = _LLM_C[first]
    if version != known:
        raise BadLayout(f"has a header of llm.c's of version {version}, expected {known}")
    return _LLM_C_HEADER, width, count


def width_of(beginning: bytes, ids: int) -> int:
    """Bytes of an id, of a file without a header that begins so."""
    least = 2 if ids <= 1 << 16 else 4
    numbers = np.frombuffer(beginning[: len(beginning) // 8 * 8], "<u2").reshape(-1, 4) != 0
    if numbers.size < _LEAST:
        return least
    if not numbers[:, 1:].any() and numbers[:, 0].mean() > 0.5:
        return 8
    if not numbers[:, 1::2].any() and numbers[:, ::2].mean() > 0.5:
        return 4
    return least
