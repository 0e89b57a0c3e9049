"""A folder with one subfolder a class, as torchvision reads it; the bytes of the files are kept."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rhostream.errors import UsageError
from rhostream.storage import redact
from rhostream.stream.decode import FORMATS, MAX_PIXELS
from rhostream.tables.class_lists import LIST, read_class_list
from rhostream.tables.classes import MOST, shown
from shards.sample import FORMAT_OF, Ints, Pixels, Sample, SampleSet, seeded_rows


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
    class_names = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    if not class_names:
        raise UsageError(f"{root} has no subfolders; --source expects one subfolder a class")
    folders, notes = class_names, tuple[str, ...]()
    if classes_from is not None:
        class_names, notes = _listed(classes_from, class_names, root)
        own = {_text(name): name for name in folders}
        folders = tuple(own.get(name, "") for name in class_names)
    files, classes, left_out = scan(root, folders)
    rows = seeded_rows(len(files), limit=limit, skip=skip, seed=seed)
    prefix = re.sub(r"[^A-Za-z0-9_-]+", "-", root.resolve().name)[:40].strip("-") or "images"
    return of_files(
        root, files, classes, rows, name=prefix, split=split, class_names=class_names, left_out=left_out, notes=notes
    )


def _listed(place: str, folders: tuple[str, ...], root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the name of each label of another set, "" for one without; what to say of it).

    Raises UsageError for a class folder of `root` that the set doesn't have, or has twice.
    """
    other = Path(place)
    if other.is_dir() and not any((other / name).exists() for name in (LIST, "_table.json", "model.json")):
        known = dict(enumerate(_text(name) for name in sorted(one.name for one in other.iterdir() if one.is_dir())))
        if not known:
            raise UsageError(f"{other} has no subfolders and no {LIST}; --classes-from expects the classes of a set")
    else:
        known = read_class_list(place)
    if max(known) >= MOST:
        raise UsageError(f"{redact(place)} has the label {max(known):,}, expected less than {MOST:,}")
    count, here, shown_place = Counter(known.values()), {_text(name) for name in folders}, redact(place)
    if strange := sorted(name for name in here if count[name] != 1):
        why = "is the name of several" if count[strange[0]] else "is none"
        raise UsageError(
            f"class folder {shown(strange[0])} of {root} {why} of the {len(known):,} classes of {shown_place} "
            f"({len(strange):,} such folders): name it as it is called there, or remove it"
        )
    notes = [f"numbered as the {len(known):,} classes of {shown_place}"]
    if missing := [name for name in known.values() if name not in here]:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        notes.append(f"{len(missing):,} of these have no folder here: {', '.join(map(shown, missing[:5]))}{more}")
    return tuple(known.get(label, "") for label in range(max(known) + 1)), tuple(notes)


def of_files(
    root: Path,
    files: Sequence[Path],
    classes: Ints,
    rows: Ints,
    *,
    name: str,
    split: str,
    class_names: tuple[str, ...],
    left_out: int = 0,
    confused: Sequence[tuple[int, int]] = (),
    facts: Callable[[int], dict[str, Any]] | None = None,
    notes: tuple[str, ...] = (),
) -> SampleSet:
    """The `rows` of image files of one class each, bytes kept, keyed `<name>-<split>-<position>`.

    `facts(position)` adds to `true_label, class_name, path`.
    """

    def load(i: int) -> Sample:
        index = int(rows[i])
        path, label = files[index], int(classes[index])
        found = {
            "true_label": label,
            "class_name": _text(class_names[label]),
            "path": _text(path.relative_to(root).as_posix()),
        }
        return Sample(
            key=f"{name}-{split}-{index:07d}",
            label=label,
            extension=extension(path),
            content=read_image(path),
            facts=found | (facts(index) if facts else {}),
        )

    note = f"{left_out:,} files are not {', '.join(FORMAT_OF)} and were left out"
    return SampleSet(
        split=split,
        labels=classes[rows],
        class_names=tuple(_text(name) for name in class_names),
        load=load,
        pixels=lambda i: decode_image(files[rows[i]]),
        confused=tuple(confused),
        notes=(*notes, *((note,) if left_out else ())),
    )


def scan(root: Path, class_names: tuple[str, ...]) -> tuple[list[Path], Ints, int]:
    """Every image file in order, the class of each, and how many other files there are.

    `class_names`: the subfolder of each label, "" for a label without one.
    """
    files: list[Path] = []
    classes: list[int] = []
    left_out = sum(1 for entry in root.iterdir() if entry.is_file())
    for label, name in enumerate(class_names):
        if not name:
            continue
        inside = sorted(Path(at) / file for at, _, names in os.walk(root / name) for file in names)
        images = [path for path in inside if extension(path) in FORMAT_OF]
        if not images:
            raise UsageError(f"class folder {root / name} holds no {', '.join(FORMAT_OF)}; remove it or fill it")
        left_out += len(inside) - len(images)
        files += images
        classes += [label] * len(images)
    return files, np.array(classes, np.int64), left_out


def extension(path: Path) -> str:
    """The suffix of a file in lower case, without the dot."""
    return path.suffix[1:].lower()


def _text(name: str) -> str:
    """File names may hold bytes that are not UTF-8; as lone surrogates they break readers of JSON."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_image(path: Path) -> bytes:
    """The bytes of an image file. Raises UsageError when they can't be had."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror}") from exc


def decode_image(path: Path) -> Pixels:
    """An image file as (H, W) grey or (H, W, 3) RGB. Raises UsageError for one that can't be decoded."""
    hint = "remove the file, or make no copies (--copies 0)"
    try:
        image = Image.open(io.BytesIO(read_image(path)), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UsageError(f"{path} has {image.width:,} x {image.height:,} pixels, at most {MAX_PIXELS:,}; {hint}")
        return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except (OSError, ValueError, SyntaxError) as exc:
        raise UsageError(f"can't decode {path} for a near-duplicate ({exc}); {hint}") from exc
