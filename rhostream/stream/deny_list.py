"""A deny-list: samples that are to be left out from now on (takedowns), decided in the join before anything is read.

It is a file as a keep-list is. Its rows have the reason `denied`, whatever else would have left them out. No run is
pinned to one: a list gets longer while a run goes on, and each that comes is a change that the run records. What held
once holds until it is lifted in so many words, `deny="none"`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.stream.keep_list import ListedSamples, list_url, read_list
from rhostream.stream.plan import Rows
from rhostream.tables import il

LIFTED = "none"


@dataclass(frozen=True, kw_only=True, repr=False)
class DenyList(ListedSamples):
    """Which samples of a table are denied."""

    samples: int  # of these shards that are on it
    digest: str | None  # the first 16 hex digits of the file's sha256; None: what held before is lifted

    def __repr__(self) -> str:
        return f"<deny-list {self.digest or LIFTED}: {self.samples:,} samples>"

    def named(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """(n,) whether each of these planned rows is denied."""
        return super().named(rows) if self.samples else np.zeros(len(rows), bool)


def read_deny_list(given: str | os.PathLike[str], table: il.Table) -> DenyList:
    """The list at `given` (path, or URL of a store) against the shards of `table`; "none" denies nothing.

    Rows that name no sample of these shards are counted in a warning: a list may be of more than is trained on. Raises
    UsageError for one without rows, which is more likely broken than meant, and for what is no list.
    """
    if given == LIFTED:
        return DenyList(bits=torch.zeros(0, dtype=torch.uint8), starts=np.zeros(0, np.int64), samples=0, digest=None)
    reading = read_list(given, table, "deny")
    if not reading.rows:
        raise UsageError(f"{reading.what} has no rows: leave it out, or give {LIFTED!r} where another one is to end")
    return DenyList(
        bits=reading.bits,
        starts=reading.starts[:-1],
        samples=int(reading.named.sum()),
        digest=reading.sha256[:16],
    )


def check_deny_list(given: str | os.PathLike[str]) -> None:
    """Raise UsageError for what is neither a path nor "none", NotFoundError for a file that isn't there."""
    if given != LIFTED:
        storage.identity(list_url(given, "deny"))
