"""A folder with one subfolder a class; `rhostream shards` reads the same, with a test set beside."""

from __future__ import annotations

import os
from pathlib import Path

from rhostream.errors import UsageError
from rhostream.making.folder import class_folders, key_prefix, numbered, of_files, scan
from shards.sample import SampleSet, seeded_rows


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    classes_from: str | None = None,
) -> SampleSet:
    """The images below `source`, keyed `<folder's name>-<split>-<position>`, class by class, paths sorted.

    Classes are the sorted subfolders, numbered from 0, or as `classes_from` numbers them: a folder with subfolders, a
    file (see `read_class_list`), or shards, a table or an IL model that were made before. `split` only names the
    shards. Files that are not jpg, jpeg, png or webp are left out and counted in the notes.
    Raises UsageError for a source without classes, a class without images, and one that the list lacks.
    """
    if source is None:
        raise UsageError("imagefolder needs --source DIR, a folder with one subfolder a class")
    root = Path(source)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; --source expects one with one subfolder a class")
    folders = class_folders(root)
    if not folders:
        raise UsageError(f"{root} has no subfolders; --source expects one subfolder a class")
    class_names, folders, notes = numbered(root, folders, classes_from)
    files, classes, left_out = scan(root, folders)
    rows = seeded_rows(len(files), limit=limit, skip=skip, seed=seed)
    prefix = key_prefix(root)
    return of_files(
        root, files, classes, rows, name=prefix, split=split, class_names=class_names, left_out=left_out, notes=notes
    )
