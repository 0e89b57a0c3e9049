"""The header of a .npy file, read strictly: nothing is ever unpickled.

numpy's own reader evaluates the header as Python and, asked to, unpickles object arrays. Here the header has to be the
text that `numpy.save` writes for an array of integers, to the byte.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

MAGIC = b"\x93NUMPY"
MAX_HEADER = 1024  # bytes; what numpy writes for one dimension takes 118
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (False|True), 'shape': \(([0-9, ]{0,40})\), \} *\n"
    rb"\Z"
)
_INTEGERS = re.compile(r"[<>|=]?[iu][1248]\Z")


class BadTokens(Exception):
    """Why the bytes hold no token ids, as a status."""


def array_of(data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Type and shape of the array of integers that the bytes of a .npy file begin, and where its ids begin.

    Raises BadTokens with a status.
    """
    if data[:6] != MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise BadTokens("tokens:broken")
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    found = _HEADER.match(data[start : start + length]) if length <= MAX_HEADER else None
    if found is None:
        raise BadTokens("tokens:broken")
    kind, shape = found[1].decode("latin-1"), [n for n in found[3].decode().replace(" ", "").split(",") if n]
    if not _INTEGERS.match(kind) or (len(shape) > 1 and found[2] == b"True"):
        raise BadTokens("tokens:type")
    return np.dtype(kind), tuple(map(int, shape)), start + length
