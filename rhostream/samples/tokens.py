"""Token ids that are there already: one .npy member, an array of integers, read strictly, nothing ever unpickled.

Flat files of ids, without a tar around them, are cut into samples of T ids each: see `flat`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rhostream import foreign
from rhostream.errors import UsageError
from rhostream.samples.flat import Flat, width_of
from rhostream.samples.kind import OK, Kind, Preview, View
from rhostream.samples.npy import BadTokens, array_of
from rhostream.samples.text import TOKENS, Row, TextKind
from rhostream.samples.wanted import Wanted

MAX_BYTES = 64 << 20
WIDTHS = (1, 2, 4, 8)  # bytes of an id
_NOT_ASKED = {"stride": 0, "end_of_text": None}  # what stands in no record then


def token_ids(data: bytes, most: int, *, whole: bool = True) -> npt.NDArray[np.int64]:
    """The first `most` ids, (n,), of the bytes of a .npy file (its beginning, unless `whole`).

    Raises BadTokens with a status.
    """
    if not data:
        raise BadTokens("tokens:empty")
    if len(data) > MAX_BYTES:
        raise BadTokens("tokens:too_large")
    dtype, shape, body = array_of(data)
    if len(shape) != 1:
        raise BadTokens("tokens:type")
    count = shape[0]
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
    """Arrays of token ids, cut and filled up like those of a text; `tokenizer` is `ids:N`, and N is the filling.

    `stride`: samples are cut from flat files, each so many ids, which is the `length`; 0: they are members of tars.
    `end_of_text`: documents are packed into a sample, and each ends with this id; None: nobody said so.
    """

    stride: int = 0
    end_of_text: int | None = None

    name = "tokens"
    members = MappingProxyType({"tokens": ("npy",)})
    max_bytes = MAX_BYTES
    verdicts = ("tokens:missing", "tokens:empty", "tokens:too_large")
    holds = "arrays of token ids"
    plural = "arrays"
    takes = frozenset((*TextKind.takes, "end_of_text"))

    def decode(self, members: Mapping[str, bytes], out: dict[str, Row], view: View = None,
               rng: np.random.Generator | None = None) -> str:  # fmt: skip
        """Into `out["tokens"]` (T,); returns "ok" or the status of a bad array."""
        row = out[TOKENS]
        try:
            ids = self._flat_ids(members["tokens"]) if self.stride else token_ids(members["tokens"], len(row))
        except BadTokens as bad:
            return str(bad)
        if ids.min() < 0 or ids.max() >= self.padding:  # the id behind the last one
            return "tokens:range"
        row[: len(ids)], row[len(ids) :] = ids, self.padding
        return OK

    def _flat_ids(self, data: bytes) -> npt.NDArray[np.unsignedinteger[Any]]:
        """A sample of a flat file: T ids of as many bytes each as there are for it. A negative one is beyond all."""
        width, rest = divmod(len(data), self.stride)
        if rest or width not in WIDTHS:
            raise BadTokens("tokens:broken")
        return np.frombuffer(data, f"<u{width}")

    @property
    def flat(self) -> Flat | None:  # type: ignore[override]
        """How samples are cut from flat files, where they are."""
        return Flat(self.stride, self.padding) if self.stride else None

    def to_json(self) -> dict[str, Any]:
        """As of a text; what isn't asked for leaves no trace, as before it could be."""
        record = super().to_json()
        return {name: value for name, value in record.items() if name not in _NOT_ASKED or value != _NOT_ASKED[name]}

    def model_arguments(self, view: View = None) -> dict[str, Any]:
        """Of rows of ids, and what ends a document where that was said."""
        return super().model_arguments() | ({} if self.end_of_text is None else {"end_of_text": self.end_of_text})

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        asked = {name: record.get(name, none) for name, none in _NOT_ASKED.items()}
        return replace(super().from_json(record), **asked)

    @classmethod
    def check(cls, record: Mapping[str, Any]) -> None:
        """Raise ValueError for a stranger's record that can't be."""
        super().check(record)
        if record.get("stride", record["length"]) != record["length"]:
            raise ValueError(f"stride is {record['stride']!r:.40}, expected the length {record['length']}")

        if "end_of_text" in record:
            foreign.checked_count(record["end_of_text"], "end_of_text", 0, record["padding"] - 1)

    @classmethod
    def made(cls, wanted: Wanted, known: Kind | None, sizes: Callable[[], Sequence[Any]], where: str) -> Self:
        """As of a text; samples that are cut from flat files stay those that they are."""
        made = super().made(wanted, known, sizes, where)
        if wanted.flat and made.task != "language":
            raise UsageError(f"{where} is a flat file of ids, which has no labels: its task is language (--task)")
        stride = known.stride if isinstance(known, cls) else made.length if wanted.flat else 0
        if stride and made.length != stride:
            raise UsageError(
                f"--text-length {made.length}: {where} holds sequences of {stride} ids, cut from flat files; make a "
                "table of others"
            )
        end = wanted.end_of_text
        if end is None and isinstance(known, cls):
            end = known.end_of_text
        if end is not None and not 0 <= end < made.padding:
            raise UsageError(f"--end-of-text {end}: expected an id below {made.padding:,}, as --tokenizer says")
        return replace(made, stride=stride, end_of_text=end)

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

    def preview(self, members: Mapping[str, bytes], record: Mapping[str, Any], large: bool = False) -> Preview:
        """The first ids; nothing for bytes that hold none."""
        data, stride, vocabulary = (
            members["tokens"],
            record.get("preprocess_stride"),
            record.get("preprocess_vocabulary"),
        )
        try:
            if isinstance(stride, int) and isinstance(vocabulary, int):  # a sample of a flat file, maybe its beginning
                width = width_of(data, vocabulary - 1)
                ids: npt.NDArray[Any] = np.frombuffer(data[: 40 * width], f"<u{width}")
            else:
                ids = token_ids(data, 40, whole=False)
        except (BadTokens, ValueError):
            return Preview()
        return Preview(text=" ".join(map(str, ids.tolist())) + " …")
