"""From text to token ids, by a tokenizer's name; two need no files and no dependency.

    bytes          the bytes of UTF-8, 259 ids
    words:30000    lower-cased words and signs, each hashed to an id: the same on every machine, nothing to learn
    hf:NAME        a Hugging Face tokenizer, of a local folder or of the hub (extra [hf]), never with code of its own
    open_clip:NAME that of an architecture of open_clip's
    ids:50257      none: the samples are .npy arrays of ids already, below that number (which itself is the filling)

What a name means is a `Tokenizer`; its digest is that of all that decides its ids, so it belongs to a fingerprint.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rhostream.errors import MissingExtraError, UnknownNameError, UsageError

DEFAULT = "words:30000"
KINDS = ("bytes", "words:N", "hf:NAME", "open_clip:NAME", "ids:N")
MAX_IDS = 10_000_000
PAD, END, FIRST = 0, 1, 2  # of the built-in ones: filling, end of the text, the first id of its own
_OF_TOKENIZER = re.compile(r"tokenizer|vocab|merges|spiece|sentencepiece")  # the beginning of its files' names
_WORD = re.compile(r"\w+|[^\w\s]")
_REMEMBERED = 1 << 18  # words whose hash is kept, a process
_CHARACTERS = 16  # of a text for each token that is wanted: a tokenizer with files isn't given more
Encode = Callable[[str, int], list[int]]  # (text, how many at most) -> ids


@dataclass(frozen=True)
class Tokenizer:
    """How many ids there are, which one fills up, what decides them, and the function itself."""

    vocabulary: int
    padding: int
    digest: str
    encode: Encode | None  # None: the samples are ids


@functools.lru_cache(8)
def find_tokenizer(name: str, fetch: bool = False) -> Tokenizer:
    """The tokenizer of that name. With `fetch` the hub may be asked for one that isn't in the local cache.

    Raises UnknownNameError, UsageError for a number that can't be or files that aren't there, MissingExtraError.
    """
    kind, colon, rest = name.partition(":")
    if kind == "bytes" and not colon:
        return Tokenizer(FIRST + 257, PAD, "", _bytes)
    if kind == "words":
        number = _number(name, rest)
        return Tokenizer(number, PAD, "", functools.partial(_words, number))
    if kind == "ids":
        number = _number(name, rest)
        return Tokenizer(number + 1, number, "", None)
    if kind == "hf" and rest:
        return _hugging_face(rest, fetch)
    if kind == "open_clip" and rest:
        return _open_clip(rest)
    raise UnknownNameError.of("tokenizer", name, KINDS)


def _number(name: str, text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 16 <= number <= MAX_IDS:
        raise UsageError(f"--tokenizer {name!r}: expected a number of ids from 16 to {MAX_IDS:,}, as in {DEFAULT}")
    return number


def _bytes(text: str, most: int) -> list[int]:
    # Cut before it is encoded: a character is one byte or more.
    ids = [byte + FIRST for byte in text[:most].encode()[:most]]
    return [*ids, END] if len(ids) < most else ids


_hashes: dict[str, int] = {}  # word -> 64 bits, the same for any vocabulary


def _words(vocabulary: int, text: str, most: int) -> list[int]:
    """Ids of the words: the end of the text is one more, where it is reached."""
    ids = list[int]()
    for found in _WORD.finditer(text.lower()):
        if len(ids) == most:
            return ids
        word = found[0]
        known = _hashes.get(word)
        if known is None:
            known = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
            if len(_hashes) < _REMEMBERED:
                _hashes[word] = known
        ids.append(known % (vocabulary - FIRST) + FIRST)
    return [*ids, END] if 0 < len(ids) < most else ids


def _hugging_face(name: str, fetch: bool) -> Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as exc:
        raise MissingExtraError.of("transformers", "hf") from exc
    if os.path.isdir(name) and not any(map(_OF_TOKENIZER.match, os.listdir(name))):
        # transformers would make one up that knows nothing.
        raise UsageError(f"tokenizer 'hf:{name}' can't be loaded: the folder holds no file of a tokenizer")
    try:
        # trust_remote_code=False: a folder's own Python is never run, whatever its files ask for.
        made: Any = AutoTokenizer.from_pretrained(
            name, use_fast=True, trust_remote_code=False, local_files_only=not fetch
        )
    except Exception as exc:  # a dozen kinds, of the hub's client too
        why = " ".join(str(exc).split())[:300]
        raise UsageError(
            f"tokenizer 'hf:{name}' can't be loaded: {why}; expected a folder with its files, or a name of the hub's"
        ) from exc
    padding = made.pad_token_id if made.pad_token_id is not None else made.eos_token_id
    if padding is None:
        raise UsageError(f"tokenizer 'hf:{name}' names neither a padding nor an end token: add one to its files")
    if (backend := getattr(made, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
        number, content = max(len(made), backend.get_vocab_size()), backend.to_str()
    else:  # of no fast form, SigLIP's say: its class, its words and its file decide the ids
        words = made.get_vocab()
        number = max(len(made), *(at + 1 for at in words.values()))
        content = f"{type(made).__name__}{sorted(words.items())}"
        if os.path.isfile(file := str(getattr(made, "vocab_file", ""))):
            with open(file, "rb") as opened:
                content += hashlib.file_digest(opened, "sha256").hexdigest()
    digest = hashlib.sha256(f"{padding}\0{content}".encode()).hexdigest()[:16]

    def encode(text: str, most: int) -> list[int]:
        row: list[int] = made(text[: _CHARACTERS * most], truncation=True, max_length=most)["input_ids"]
        return row

    return Tokenizer(number, int(padding), digest, encode)


def _open_clip(name: str) -> Tokenizer:
    """Its tokenizers cut, end and fill up a text themselves, each in its way: the filling is what stands behind one."""
    try:
        library = importlib.import_module("open_clip")
    except ImportError as exc:
        raise MissingExtraError("open_clip is not installed: pip install open_clip_torch") from exc
    try:
        made: Any = library.get_tokenizer(name)
    except Exception as exc:  # of its own, and of transformers' beneath
        why = " ".join(str(exc).split())[:300]
        raise UsageError(f"tokenizer 'open_clip:{name}' can't be loaded: {why}; expected a name of its models") from exc
    padding = int(made(["a"], context_length=77)[0, -1])
    inner = getattr(made, "tokenizer", None)  # of transformers', in those that aren't CLIP's own
    words = made.encoder if inner is None else inner.get_vocab()
    digest = hashlib.sha256(f"{type(made).__name__}\0{padding}\0{sorted(words.items())}".encode()).hexdigest()[:16]

    def encode(text: str, most: int) -> list[int]:
        ids: list[int] = made([text[: _CHARACTERS * most]], context_length=most)[0].tolist()
        while ids and ids[-1] == padding:
            ids.pop()
        return ids

    return Tokenizer(max(words.values()) + 1, padding, digest, encode)
