"""Token ids that are there already: one .npy member, an array of integers, read strictly, nothing ever unpickled.

numpy's own reader evaluates the header as Python and, asked to, unpickles object arrays. Here the header has to be the
text that `numpy.save` writes for a one-dimensional array of integers, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import UsageError
from rhostream.samples.kind import OK, Preview, View
from rhostream.samples.text import TOKENS, Row, TextKind
from rhostream.samples.wanted import Wanted

MAX_BYTES = 64 << 20
_MAGIC = b"\x93NUMPY"
MAX_HEADER = 1024  # bytes; what numpy writes for one dimension takes 118
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (?:False|True), 'shape': \(([0-9, ]{0,40})\), \} *\n"
    rb"\Z"
)
_INTEGERS = re.compile(r"[<>|=]?[iu][1248]\Z")


class BadTokens(Exception):
    """Why the bytes hold no token ids, as a status."""


def token_ids(data: bytes, most: int, *, whole: bool = True) -> npt.NDArray[np.int64]:
    """The first `most` ids, (n,), of the bytes of a .npy file (its beginning, unless `whole`).

    Raises BadTokens with a status.
    """
    if not data:
        raise BadTokens("tokens:empty")
    if len(data) > MAX_BYTES:
        raise BadTokens("tokens:too_large")
    if data[:6] != _MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise BadTokens("tokens:broken")
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    found = _HEADER.match(data[start : start + length]) if length <= MAX_HEADER else None
    if found is None:
        raise BadTokens("tokens:broken")
    kind, shape = found[1].decode("latin-1"), [n for n in found[2].decode().replace(" ", "").split(",") if n]
    if not _INTEGERS.match(kind) or len(shape) != 1:
        raise BadTokens("tokens:type")
    dtype, count, body = np.dtype(kind), int(shape[0]), start + length
    if whole and body + count * dtype.itemsize != len(data):
        raise BadTokens("tokens:broken")
    if not count:
        raise BadTokens("tokens:empty")
    ids = np.frombuffer(data, dtype, min(count, most, max(len(data) - body, 0) // dtype.itemsize), body)
    if dtype.kind == "u" and dtype.itemsize == 8 and int(ids.max()) >= 2**63:
        raise BadTokens("tokens:range")
    return ids.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TokensKind(TextKind):
    """Arrays of token ids, cut and filled up like those of a text; `tokenizer` is `ids:N`, and N is the filling."""

    name = "tokens"
    members = MappingProxyType({"tokens": ("npy",)})
    max_bytes = MAX_BYTES
    verdicts = ("tokens:missing", "tokens:empty", "tokens:too_large")
    holds = "arrays of token ids"
    plural = "arrays"

    def decode(self, members: Mapping[str, bytes], out: dict[str, Row], view: View = None,
               rng: np.random.Generator | None = None) -> str:  # fmt: skip
        """Into `out["tokens"]` (T,); returns "ok" or the status of a bad array."""
        row = out[TOKENS]
        try:
            ids = token_ids(members["tokens"], len(row))
        except BadTokens as bad:
            return str(bad)
        if ids.min() < 0 or ids.max() >= self.padding:  # the id behind the last one
            return "tokens:range"
        row[: len(ids)], row[len(ids) :] = ids, self.padding
        return OK

    @classmethod
    def asked_by(cls, wanted: Wanted) -> bool:
        """Whether the tokenizer is `ids:N`."""
        return wanted.tokenizer is not None and wanted.tokenizer.startswith("ids:")

    @classmethod
    def checked_tokenizer(cls, tokenizer: str | None, where: str) -> str:
        """`ids:N`. Raises UsageError for none, and for one that reads text."""
        if tokenizer is None:
            raise UsageError(f"{where} holds {cls.holds} (.npy): say how many ids there are with --tokenizer ids:N")
        if not tokenizer.startswith("ids:"):
            raise UsageError(f"{where} holds {cls.holds} (.npy), which --tokenizer {tokenizer} doesn't read")
        return tokenizer

    def preview(self, members: Mapping[str, bytes], record: Mapping[str, Any]) -> Preview:
        """The first ids; nothing for bytes that hold none."""
        try:
            ids = token_ids(members["tokens"], 40, whole=False)
        except BadTokens:
            return Preview()
        return Preview(text=" ".join(map(str, ids.tolist())) + " …")
