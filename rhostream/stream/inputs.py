"""What the samples of a shard are, and what is made of them: an image or a text, by one pair of words for both.

look (`look`) > preprocess (of the images' size, or of a tokenizer) > decoder (bytes into a row)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from rhostream.errors import UnknownNameError, UsageError
from rhostream.stream import npy
from rhostream.stream.batch import Batch
from rhostream.stream.decode import MAX_BYTES, Decoder, Preprocess, decoder
from rhostream.stream.geometry import CROP
from rhostream.stream.text import MAX_TEXT, TextDecoder, TextPreprocess
from rhostream.tables.il import CONTENTS

AnyPreprocess = Preprocess | TextPreprocess
TEXT_DECODER = "text"  # the name in fingerprints; the tokenizer is part of the preprocess


@dataclass(frozen=True, slots=True)
class Content:
    """What a sample's main member is, how large it may be, and the statuses against it before it is decoded."""

    name: str
    extensions: tuple[str, ...]
    max_bytes: int
    missing: str
    empty: str
    too_large: str

    def rows(self, batch: Batch) -> list[int]:
        """The member of each row that holds it, the first one; -1 where there is none."""
        if self.name == "image":
            return batch.image  # the walk has it already
        ends, found = [*batch.first[1:], len(batch.size)], []
        for start, end in zip(batch.first, ends, strict=True):
            found.append(next((m for m in range(start, end) if batch.extension[m] in self.extensions), -1))
        return found


OF = {
    "image": Content("image", CONTENTS["image"], MAX_BYTES, "image:missing", "decode:empty", "image:too_large"),
    "text": Content("text", CONTENTS["text"], MAX_TEXT, "text:missing", "text:empty", "text:too_large"),
    "tokens": Content(
        "tokens", CONTENTS["tokens"], npy.MAX_BYTES, "tokens:missing", "tokens:empty", "tokens:too_large"
    ),
}


def preprocess_from_json(record: dict[str, Any]) -> AnyPreprocess:
    """The inverse of either kind's `to_json`; a record without a kind is of images."""
    return TextPreprocess.from_json(record) if record.get("kind") == "text" else Preprocess.from_json(record)


def member_order(preprocess: AnyPreprocess | None, member: str = "") -> tuple[str, ...]:
    """The extensions of which a sample's image is the first that it has; () for the image that lies first."""
    wanted = preprocess.member if isinstance(preprocess, Preprocess) else member
    return tuple(filter(None, wanted.split(",")))


def checked_member(member: str | None) -> str | None:
    """The same, in small letters. Raises UsageError for what is no extension of an image."""
    if member is None:
        return None
    names = [name.strip().lower().lstrip(".") for name in member.split(",")]
    if unknown := [name for name in names if name not in CONTENTS["image"]]:
        raise UsageError(f"--image-member {member!r}: {unknown[0]!r} is none of {', '.join(CONTENTS['image'])}")
    return ",".join(dict.fromkeys(names))


def preprocess_pins(preprocess: AnyPreprocess) -> dict[str, Any]:
    """What a run pins of it; the geometry of images always, so that run.json says it."""
    resize = {"resize": preprocess.resize} if isinstance(preprocess, Preprocess) else {}
    return {f"preprocess_{name}": value for name, value in (preprocess.to_json() | resize).items()}


def decoder_for(preprocess: AnyPreprocess, name: str) -> tuple[str, Decoder]:
    """The decoder of images of that name and geometry, or the one of text: its name for the fingerprint, and the
    function, (bytes, row) -> status."""
    if isinstance(preprocess, Preprocess):
        name, decode = decoder("auto" if name == TEXT_DECODER else name)
        return name, decode if preprocess.resize == CROP else functools.partial(decode, resize=preprocess.resize)
    return TEXT_DECODER, _text_decoder(preprocess)


@functools.lru_cache(8)
def _text_decoder(preprocess: TextPreprocess) -> Any:
    return TextDecoder(preprocess)


def checked_content(content: str | None) -> str | None:
    """The same. Raises UnknownNameError."""
    if content is not None and content not in CONTENTS:
        raise UnknownNameError.of("content", content, CONTENTS)
    return content


def require_text(content: str, tokenizer: str | None, where: str) -> None:
    """Raise UsageError for ids without their number, or a tokenizer that doesn't fit what the samples are."""
    if content == "tokens" and tokenizer is None:
        raise UsageError(f"{where} holds arrays of token ids (.npy): say how many ids there are with --tokenizer ids:N")
    if tokenizer is not None and content != ("tokens" if tokenizer.startswith("ids:") else "text"):
        holds = {"image": "images", "text": "text (.txt)", "tokens": "arrays of token ids (.npy)"}[content]
        raise UsageError(f"{where} holds {holds}, which --tokenizer {tokenizer} doesn't read")
