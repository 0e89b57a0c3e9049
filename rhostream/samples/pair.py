"""Pairs of an image and its caption: both members of a sample, each decoded as its own kind decodes it.

KEY.jpg + KEY.txt                       the caption is the .txt, as img2dataset and webdataset write it
KEY.jpg + KEY.json, --caption FIELD     it is that field of the .json, and a .txt beside it is left aside
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rhostream import foreign
from rhostream.errors import UsageError
from rhostream.samples.fields import Fields
from rhostream.samples.image import EXTENSIONS, PIXELS, ImageKind
from rhostream.samples.json_member import MAX_JSON, BadSample, parse_json, value_of
from rhostream.samples.kind import NO_TARGET, OK, FieldSpec, Kind, Preview, Row, View
from rhostream.samples.text import TOKENS, TextKind
from rhostream.samples.wanted import Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from rhostream.samples.decoders import Sides

IMAGE, CAPTION = "image", "caption"  # the members
TASK = "pairs"
_OF_CAPTIONS = ("text:", "json", "size")  # how statuses begin that speak of the caption


@dataclass(frozen=True, kw_only=True)
class PairKind(Kind):
    """An image and its caption. `caption`: the field of the .json that holds it; "" where the .txt does."""

    image: ImageKind = field(default_factory=ImageKind)
    text: TextKind = field(default_factory=TextKind)
    caption: str = ""

    name = "pair"
    members = MappingProxyType({IMAGE: EXTENSIONS, CAPTION: ("txt",)})
    max_bytes = ImageKind.max_bytes
    holds = "pairs of image and caption"
    guessed = False
    task = TASK
    target = NO_TARGET
    takes = ImageKind.takes | TextKind.takes | {CAPTION}
    plural = ImageKind.plural
    first_of_several = ImageKind.first_of_several
    augments = True
    augmentations = ImageKind.augmentations
    preview_bytes = ImageKind.preview_bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", self.image.decoder)
        if self.caption:
            object.__setattr__(self, "members", {IMAGE: EXTENSIONS, CAPTION: ("json",)})

    def fields(self, view: View = None) -> Mapping[str, FieldSpec]:
        """Pixels (H, W, C) of uint8 and tokens (T,) of int32; none while either isn't decided."""
        pixels, tokens = self.image.fields(view), self.text.fields(view)
        return {**pixels, **tokens} if pixels and tokens else {}

    def examine(self, sizes: Mapping[str, int]) -> str:
        """What each of the two examines: the image first."""
        if (status := self.image.examine(_only(sizes, IMAGE, IMAGE))) != OK:
            return status
        if self.caption:
            if CAPTION not in sizes:
                return "text:missing"
            if sizes[CAPTION] > MAX_JSON:
                return "size"
        return self.text.examine(_only(sizes, CAPTION, "text"))

    def blamed(self, status: str) -> str:
        """The caption where the status is one of texts or of a .json, else the image."""
        return CAPTION if status.startswith(_OF_CAPTIONS) else IMAGE

    def decode(self, members: Mapping[str, bytes], out: dict[str, Row], view: View = None,
               rng: np.random.Generator | None = None) -> str:  # fmt: skip
        """Into `out["pixels"]` (H, W, C) and `out["tokens"]` (T,); with an rng the image alone is augmented.

        Returns "ok", or the status of the first of the two that can't be used.
        """
        if (status := self.image.decode(members, out, view, rng)) != OK:
            return status
        try:
            caption = self._caption(members[CAPTION])
        except BadSample as bad:
            return bad.status
        status = self.text.decode({"text": caption}, out, view)
        return "text:nul" if status == OK and b"\0" in caption else status

    def _caption(self, data: bytes) -> bytes:
        """The caption in UTF-8, as far as that is known before it is read. Raises BadSample."""
        if not self.caption or not data:
            return data
        value = value_of(parse_json(data), self.caption)
        if value is None:
            raise BadSample("text:missing", "")
        if not isinstance(value, str):
            raise BadSample("text:type", "")
        try:
            return value.encode()
        except UnicodeEncodeError as exc:  # half a surrogate pair, which JSON can spell
            raise BadSample("text:encoding", "") from exc

    def inputs(self, fields: Fields) -> Fields:
        """`pixels` float32 (n, C, H, W), normalised, and `tokens` int64 (n, T)."""
        return Fields({PIXELS: self.image.inputs(fields), TOKENS: self.text.inputs(fields)})

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> PairKind:
        """With the image's pixels normalised by these."""
        return replace(self, image=replace(self.image, mean=mean, std=std))

    def of_classes(self, texts: Sequence[str]) -> tuple[Kind, Tensor]:
        """The image's kind, and texts (n, L) int64 as captions are. Raises UsageError for one that can't be one."""
        rows = self.text.blank(len(texts))
        for number, text in enumerate(texts):
            status = self.text.decode({"text": text.encode()}, {TOKENS: rows[TOKENS][number].numpy()})
            if status != OK:
                raise UsageError(f"the text {text[:60]!r} is no caption: {status}")
        inputs = self.text.inputs(rows)
        assert not isinstance(inputs, Fields)
        return self.image, inputs

    def with_decoder(self, name: str) -> PairKind:
        """With a decoder of images, the tokenizer found and proved. Raises as either kind does."""
        return replace(self, image=self.image.with_decoder(name), text=self.text.with_decoder(name))

    def augmented(self, name: str) -> PairKind:
        """The image decoded again as images are, the caption kept."""
        super().augmented(name)
        return replace(self, image=self.image.augmented(name))

    def to_json(self) -> dict[str, Any]:
        """The records of the image and of the text, which have no name in common, and where the caption stands."""
        return self.image.to_json() | self.text.to_json() | {
            "kind": self.name, "task": TASK, "target": NO_TARGET, CAPTION: self.caption,
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PairKind:
        """The inverse of `to_json`."""
        text = TextKind.from_json({**record, "task": TextKind.task})
        return cls(image=ImageKind.from_json(record), text=text, caption=str(record[CAPTION]))

    @classmethod
    def check(cls, record: Mapping[str, Any]) -> None:
        """Raise ValueError for a stranger's record that can't be."""
        ImageKind.check(record)
        TextKind.check(record)
        foreign.checked_text(record.get(CAPTION), CAPTION)
        if (record.get("task"), record.get("target")) != (TASK, NO_TARGET):
            raise ValueError(f"the task of pairs is {str(record.get('task'))[:40]!r}, expected {TASK!r} and no target")

    @classmethod
    def of_index(cls, ingredients: Mapping[str, Any]) -> PairKind:
        """Which image and which caption are meant."""
        return cls(image=ImageKind.of_index(ingredients), caption=str(ingredients.get(CAPTION, "")))

    def ingredients(self) -> dict[str, Any]:
        """What was decided of an index's pairs."""
        return self.image.ingredients() | ({CAPTION: self.caption} if self.caption else {})

    def pins(self) -> dict[str, Any]:
        """Those of both, by one name each."""
        return super().pins() | self.image.pins()

    @classmethod
    def asked_by(cls, wanted: Wanted) -> bool:
        """Only by name: options of images and of texts are of these first."""
        return wanted.content == cls.name

    @classmethod
    def made(cls, wanted: Wanted, known: Kind | None, sizes: Callable[[], Sequence[Sides]], where: str) -> Self:
        """Image and text made as each is, by its own options."""
        there = known if isinstance(known, cls) else None
        if wanted.task == "language":
            raise UsageError(f"task language is for text, and {where} holds {cls.holds}")
        if there is not None and wanted.caption not in (None, there.caption):
            raise UsageError(
                f"--caption {wanted.caption}: the captions of {where} are {there.caption_in_words}; make another table"
            )
        text = TextKind.made(replace(wanted, task=None), there and there.text, tuple, where)
        image = ImageKind.made(wanted, there and there.image, sizes, where)
        return cls(image=image, text=text, caption=wanted.caption or (there.caption if there else ""))

    def indexed(self, wanted: Wanted, sizes: Callable[[], Sequence[Sides]] | None) -> PairKind:
        """Which image and which caption are meant, and the images' geometry."""
        return replace(self, image=self.image.indexed(wanted, sizes), caption=wanted.caption or self.caption)

    @property
    def caption_in_words(self) -> str:
        """Where captions stand."""
        return f"the field {self.caption!r} of the .json" if self.caption else "the .txt"

    @property
    def otherwise(self) -> str:  # type: ignore[override]
        """What else such samples may be."""
        there = f"captions are {self.caption_in_words}" + (
            "" if self.caption else ", or a field of the .json: --caption"
        )
        return f": {there}; images alone are --content image, texts alone --content text"

    def sees(self, view: View = None) -> tuple[Any, ...]:
        """Pixels, which each model normalises itself, and tokens."""
        return (*self.image.sees(view), *self.text.sees(view), self.caption)

    def model_arguments(self, view: View = None) -> dict[str, Any]:
        """Those of a model of images and those of a model of text."""
        return self.image.model_arguments(view) | self.text.model_arguments(view) | {"task": TASK}

    def in_words(self, view: View = None) -> str:
        """Picture, then tokens."""
        return f"{self.image.in_words(view)}; {self.text.in_words(view)}"

    def asked(self) -> dict[str, Any]:
        """Those of both."""
        return self.image.asked() | self.text.asked()

    def options(self) -> str:
        """The kind by name, and the options of both."""
        caption = f" --caption {self.caption}" if self.caption else ""
        return f"--content {self.name}{caption} {self.image.options()} {self.text.options()}"

    @property
    def small_models(self) -> tuple[str, str]:
        """Two small towers."""
        return ("pair-small",) * 2

    @property
    def order(self) -> tuple[str, ...]:
        """Of the image."""
        return self.image.order

    @property
    def side(self) -> int:
        """Pixels of the image."""
        return self.image.side

    def source_side(self, sizes: Sequence[Sides]) -> int:
        """Of the images."""
        return self.image.source_side(sizes)

    def viewed(self, view: int, sizes: Callable[[], Sequence[Sides]]) -> int:
        """A cheap view is one of the image, with the whole caption. Raises UsageError as images do."""
        return self.image.viewed(view, sizes)

    def probe(self, read: Callable[[int], bytes], size: int) -> tuple[bool, Sides | None]:
        """Of the image."""
        return self.image.probe(read, size)

    def meant(self, member: str, data: bytes) -> bool:
        """Whether there is a caption in it."""
        try:
            return bool(self._caption(data))
        except BadSample:
            return False

    def log(self, there: str) -> None:
        """Say what images become."""
        self.image.log(there)

    def preview(self, members: Mapping[str, bytes], record: Mapping[str, Any], large: bool = False) -> Preview:
        """The picture, and the beginning of the caption."""
        shown = self.image.preview(members, record, large)
        try:
            caption = self._caption(members[CAPTION])
        except BadSample:
            return shown
        return replace(shown, text=self.text.preview({"text": caption}, record, large).text)


def _only(sizes: Mapping[str, int], member: str, as_member: str) -> dict[str, int]:
    """The size of one member, by the name that its own kind has for it; nothing where it isn't there."""
    return {as_member: sizes[member]} if member in sizes else {}
