"""The settings of `init`, each told once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from rhostream.config.shared import brief_config
from rhostream.errors import UsageError
from rhostream.setting import check_types, setting


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What `init` is asked for. Raises UsageError for a value of another type, naming the field."""

    verb: ClassVar[str] = "init"
    __repr__ = brief_config

    data: str | Iterable[str] = setting(
        help="A folder of images, or shards that exist: tar files, or flat files of token ids.",
        metavar="FOLDER|SHARDS...",
        positional=True,
        place=True,
    )
    out: str | None = setting(
        None,
        help="Write run.sh and a config file for each command into this folder; nothing that exists is replaced.",
        metavar="FOLDER",
        unset="the commands are printed",
        place=True,
    )
    labels: str | None = setting(
        None,
        help="Of images: a CSV or TSV of file and label, where subfolders are no classes.",
        metavar="FILE",
        unset="labels.csv or labels.tsv in the folder, where there is one",
        place=True,
    )
    label: str | None = setting(
        None,
        help="Of shards: where labels stand, a field of the .json or a member.",
        metavar="FIELD|EXT",
        unset=".cls, else label of the .json",
    )
    samples: int = setting(4000, help="Look into at most so many samples.", metavar="N")
    seconds: float = setting(
        60.0,
        help="About how long the look may take at finding out whether irreducible losses would separate anything; 0 "
        "leaves that out.",
        metavar="S",
    )
    seed: int = setting(0, help="Of what is drawn.")
    as_json: bool = setting(False, help="What was found and what to run, as JSON.", option="json")

    def __post_init__(self) -> None:
        check_types(self)
        if self.samples < 1 or self.seconds < 0:
            raise UsageError(
                f"--samples {self.samples} --seconds {self.seconds:g}: expected 1 sample or more, and 0 seconds or more"
            )
