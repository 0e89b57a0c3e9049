"""The files of an IL model that isn't finished, by their names alone: whoever says how far a fit is opens none.

OUT/unfinished-IDENTITY-model-1-of-2-epoch-00003-of-00010.pt
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rhostream import storage

SUFFIX = ".pt"
_NAME = re.compile(r"unfinished-([0-9a-f]{12})-model-(\d{1,9})-of-(\d{1,9})-epoch-(\d{5,9})-of-(\d{5,9})\.pt")


@dataclass(frozen=True, order=True, kw_only=True)
class Unfinished:
    """The state of one network of a fit after some of its epochs; networks count from 1."""

    identity: str
    model: int
    models: int
    epochs: int  # that are over
    of: int

    @property
    def name(self) -> str:
        """Of its file."""
        return (
            f"unfinished-{self.identity}-model-{self.model}-of-{self.models}"
            f"-epoch-{self.epochs:05d}-of-{self.of:05d}{SUFFIX}"
        )


def unfinished_in(folder: str) -> dict[str, Unfinished]:
    """URL -> what it holds, of the files in a folder of an IL model."""
    found = {}
    for url in storage.list_files(folder, SUFFIX):
        if match := _NAME.fullmatch(url.rpartition("/")[2]):
            identity, *numbers = match.groups()
            model, models, epochs, of = map(int, numbers)
            found[url] = Unfinished(identity=identity, model=model, models=models, epochs=epochs, of=of)
    return found
