"""SST-2: 67,349 + 872 phrases of film reviews, negative or positive, from GLUE's train.tsv and dev.tsv."""

from __future__ import annotations

import os

from rhostream.errors import UnknownNameError, UsageError
from shards.sample import SampleSet, seeded_rows
from shards.sources import find, folder_of
from shards.texts import checked, of_texts, read_tsv

CLASS_NAMES = ("negative", "positive")
CONFUSED = ((0, 1),)
"""Two classes leave the direction alone: what is negative is said to be positive."""
SPLITS = ("train", "dev")
INSTRUCTIONS = "unpack SST-2.zip of the GLUE benchmark and give the folder of train.tsv and dev.tsv as --source"


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
) -> SampleSet:
    """The phrases of a split, keyed `sst2-<split>-<row>`.

    Two columns with a header: sentence, label. GLUE keeps the labels of its test set, so there is no such split. The
    training set holds phrases of the same sentences, which nothing in the file tells; equal ones share a group.
    Raises UsageError for missing or broken files.
    """
    if split == "test":
        raise UsageError("GLUE keeps the labels of SST-2's test set; take --split dev to measure with")
    if split not in SPLITS:
        raise UnknownNameError.of("split of sst2", split, SPLITS)
    folder = find(folder_of(source, "sst2", INSTRUCTIONS), [f"{split}.tsv"], ("SST-2",), INSTRUCTIONS)
    path = folder / f"{split}.tsv"
    rows = read_tsv(path, 2, INSTRUCTIONS, header=("sentence", "label"))
    texts, labels = checked([row[0] for row in rows], [row[1] for row in rows], len(CLASS_NAMES), path, 1)
    return of_texts(
        texts,
        labels,
        seeded_rows(len(texts), limit=limit, skip=skip, seed=seed),
        name="sst2",
        split=split,
        class_names=CLASS_NAMES,
        confused=CONFUSED,
    )
