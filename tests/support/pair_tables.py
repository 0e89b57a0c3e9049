"""Shards of pairs with a table whose il and vectors were made up: what a reference would have left, without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import rhostream
from rhostream import storage
from rhostream.tables import il, parquet
from rhostream.tables.vectors_writer import VectorsWriter
from tests.support.shards import png, write_shard

WIDTH, SCALE, BIAS = 6, 12.0, -7.0
COUNTS = (50, 37, 40)


def output_of(samples: int, seed: int, width: int = WIDTH) -> npt.NDArray[np.float32]:
    """(samples, 2 D + 2) as a model of pairs gives it."""
    vectors = np.random.default_rng(seed).standard_normal((samples, 2, width))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    constants = np.tile([SCALE, BIAS], (samples, 1))
    return np.concatenate([vectors.reshape(samples, 2 * width), constants], 1).astype(np.float32)


def make_pairs(folder: Path) -> str:
    """Three shards; a caption of the first is empty, so that a sample is quarantined."""
    rng = np.random.default_rng(0)
    for number, count in enumerate(COUNTS):
        samples = []
        for n in range(count):
            text = "" if (number, n) == (0, 3) else f"caption {n} of {number}"
            pixels = png(rng.integers(0, 255, (16, 16, 3), np.uint8))
            samples.append({"__key__": f"{number}-{n:03d}", "png": pixels, "txt": text})
        write_shard(folder / f"{number}.tar", samples)
    return str(folder)


def make_table(shards: str, table: Path, dtype: str = "float16") -> str:
    """An index of them, given an il and vectors for each sample that can be used."""
    rhostream.index([shards], str(table), content="pair")
    for seed, url in enumerate(il.part_urls(str(table))):
        rows, record = parquet.read(url)
        facts = il.facts_of(record, url)
        there = np.array([status == "ok" for status in rows["status"].to_pylist()])
        writer = VectorsWriter(
            fingerprint=facts.fingerprint, shard=facts.shard, shard_size=facts.shard_size, dtype=dtype
        )
        output = output_of(facts.samples, seed)
        for start in range(0, facts.samples, 16):
            writer.add(output[start : start + 16], there[start : start + 16])
        place = rows.schema.get_field_index("il")
        values = pa.array(np.arange(facts.samples, dtype=np.float32), mask=~there)
        rows = rows.set_column(place, rows.schema.field(place), values)
        facts = replace(facts, il_rows=int(there.sum()), vectors=writer.commit(str(table)))
        storage.replace(url, il.encode_part(rows.replace_schema_metadata(None), facts))
    return str(table)
