"""QMNIST: MNIST's 60,000 training digits and all 60,000 test digits, 28x28 grey, 10 classes, with their writers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rhostream.errors import UnknownNameError, UsageError
from shards.arrays import check_labels, of_arrays
from shards.idx import read_idx, read_idx_integers
from shards.sample import SampleSet, seeded_rows
from shards.sources import compare_checksums, find, folder_of

CLASS_NAMES = tuple("0123456789")
CONFUSED = ((3, 5), (9, 7), (4, 9), (2, 5))
"""Three pairs of the paper's reference code, and the one that its appendix C names (a 2 is taken for a 5)."""
SPLITS = {
    "train": ("train", slice(None)),
    "test": ("test", slice(None)),
    "test10k": ("test", slice(10_000)),
    "test50k": ("test", slice(10_000, None)),
}
"""(name of the files, rows): test10k is MNIST's test set, test50k the 50,000 that MNIST lost: the paper's holdout."""
PUBLISHED = {
    "qmnist-train-images-idx3-ubyte.gz": "md5:ed72d4157d28c017586c42bc6afe6370",
    "qmnist-train-labels-idx2-int.gz": "md5:0058f8dd561b90ffdd0f734c6a30e5e4",
    "qmnist-test-images-idx3-ubyte.gz": "md5:1394631089c404de565df7b7aeaf9412",
    "qmnist-test-labels-idx2-int.gz": "md5:5b5b05890a5e13444e108efe57b788aa",
}
INSTRUCTIONS = (
    "take qmnist-{train,test}-images-idx3-ubyte.gz and qmnist-{train,test}-labels-idx2-int.gz from the project "
    "facebookresearch/qmnist and give their folder as --source"
)
COLUMNS = 8  # class, series, writer, digit of that writer, NIST's class, index in NIST, copy of another, unused
CLASS, SERIES, WRITER = 0, 1, 2


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    require_checksums: bool = False,
) -> SampleSet:
    """The digits of a split, keyed `qmnist-<split>-<position>`; the facts say `writer`, and `group` is the writer's.

    Folds by `--group-by group` so keep a hand together. Raises UsageError for missing or broken files.
    """
    if split not in SPLITS:
        raise UnknownNameError.of("split of qmnist", split, SPLITS)
    part, rows_of_split = SPLITS[split]
    names = (f"qmnist-{part}-images-idx3-ubyte", f"qmnist-{part}-labels-idx2-int")
    folder = folder_of(source, "qmnist", INSTRUCTIONS)
    folder = find(folder, [f"{names[0]}.gz", names[0]], ("raw", "QMNIST/raw"), INSTRUCTIONS)
    packed = [f"{name}.gz" for name in names if (folder / f"{name}.gz").is_file()]
    paths = [_either(folder, name) for name in names]
    images, facts = read_idx(paths[0], 3), read_idx_integers(paths[1], 2)
    if facts.shape[1] != COLUMNS:
        raise UsageError(f"{paths[1]} has {facts.shape[1]} numbers a digit, expected {COLUMNS}; copy the file again")
    check_labels(facts[:, CLASS], len(CLASS_NAMES), paths[1], images=len(images))
    images, facts = images[rows_of_split], facts[rows_of_split]
    if not len(images):
        raise UsageError(f"{paths[0]} holds no more than 10,000 digits, so {split} is empty; copy the file again")
    published = {name: PUBLISHED[name] for name in packed}
    if require_checksums and len(published) < len(paths):
        raise UsageError(f"{folder}: checksums are known for the .gz files; keep them, or drop --require-checksums")

    def own(position: int) -> dict[str, Any]:
        writer, series = int(facts[position, WRITER]), int(facts[position, SERIES])
        return {"writer": writer, "nist_series": series, "group": f"writer-{writer}"}

    return of_arrays(
        images,
        facts[:, CLASS],
        seeded_rows(len(images), limit=limit, skip=skip, seed=seed),
        name="qmnist",
        split=split,
        class_names=CLASS_NAMES,
        confused=CONFUSED,
        facts=own,
        notes=compare_checksums(folder, published, required=require_checksums) if published else (),
    )


def _either(folder: Path, name: str) -> Path:
    """The gzipped file; the one that somebody has unpacked where there is no other."""
    packed = folder / f"{name}.gz"
    return folder / name if (folder / name).is_file() and not packed.is_file() else packed
