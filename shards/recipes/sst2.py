"""SST-2: 67,349 + 872 phrases of film reviews, negative or positive, from GLUE's train.tsv and dev.tsv."""

from __future__ import annotations

import os

from shards.sample import SampleSet, seeded_rows
from shards.texts import checked, glue_file, of_texts, read_tsv

CLASS_NAMES = ("negative", "positive")
CONFUSED = ((0, 1),)
"""Two classes leave the direction alone: what is negative is said to be positive."""
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
    path = glue_file(source, split, name="sst2", title="SST-2", instructions=INSTRUCTIONS)
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
