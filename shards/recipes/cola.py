"""CoLA: 8,551 + 1,043 English sentences, grammatically acceptable or not, from GLUE's train.tsv and dev.tsv."""

from __future__ import annotations

import os

from shards.sample import SampleSet, seeded_rows
from shards.texts import checked, glue_file, of_texts, read_tsv

CLASS_NAMES = ("unacceptable", "acceptable")
CONFUSED = ((0, 1),)
"""Two classes leave the direction alone: what isn't acceptable is taken for the larger class."""
INSTRUCTIONS = "unpack CoLA.zip of the GLUE benchmark and give the folder of train.tsv and dev.tsv as --source"


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
) -> SampleSet:
    """The sentences of a split, keyed `cola-<split>-<row>`; the facts say the `publication`.

    Four columns without a header: publication, label, the author's mark, sentence. GLUE keeps the labels of its test
    set, so there is no such split. Raises UsageError for missing or broken files.
    """
    path = glue_file(source, split, name="cola", title="CoLA", instructions=INSTRUCTIONS)
    rows = read_tsv(path, 4, INSTRUCTIONS)
    texts, labels = checked([row[3] for row in rows], [row[1] for row in rows], len(CLASS_NAMES), path, 1)
    return of_texts(
        texts,
        labels,
        seeded_rows(len(texts), limit=limit, skip=skip, seed=seed),
        name="cola",
        split=split,
        class_names=CLASS_NAMES,
        confused=CONFUSED,
        extra={"publication": [row[0] for row in rows]},
    )
