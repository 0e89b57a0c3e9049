"""A set of labelled sentences: `key.txt` (UTF-8), `key.cls`, `key.json`; and GLUE's TSV files, read strictly.

GLUE's files have no quoting: a tab parts columns, a line feed ends a row, and a quotation mark is a quotation mark.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rhostream.errors import UnknownNameError, UsageError
from shards.sample import Ints, Sample, SampleSet
from shards.sources import find, folder_of, read_text

MAX_TEXT = 1 << 20  # bytes of one text
GLUE_SPLITS = ("train", "dev")


def of_texts(
    texts: Sequence[str],
    labels: Ints,
    rows: Ints,
    *,
    name: str,
    split: str,
    class_names: tuple[str, ...],
    confused: Sequence[tuple[int, int]] = (),
    extra: dict[str, Sequence[str]] | None = None,
    notes: tuple[str, ...] = (),
) -> SampleSet:
    """The `rows` of `texts`, keyed `<name>-<split>-<position in the source>`; `extra` are more facts, by column.

    Facts: `true_label, class_name, index, group`. The group of a text is the key of the first one in the source that
    is the same but for case and white space, so that `--group-by group` keeps repeated sentences in one fold.
    """
    first: dict[str, int] = {}
    same = [first.setdefault(" ".join(text.lower().split()), i) for i, text in enumerate(texts)]

    def key(position: int) -> str:
        return f"{name}-{split}-{position:07d}"

    def load(i: int) -> Sample:
        position = int(rows[i])
        label = int(labels[position])
        facts = {
            "true_label": label,
            "class_name": class_names[label],
            "index": position,
            "group": key(same[position]),
        }
        own = {column: values[position] for column, values in (extra or {}).items()}
        return Sample(
            key=key(position),
            label=label,
            extension="txt",
            content=texts[position].encode("utf-8"),
            facts=facts | own,
        )

    return SampleSet(
        split=split,
        labels=labels[rows],
        class_names=class_names,
        load=load,
        pixels=None,
        confused=tuple(confused),
        notes=notes,
    )


def glue_file(source: str | os.PathLike[str] | None, split: str, *, name: str, title: str, instructions: str) -> Path:
    """The TSV file of a split (train or dev) of GLUE's set `title`, in `source` or the folder that its zip makes.

    Raises UsageError for another split, above all test, whose labels GLUE keeps, and for a missing file.
    """
    if split == "test":
        raise UsageError(f"GLUE keeps the labels of {title}'s test set; take --split dev to measure with")
    if split not in GLUE_SPLITS:
        raise UnknownNameError.of(f"split of {name}", split, GLUE_SPLITS)
    file = f"{split}.tsv"
    return find(folder_of(source, name, instructions), [file], (title,), instructions) / file


def read_tsv(
    path: Path, columns: int, instructions: str, *, header: tuple[str, ...] | None = None
) -> list[tuple[str, ...]]:
    """The rows of a TSV file of GLUE, each of `columns` fields, without the header that it must have (or none).

    Raises UsageError, naming the line, for another header, a row with more or fewer columns, or no rows.
    """
    lines = read_text(path, instructions).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    start = 1
    if header is not None:
        found = tuple(lines[0].rstrip("\r").split("\t")) if lines else ()
        if found != header:
            shown, expected = ", ".join(found)[:100], ", ".join(header)
            raise UsageError(f"{path} begins with the columns {shown!r}, expected {expected!r}; {instructions}")
        lines, start = lines[1:], 2
    rows = [tuple(line.rstrip("\r").split("\t")) for line in lines]
    for number, row in enumerate(rows, start):
        if len(row) != columns:
            raise UsageError(
                f"{path}, line {number:,}, has {len(row)} columns, expected {columns} parted by tabs; copy the file "
                "again"
            )
    if not rows:
        raise UsageError(f"{path} holds no rows; copy the file again")
    return rows


def checked(
    texts: Sequence[str], labels: Sequence[str], classes: int, path: Path, first_row: int
) -> tuple[list[str], Ints]:
    """Texts without white space around them and their labels as numbers.

    Raises UsageError, naming the row (counted from `first_row`), for an empty or huge text or a label that isn't 0 to
    `classes` - 1.
    """
    stripped = [text.strip() for text in texts]
    known = {str(label): label for label in range(classes)}
    for number, (text, label) in enumerate(zip(stripped, labels, strict=True), first_row):
        if label not in known:
            raise UsageError(f"{path}, row {number:,}: label {label[:40]!r} found, expected 0 to {classes - 1}")
        if not text:
            raise UsageError(f"{path}, row {number:,}, has no text; expected a sentence")
        if len(text) > MAX_TEXT // 4 and len(text.encode("utf-8")) > MAX_TEXT:
            raise UsageError(f"{path}, row {number:,}, has more than {MAX_TEXT:,} bytes of text")
    return stripped, np.array([known[label] for label in labels], np.int64)
