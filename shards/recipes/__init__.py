"""The recipes, one file each: those of `BASES` make a set from a source, `web` remakes any of them."""

from __future__ import annotations

from collections.abc import Callable

from shards.recipes import fashion_mnist, imagefolder
from shards.sample import SampleSet

BASES: dict[str, Callable[..., SampleSet]] = {
    "fashion-mnist": fashion_mnist.samples,
    "imagefolder": imagefolder.samples,
}
"""Each takes source, split, limit, skip and seed by keyword."""
