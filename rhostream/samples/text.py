"""Text: one .txt member, made token ids by a tokenizer: a row of int32, or a status that says why not.

A row has `length` ids: a longer text is cut, a shorter one filled up with the padding id. The same function serves the
offline wing and the trainer, and nothing of it depends on the machine.
"""

from __future__ import annotations

import functools
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from rhostream import foreign
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.samples.fields import Fields
from rhostream.samples.kind import OK, FieldSpec, Kind, Preview, View
from rhostream.samples.tokenizers import DEFAULT, Tokenizer, find_tokenizer
from rhostream.samples.wanted import Wanted

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = "tokens"  # the field
LENGTH = 128  # tokens of a sample, unless said otherwise
MAX_LENGTH = 65_536
MAX_TEXT = 1 << 20  # bytes of a .txt: a larger one is never read
TASKS = ("label", "language")
SHOWN = 200  # characters of a text for a person to look at, and so many times more for who looks at it alone
LARGE = 10
Row = npt.NDArray[np.int32]
T = TypeVar("T", bound="TextKind")


@dataclass(frozen=True, kw_only=True)
class TextKind(Kind):
    """Token ids of a text. `task`: what the model learns of it: the sample's `label`, or `language`, each token from
    those before it."""

    tokenizer: str = ""
    length: int = 0  # T; 0: not decided, as in an index
    vocabulary: int = 0
    padding: int = 0
    digest: str = ""  # of the tokenizer's files
    task: str = "label"

    name = "text"
    members = MappingProxyType({"text": ("txt",)})
    max_bytes = MAX_TEXT
    verdicts = ("text:missing", "text:empty", "text:too_large")
    holds = "text"
    plural = "texts"
    decoder = "text"  # the tokenizer stands in the record
    takes = frozenset(("tokenizer", "text_length"))
    preview_bytes = 4 * LARGE * SHOWN + 1024

    def fields(self, view: View = None) -> Mapping[str, FieldSpec]:
        """(T,) of int32."""
        return {TOKENS: FieldSpec((self.length,), "int32")} if self.length else {}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Row], view: View = None,
               rng: np.random.Generator | None = None) -> str:  # fmt: skip
        """Into `out["tokens"]` (T,). Raises MismatchError when the tokenizer isn't the one that the kind was made
        with."""
        data, row = members["text"], out[TOKENS]
        if not data:
            return "text:empty"
        if len(data) > MAX_TEXT:
            return "text:too_large"
        try:
            text = data.removeprefix(BOM_UTF8).decode()  # the codec utf-8-sig is Python, and three times as slow
        except UnicodeDecodeError:
            return "text:encoding"
        encode = _checked_tokenizer(self).encode
        assert encode is not None
        ids = [] if not text or text.isspace() else encode(text, len(row))
        if not ids:
            return "text:empty"
        row[: len(ids)], row[len(ids) :] = ids, self.padding
        return OK

    def inputs(self, fields: Fields) -> Tensor:
        """int32 (n, T) to int64 (n, T), the type that embeddings are looked up by; short rows end with `padding`."""
        return fields[TOKENS].long()

    def example(self, n: int = 1, view: View = None) -> Tensor:
        """A model's input of n samples that mean nothing, int64 (n, T)."""
        import torch

        return torch.full((n, self.length), min(self.padding + 1, self.vocabulary - 1))

    def with_decoder(self: T, name: str) -> T:
        """As it is, its tokenizer found and proved. Raises MismatchError."""
        _checked_tokenizer(self)
        return self

    def in_words(self, view: View = None) -> str:
        """Tokens and tokenizer."""
        return f"{self.length} tokens of {self.tokenizer}"

    @property
    def small_models(self) -> tuple[str, str]:
        """By what is learned of a text."""
        return ("text-lm",) * 2 if self.task == "language" else ("text-bag",) * 2

    def asked(self) -> dict[str, Any]:
        """Tokenizer and length."""
        return {"tokenizer": self.tokenizer, "text_length": self.length}

    def options(self) -> str:
        """Tokenizer and length, as options."""
        return f"--tokenizer {self.tokenizer} --text-length {self.length}"

    def model_arguments(self, view: View = None) -> dict[str, Any]:
        """Of rows of ids."""
        return {"vocabulary": self.vocabulary, "length": self.length, "padding": self.padding, "task": self.task}

    def to_json(self) -> dict[str, Any]:
        """Of either kind of ids."""
        return {"kind": "text", **asdict(self)}

    @classmethod
    def from_json(cls: type[T], record: Mapping[str, Any]) -> T:
        """The inverse of `to_json`."""
        return cls(
            tokenizer=str(record["tokenizer"]),
            length=int(record["length"]),
            vocabulary=int(record["vocabulary"]),
            padding=int(record["padding"]),
            digest=str(record["digest"]),
            task=str(record["task"]),
        )

    @classmethod
    def check(cls, record: Mapping[str, Any]) -> None:
        """Raise ValueError for a stranger's record that can't be."""
        foreign.checked_count(record.get("length"), "length", 1, foreign.MAX_LENGTH)
        vocabulary = foreign.checked_count(record.get("vocabulary"), "vocabulary", 2, foreign.MAX_VOCABULARY)
        foreign.checked_count(record.get("padding"), "padding", 0, vocabulary - 1)
        for name in ("tokenizer", "digest", "task"):
            foreign.checked_text(record.get(name), name)

    @classmethod
    def asked_by(cls, wanted: Wanted) -> bool:
        """Whether a tokenizer is named that reads such members."""
        return wanted.tokenizer is not None and not wanted.tokenizer.startswith("ids:")

    @classmethod
    def made(cls: type[T], wanted: Wanted, known: Kind | None, sizes: Callable[[], Sequence[Any]], where: str) -> T:
        """The tokenizer, length and task that are given, else those of `known`, else the defaults."""
        there = known if isinstance(known, cls) and known.length else None
        if there is None or (wanted.tokenizer or there.tokenizer) != there.tokenizer:
            length = wanted.text_length or (there.length if there else None)
            return cls.of_tokenizer(wanted.tokenizer, length, wanted.task or "label", where)
        require_length(wanted.text_length)
        if wanted.tokenizer is not None:
            find_tokenizer(wanted.tokenizer, fetch=True)  # it was named here, so its files may be fetched
        return replace(there, length=wanted.text_length or there.length, task=wanted.task or there.task)

    @classmethod
    def of_tokenizer(cls: type[T], tokenizer: str | None = None, length: int | None = None, task: str = "label",
                     where: str = "") -> T:  # fmt: skip
        """The kind of a tokenizer by name, its files loaded (fetched, for a name of the hub's) and digested.

        Raises UsageError and its kin.
        """
        name, length = cls.checked_tokenizer(tokenizer, where), LENGTH if length is None else length
        require_length(length)
        if task not in TASKS:
            raise UnknownNameError.of("task", task, TASKS)
        tokens = find_tokenizer(name, fetch=True)
        return cls(tokenizer=name, length=length, vocabulary=tokens.vocabulary, padding=tokens.padding,
                   digest=tokens.digest, task=task)  # fmt: skip

    @classmethod
    def checked_tokenizer(cls, tokenizer: str | None, where: str) -> str:
        """The name, or the default. Raises UsageError for one that doesn't read such members."""
        if tokenizer is not None and tokenizer.startswith("ids:"):
            raise UsageError(
                f"{where} holds {cls.holds} (.{cls.members['text'][0]}), which --tokenizer {tokenizer} doesn't read"
            )
        return tokenizer or DEFAULT

    def preview(self, members: Mapping[str, bytes], record: Mapping[str, Any], large: bool = False) -> Preview:
        """The first characters, in one line."""
        words = " ".join(members["text"].decode("utf-8-sig", "ignore").split())
        most = LARGE * SHOWN if large else SHOWN
        return Preview(text=words if len(words) <= most else words[: most - 1] + "…")


def require_length(length: int | None) -> None:
    """Raise UsageError for a number of tokens that can't be."""
    if length is not None and not 1 <= length <= MAX_LENGTH:
        raise UsageError(f"--text-length {length}: expected 1 to {MAX_LENGTH:,} tokens")


@functools.lru_cache(8)
def _checked_tokenizer(kind: TextKind) -> Tokenizer:
    """The kind's tokenizer; found once a process, since it may take seconds to load."""
    tokens = find_tokenizer(kind.tokenizer)
    if (tokens.digest, tokens.vocabulary, tokens.padding) != (kind.digest, kind.vocabulary, kind.padding):
        raise MismatchError(
            f"tokenizer {kind.tokenizer!r} is not the one of the table or model: digest "
            f"{tokens.digest} of {tokens.vocabulary:,} ids, it was {kind.digest} of "
            f"{kind.vocabulary:,}; use the same files"
        )
    return tokens
