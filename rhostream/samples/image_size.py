"""Which square images become where nobody says it: size, colour and geometry, by the sizes of some of them; logged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rhostream.samples.geometry import choose_resize, in_words

if TYPE_CHECKING:  # decoders bring Pillow, which who reads a table does without
    from rhostream.samples.decoders import Sides

LOG = logging.getLogger("rhostream")
MOST_PIXELS = 256  # of an image's side, unless more are asked for: memory and time grow with the square
FAR = 2.0  # sizes that differ by this factor from the one that was chosen are far from it


def choose(
    sizes: Sequence[tuple[int, int, int]],
    image_size: int | None = None,
    channels: int | None = None,
    resize: str | None = None,
    *,
    of: str = "",
) -> tuple[int, int, str]:
    """(pixels of the square input, channels, geometry), as given or else of the (shorter side, longer side, channels)
    of some images.

    The size is the median of the shorter sides, at most 256; RGB where any image has colour; `crop` where it would cut
    off at most a tenth of the pixels, else `squash`. Logs what was chosen and why, as a warning where sizes differ
    much. `sizes` must not be empty unless all three are given.
    """
    chosen, share = choose_resize([(shorter, longer) for shorter, longer, _ in sizes])
    resize = resize or chosen
    if image_size is not None and channels is not None:
        colour = "RGB" if channels == 3 else "grey"
        LOG.info("images%s: %d px, %s, %s", of, image_size, colour, in_words(resize, share))
        return image_size, channels, resize
    sides, coloured = sorted(shorter for shorter, _, _ in sizes), sum(planes == 3 for _, _, planes in sizes)
    median = sides[(len(sides) - 1) // 2]
    size, planes = image_size or min(median, MOST_PIXELS), channels or (3 if coloured else 1)
    far = sum(not size / FAR <= side <= size * FAR for side in sides)
    bounded = f", at most {MOST_PIXELS} unless --image-size says more" if image_size is None and median > size else ""
    median_of = f"median of the shorter sides of {len(sides)} looked at: {_span(sides)}{bounded}"
    why = "as given" if image_size else median_of
    colour = "as given" if channels else f"{coloured} of {len(sizes)} have colour"
    doubt = f"; {far} of {len(sides)} differ from it by more than a factor of {FAR:g}" if far else ""
    level = logging.WARNING if bounded or (image_size is None and far * 8 > len(sides)) else logging.INFO
    LOG.log(
        level,
        "images%s: %d px (%s), %s (%s)%s; %s; --image-size, --channels and --resize say otherwise",
        of,
        size,
        why,
        "RGB" if planes == 3 else "grey",
        colour,
        doubt,
        in_words(resize, share),
    )
    return size, planes, resize


def log_index(sizes: Sequence[Sides], resize: str) -> None:
    """Log the geometry that an index stores, and the sizes of which a run over it takes one."""
    sides = sorted(seen.shorter for seen in sizes)
    if not sides:
        LOG.info("images: %s", resize)
        return
    LOG.info(
        "images: %s; shorter sides of %d looked at: %s px, median %d",
        in_words(resize, choose_resize([(seen.shorter, seen.longer) for seen in sizes])[1]),
        len(sides),
        _span(sides),
        sides[(len(sides) - 1) // 2],
    )


def _span(sides: Sequence[int]) -> str:
    return f"{sides[0]} to {sides[-1]}" if sides[0] < sides[-1] else f"all {sides[0]}"
