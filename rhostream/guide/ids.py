"""What flat files of token ids are to be read with: how many ids there can be, and how many make a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.samples.flat import BEGINNING, BadLayout, Flat
from rhostream.samples.npy import MAGIC, BadTokens, array_of
from rhostream.storage import redact

LENGTH, FILES = 1024, 4
VOCABULARIES = (256, 32_000, 50_257, 50_304, 65_536, 100_277, 128_256, 151_936, 262_144)  # of tokenizers in use


def ids_in(shards: Sequence[str]) -> dict[str, object]:
    """Options of fit-il for such files, by the beginnings of some. Raises UsageError for one that holds no ids.

    How many ids there can be is a guess: the smallest common vocabulary that has all of those seen.
    """
    largest, length = 0, LENGTH
    for url in shards[:: -(-len(shards) // FILES)]:
        with storage.open_reader(url, 0) as reader:
            beginning, size = reader.pread(min(BEGINNING, reader.size), 0), reader.size
        length = _width(beginning) or length
        try:
            layout = Flat(length, 1 << 16).layout(beginning, size)
        except BadLayout as exc:
            raise UsageError(f"{redact(url)} {exc}") from None
        body = beginning[layout.start :]
        ids = np.frombuffer(body[: len(body) // layout.width * layout.width], f"<u{layout.width}")
        largest = max(largest, int(ids.max(initial=0)))
    vocabulary = next((size for size in VOCABULARIES if size > largest), largest + 1)
    return {"model": "text-lm", "tokenizer": f"ids:{vocabulary}", "text_length": length, "task": "language"}


def _width(beginning: bytes) -> int | None:
    """T of a packed array (n, T) of numpy's; None for others."""
    if not beginning.startswith(MAGIC):
        return None
    try:
        shape = array_of(beginning)[1]
    except BadTokens:
        return None
    return int(shape[1]) if len(shape) > 1 else None
