"""What somebody points `rhostream init` at: a folder of images, tar shards, or flat files of token ids.

Everything else that a folder can be is refused in one sentence that says what it is and what to do.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.inert import one_line, shell_words
from rhostream.making.folder import extension, files_below
from rhostream.making.sample import FORMAT_OF
from rhostream.samples.flat import FLAT, are_flat, is_flat
from rhostream.storage import is_local, redact

MADE = {
    "_table.json": "a table of compute-il or index: `rhostream status {0}` says of which shards; init takes those",
    "run.json": "a run: `rhostream status {0}` says how far it is; init takes the shards that it was trained on",
    "model.json": "an IL model: `rhostream compute-il --il-model {0}` uses it; init takes the shards",
}
LISTS = ("labels.csv", "labels.tsv")
HELD_OUT = re.compile(r"(test|testing|val|valid|validation|dev)[^a-z]", re.IGNORECASE)
TAR, NAMED = ".tar", 4
TABLES = ("csv", "tsv", "json", "parquet", "txt", "md")  # what lies beside shards and images


@dataclass(frozen=True, kw_only=True)
class Place:
    """What was named: a folder of images, or shards."""

    words: str  # what it is
    where: str  # as it was named, without secrets
    folder: Path | None = None  # of images
    labels: str | None = None  # of these, a table of file and label
    shards: tuple[str, ...] = ()  # to learn from
    test: tuple[str, ...] = ()  # by their names, a test set
    given: tuple[str, ...] = ()  # as a command is to name them
    given_test: tuple[str, ...] = ()


def place_of(data: str | Iterable[str], labels: str | None) -> Place:
    """What lies there. Raises UsageError for what no command of ours begins with, AccessError of a store."""
    named = storage.listed(data, "FOLDER|SHARDS")
    if not named:
        raise UsageError("init expects a folder of images, or shards")
    folders = [url for url in named if is_local(storage.resolve(url)) and os.path.isdir(storage.resolve(url))]
    images = [url for url in folders if _holds_images(Path(storage.resolve(url)))]
    if images:
        if len(named) > 1:
            raise UsageError(
                f"{images[0]} is a folder of images, and {len(named) - 1} more places were named: "
                "init looks at one folder of images at a time"
            )
        root = Path(storage.resolve(images[0]))
        listed = labels or next((str(root / name) for name in LISTS if (root / name).is_file()), None)
        return Place(words="a folder of images", where=redact(images[0]), folder=root, labels=listed)
    if labels is not None:
        raise UsageError(f"--labels {labels} is for a folder of images, and {redact(named[0])} is none")
    return _shards(named)


def _holds_images(root: Path) -> bool:
    """Whether a folder is one of images; False: shards lie there. Raises UsageError for what is neither."""
    for name, what in MADE.items():
        if (root / name).is_file():
            raise UsageError(f"{root} is {what.format(shell_words(str(root)))}")
    try:
        files = files_below(root)
    except OSError as exc:
        raise UsageError(f"can't read {root}: {exc.strerror}") from exc
    kinds = Counter(_kind(path) for path in files)
    if not files:
        denied = "" if os.access(root, os.R_OK | os.X_OK) else ", or may not be read"
        raise UsageError(
            f"{root} is empty{denied}: expected a folder of images with one subfolder a class, or tar shards"
        )
    several = [kind for kind in ("images", "tar shards", "flat files of ids") if kinds[kind]]
    if len(several) > 1:
        of_each = "; ".join(f"{kinds[kind]:,} {kind}, such as {_first(root, files, kind)}" for kind in several)
        raise UsageError(
            f"{root} holds several kinds of files ({of_each}): name the ones that are meant, a folder of "
            "images alone or the shards themselves"
        )
    if not several:
        extensions = Counter(extension(path) or "no ending" for path in files).most_common(NAMED)
        listed = ", ".join(f"{count:,} .{name}" if name != "no ending" else f"{count:,} with {name}"
                           for name, count in extensions)  # fmt: skip
        raise UsageError(
            f"{one_line(str(root), 200)} holds no images ({', '.join(FORMAT_OF)}) and no shards (.tar, or .bin and "
            f".npy of token ids), but {listed}: texts and other kinds of samples become shards with any "
            f"WebDataset writer, or `tar --sort=name -cf shard.tar -C {shell_words(str(root))} .`"
        )
    return bool(kinds["images"])


def _kind(path: Path) -> str:
    name = extension(path)
    return (
        "images" if name in FORMAT_OF else "tar shards" if name == "tar" else
        "flat files of ids" if is_flat(path.name) else "others"
    )  # fmt: skip


def _first(root: Path, files: Sequence[Path], kind: str) -> str:
    path = next(path for path in files if _kind(path) == kind)
    return one_line(str(path.relative_to(root)), 80)


def _shards(named: Sequence[str]) -> Place:
    """The shards that are meant, those of a test set apart."""
    given, urls = list[str](), list[str]()
    for argument in named:
        suffix = _suffix(argument)
        for url in storage.expand([argument], suffix):
            _require_shard(url)
            urls.append(url)
        given.append(argument)
    storage.expand(urls)  # none is named twice
    flat = are_flat(urls)
    test = [url for url in urls if HELD_OUT.match(os.path.basename(url))]
    if len(test) == len(urls):
        test = []
    train = [url for url in urls if url not in {*test}] if test else urls
    if test:
        given = _globs(train)
    more = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    return Place(
        words="flat files of token ids" if flat else "tar shards",
        where=", ".join(map(redact, named[:NAMED])) + more,
        shards=tuple(train),
        test=tuple(test),
        given=tuple(_absolute(argument) for argument in given),
        given_test=tuple(_absolute(argument) for argument in _globs(test)),
    )  # fmt: skip


def _suffix(argument: str) -> str:
    """What the shards of a folder end in."""
    url = storage.resolve(argument)
    if is_local(url) and os.path.isdir(url):
        endings = Counter(path.suffix for path in files_below(Path(url)) if is_flat(path.name) or path.suffix == TAR)
        return endings.most_common(1)[0][0] if endings else TAR
    return TAR


def _require_shard(url: str) -> None:
    """Raise UsageError for a file of this machine that is no shard, or isn't there."""
    if not is_local(url):
        return
    name = url.rsplit("/", 1)[-1]
    if not os.path.exists(url):
        raise UsageError(f"{url} isn't there")
    if url.lower().endswith((TAR, ".tgz", ".tar.gz", *FLAT)):
        return
    if extension(Path(url)) in FORMAT_OF:
        raise UsageError(f"{url} is one image: name the folder that holds one subfolder a class")
    what = next((MADE[made] for made in MADE if name == made), "")
    if what:
        raise UsageError(f"{url} is of {what.format(shell_words(os.path.dirname(url) or '.'))}")
    raise UsageError(
        f"{url} is a file, and neither a tar shard nor a flat file of ids: name a folder of images or shards"
    )


def _globs(urls: Sequence[str]) -> list[str]:
    """Shards as few patterns: a name with its number starred, where that means these alone."""
    patterns = dict.fromkeys(re.sub(r"[0-9]+(?=\.[a-z]+\Z)", "*", url) for url in urls)
    return [*patterns] if len(patterns) <= NAMED else list(urls)


def _absolute(argument: str) -> str:
    url = storage.resolve(argument)
    return url if is_local(url) else argument
