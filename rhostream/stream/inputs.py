"""What the samples of a shard are, and what is made of them: an image or a text, by one pair of words for both.

    probe (the first usable sample) > preprocess (of the image's size, or of a tokenizer) > decoder (bytes into a row)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rhostream import storage
from rhostream.errors import UnknownNameError, UsageError
from rhostream.stream import npy
from rhostream.stream.batch import Batch
from rhostream.stream.decode import MAX_BYTES, Decoder, Preprocess, decoder, probe_size
from rhostream.stream.inflate import plain
from rhostream.stream.tar import walk
from rhostream.stream.text import MAX_TEXT, TextDecoder, TextPreprocess
from rhostream.tables.il import CONTENTS

AnyPreprocess = Preprocess | TextPreprocess
TEXT_DECODER = "text"  # the name in fingerprints; the tokenizer is part of the preprocess
_PROBED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """What a sample's main member is, how large it may be, and the statuses against it before it is decoded."""

    extensions: tuple[str, ...]
    max_bytes: int
    missing: str
    empty: str
    too_large: str

    def rows(self, batch: Batch) -> list[int]:
        """The member of each row that holds it, the first one; -1 where there is none."""
        if "jpg" in self.extensions:
            return batch.image  # the walk has it already
        ends, found = [*batch.first[1:], len(batch.size)], []
        for start, end in zip(batch.first, ends, strict=True):
            found.append(next((m for m in range(start, end) if batch.extension[m] in self.extensions), -1))
        return found


OF = {
    "image": Content(CONTENTS["image"], MAX_BYTES, "image:missing", "decode:empty", "image:too_large"),
    "text": Content(CONTENTS["text"], MAX_TEXT, "text:missing", "text:empty", "text:too_large"),
    "tokens": Content(CONTENTS["tokens"], npy.MAX_BYTES, "tokens:missing", "tokens:empty", "tokens:too_large"),
}


def preprocess_from_json(record: dict[str, Any]) -> AnyPreprocess:
    """The inverse of either kind's `to_json`; a record without a kind is of images."""
    return TextPreprocess.from_json(record) if record.get("kind") == "text" else Preprocess.from_json(record)


def decoder_for(preprocess: AnyPreprocess, name: str) -> tuple[str, Decoder]:
    """The decoder of images of that name, or the one of text: its name for the fingerprint, and the function."""
    if isinstance(preprocess, Preprocess):
        return decoder("auto" if name == TEXT_DECODER else name)
    return TEXT_DECODER, _text_decoder(preprocess)


@functools.lru_cache(8)
def _text_decoder(preprocess: TextPreprocess) -> Any:
    return TextDecoder(preprocess)


@dataclass(frozen=True, slots=True)
class Probe:
    """What the first usable sample is; of an image also its shorter side and channels."""

    content: str
    side: int = 0
    channels: int = 0


def checked_content(content: str | None) -> str | None:
    """The same. Raises UnknownNameError."""
    if content is not None and content not in CONTENTS:
        raise UnknownNameError.of("content", content, CONTENTS)
    return content


def probe_shards(shards: Iterable[tuple[str, str]], *, content: str | None = None, tries: int = 100,
                 decode: bool = True, once: bool = False, allow_compressed: bool = False,
                 accept_missing_eof: bool = False) -> Probe | None:
    """What the samples of the shards ((URL, name) pairs) are, by the first that can be used; None where none can.

    With `content` only that is looked for. A sample with an image is an image, whatever its caption; of one without,
    the text counts, then the array. Without `decode` an image isn't looked into; `once`: a store is asked once.
    Raises ShardError, StorageError.
    """
    for url, name in shards:
        opened = storage.open_once(url) if once else storage.open_reader(url)
        with opened as shard, plain(shard, name) if allow_compressed else shard as reader:
            for sample in walk(reader, name, accept_missing_eof=accept_missing_eof):
                found = _main_member(sample.members, content)
                if found is None:
                    tries -= 1
                elif found[0] == "image" and decode:
                    size = probe_size(reader.pread(min(found[2], _PROBED_BYTES), found[1]))
                    if size is not None:
                        return Probe("image", *size)
                    tries -= 1
                else:
                    return Probe(found[0])
                if tries <= 0:
                    return None
    return None


def _main_member(members: list[tuple[str, int, int]], content: str | None) -> tuple[str, int, int] | None:
    """(content, offset, size) of what the sample is; None for one with nothing usable."""
    for kind in CONTENTS if content is None else (content,):
        for extension, offset, size in members:
            if extension in CONTENTS[kind]:
                # A sample with an image is an image, and one that can't be used says nothing of the others.
                return (kind, offset, size) if 0 < size <= OF[kind].max_bytes else None
    return None


def require_text(content: str, tokenizer: str | None, where: str) -> None:
    """Raise UsageError for ids without their number, or a tokenizer that doesn't fit what the samples are."""
    if content == "tokens" and tokenizer is None:
        raise UsageError(f"{where} holds arrays of token ids (.npy): say how many ids there are with --tokenizer ids:N")
    if tokenizer is not None and content != ("tokens" if tokenizer.startswith("ids:") else "text"):
        holds = {"image": "images", "text": "text (.txt)", "tokens": "arrays of token ids (.npy)"}[content]
        raise UsageError(f"{where} holds {holds}, which --tokenizer {tokenizer} doesn't read")
