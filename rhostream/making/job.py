"""`rhostream shards FOLDER`: from a folder of images to shards of a training and a test set, and what to run then.

    list files and classes > copies > split > write train-*.tar, test-*.tar, classes.json > numbers, commands

The same command again finishes a stopped one: shards appear whole or not at all, and are made of the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rhostream import storage
from rhostream.config.call import configured
from rhostream.config.shards import ShardsConfig
from rhostream.errors import UsageError
from rhostream.inert import escape, shell_words
from rhostream.making.folder import class_folders, key_prefix, numbered, of_files, scan
from rhostream.making.listed import read_listed
from rhostream.making.sample import FORMAT_OF, Ints, Sample
from rhostream.making.sizes import BUFFER, sizes_for
from rhostream.making.split import copies, split
from rhostream.making.write import Summary, refuse_leftovers, shard_name, write
from rhostream.samples.decoders import probe_size

TEST, FRACTION = "test", 0.1
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev"))
FIRST = 3


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the sets that were made."""

    split: str
    shards: int
    found: int  # of these, those that were there already
    samples: int
    bytes: int
    urls: str  # as one types them in a shell
    class_counts: dict[str, int]  # name, or label -> samples


@dataclass(frozen=True, kw_only=True)
class Made:
    """What `make_shards` made."""

    out: str
    classes: int
    parts: list[Part]
    unreadable: int  # images whose header can't be read: they are in the shards, and will have a status
    first_unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)  # commands

    def text(self) -> str:
        """One screen for people."""
        lines = []
        for part in self.parts:
            again = f", {part.found:,} of them there already" if part.found else ""
            shards = _count(part.shards, "shard")
            lines.append(f"{part.split:8} {part.samples:>9,} images, {shards}{again}, {part.bytes / 1e6:,.1f} MB")
        lines += [f"classes  {self.classes:>9,}: {self._classes()}"]
        if self.unreadable:
            first = ", ".join(self.first_unreadable)
            what = _count(self.unreadable, "image")
            lines.append(f"note     {what} can't be opened: kept, and given a status by compute-il, first {first}")
        lines += [f"note     {note}" for note in self.notes]
        lines += ["", "Next:", "", *(f"    {command}" for command in self.next)] if self.next else []
        return "\n".join(map(escape, lines))

    def _classes(self) -> str:
        total = Counter[str]()
        for part in self.parts:
            total += Counter(part.class_counts)
        shown = [f"{name} ({count:,})" for name, count in list(total.items())[:12]]
        return ", ".join(shown) + (f" and {len(total) - 12:,} more" if len(total) > 12 else "")


@configured(ShardsConfig, "folder", "out")
def make_shards(config: ShardsConfig) -> Made:
    """Write the images of `folder` as shards below `out`: `train-*.tar`, `test-*.tar` and `classes.json`.

    Classes are the sorted subfolders, or what `labels` (a CSV or TSV of file and label) says; `classes_from` numbers
    them as another set does. The bytes of files are kept, and each sample's json has its path. Of each class
    `test_fraction` goes into the test set, drawn by `seed`; files of the same bytes go to one side. `split` makes one
    set of that name instead. Images that can't be opened are counted, and kept: the table gives each its status.

    Raises UsageError, with nothing written, for a folder without images or classes, and where `out` holds another set.
    """
    root, out = Path(config.folder), storage.resolve(config.out)
    fraction = _fraction(config)
    if not root.is_dir():
        raise UsageError(f"{config.folder} is no folder on this machine: images are read from local files")
    for name in ("samples_per_shard", "shard_bytes"):
        if getattr(config, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected 1 or more")
    files, classes, names, notes = images_of(root, config)
    sizes = [size_of(file) for file in files]
    copy_of = copies(files, sizes)
    notes += of_copies(root, files, classes, copy_of)
    sides = split(classes, copy_of, fraction, config.seed)
    name = config.split or "train"
    whole = {name: sides.train, TEST: sides.test} if config.split is None else {name: sides.train}
    sets = {
        of: of_files(root, files, classes, rows, name=key_prefix(root), split=of, class_names=names, sizes=sizes)
        for of, rows in whole.items()
    }
    for of, rows in whole.items():
        if not len(rows):
            refuse_leftovers(out, of, 0)
    storage.probe_writable(out)
    bad = list[str]()

    def look(sample: Sample) -> None:
        if probe_size(sample.content) is None:
            bad.append(sample.facts["path"])

    most = {"samples_per_shard": config.samples_per_shard, "bytes_per_shard": config.shard_bytes}
    parts = [_part(write(one, out, look=look, **most), config.out, names) for one in sets.values() if len(one)]
    return Made(
        out=storage.redact(out),
        classes=len(set(classes.tolist())),
        parts=parts,
        unreadable=len(bad),
        first_unreadable=sorted(bad)[:FIRST],
        notes=notes,
        next=_commands(parts) if config.split is None else [],
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _fraction(config: ShardsConfig) -> float:
    given = config.test_fraction
    if given is not None and not 0 <= given < 1:
        raise UsageError(f"--test-fraction {given}: expected a share from 0 to below 1")
    if given and config.split is not None:
        raise UsageError(f"--split {config.split} makes one set; --test-fraction divides a folder in two: give one")
    return 0.0 if config.split is not None else FRACTION if given is None else given


def images_of(root: Path, config: ShardsConfig) -> tuple[list[Path], Ints, tuple[str, ...], list[str]]:
    """The files, the class of each, the name of each class, and what to say. Raises UsageError where there are none."""
    if config.labels is not None:
        files, classes, names, notes = read_listed(root, config.labels, config.classes_from)
        return files, classes, names, list(notes)
    folders = class_folders(root)
    if not folders:
        loose = sum(1 for one in root.iterdir() if one.suffix[1:].lower() in FORMAT_OF)
        raise UsageError(
            f"{root} has no subfolders, and one subfolder a class was expected"
            + (
                f": it holds {_count(loose, 'image')}; if a table lists their labels, --labels FILE; if each has a "
                f".txt, .cls or .json beside it, `tar --sort=name -cf shard.tar -C {shell_words(str(root))} .`, and "
                "--label of fit-il"
                if loose
                else " (and it holds no image)"
            )
        )
    if sets := sets_of(folders):
        train, held = sets
        shown, out = shell_words(str(root)), shell_words(storage.redact(config.out))
        raise UsageError(
            f"{root} holds {', '.join(folders)}, which are sets and no classes: `rhostream shards {shown}/{train} "
            f"--out {out} --test-fraction 0`, then `rhostream shards {shown}/{held} --out {out} --split {held} "
            f"--classes-from {out}`"
        )
    names, folders, notes = numbered(root, folders, config.classes_from)
    files, classes, left_out = scan(root, folders)
    more = [f"{left_out:,} files are not {', '.join(FORMAT_OF)} and were left out"] if left_out else []
    return files, classes, tuple(names), [*notes, *more]


def sets_of(folders: Sequence[str]) -> tuple[str, str] | None:
    """(the training set, the test set) of subfolders that are sets and no classes; None where they are classes."""
    if len(folders) < 2 or not {name.lower() for name in folders} <= SPLITS:
        return None
    train = next((name for name in folders if name.lower().startswith("train")), folders[-1])
    return train, "test" if "test" in folders else folders[0]


def size_of(file: Path) -> int:
    """Its bytes. Raises UsageError where they can't be asked for."""
    try:
        return file.stat().st_size
    except OSError as exc:
        raise UsageError(f"can't read {file}: {exc.strerror}") from exc


def of_copies(root: Path, files: Sequence[Path], classes: Ints, copy_of: Ints) -> list[str]:
    """What to say of files with the bytes of others, by the first one of each; nothing where there are none."""
    again = [row for row, first in enumerate(copy_of.tolist()) if first != row]
    if not again:
        return []
    what = _count(len(again), "file")
    said = [f"{what} with the same bytes as another one: copies stay on one side of the split"]
    if other := [row for row in again if classes[row] != classes[copy_of[row]]]:
        first, its = files[other[0]].relative_to(root), files[copy_of[other[0]]].relative_to(root)
        said.append(f"{len(other):,} of these with another label than the copy, first {first} and {its}")
    return said


def _part(summary: Summary, out: str, names: Sequence[str]) -> Part:
    last, first = shard_name(summary.split, summary.shards - 1), shard_name(summary.split, 0)
    shown = first if summary.shards == 1 else f"{summary.split}-{{{first[-10:-4]}..{last[-10:-4]}}}.tar"
    counts = {name or str(label): int(summary.class_counts[label]) for label, name in enumerate(names)}
    return Part(
        split=summary.split,
        shards=summary.shards,
        found=summary.found,
        samples=summary.samples,
        bytes=summary.bytes,
        urls=shell_words(storage.join(storage.redact(out), shown)),
        class_counts={name: count for name, count in counts.items() if count},
    )


def _commands(parts: Sequence[Part]) -> list[str]:
    """What to run on the shards, with buffers that suit their number."""
    train, test = parts[0], next((part for part in parts if part.split == TEST), None)
    fit = sizes_for(train.samples)
    sizes = "" if fit.buffer_size == BUFFER else f" --buffer-size {fit.buffer_size} --batch-size {fit.batch_size}"
    more = f"--model small-cnn{sizes} --passes {fit.passes}" + (f" --test-shards {test.urls}" if test else "")
    return [
        f"rhostream fit-il --shards {train.urls} --out il-model",
        f"rhostream compute-il --shards {train.urls} --il-model il-model --out il",
        f"rhostream train --shards {train.urls} --il il --run runs/rho {more}",
        "rhostream report runs/rho -o report.html",
    ]
