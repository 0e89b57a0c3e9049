"""A folder with one subfolder a class, as torchvision reads it; the bytes of the files are kept."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from rhostream.errors import UsageError
from rhostream.stream.decode import FORMATS, MAX_PIXELS
from shards.sample import FORMAT_OF, Ints, Pixels, Sample, SampleSet, seeded_rows


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
) -> SampleSet:
    """The images below `source`, keyed `<folder's name>-<split>-<position>`, class by class, paths sorted.

    Classes are the sorted subfolders; `split` only names the shards. Files that are not jpg, jpeg, png or
    webp are left out and counted in the notes. Raises UsageError for a source without classes or a class
    without images.
    """
    if source is None:
        raise UsageError("imagefolder needs --source DIR, a folder with one subfolder a class")
    root = Path(source)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; --source expects one with one subfolder a class")
    class_names = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    if not class_names:
        raise UsageError(f"{root} has no subfolders; --source expects one subfolder a class")
    files, classes, left_out = _scan(root, class_names)
    rows = seeded_rows(len(files), limit=limit, skip=skip, seed=seed)
    prefix = re.sub(r"[^A-Za-z0-9_-]+", "-", root.resolve().name)[:40].strip("-") or "images"

    def load(i: int) -> Sample:
        index = int(rows[i])
        path, label = files[index], int(classes[index])
        facts = {
            "true_label": label,
            "class_name": _text(class_names[label]),
            "path": _text(path.relative_to(root).as_posix()),
        }
        key = f"{prefix}-{split}-{index:07d}"
        return Sample(key=key, label=label, extension=_extension(path), image=_read(path), facts=facts)

    def pixels(i: int) -> Pixels:
        return _decode(files[rows[i]])

    note = f"{left_out:,} files are not {', '.join(FORMAT_OF)} and were left out"
    return SampleSet(
        split=split,
        labels=classes[rows],
        class_names=tuple(_text(name) for name in class_names),
        load=load,
        pixels=pixels,
        notes=(note,) if left_out else (),
    )


def _scan(root: Path, class_names: tuple[str, ...]) -> tuple[list[Path], Ints, int]:
    """Every image file in order, the class of each, and how many other files there are."""
    files: list[Path] = []
    classes: list[int] = []
    left_out = sum(1 for entry in root.iterdir() if entry.is_file())
    for label, name in enumerate(class_names):
        inside = sorted(Path(at) / file for at, _, names in os.walk(root / name) for file in names)
        images = [path for path in inside if _extension(path) in FORMAT_OF]
        if not images:
            raise UsageError(
                f"class folder {root / name} holds no {', '.join(FORMAT_OF)}; remove it or fill it"
            )
        left_out += len(inside) - len(images)
        files += images
        classes += [label] * len(images)
    return files, np.array(classes, np.int64), left_out


def _extension(path: Path) -> str:
    return path.suffix[1:].lower()


def _text(name: str) -> str:
    """File names may hold bytes that are not UTF-8; as lone surrogates they break readers of JSON."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror}") from exc


def _decode(path: Path) -> Pixels:
    hint = "remove the file, or make no copies (--copies 0)"
    try:
        image = Image.open(io.BytesIO(_read(path)), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UsageError(
                f"{path} has {image.width:,} x {image.height:,} pixels, at most {MAX_PIXELS:,}; {hint}"
            )
        return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except (OSError, ValueError, SyntaxError) as exc:
        raise UsageError(f"can't decode {path} for a near-duplicate ({exc}); {hint}") from exc
