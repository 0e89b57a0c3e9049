"""`python -m tests.faults.corpus DIR` writes every hostile file that we know of, the same bytes each time.

shards/NAME.tar     tars that lie, and one bad sample each (images, labels, json, pickles)
real/               an IL model, a table and a run that are true
foreign/            the same, each with one lie in it, and keep-lists
canary              must never appear: it is what the pickles and the foreign code would make
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.hostile_artifacts import copies, make_real
from tests.faults.hostile_samples import sample_shards
from tests.faults.hostile_tars import GOOD_PNG, Hostile, block, tar_of, tars

__all__ = ["GOOD_PNG", "Corpus", "Hostile", "block", "make", "tar_of"]


@dataclass(frozen=True)
class Corpus:
    """What was written, and where."""

    folder: Path
    shards: list[tuple[Hostile, Path]]
    artifacts: list[tuple[str, str, Path]]  # kind, name, path

    @property
    def canary(self) -> Path:
        """The file that must not appear."""
        return self.folder / "canary"

    @property
    def real(self) -> Path:
        """The true artifacts."""
        return self.folder / "real"


def hostile_shards(canary: str) -> Iterator[Hostile]:
    """Every shard."""
    yield from tars()
    yield from sample_shards(canary)


def write(hostile: Hostile, folder: Path) -> Path:
    """One shard; what is a hole takes no room."""
    path = folder / ("".join(c if c.isalnum() or c in "-._" else "_" for c in hostile.name) + ".tar")
    with open(path, "xb") as file:
        file.write(hostile.data)
        if hostile.hole:
            file.truncate(len(hostile.data) + hostile.hole)
            file.seek(0, 2)
        file.write(hostile.after)
    return path


def make(folder: Path) -> Corpus:
    """Write the corpus below `folder`, which must not hold one yet."""
    for name in ("shards", "real", "foreign"):
        (folder / name).mkdir(parents=True)
    canary = str(folder / "canary")
    shards = [(hostile, write(hostile, folder / "shards")) for hostile in hostile_shards(canary)]
    make_real(folder / "real")
    return Corpus(folder, shards, list(copies(folder / "real", folder / "foreign", canary)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.faults.corpus DIR")
    made = make(Path(sys.argv[1]))
    print(f"{len(made.shards)} shards and {len(made.artifacts)} foreign artifacts below {made.folder}")
