"""A folder with one subfolder a class, as torchvision reads it: its files, its classes, and the bytes of the files."""

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
from rhostream.making.sample import FORMAT_OF, Ints, Pixels, Sample, SampleSet
from rhostream.samples.decoders import FORMATS, MAX_PIXELS
from rhostream.storage import redact
from rhostream.tables.class_lists import LIST, read_class_list
from rhostream.tables.classes import MOST, shown

NO_CLASS = "__MACOSX"  # what a zip of a Mac brings


def class_folders(root: Path) -> tuple[str, ...]:
    """The names of the subfolders that are classes, sorted; hidden ones are none."""
    return tuple(sorted(one.name for one in root.iterdir() if one.is_dir() and not _hidden(one.name)))


def numbered(
    root: Path, folders: tuple[str, ...], classes_from: str | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(the name of each label, its subfolder of `root` or "", what to say of it): as the folders are sorted, or as
    another set numbers them. Raises UsageError for a folder that the set doesn't have."""
    if classes_from is None:
        return folders, folders, ()
    class_names, notes = _listed(classes_from, folders, root)
    own = {text(name): name for name in folders}
    return class_names, tuple(own.get(name, "") for name in class_names), notes


def _listed(place: str, folders: tuple[str, ...], root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the name of each label of another set, "" for one without; what to say of it).

    Raises UsageError for a class folder of `root` that the set doesn't have, or has twice.
    """
    other = Path(place)
    if other.is_dir() and not any((other / name).exists() for name in (LIST, "_table.json", "model.json")):
        known = dict(enumerate(text(name) for name in class_folders(other)))
        if not known:
            raise UsageError(f"{other} has no subfolders and no {LIST}; --classes-from expects the classes of a set")
    else:
        known = read_class_list(place)
    if max(known) >= MOST:
        raise UsageError(f"{redact(place)} has the label {max(known):,}, expected less than {MOST:,}")
    count, here, shown_place = Counter(known.values()), {text(name) for name in folders}, redact(place)
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
    sizes: Sequence[int] | None = None,
) -> SampleSet:
    """The `rows` of image files of one class each, bytes kept, keyed `<name>-<split>-<position>`.

    `facts(position)` adds to `true_label, class_name, path`.
    """

    def load(i: int) -> Sample:
        index = int(rows[i])
        path, label = files[index], int(classes[index])
        found = {
            "true_label": label,
            "class_name": text(class_names[label]),
            "path": text(path.relative_to(root).as_posix()),
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
        class_names=tuple(text(name) for name in class_names),
        load=load,
        pixels=lambda i: decode_image(files[rows[i]]),
        confused=tuple(confused),
        sizes=np.array([sizes[i] for i in rows], np.int64) if sizes is not None else None,
        notes=(*notes, *((note,) if left_out else ())),
    )


def scan(root: Path, class_names: tuple[str, ...]) -> tuple[list[Path], Ints, int]:
    """Every image file in order, the class of each, and how many other files there are.

    `class_names`: the subfolder of each label, "" for a label without one.
    """
    files: list[Path] = []
    classes: list[int] = []
    left_out = sum(1 for entry in root.iterdir() if entry.is_file() and not _hidden(entry.name))
    for label, name in enumerate(class_names):
        if not name:
            continue
        inside = files_below(root / name)
        images = [path for path in inside if extension(path) in FORMAT_OF]
        if not images:
            raise UsageError(f"class folder {root / name} holds no {', '.join(FORMAT_OF)}; remove it or fill it")
        left_out += len(inside) - len(images)
        files += images
        classes += [label] * len(images)
    return files, np.array(classes, np.int64), left_out


def files_below(folder: Path) -> list[Path]:
    """Every file in it and below, by path; hidden files and folders are passed over."""
    found = list[Path]()
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [Path(at) / name for name in names if not _hidden(name)]
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == NO_CLASS


def extension(path: Path) -> str:
    """The suffix of a file in lower case, without the dot."""
    return path.suffix[1:].lower()


def text(name: str) -> str:
    """File names may hold bytes that are not UTF-8; as lone surrogates they break readers of JSON."""
    return name.encode("utf-8", "backslashreplace").decode()


def key_prefix(root: Path) -> str:
    """What the keys of a folder's samples begin with: its name, in letters that any reader takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", root.resolve().name)[:40].strip("-") or "images"


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
