"""Clothing-1M's text files, a million lines each, in memory as two columns rather than a million objects.

    key list   images/7/12/1234567,890.jpg           one path a line
    label file images/7/12/1234567,890.jpg 3         a path and a class

Some 300 MB at the highest for all of them, where dicts of Python strings take more than twice as much.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhostream.errors import UsageError
from shards.sample import FORMAT_OF, Ints
from shards.sources import read_file

MAX_LINE = 4096
# Relative, no hidden or empty part, no `..`: what such a list may name lies below the source.
_PATH = r"[A-Za-z0-9_][^/\\\x00-\x1f]*(/[A-Za-z0-9_][^/\\\x00-\x1f]*)*"
_IMAGE = rf"^{_PATH}\.({'|'.join(FORMAT_OF)})$"
_LABELLED = r"^(?P<key>.*\S)\s+(?P<label>[0-9]{1,9})$"


@dataclass(frozen=True, slots=True)
class KeyList:
    """Paths of images in the order of their file, each a relative one that stays below its folder, none twice."""

    path: Path
    keys: pa.Array  # (N,) string

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """The path of a row."""
        return str(self.keys[row].as_py())


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The class of each path."""

    path: Path
    keys: pa.Array  # (N,) string
    labels: Ints  # (N,)

    def of(self, keys: KeyList) -> Ints:
        """The class of each key, -1 where this file has none."""
        rows = pc.index_in(keys.keys, value_set=self.keys).fill_null(-1).to_numpy(zero_copy_only=False)
        if not len(self.labels):
            return np.full(len(keys), -1, np.int64)
        found: Ints = np.where(rows < 0, -1, self.labels[rows]).astype(np.int64)
        return found


def read_key_list(path: Path, instructions: str) -> KeyList:
    """A key list. Raises UsageError, naming the line, for what isn't an image below the folder, or stands twice."""
    lines = _lines(path, instructions)
    fits = pc.match_substring_regex(lines, _IMAGE, ignore_case=True)
    _refuse_first(path, lines, pc.invert(fits), f"a path below the folder that ends in {', '.join(FORMAT_OF)}")
    _refuse_repeated(path, lines)
    return KeyList(path, lines)


def read_label_file(path: Path, classes: int, instructions: str) -> LabelFile:
    """A label file. Raises UsageError, naming the line, for another form, an unknown class, two classes of one path."""
    lines = _lines(path, instructions)
    parts = pc.extract_regex(lines, _LABELLED)
    _refuse_first(path, lines, parts.is_null(), "a path and the number of a class")
    keys, texts = pc.struct_field(parts, "key"), pc.struct_field(parts, "label")
    labels = texts.cast(pa.int32())
    _refuse_first(path, lines, pc.greater_equal(labels, classes), f"a class from 0 to {classes - 1}")
    once = pc.dictionary_encode(keys)
    values = labels.to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.full(len(once.dictionary), -1, np.int64)
    indices = once.indices.to_numpy(zero_copy_only=False)
    first[indices[::-1]] = values[::-1]  # the first of a path is written last
    _refuse_first(path, lines, pa.array(first[indices] != values), "one class a path, and an earlier line has another")
    return LabelFile(path, once.dictionary, first)


def _lines(path: Path, instructions: str) -> pa.Array:
    """The lines of a text file (N,), without white space around them; empty ones at the end are left out."""
    data = read_file(path, instructions).rstrip()
    if not data:
        raise UsageError(f"{path} is empty; {instructions}")
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends, [len(data)]]).astype(np.int32)  # a file has less than 2 GB
    if np.diff(offsets).max() > MAX_LINE:
        row = int(np.diff(offsets).argmax())
        raise UsageError(f"{path}, line {row + 1:,}, has more than {MAX_LINE:,} bytes; copy the file again")
    lines = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid as exc:
        raise UsageError(f"{path} is not UTF-8 text; copy the file again") from exc
    return pc.utf8_trim_whitespace(lines)


def _refuse_first(path: Path, lines: pa.Array, wrong: pa.Array, expected: str) -> None:
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise UsageError(f"{path}, line {row + 1:,}, is {lines[row].as_py()[:100]!r}, expected {expected}")


def _refuse_repeated(path: Path, lines: pa.Array) -> None:
    indices = pc.dictionary_encode(lines).indices.to_numpy(zero_copy_only=False)
    # Codes are given in order of appearance, so a line that isn't new has a code that is no new maximum.
    seen = np.maximum.accumulate(np.concatenate([[-1], indices[:-1]]))
    _refuse_first(path, lines, pa.array(indices <= seen), "no path twice")


def safe_join(root: Path, key: str) -> Path:
    """The file of a key below `root`. Raises UsageError for a key that leads elsewhere."""
    if not re.fullmatch(_PATH, key):
        raise UsageError(f"{key[:100]!r} leads out of {root}; expected a path below it")
    return root / os.path.join(*key.split("/"))
