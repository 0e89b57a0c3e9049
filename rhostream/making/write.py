"""From a set of samples to tar shards, each whole or absent, and the same bytes for the same arguments.

    SampleSet > pack (webdataset's own writer) > create (fails when the name exists) > Summary

A shard that exists already with the same bytes is left alone: the same command finishes a stopped run. `classes.json`
beside the shards lists the classes by label, and each sample's json has the name of its label (`label_name`).
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rhostream.errors import AlreadyExistsError, UsageError
from rhostream.making.sample import Ints, Sample, SampleSet
from rhostream.progress import counted
from rhostream.storage import create, exists, is_local, join, list_files, read_bytes, redact, resolve
from rhostream.tables.class_lists import LIST, read_class_list
from rhostream.tables.classes import FIELD, require_same_classes, shown

MAX_SAMPLES_PER_SHARD = 1_000_000


@dataclass(kw_only=True)
class Summary:
    """What was written (or was there already), counted from the samples themselves."""

    folder: str
    split: str
    class_names: tuple[str, ...]
    class_counts: Ints  # (C,) by label as given
    notes: tuple[str, ...] = ()
    shards: int = 0
    found: int = 0
    samples: int = 0
    bytes: int = 0
    drawn: int = 0
    wrong: int = 0
    duplicates: int = 0

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        self.samples += 1
        if self.class_names:
            self.class_counts[sample.label] += 1
        self.drawn += bool(sample.facts.get("noise_drawn"))
        self.wrong += bool(sample.facts.get("is_noisy"))
        self.duplicates += sample.facts.get("duplicate_of") is not None

    def text(self) -> str:
        """One screen for people."""
        shown = [f"{count:>9,}  {name}" for name, count in zip(self.class_names, self.class_counts, strict=True)]
        if len(shown) > 20:
            shown = [*shown[:19], f"{'':>9}  ... and {len(shown) - 19} more classes"]
        again = f" ({self.found} of them were there already)" if self.found else ""
        lines = [
            f"shards      {self.shards:,}{again}",
            f"samples     {self.samples:,}",
            f"bytes       {self.bytes:,}",
            f"noise       {_share(self.drawn, self.samples)} drawn, {_share(self.wrong, self.samples)} wrong"
            if self.class_names
            else f"captions    {_share(self.wrong, self.samples)} are of another sample",
            f"duplicates  {_share(self.duplicates, self.samples)}",
            *(f"note        {note}" for note in self.notes),
            *(["label       samples  class (as labelled)"] if shown else []),
            *(f"{label:>7}  {line}" for label, line in enumerate(shown)),
            f"in          {join(redact(self.folder), shard_name(self.split, 0))} and on",
        ]
        return "\n".join(lines)


def write(
    samples: SampleSet,
    out: str | os.PathLike[str],
    *,
    samples_per_shard: int = 1000,
    bytes_per_shard: int | None = None,
    look: Callable[[Sample], None] | None = None,
) -> Summary:
    """Write the set below `out` as `<split>-000000.tar`, `<split>-000001.tar`, ...

    A shard ends before the sample that would take it over `bytes_per_shard` (where sizes are known), which is also what
    is held in memory. `look` is shown every sample. Raises UsageError, and overwrites nothing, when `out` holds another
    set under these names.
    """
    if not 1 <= samples_per_shard <= MAX_SAMPLES_PER_SHARD:
        raise UsageError(f"{samples_per_shard:,} samples a shard, expected 1 to {MAX_SAMPLES_PER_SHARD:,}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}", samples.split):
        raise UsageError(f"split {samples.split!r} can't name shards; expected up to 32 letters, digits, - and _")
    folder = resolve(out)
    ranges = _ranges(samples, samples_per_shard, bytes_per_shard)
    refuse_leftovers(folder, samples.split, len(ranges))
    if any(samples.class_names):
        _publish_classes(join(folder, LIST), samples.class_names)
    summary = Summary(
        folder=folder,
        split=samples.split,
        class_names=samples.class_names,
        class_counts=np.zeros(len(samples.class_names), np.int64),
        notes=samples.notes,
    )
    for number, rows in counted(enumerate(ranges), len(ranges), "shards"):
        data = pack(_counted(samples, rows, summary, look))
        summary.found += _publish(join(folder, shard_name(samples.split, number)), data)
        summary.shards += 1
        summary.bytes += len(data)
    return summary


def shard_name(split: str, number: int) -> str:
    """The file name of a shard."""
    return f"{split}-{number:06d}.tar"


def pack(samples: Iterator[Sample] | Sequence[Sample]) -> bytes:
    """The bytes of one tar: plain headers, fixed owner and time, so they depend on the samples alone."""
    from webdataset import TarWriter  # with torch: a recipe's help and its refusals take no seconds

    out = io.BytesIO()
    # Without mtime=0 every member carries the clock. encoder=False: our members are bytes already.
    with TarWriter(out, encoder=False, mtime=0, user="rhostream", group="rhostream") as tar:
        for sample in samples:
            target = (
                {"cls": str(sample.label).encode("ascii")}
                if sample.caption is None
                else {"txt": sample.caption.encode("utf-8")}
            )
            facts = json.dumps(sample.facts).encode("ascii")
            tar.write({"__key__": sample.key, sample.extension: sample.content, **target, "json": facts})
    return out.getvalue()


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.1%})"


def _ranges(samples: SampleSet, most: int, most_bytes: int | None) -> list[range]:
    """The rows of each shard."""
    if most_bytes is None or samples.sizes is None:
        return [range(start, min(start + most, len(samples))) for start in range(0, len(samples), most)]
    ranges, start, held = list[range](), 0, 0
    for row, size in enumerate(samples.sizes.tolist()):
        if row > start and (row - start >= most or held + size > most_bytes):
            ranges.append(range(start, row))
            start, held = row, 0
        held += size
    return [*ranges, range(start, len(samples))] if len(samples) else []


def _counted(
    samples: SampleSet, rows: range, summary: Summary, look: Callable[[Sample], None] | None
) -> Iterator[Sample]:
    for row in rows:
        sample = samples.load(row)
        summary.add(sample)
        if look is not None:
            look(sample)
        # Beside `class_name`, which is that of the true label where there is one.
        name = {FIELD: samples.class_names[sample.label]} if samples.class_names else {}
        yield replace(sample, facts=sample.facts | name)


def _publish(url: str, data: bytes) -> bool:
    """Make a shard visible; returns whether it was there already, with the same bytes."""
    # Bytes are compared, since a tar has no footer that says what made it.
    if not exists(url):
        try:
            create(url, data)
            return False
        except AlreadyExistsError:
            pass  # another process made it in between: it has to be the same shard
    if read_bytes(url) != data:
        raise UsageError(
            f"{redact(url)} exists already with other bytes, and nothing is overwritten; choose another "
            "--out, or remove that folder if it was made with other options"
        )
    return True


def _publish_classes(url: str, names: Sequence[str]) -> None:
    """Write the list of classes beside the shards. Raises UsageError where the shards there are numbered otherwise."""
    data = json.dumps([name or None for name in names], indent=1).encode("ascii") + b"\n"
    try:
        if not exists(url):
            return create(url, data)
    except AlreadyExistsError:
        pass  # another process made it in between
    there, ours = read_class_list(url), {label: name for label, name in enumerate(names) if name}
    require_same_classes(ours, there, "this set", f"the shards beside {redact(url)}")
    if missing := sorted(ours.keys() - there.keys()):
        raise UsageError(
            f"{redact(url)} lists {len(there):,} classes, and label {missing[0]}, {shown(ours[missing[0]])}, isn't one "
            "of them: choose another --out, or make the set with the longer list first"
        )


def refuse_leftovers(folder: str, split: str, count: int) -> None:
    """Shards of a larger set under the same names would silently join this one."""
    if is_local(folder) and os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"{folder} is a file; --out expects a folder")
    wanted = {shard_name(split, number) for number in range(count)}
    pattern = re.compile(re.escape(split) + r"-\d+\.tar")
    there = [url.rsplit("/", 1)[1] for url in list_files(folder, ".tar") if url.rsplit("/", 1)[0] == folder]
    others = [name for name in there if pattern.fullmatch(name) and name not in wanted]
    if others:
        raise UsageError(
            f"{redact(folder)} holds {len(others)} shards of another {split!r} set, such as {others[0]} "
            f"(this one has {count}); choose another --out"
        )
