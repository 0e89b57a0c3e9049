"""CINIC-10: 3 x 90,000 photographs of 32x32, CIFAR-10's classes, from CIFAR-10 and ImageNet; the files' bytes are kept.

Layout: train, valid and test with one folder a class. Names say where a picture is from: `cifar10-train-11016.png`,
`n02123394_1234.png`. The paper trains on train and learns the IL from valid.
"""

from __future__ import annotations

import os
import re
from typing import Any

from rhostream.errors import UnknownNameError, UsageError
from rhostream.making.folder import of_files, scan
from shards.recipes.cifar10 import CLASS_NAMES, CONFUSED
from shards.sample import SampleSet, seeded_rows
from shards.sources import folder_of

SPLITS = ("train", "valid", "test")
INSTRUCTIONS = (
    "unpack CINIC-10.tar.gz of the project BayesWatch/cinic-10 and give the folder that holds train, valid and test as "
    "--source"
)
ORIGINS = (("cifar10", re.compile(r"cifar10-(train|test)-\d+\.png")), ("imagenet", re.compile(r"n\d{8}_\d+\.png")))


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
) -> SampleSet:
    """The images of a split, keyed `cinic10-<split>-<position>`, class by class, names sorted.

    The facts say the `origin`: cifar10, imagenet (with its `synset`) or unknown, which the notes count.
    Raises UsageError for a missing split or class, a folder of another class, or a class without images.
    """
    if split not in SPLITS:
        raise UnknownNameError.of("split of cinic10", split, SPLITS)
    folder = folder_of(source, "cinic10", INSTRUCTIONS) / split
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; {INSTRUCTIONS}")
    found = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    if found != set(CLASS_NAMES):
        missing, extra = sorted(set(CLASS_NAMES) - found), sorted(found - set(CLASS_NAMES))
        what = f"has no folder {missing[0]}" if missing else f"has a folder {extra[0]!r}, which is no class"
        raise UsageError(f"{folder} {what}; expected {', '.join(CLASS_NAMES)}")
    files, classes, left_out = scan(folder, CLASS_NAMES)
    unknown = sum(origin(path.name) == "unknown" for path in files)

    def facts(index: int) -> dict[str, Any]:
        name = files[index].name
        where = origin(name)
        own = {"origin": where, "group": f"cinic10-{split}-{index:07d}"}
        return own | ({"synset": name.split("_")[0]} if where == "imagenet" else {})

    notes = [f"{unknown:,} files have names that don't say their origin"] if unknown else []
    return of_files(
        folder,
        files,
        classes,
        seeded_rows(len(files), limit=limit, skip=skip, seed=seed),
        name="cinic10",
        split=split,
        class_names=CLASS_NAMES,
        left_out=left_out,
        confused=CONFUSED,
        facts=facts,
        notes=tuple(notes),
    )


def origin(name: str) -> str:
    """Where the picture of that file name is from."""
    return next((where for where, form in ORIGINS if form.fullmatch(name)), "unknown")
