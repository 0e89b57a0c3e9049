"""Labels in a table: a CSV or TSV with a line for each file, its name and its label."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rhostream.errors import UsageError
from rhostream.making.folder import extension, numbered
from rhostream.making.sample import FORMAT_OF, Ints
from rhostream.tables.classes import MOST

FILE_COLUMNS = ("file", "filename", "file_name", "filepath", "path", "image", "image_path", "image_id", "name", "id")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "category_id", "target", "y")
_NUMBER = re.compile(r"[0-9]{1,9}\Z")


def read_listed(
    root: Path, table: str, classes_from: str | None
) -> tuple[list[Path], Ints, tuple[str, ...], tuple[str, ...]]:
    """The images that the table lists, the class of each, the names of the classes ("" where labels are numbers), and
    what to say. Names are numbered in their order, or as `classes_from` numbers them; numbers are taken as they are.

    Raises UsageError for a table without two columns, and for a file that isn't there or is listed twice.
    """
    rows = _rows(root, table)
    files, labels = [_file(root, name) for name, _ in rows], [label for _, label in rows]
    if missing := [name for (name, _), file in zip(rows, files, strict=True) if file is None]:
        raise UsageError(
            f"{table} lists {len(missing):,} files of {len(rows):,} that are no images below {root}, first "
            f"{missing[0]!r}"
        )
    found = [file for file in files if file is not None]
    if len(set(found)) < len(found):
        seen = set[Path]()
        twice = next(file for file in found if file in seen or seen.add(file))  # type: ignore[func-returns-value]
        raise UsageError(f"{table} lists {twice} twice: one line a file")
    if classes_from is None and all(map(_NUMBER.match, labels)):
        numbers = np.array([int(label) for label in labels], np.int64)
        if numbers.max() >= MOST:
            raise UsageError(f"{table} has the label {numbers.max():,}, expected less than {MOST:,}")
        return found, numbers, ("",) * (int(numbers.max()) + 1), ()
    own = tuple(sorted(set(labels)))
    names, folders, notes = numbered(root, own, classes_from)
    number = {name: label for label, name in enumerate(folders) if name}
    return found, np.array([number[label] for label in labels], np.int64), names, notes


def _rows(root: Path, table: str) -> list[tuple[str, str]]:
    """(file, label) of each line."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as lines:
            start = lines.read(4096)
            lines.seek(0)
            first = start.splitlines()[0] if start else ""
            rows = [row for row in csv.reader(lines, delimiter="\t" if "\t" in first else ",") if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise UsageError(f"--labels {table} can't be read: {exc}") from exc
    if not rows or len(rows[0]) < 2:
        raise UsageError(f"--labels {table}: expected lines of a file and its label, with a comma or a tab between")
    file, label = 0, 1
    if _file(root, rows[0][0]) is None:
        head = [name.strip().lower() for name in rows.pop(0)]
        file, label = _column(head, FILE_COLUMNS, 0), _column(head, LABEL_COLUMNS, 1)
    if not rows:
        raise UsageError(f"--labels {table} lists no file")
    if short := next((at for at, row in enumerate(rows, 1) if len(row) <= max(file, label)), None):
        raise UsageError(f"--labels {table}: line {short} of its files has {len(rows[short - 1])} values")
    pairs = [(row[file].strip(), row[label].strip()) for row in rows]
    if empty := next((name for name, text in pairs if not text), None):
        raise UsageError(f"--labels {table}: {empty!r} has no label")
    return pairs


def _column(head: Sequence[str], names: Sequence[str], otherwise: int) -> int:
    return next((head.index(name) for name in names if name in head), otherwise)


def _file(root: Path, name: str) -> Path | None:
    """The image of that name below the folder, with or without its extension."""
    path = Path(os.path.normpath(root / name.strip())) if name.strip() else root
    if not path.is_relative_to(os.path.normpath(root)):
        return None
    if extension(path) in FORMAT_OF:
        return path if path.is_file() else None
    beside = (path.with_name(f"{path.name}.{suffix}") for suffix in FORMAT_OF)
    return next((one for one in beside if one.is_file()), None)
