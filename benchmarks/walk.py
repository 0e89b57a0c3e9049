"""The strict walk against webdataset's reading, on small 2-member samples: what a header costs, not what a byte does.

Ours: the walk alone, the scan to finished rows (ordinals, duplicates, members, labels, sha256 of the shard) and the
whole `index` with its commits. Theirs: `wds.WebDataset` giving whole samples, nothing decoded. One process each.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from functools import partial

import webdataset as wds

from benchmarks import data
from benchmarks.measure import Figure, interleave, ratios, timed
from rhostream import storage
from rhostream.irreducible import index
from rhostream.stream.scan import Chunk, ScanSettings, scan
from rhostream.stream.tar import TarWalk

SHARDS, SAMPLES = 4, 5_000
TARGETS = {"plain": 5.0, "pax": 3.0}  # pax: a header of its own before every member, as webdataset writes by default
ROWS = 512


def run(pairs: int) -> list[Figure]:
    """Rates on both kinds of shards."""
    figures = []
    for headers, target in TARGETS.items():
        for fields in (False, True):
            shards = data.members(SHARDS, SAMPLES, pax=headers == "pax", fields=fields)
            keep = {"n": "int", "clean": "bool"} if fields else {}
            with tempfile.TemporaryDirectory() as folder:
                runs = itertools.count()
                sides = [
                    partial(plain_walk, shards),
                    partial(rows, shards, keep),
                    lambda shards=shards, folder=folder, keep=keep, runs=runs: (
                        index(  # type: ignore[misc]
                            shards, f"{folder}/{next(runs)}", keep=keep
                        ).samples
                    ),
                    partial(theirs, shards),
                ]
                for side in sides:
                    if (found := side()) != SHARDS * SAMPLES:
                        raise AssertionError(f"{side}: {found} samples")
                walked, scanned, indexed, webdataset = interleave([partial(timed, side) for side in sides], pairs)
            case = f"{headers} headers, jpg + " + ("json with label" if fields else "cls")
            line = partial(Figure, "walk", case)
            figures += [
                line("scan to rows over webdataset", ratios(webdataset, scanned), None if fields else target),
                line("walk alone over webdataset", ratios(webdataset, walked)),
                line("index over webdataset", ratios(webdataset, indexed)),
            ] + [
                line(what, tuple(SHARDS * SAMPLES / s for s in seconds), unit="samples/s")
                for what, seconds in (
                    ("scan to rows", scanned),
                    ("walk alone", walked),
                    ("index", indexed),
                    ("webdataset", webdataset),
                )
            ]
    return figures


def plain_walk(shards: list[str]) -> int:
    """Samples found by the walk: keys, extensions, offsets, sizes."""
    found = 0
    for shard in shards:
        with storage.open_reader(shard) as reader:
            found += sum(len(batch) for batch in TarWalk(reader, shard).batches(ROWS))
    return found


def rows(shards: list[str], keep: dict[str, str]) -> int:
    """Rows of the table, finished but for the commit."""
    messages = scan([(shard, shard) for shard in shards], ScanSettings(keep=keep))
    return sum(int(message.ok.sum()) for message in messages if isinstance(message, Chunk))


def theirs(shards: list[str]) -> int:
    """Samples that webdataset gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it leaves its tars open for the garbage collector
        return sum(1 for _ in wds.WebDataset(shards, shardshuffle=False))
