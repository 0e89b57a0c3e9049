"""Fashion-MNIST: 60,000 + 10,000 grey images of 28x28, 10 classes, MIT, from its idx.gz files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rhostream.errors import UsageError
from shards.fetch_fashion_mnist import DATA, find_or_download
from shards.idx import read_idx
from shards.sample import Pixels, Sample, SampleSet, encode, seeded_rows

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILE_PREFIX = {"train": "train", "test": "t10k"}
CONFUSED = ((6, 0), (2, 4), (9, 7), (5, 7))
"""Shirt > T-shirt, Pullover > Coat, Ankle boot > Sneaker, Sandal > Sneaker: look-alikes."""


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
) -> SampleSet:
    """The images of one split, keyed `fashion-<split>-<position in the idx file>`, in the order of the file.

    `source` is the folder of the four idx.gz files; None looks where Debian's package puts them, then in the
    repository's data folder, then downloads. Raises UsageError for none or broken ones.
    """
    if split not in FILE_PREFIX:
        raise UsageError(f"fashion-mnist has no split {split!r}; expected train or test")
    folder = Path(source) if source is not None else find_or_download(DATA)
    images = read_idx(folder / f"{FILE_PREFIX[split]}-images-idx3-ubyte.gz", dimensions=3)  # (N, H, W)
    labels = read_idx(folder / f"{FILE_PREFIX[split]}-labels-idx1-ubyte.gz", dimensions=1)  # (N,)
    if len(images) != len(labels):
        raise UsageError(f"{folder}: {len(images):,} images and {len(labels):,} labels, expected as many of each")
    if labels.max() >= len(CLASS_NAMES):
        raise UsageError(f"{folder}: label {labels.max()} found, expected 0 to {len(CLASS_NAMES) - 1}")
    rows = seeded_rows(len(labels), limit=limit, skip=skip, seed=seed)

    def load(i: int) -> Sample:
        index, label = int(rows[i]), int(labels[rows[i]])
        facts = {"true_label": label, "class_name": CLASS_NAMES[label], "index": index}
        key = f"fashion-{split}-{index:07d}"
        return Sample(key=key, label=label, extension="png", content=encode(images[index], "png"), facts=facts)

    def pixels(i: int) -> Pixels:
        image: Pixels = images[rows[i]]
        return image

    return SampleSet(
        split=split,
        labels=labels[rows].astype(np.int64),
        class_names=CLASS_NAMES,
        load=load,
        pixels=pixels,
        confused=CONFUSED,
    )
