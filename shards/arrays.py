"""A set of samples from arrays of images and labels: what the recipes of small pictures have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhostream.errors import UsageError
from shards.sample import Ints, Pixels, Sample, SampleSet, encode


def check_labels(labels: Ints, classes: int, where: Path | str, *, images: int | None = None) -> None:
    """Raise UsageError unless there are labels, as many as images, each from 0 to `classes` - 1."""
    if images is not None and images != len(labels):
        raise UsageError(f"{where}: {images:,} images and {len(labels):,} labels, expected as many of each")
    if not len(labels):
        raise UsageError(f"{where} holds no samples")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = int(labels.max()) if labels.max() >= classes else int(labels.min())
        raise UsageError(f"{where}: label {wrong} found, expected 0 to {classes - 1}")


def of_arrays(
    images: Pixels,
    labels: Ints,
    rows: Ints,
    *,
    name: str,
    split: str,
    class_names: tuple[str, ...],
    confused: Sequence[tuple[int, int]] = (),
    truth: Ints | None = None,
    facts: Callable[[int], dict[str, Any]] | None = None,
    notes: tuple[str, ...] = (),
) -> SampleSet:
    """The `rows` of `images` (N, H, W[, 3]) as PNG, keyed `<name>-<split>-<position in the source>`.

    `labels` (N,) are as given; `truth` (N,), where it is another. Facts: `true_label, class_name, index, group`
    and what `facts(position)` adds, which may say another group. The group of an image is the key of the first one
    in the source with the same pixels, so that `--group-by group` keeps exact copies in one fold.
    """
    first: dict[bytes, int] = {}
    same = np.array(
        [first.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), i)
         for i, image in enumerate(images)], np.int64
    )  # fmt: skip
    true = labels if truth is None else truth

    def key(position: int) -> str:
        return f"{name}-{split}-{position:07d}"

    def load(i: int) -> Sample:
        position = int(rows[i])
        label = int(true[position])
        found = {
            "true_label": label,
            "class_name": class_names[label],
            "index": position,
            "group": key(int(same[position])),
        }
        return Sample(
            key=key(position),
            label=int(labels[position]),
            extension="png",
            content=encode(images[position], "png"),
            facts=found | (facts(position) if facts else {}),
        )

    def pixels(i: int) -> Pixels:
        image: Pixels = images[rows[i]]
        return image

    return SampleSet(
        split=split,
        labels=labels[rows].astype(np.int64),
        class_names=class_names,
        load=load,
        pixels=pixels,
        truth=None if truth is None else truth[rows].astype(np.int64),
        confused=tuple(confused),
        notes=notes,
    )
