"""What to do about shards that were written in a way that can't be read as it was meant: said once, with its count.

members lie apart in the tar; or no sample has a label, though it may stand in a folder's name, a table, a .txt, a json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rhostream.errors import RhostreamError
from rhostream.inert import escape
from rhostream.samples.registry import IMAGES
from rhostream.storage import redact
from rhostream.stream.batch import Batch
from rhostream.stream.label_from import LabelFrom

TABLES = (".csv", ".tsv", ".xlsx")
CAPTION = "caption"  # the field of img2dataset's .json
NAMES = ("label", "class", "target")  # members that hold a label by their name
FIRST, MOST_EMPTY = 3, 1 << 20


class Unlabelled:
    """The samples of one shard that have no label, and where it may stand."""

    def __init__(self, label: LabelFrom) -> None:
        self._label, self.samples = label, 0
        self._folders, self._members, self._fields = set[str](), set[str](), list[str]()
        self._table = self._pairs = ""

    def add(self, batch: Batch, row: int, fields: Mapping[str, Any]) -> None:
        """One more sample without a label."""
        key, ignored = batch.key[row].decode("utf-8", "backslashreplace"), batch.ignored.get(row, [])
        used = [extension for extension, _, _ in batch.members(row)]
        if not self._table and (table := next((e for e in ignored if f".{e}".endswith(TABLES)), "")):
            self._table = f"{key.rpartition('/')[2]}.{table}"
        if not used:
            return
        self.samples += 1
        if len(self._folders) < FIRST and "/" in key:
            self._folders.add(key.rsplit("/", 2)[-2])
        if len(self._members) < FIRST:
            self._members |= {e for e in used[1:] + ignored if e == "txt" or e.endswith("cls") or e in NAMES}
        self._fields = self._fields or list(fields)[:FIRST]
        if not self._pairs and ("txt" in used or CAPTION in fields) and not {*used}.isdisjoint(IMAGES.main):
            self._pairs = "--content pair" if "txt" in used else f"--content pair --caption {CAPTION}"

    def says(self, shard: str) -> str:
        """A sentence of a shard without any label, "" where it has no sample."""
        if not self.samples:
            return ""
        hints = []
        if len(self._folders) > 1:
            names = ", ".join(f"'{escape(name[:40])}'" for name in sorted(self._folders))
            hints.append(
                f"if its folders ({names}, ...) are classes, make shards of the folder: `rhostream shards FOLDER "
                "--out DIR`"
            )
        if self._table:
            table = escape(self._table[-60:])
            hints.append(f"if {table} lists them: `rhostream shards FOLDER --labels {table} --out DIR`")
        hints += [
            f"if .{escape(member)} holds it: --label {escape(member)}" for member in sorted(self._members)[:FIRST]
        ]
        if self._fields:
            hints.append(f"if a field of the .json holds it ({escape(', '.join(self._fields))[:80]}): --label FIELD")
        if self._pairs:
            hints.append(f"if they are images with captions, to be learned as pairs: {self._pairs}")
        default = hints or ["say where it stands with --label, or make shards with `rhostream shards FOLDER --out DIR`"]
        return f"no sample of {redact(shard)} has a label ({self._label.missing}): {'; '.join(default)}"


class Advice:
    """What the ends of shards have to say, each kind once: of the first shard, and of how many more."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._shards: Counter[str] = Counter()

    def add(self, advice: Mapping[str, str]) -> None:
        """Those of one shard."""
        for kind, text in advice.items():
            self._first.setdefault(kind, text)
            self._shards[kind] += 1

    @property
    def sentences(self) -> list[str]:
        """One for each kind."""
        return [
            text + (f" (and so in {self._shards[kind] - 1:,} more shards)" if self._shards[kind] > 1 else "")
            for kind, text in self._first.items()
        ]

    def onto(self, error: RhostreamError) -> RhostreamError:
        """The same error with these as its notes."""
        for sentence in self.sentences:
            error.add_note(sentence)
        return error


def gaps(labels: Mapping[int, int], names: Iterable[int] = ()) -> list[str]:
    """What is doubtful about the labels of a set, {label: samples}: a sentence where classes between them have none.

    `names`: labels that have a name, whose absence is no mistake of numbering.
    """
    there = sorted(label for label, samples in labels.items() if samples)
    if not there:
        return []
    if len(there) == 1:
        return [f"all {labels[there[0]]:,} samples have the label {there[0]}: with one class there is nothing to learn"]
    first, last, known = there[0], there[-1], {*there, *names}
    empty = [label for label in range(last) if label not in known] if last < MOST_EMPTY else []
    if first in range(1, len(empty) + 1) and empty[first - 1] == first - 1:
        lacking = "class 0 has no sample" if first == 1 else f"classes 0 to {first - 1} have no sample"
        return [
            f"labels run from {first} to {last}: {lacking}, and models keep an output for each; labels count from 0: "
            f"subtract {first}, or give names with --class-names"
        ]
    if not empty:
        return []
    shown = ", ".join(map(str, empty[:FIRST])) + (f" and {len(empty) - FIRST:,} more" if len(empty) > FIRST else "")
    return [
        f"labels go up to {last} and {len(there):,} of these occur: {shown} have no sample, and models keep an output "
        "for each; number the classes without gaps, or give names with --class-names"
    ]
