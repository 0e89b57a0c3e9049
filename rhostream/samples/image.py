"""Images: one member of JPEG, PNG or WebP, decoded to a square of uint8 pixels (H, W, C)."""

from __future__ import annotations

import functools
import io
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rhostream import foreign
from rhostream.errors import UsageError
from rhostream.samples.fields import Fields
from rhostream.samples.geometry import CROP, MAX_BYTES, PAD, checked_resize, choose_resize
from rhostream.samples.image_size import choose, log_index
from rhostream.samples.kind import OK, FieldSpec, Kind, Preview, Row, View
from rhostream.samples.normalize import Normalize
from rhostream.samples.random_crop import RandomCrop
from rhostream.samples.wanted import Wanted

if TYPE_CHECKING:  # decoders bring Pillow, which who reads a table does without
    from torch import Tensor

    from rhostream.samples.decoders import Decoder, Sides

LOG = logging.getLogger("rhostream")
EXTENSIONS = ("jpg", "jpeg", "png", "webp")
PIXELS = "pixels"  # the field
# Bytes read for an image's size, then for one that needs more; above a quarter of a window, so that it is read alone.
HEADER, WHOLE_HEADER = (64 << 10) + 1, 1 << 20
SHOWN_SIDE, LARGE_SIDE, SHOWN_BYTES = 192, 320, 32 << 20  # of a picture for a person to look at, at most
RANDOM_CROP, FLIP = "random_resized_crop", "flip"
PARTS = (RANDOM_CROP, FLIP, "colour", "randaugment")  # of how it is decoded again, in this order
AUGMENTATIONS = tuple(
    "-".join(parts)
    for number in range(1, len(PARTS) + 1)
    for parts in itertools.combinations(PARTS, number)
    if parts != (FLIP,)  # which needs no second decode
)


@dataclass(frozen=True, kw_only=True)
class ImageKind(Kind):
    """Squares of pixels, and how they are normalised on the device.

    `member`: extensions, "jpg,png": of several images in a sample the first of these that is there is meant, and a
    sample without any has no image; "" for the one that lies first in the tar. `resize`: crop, squash or pad.
    """

    image_size: int = 0  # 0: not decided, as in an index
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    member: str = ""
    resize: str = CROP
    decoder: str = field(default="auto", compare=False)  # its name stands beside in fingerprints
    augment: str = field(default="", compare=False)  # how it is decoded again; not what a sample is

    name = "image"
    members = MappingProxyType({"image": EXTENSIONS})
    max_bytes = MAX_BYTES
    verdicts = ("image:missing", "decode:empty", "image:too_large")
    holds = "images"
    plural = "images"
    first_of_several = "the one that lies first in the tar: say which is meant with --image-member"
    pictures = True
    takes = frozenset(("image_size", "channels", "resize", "member"))
    preview_bytes = SHOWN_BYTES
    augments = True
    augmentations = AUGMENTATIONS

    def fields(self, view: View = None) -> Mapping[str, FieldSpec]:
        """(H, W, C) of uint8; of a view so many pixels high and wide."""
        size = view or self.image_size
        return {PIXELS: FieldSpec((size, size, self.channels), "uint8")} if size else {}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Row], view: View = None,
               rng: np.random.Generator | None = None) -> str:  # fmt: skip
        """Into `out["pixels"]` (H, W, C) of any size; returns "ok" or the status of a bad image."""
        if rng is None:
            return self._decode(members["image"], out[PIXELS], self.resize)
        parts = tuple(self.augment.split("-"))
        geometry: str | RandomCrop = self.resize
        if parts[0] == RANDOM_CROP:
            flip = FLIP in parts  # of a crop, done where it is placed
            parts, geometry = parts[1 + flip :], RandomCrop(rng, flip)
        status = self._decode(members["image"], out[PIXELS], geometry)
        if parts and status == OK:
            from rhostream.samples.distortions import distort

            distort(out[PIXELS], parts, rng)
        return status

    @functools.cached_property
    def _decode(self) -> Decoder:
        from rhostream.samples.decoders import decoder

        return decoder(self.decoder)[1]

    @property
    def normalize(self) -> Normalize:
        """The part of it that runs on the device."""
        return Normalize(self.mean, self.std)

    def inputs(self, fields: Fields) -> Tensor:
        """uint8 (n, H, W, C) to float32 (n, C, H, W)."""
        return self.normalize(fields[PIXELS])

    def with_decoder(self, name: str) -> ImageKind:
        """With Pillow, simplejpeg or turbo. Raises MissingExtraError, UnknownNameError."""
        from rhostream.samples.decoders import decoder

        return replace(self, decoder=decoder(name)[0])

    def augmented(self, name: str) -> ImageKind:
        """Decoded again by some of PARTS, in their order and joined by `-`."""
        super().augmented(name)
        return replace(self, augment=name)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageKind:
        """With pixels normalised by these."""
        return replace(self, mean=mean, std=std)

    def to_json(self) -> dict[str, Any]:
        """What stands at its default came later and is left out."""
        left_out = (("member", ""), ("resize", CROP), ("decoder", self.decoder), ("augment", self.augment))
        return {name: value for name, value in asdict(self).items() if (name, value) not in left_out}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImageKind:
        """The inverse of `to_json`."""
        return cls(image_size=int(record["image_size"]), channels=int(record["channels"]), mean=tuple(record["mean"]),
                   std=tuple(record["std"]), member=str(record.get("member", "")),
                   resize=str(record.get("resize", CROP)))  # fmt: skip

    @classmethod
    def check(cls, record: Mapping[str, Any]) -> None:
        """Raise ValueError for a stranger's record that can't be."""
        foreign.checked_count(record.get("image_size"), "image_size", 1, foreign.MAX_SIDE)
        channels = foreign.checked_count(record.get("channels"), "channels", 1, foreign.MAX_CHANNELS)
        for name in ("mean", "std"):
            foreign.checked_numbers(record.get(name), name, channels, nonzero=name == "std")
        foreign.checked_resize(record)
        member = record.get("member", "")
        if not isinstance(member, str) or not set(member.split(",")) <= {"", *EXTENSIONS}:
            raise ValueError(f"member is {str(member)[:80]!r}, expected extensions of images")

    def pins(self) -> dict[str, Any]:
        """The geometry always, so that run.json says it."""
        return super().pins() | {"preprocess_resize": self.resize}

    def ingredients(self) -> dict[str, Any]:
        """What was decided of an index's images; older tables know none of these."""
        return {name: value for name, value in (("image_member", self.member), ("resize", self.resize))
                if value not in ("", CROP)}  # fmt: skip

    @classmethod
    def of_index(cls, ingredients: Mapping[str, Any]) -> ImageKind:
        """Which image is meant, and its geometry."""
        return cls(member=str(ingredients.get("image_member", "")), resize=str(ingredients.get("resize", CROP)))

    def sees(self, view: View = None) -> tuple[Any, ...]:
        """Pixels, which each model normalises itself."""
        return (self.in_words(view),)

    def model_arguments(self, view: View = None) -> dict[str, Any]:
        """Of a square of pixels."""
        return {"image_size": view or self.image_size, "channels": self.channels}

    def in_words(self, view: View = None) -> str:
        """Channels, sides and geometry: "3 x 64 x 64, crop"."""
        size = view or self.image_size
        return f"{self.channels} x {size} x {size}, {self.resize}"

    @property
    def geometry(self) -> str:
        """Size, colour and geometry in words: "64 px, RGB, squash"."""
        return f"{self.image_size} px, {'RGB' if self.channels == 3 else 'grey'}, {self.resize}"

    def asked(self) -> dict[str, Any]:
        """Size and geometry."""
        return {"image_size": self.image_size, "resize": self.resize}

    def options(self) -> str:
        """Size and geometry, as options."""
        return f"--image-size {self.image_size} --resize {self.resize}"

    @property
    def order(self) -> tuple[str, ...]:
        """The extensions of which a sample's image is the first that it has."""
        return tuple(filter(None, self.member.split(",")))

    def probe(self, read: Callable[[int], bytes], size: int) -> tuple[bool, Sides | None]:
        """Whether it is an image, by its header; its sides and channels."""
        from rhostream.samples.decoders import probe_size

        sides = probe_size(read(min(size, HEADER)))
        if sides is None and size > HEADER:  # a header may hold a preview and a colour profile
            sides = probe_size(read(min(size, WHOLE_HEADER)))
        return sides is not None, sides

    def indexed(self, wanted: Wanted, sizes: Callable[[], Sequence[Sides]] | None) -> ImageKind:
        """Which image is meant, and its geometry; logged."""
        seen = [] if sizes is None else sizes()
        chosen = self.resize if sizes is None else choose_resize((sides.shorter, sides.longer) for sides in seen)[0]
        resize = wanted.resize or chosen
        log_index(seen, resize)
        return replace(self, member=wanted.member or self.member, resize=resize)

    @property
    def small_models(self) -> tuple[str, str]:
        """Small networks for pictures."""
        return "small-cnn", "mlp-64"

    @property
    def side(self) -> int:
        """Pixels."""
        return self.image_size

    def source_side(self, sizes: Sequence[Sides]) -> int:
        """The longer side is what a padded view is made of."""
        return max((seen.longer if self.resize == PAD else seen.shorter for seen in sizes), default=0)

    def viewed(self, view: int, sizes: Callable[[], Sequence[Sides]]) -> int:
        """`view`, pixels of a cheap look. Raises UsageError when it isn't smaller than the full size and the source."""
        if not 1 <= view < self.image_size:
            raise UsageError(f"--view-size {view}: expected less than the full size of {self.image_size} pixels")
        if view > (source := self.source_side(sizes())):
            raise UsageError(f"--view-size {view} is larger than the images themselves ({source} pixels)")
        return view

    def log(self, there: str) -> None:
        """Say what images become, and `there`, where that stands."""
        LOG.info("images: %s (%s)", self.geometry, there)

    @classmethod
    def made(cls, wanted: Wanted, known: Kind | None, sizes: Callable[[], Sequence[Sides]], where: str) -> ImageKind:
        """As given, else as `known` is, else as a few of the images are; logged."""
        image_size, channels, resize = wanted.image_size, wanted.channels, checked_resize(wanted.resize)
        if isinstance(known, ImageKind) and known.image_size:
            made = known.resized(image_size, channels, resize)
            made.log(f"as those of {where}" if made == known else f"those of {where}: {known.geometry}")
            return made
        member, of = wanted.member or "", f" of {where}" if known is not None else ""
        if isinstance(known, ImageKind):
            member, resize = known.member, resize or known.resize
        decided = known is not None and image_size is not None and channels is not None
        image_size, channels, resize = choose([] if decided else sizes(), image_size, channels, resize, of=of)
        for name, values in (("mean", wanted.mean), ("std", wanted.std)):
            if len(values) not in (1, channels):
                raise UsageError(f"{name} has {len(values)} values, expected 1 or {channels} (one a channel)")
        return cls(image_size=image_size, channels=channels, mean=wanted.mean, std=wanted.std, member=member,
                   resize=resize)  # fmt: skip

    def resized(self, image_size: int | None, channels: int | None, resize: str | None = None) -> ImageKind:
        """With another size, geometry or number of channels, where given; other channels have a mean of 0.5 again."""
        channels = channels or self.channels
        same = channels == self.channels
        return replace(
            self,
            image_size=image_size or self.image_size,
            channels=channels,
            mean=self.mean if same else (0.5,),
            std=self.std if same else (0.5,),
            resize=resize or self.resize,
        )

    def preview(self, members: Mapping[str, bytes], record: Mapping[str, Any], large: bool = False) -> Preview:
        """All of the picture as a small square PNG, padded, and as the model saw it where that isn't all of it."""
        from rhostream.samples.decoders import probe_size

        data, sides = members["image"], probe_size(members["image"])
        if sides is None:
            return Preview()
        resize = asked if (asked := record.get("preprocess_resize")) in foreign.RESIZES else CROP
        whole = sides.shorter == sides.longer or resize == PAD
        most = LARGE_SIDE if large else SHOWN_SIDE
        seen = None if whole else _square(data, sides.shorter, resize, most)
        return Preview(_square(data, sides.longer, PAD, most), seen)


def _square(data: bytes, side: int, resize: str, most: int) -> bytes | None:
    """A PNG of the image; None for bytes that our decoder refuses."""
    from PIL import Image

    from rhostream.samples.decoders import decode_into

    pixels = np.empty((min(max(side, 1), most),) * 2 + (3,), np.uint8)
    if decode_into(data, pixels, resize) != OK:
        return None
    Image.fromarray(pixels).save(sink := io.BytesIO(), "PNG", optimize=True)
    return sink.getvalue()
