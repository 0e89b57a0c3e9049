"""Small real shards of images, made by webdataset's own writer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 4
SIDE = 16


def write_shard(path: Path, samples: list[dict[str, object]]) -> Path:
    """A tar with webdataset's own writer, plain headers."""
    import webdataset as wds

    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path), mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def sample(number: int, rng: np.random.Generator, noisy: bool = False) -> dict[str, object]:
    """A learnable image: a bright quadrant that tells the class, under noise."""
    label = number % CLASSES
    pixels = rng.integers(0, 120, (SIDE, SIDE), dtype=np.uint8)
    y, x = divmod(label, 2)
    pixels[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] += 100
    given = (label + 1) % CLASSES if noisy else label
    return {
        "__key__": f"s{number:06d}",
        "png": png(pixels),
        "cls": str(given),
        "json": {"true_label": label, "is_noisy": noisy},
    }


def make_shards(folder: Path, counts: list[int], seed: int = 0) -> list[Path]:
    rng, paths, number = np.random.default_rng(seed), [], 0
    for at, count in enumerate(counts):
        rows = [sample(number + i, rng, noisy=bool(rng.random() < 0.2)) for i in range(count)]
        number += count
        paths.append(write_shard(folder / f"train-{at:03d}.tar", rows))
    return paths
