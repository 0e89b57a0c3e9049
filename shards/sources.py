"""The files that people download: found below a folder, read whole under a cap, compared with what was published.

A file that isn't there is one sentence that says which, from which project, and where it is expected.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rhostream.errors import UsageError

MAX_FILE = 1 << 30  # the largest file of a set that is read whole; CIFAR-100's has 155 MB
CHUNK = 1 << 20


def folder_of(source: str | os.PathLike[str] | None, recipe: str, instructions: str) -> Path:
    """`source` as a folder that exists. Raises UsageError with the set's instructions."""
    if source is None:
        raise UsageError(f"{recipe} needs --source DIR; {instructions}")
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; {instructions}")
    return folder


def find(folder: Path, names: Sequence[str], below: Iterable[str], instructions: str) -> Path:
    """The first of `folder` and its subfolders `below` that holds a file of `names`.

    Raises UsageError that says which files are expected and where they come from.
    """
    for candidate in (folder, *(folder / name for name in below)):
        if any((candidate / name).is_file() for name in names):
            return candidate
    raise UsageError(f"{folder} holds none of {', '.join(names)}; {instructions}")


def read_file(path: Path, instructions: str, limit: int = MAX_FILE) -> bytes:
    """The bytes of a file. Raises UsageError for a missing, unreadable or far too large one."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise UsageError(f"{path} does not exist; {instructions}") from exc
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror}") from exc
    if len(data) > limit:
        raise UsageError(f"{path} has more than {limit:,} bytes, which no file of this set has")
    return data


def read_text(path: Path, instructions: str, limit: int = MAX_FILE, encoding: str = "utf-8") -> str:
    """The text of a file, without a byte order mark. Raises UsageError that says at which byte it isn't text."""
    data = read_file(path, instructions, limit)
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode(encoding)
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not {encoding} text at byte {exc.start:,}; copy the file again") from exc


def compare_checksums(folder: Path, published: Mapping[str, str], *, required: bool) -> tuple[str, ...]:
    """A note for the summary on whether the files `published` (name to `md5:...` or `sha256:...`) are the real ones.

    Raises UsageError, naming the file, when one isn't and `required` says that all must be.
    """
    others = [name for name, checksum in published.items() if _checksum(folder / name, checksum) != checksum]
    if not others:
        return (f"checksums: {len(published)} of {len(published)} files are as published",)
    if required:
        raise UsageError(
            f"{folder / others[0]} is not the published file: its checksum isn't {published[others[0]]}; "
            "copy it again, or drop --require-checksums"
        )
    shown = ", ".join(others[:3]) + (" and others" if len(others) > 3 else "")
    return (f"checksums: {len(others)} of {len(published)} files are not as published: {shown}",)


def _checksum(path: Path, like: str) -> str:
    algorithm = like.partition(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror}") from exc
    return f"{algorithm}:{digest.hexdigest()}"
