"""From the bytes of a text (or of an array of token ids) to a row of int32 ids, or to a status that says why not.

A row has `length` ids: a longer text is cut, a shorter one filled up with the padding id. The same function serves the
offline wing and the trainer, and nothing of it depends on the machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import Tokens
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.stream.npy import BadTokens, token_ids
from rhostream.stream.tokenizers import DEFAULT, find_tokenizer, is_ids

OK = "ok"
LENGTH = 128  # tokens of a sample, unless said otherwise
MAX_LENGTH = 65_536
MAX_TEXT = 1 << 20  # bytes of a .txt: a larger one is never read
TASKS = ("label", "language")
Row = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPreprocess:
    """What turns a .txt or .npy member into a model's input; part of every fingerprint.

    `task`: what the model learns of it: the sample's `label`, or `language`, each token from those before it.
    """

    tokenizer: str
    length: int  # T
    vocabulary: int
    padding: int = 0
    digest: str = ""  # of the tokenizer's files
    task: str = "label"
    kind: ClassVar[str] = "text"
    dtype: ClassVar[torch.dtype] = torch.int32

    @property
    def content(self) -> str:
        """What samples are: of `tables.il.CONTENTS`."""
        return "tokens" if is_ids(self.tokenizer) else "text"

    @property
    def shape(self) -> tuple[int, ...]:
        """(T,) of a decoded row."""
        return (self.length,)

    @property
    def row_bytes(self) -> int:
        """Of a decoded row."""
        return 4 * self.length

    @property
    def normalize(self) -> Tokens:
        """The part of it that runs on the device."""
        return Tokens(self.padding)

    @property
    def says(self) -> str:
        """A row in words."""
        return f"{self.length} tokens of {self.tokenizer}"

    def example(self, n: int = 1) -> Tensor:
        """A model's input of n samples that mean nothing, int64 (n, T)."""
        return torch.full((n, self.length), min(self.padding + 1, self.vocabulary - 1))

    def model_arguments(self) -> dict[str, Any]:
        """What a model is made for."""
        return {"vocabulary": self.vocabulary, "length": self.length, "padding": self.padding, "task": self.task}

    def to_json(self) -> dict[str, Any]:
        """Plain values for model.json and _table.json."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TextPreprocess:
        """The inverse of `to_json`."""
        return cls(
            tokenizer=str(record["tokenizer"]),
            length=int(record["length"]),
            vocabulary=int(record["vocabulary"]),
            padding=int(record["padding"]),
            digest=str(record["digest"]),
            task=str(record["task"]),
        )


def text_preprocess(tokenizer: str | None = None, length: int | None = None, task: str = "label") -> TextPreprocess:
    """The preprocess of a tokenizer by name, its files loaded (fetched, for a name of the hub's) and digested.

    Raises UsageError and its kin.
    """
    name, length = tokenizer or DEFAULT, LENGTH if length is None else length
    require_length(length)
    if task not in TASKS:
        raise UnknownNameError.of("task", task, TASKS)
    found = find_tokenizer(name, fetch=True)
    return TextPreprocess(
        tokenizer=name,
        length=length,
        vocabulary=found.vocabulary,
        padding=found.padding,
        digest=found.digest,
        task=task,
    )


def require_length(length: int | None) -> None:
    """Raise UsageError for a number of tokens that can't be."""
    if length is not None and not 1 <= length <= MAX_LENGTH:
        raise UsageError(f"--text-length {length}: expected 1 to {MAX_LENGTH:,} tokens")


class TextDecoder:
    """Decodes a member into a row of ids; made once a process, since a tokenizer may take seconds to load.

    Raises MismatchError when the tokenizer isn't the one that the preprocess was made with.
    """

    def __init__(self, preprocess: TextPreprocess) -> None:
        found = find_tokenizer(preprocess.tokenizer)
        if (found.digest, found.vocabulary, found.padding) != (
            preprocess.digest,
            preprocess.vocabulary,
            preprocess.padding,
        ):
            raise MismatchError(
                f"tokenizer {preprocess.tokenizer!r} is not the one of the table or model: digest "
                f"{found.digest} of {found.vocabulary:,} ids, it was {preprocess.digest} of "
                f"{preprocess.vocabulary:,}; use the same files"
            )
        self._encode, self._padding = found.encode, found.padding

    def __call__(self, data: bytes, out: Row) -> str:
        """Into `out` (T,); returns "ok" or the status of a bad sample."""
        if self._encode is None:
            return self._ids(data, out)
        if not data:
            return "text:empty"
        if len(data) > MAX_TEXT:
            return "text:too_large"
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "text:encoding"
        ids = [] if not text or text.isspace() else self._encode(text, len(out))
        if not ids:
            return "text:empty"
        out[: len(ids)], out[len(ids) :] = ids, self._padding
        return OK

    def _ids(self, data: bytes, out: Row) -> str:
        try:
            ids = token_ids(data, len(out))
        except BadTokens as bad:
            return str(bad)
        if ids.min() < 0 or ids.max() >= self._padding:  # the id behind the last one
            return "tokens:range"
        out[: len(ids)], out[len(ids) :] = ids, self._padding
        return OK
