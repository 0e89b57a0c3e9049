"""`join_il` in a webdataset pipeline over the same pipeline without it, in order and behind a shuffle, one process.

Nothing is decoded, so that the join is held against reading alone; with the images decoded it is a smaller share.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from functools import partial
from typing import Any

import webdataset as wds

from benchmarks import data
from benchmarks.loader import table
from benchmarks.measure import Figure, interleave, ratios, timed
from rhostream.integrations.webdataset import join_il

SHARDS, SAMPLES, SHUFFLED, TARGET = 60, 100, 1_000, 0.8


def run(pairs: int) -> list[Figure]:
    """Samples a second with the join over those without, for both orders."""
    shards, figures = data.drawings(SHARDS, SAMPLES), list[Figure]()
    with tempfile.TemporaryDirectory() as folder:
        table(shards, folder)
        for shuffled in (0, SHUFFLED):
            case = f"behind shuffle({SHUFFLED})" if shuffled else "in order"
            sides = [partial(through, shards, shuffled, join) for join in ("", f"{folder}/il")]
            plain, joined = interleave([partial(timed, side) for side in sides], pairs)
            figures.append(Figure("join", case, "samples/s with the join over without", ratios(plain, joined), TARGET))
    return figures


def through(shards: list[str], shuffled: int, joined: str) -> int:
    """Samples of a pipeline that reads, shuffles where asked to, and joins with the table where one is given."""
    stages: list[Any] = [wds.SimpleShardList(shards), wds.tarfile_to_samples()]
    stages += [wds.shuffle(shuffled, rng=random.Random(0))] if shuffled else []
    stages += [join_il(joined, keep_holdout=True)] if joined else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(1 for _ in wds.DataPipeline(*stages))
