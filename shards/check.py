"""Prove a set of shards readable, complete and unique-keyed: `python -m shards.check URL...`.

    expand > strict tar walk > label, json and image or text of each sample > keys over the whole set > a report

Exit code 0 when all is well, 3 when something was found, 2 when there was nothing to check.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import click

from rhostream.errors import RhostreamError, ShardError
from rhostream.progress import counted
from rhostream.samples.decoders import check_image
from rhostream.samples.geometry import MAX_BYTES
from rhostream.samples.image import EXTENSIONS as IMAGE_EXTENSIONS
from rhostream.samples.json_member import MAX_JSON
from rhostream.samples.kind import OK
from rhostream.storage import Reader, expand, open_reader, redact
from rhostream.stream.batch import MAX_CLS, TarSample
from rhostream.stream.tar import TarWalk
from shards.texts import MAX_TEXT

SHOWN = 5  # of each kind of problem
NUMBERED = re.compile(r"(.*?)(\d+)\.tar\Z", re.DOTALL)


@dataclass(kw_only=True)
class Report:
    """What a check found; `problems` maps a kind of problem to the places where it was found."""

    shards: int = 0
    samples: int = 0
    members: int = 0
    ignored: int = 0
    bytes: int = 0
    labels: set[int] = field(default_factory=set)
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def problem(self, kind: str, where: str) -> None:
        """Note one problem."""
        self.problems.setdefault(kind, []).append(where)

    def text(self) -> str:
        """One screen for people; keys are hostile text, so what a terminal would obey is escaped."""
        lines = [
            f"shards   {self.shards:,}",
            f"samples  {self.samples:,}",
            f"members  {self.members:,} ({self.ignored:,} ignored)",
            f"bytes    {self.bytes:,}",
            f"labels   {len(self.labels):,} different",
        ]
        for kind, places in self.problems.items():
            lines.append(f"{kind}: {len(places):,}")
            lines += [f"    {_printable(place)}" for place in places[:SHOWN]]
            lines += [f"    ... and {len(places) - SHOWN:,} more"] if len(places) > SHOWN else []
        lines.append("all well" if self.ok else "NOT well")
        return "\n".join(lines)


def check(urls: Iterable[str | os.PathLike[str]], *, expect_samples: int | None = None) -> Report:
    """Read every byte that a training would read and report what is wrong, going on after each finding.

    `expect_samples` also catches what no set can say of itself: that its last shards are missing.
    Raises UsageError when the arguments name no shard.
    """
    report = Report()
    shards = expand(urls)
    where: dict[bytes, str] = {}  # key -> the shard that has it
    for shard in counted(shards, len(shards), "check"):
        report.shards += 1
        try:
            with open_reader(shard) as reader:
                report.bytes += reader.size
                _check_shard(reader, shard, where, report)
        except RhostreamError as exc:
            report.problem("unreadable shards" if isinstance(exc, ShardError) else "missing shards", str(exc))
    for gap in _gaps(shards):
        report.problem("gaps in the numbering", gap)
    if expect_samples is not None and report.samples != expect_samples:
        report.problem("wrong number of samples", f"got {report.samples:,}, expected {expect_samples:,}")
    return report


def _check_shard(reader: Reader, shard: str, where: dict[bytes, str], report: Report) -> None:
    tar = TarWalk(reader, shard)
    name = redact(shard)
    try:
        for sample in tar:
            report.samples += 1
            key = sample.key.decode("utf-8", "backslashreplace")
            if sample.key in where:
                report.problem("duplicate keys", f"{key} in {name}, first in {redact(where[sample.key])}")
            where.setdefault(sample.key, shard)
            for kind, what in _check_sample(reader, sample, report.labels):
                report.problem(kind, f"{name}: {key}: {what}")
    finally:
        report.members += tar.members_seen
        report.ignored += tar.members_ignored


def _check_sample(reader: Reader, sample: TarSample, labels: set[int]) -> Iterable[tuple[str, str]]:
    """(kind, what) of each problem of one sample."""
    if not _is_text(sample.key):
        yield "bad keys", "not UTF-8"
    members = {extension: (size, offset) for extension, offset, size in sample.members}
    images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
    if "txt" in members:  # alone, or beside an image as its caption
        size, offset = members["txt"]
        if problem := _wrong_text(reader.pread(size, offset) if size <= MAX_TEXT else None):
            yield "bad texts", problem
    if len(images) != 1 and (images or "txt" not in members):
        yield "bad images", f"{len(images)} images, expected one"
    for extension in images:
        size, offset = members[extension]
        status = "image:too_large" if size > MAX_BYTES else check_image(reader.pread(size, offset))
        if status != OK:
            yield "bad images", status
    size, offset = members.get("cls", (0, 0))
    label = reader.pread(min(size, MAX_CLS + 1), offset).strip() if "cls" in members else None
    if label is None and images and "txt" in members:
        pass  # a pair has no label
    elif label is None or not label.isdigit() or size > MAX_CLS:
        yield "bad labels", "no .cls member" if label is None else f"{label[:20]!r}, expected a number from 0"
    else:
        labels.add(int(label))
    size, offset = members.get("json", (0, 0))
    if size > MAX_JSON:
        yield "bad json", f"{size:,} bytes, at most {MAX_JSON:,} are read"
    elif "json" in members and not _is_json_object(reader.pread(size, offset)):
        yield "bad json", "not a JSON object"


def _wrong_text(data: bytes | None) -> str | None:
    """What is wrong with the bytes of a .txt; None stands for more than MAX_TEXT of them."""
    if data is None:
        return f"more than {MAX_TEXT:,} bytes"
    if not _is_text(data):
        return "not UTF-8"
    return None if data.strip() else "no text"


def _is_text(key: bytes) -> bool:
    try:
        key.decode("utf-8")
        return True
    except UnicodeDecodeError:
        return False


def _is_json_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _gaps(shards: list[str]) -> Iterable[str]:
    """The holes in the numbers of shards that share a name."""
    numbers: dict[str, set[int]] = {}
    for shard in shards:
        if match := NUMBERED.match(shard):
            numbers.setdefault(match[1], set()).add(int(match[2]))
    for prefix, present in numbers.items():
        missing = sorted(set(range(min(present), max(present))) - present) if max(present) < 10**7 else []
        if missing:
            yield f"{redact(prefix)}*: {len(missing):,} missing, the first is number {missing[0]}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--expect-samples", type=int, help="Also fail when the set doesn't hold exactly so many samples.")
def main(urls: tuple[str, ...], expect_samples: int | None) -> None:
    """Prove shards readable, complete and unique-keyed: tar rules, images or texts, labels, keys, numbering.

    \b
    python -m shards.check data/web
    python -m shards.check 'data/web/train-{000000..000059}.tar' --expect-samples 60000
    """
    try:
        report = check(urls, expect_samples=expect_samples)
    except RhostreamError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    print(report.text())
    sys.exit(0 if report.ok else ShardError.exit_code)


if __name__ == "__main__":
    main()
