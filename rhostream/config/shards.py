"""The settings of `shards`, each told once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rhostream.setting import check_types, setting


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """What `shards` is asked for. Raises UsageError for a value of another type, naming the field."""

    verb: ClassVar[str] = "shards"

    folder: str = setting(
        help="A folder of images: one subfolder a class, or any with --labels.",
        metavar="FOLDER",
        positional=True,
        place=True,
    )
    out: str = setting(help="Folder for the shards; local, or of an object store.", metavar="URL", place=True)
    test_fraction: float | None = setting(
        None,
        help="Share of each class that goes into the test set; copies of a file stay together.",
        metavar="F",
        unset="0.1; 0 with --split",
    )
    split: str | None = setting(
        None, help="Make one set of this name alone, such as test of a folder of its own.", metavar="NAME"
    )
    labels: str | None = setting(
        None,
        help="A CSV or TSV of file (below FOLDER) and label, where subfolders are no classes.",
        metavar="FILE",
        place=True,
    )
    classes_from: str | None = setting(
        None,
        help="Number the classes as this set does: a folder of subfolders, shards, a table, an IL model, a list.",
        metavar="SET",
        place=True,
    )
    samples_per_shard: int = setting(1000, help="How many samples make one tar, at most.")
    shard_bytes: int = setting(256 << 20, help="How large a tar's images are together, at most.", metavar="BYTES")
    seed: int = setting(0, help="Of the split and of the order.")
    as_json: bool = setting(False, help="What was made, as JSON.", option="json")

    def __post_init__(self) -> None:
        check_types(self)
