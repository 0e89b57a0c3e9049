"""Pairs of image and caption: which captions are another sample's, and the set that is written.

`key.png` or `key.jpg`, `key.txt`, `key.json` and no `key.cls`: the members that img2dataset writes. The json keeps the
truth beside the caption as it is given, so that what a rule kept can be judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rhostream.errors import UsageError
from shards.sample import Ints, Pixels, Sample, SampleSet, encode, generator

FORMATS = ("png", "jpg")


def draw_swaps(captions: Sequence[str], share: float, seed: int) -> Ints:
    """Whose caption each of N samples gets, (N,): its own, or for a `share` of them, drawn by the seed, another's.

    A swapped caption never says what the sample's own does. Raises UsageError for a share that isn't one, and for
    captions that are all alike.
    """
    if not 0 <= share <= 1:  # NaN fails as well
        raise UsageError(f"share of swapped captions is {share}, expected 0 to 1")
    rng = generator(seed, "swap")
    said: dict[str, int] = {}
    what = np.array([said.setdefault(caption, len(said)) for caption in captions], np.int64)  # (N,) equal: same words
    givers = np.arange(len(captions))
    wanting = rng.permutation(len(captions))[: round(share * len(captions))]
    if len(wanting) and len(said) < 2:
        raise UsageError("captions can't be swapped where all say the same; add --swap 0")
    while len(wanting):
        givers[wanting] = rng.integers(0, len(captions), len(wanting))
        wanting = wanting[what[givers[wanting]] == what[wanting]]
    return givers


def of_pairs(
    *,
    keys: Sequence[str],
    captions: Sequence[str],
    pixels: Callable[[int], Pixels],
    facts: Callable[[int], Mapping[str, Any]],
    split: str,
    swap: float,
    seed: int,
    image_format: str,
    notes: tuple[str, ...] = (),
) -> SampleSet:
    """N pairs, a share `swap` of them with another's caption; `pixels(i)` and `facts(i)` are of the image of pair i.

    Facts of all: `caption, key, width, height` (as img2dataset names them), `swapped` and the same as `is_noisy` (which
    reports and queries know), `true_caption`, and `caption_of`, the key of the sample whose caption it is, null for its
    own. Raises UsageError for another image format.
    """
    if image_format not in FORMATS:
        raise UsageError(f"unknown image format {image_format!r}; expected {' or '.join(FORMATS)}")
    givers = draw_swaps(captions, swap, seed)

    def load(i: int) -> Sample:
        giver, image = int(givers[i]), pixels(i)
        swapped = giver != i
        told = {
            "caption": captions[giver],
            "key": keys[i],
            "width": image.shape[1],
            "height": image.shape[0],
            "true_caption": captions[i],
            "swapped": swapped,
            "is_noisy": swapped,
            "caption_of": keys[giver] if swapped else None,
        }
        return Sample(
            key=keys[i],
            label=-1,
            extension=image_format,
            content=encode(image, image_format),
            facts=told | dict(facts(i)),
            caption=captions[giver],
        )

    return SampleSet(
        split=split,
        labels=np.full(len(keys), -1, np.int64),
        class_names=(),
        load=load,
        pixels=pixels,
        notes=notes,
    )
