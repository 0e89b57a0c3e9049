"""What `rhostream init` knows of the data: plain values, which its text, its JSON and its plan are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rhostream.guide.judge import Judged

EACH_MEMBER, MEMBERS = 1024, 3  # bytes of a tar beside a small member: its header, and what fills up its last block
ROW_OF_TABLE, ROW_OF_LOG = 24, 18  # bytes
CHECKPOINTS, STATE = 3, 12  # that lie side by side, and bytes a parameter: the weight and AdamW's two moments


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How large samples are: of those looked at the smallest, the median and the largest."""

    what: str  # "pixels of the shorter side", "tokens"
    least: int
    median: int
    most: int
    of: int  # samples looked at


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Samples that can't be used for one reason."""

    status: str
    samples: int
    first: list[str]


@dataclass(kw_only=True)
class Facts:
    """What lies there."""

    words: str  # a folder of images, tar shards, ...
    where: str
    content: str  # the kind of samples
    seen_as: str = ""  # a decoded sample in words
    samples: int = 0  # to train on and to test on
    counted: bool = True  # else `samples` is a guess from the shards' sizes
    shards: int = 0  # that exist; 0 of images
    test_shards: int = 0
    test_samples: int | None = None  # of a test set that is there
    bytes: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # name -> samples; of shards, among those looked at
    looked: int = 0
    looked_in: int = 0  # shards
    sizes: list[Spread] = field(default_factory=list)
    channels: int | None = None
    bad: list[Bad] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # shard -> why
    notes: list[str] = field(default_factory=list)
    judged: Judged | None = None
    not_judged: str = ""  # why
    seconds_a_sample: float = 0.0  # read and decoded, on one core

    @property
    def bad_samples(self) -> int:
        """Of those looked at."""
        return sum(bad.samples for bad in self.bad)

    @property
    def too_bad(self) -> bool:
        """Whether fit-il would stop: more than a hundredth, and more than a few, can't be used."""
        return self.bad_samples > max(10, 0.01 * self.looked)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that the commands will write, and what is free where they do."""

    shards: int
    table: int
    runs: int
    free: int
    where: str

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return self.shards + self.table + self.runs


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
