"""Small shards of sentences, and what the product makes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from tests.support.shards import write_shard

CLASSES = 4
WORDS = ("plum pear fig quince", "iron zinc lead tin", "gull wren rook hawk", "oboe harp lute fife")
COMMON = ("the", "a", "of", "and", "in", "to", "with", "for", "on", "at", "by", "from")


def sentence(label: int, rng: np.random.Generator) -> str:
    """Common words, and two of the class's own."""
    words = [*rng.choice(COMMON, int(rng.integers(4, 12))), *rng.choice(WORDS[label].split(), 2)]
    rng.shuffle(words)
    return " ".join(words).capitalize() + "."


def npy(ids: object) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.asarray(ids))
    return sink.getvalue()


def text_sample(number: int, rng: np.random.Generator, noisy: bool = False) -> dict[str, object]:
    label = number % CLASSES
    return {
        "__key__": f"t{number:06d}",
        "txt": sentence(label, rng).encode(),
        "cls": str((label + 1) % CLASSES if noisy else label),
        "json": {"true_label": label, "is_noisy": noisy},
    }


def make_text_shards(
    folder: Path, counts: list[int], seed: int = 0, noise: float = 0.2, labels: bool = True
) -> list[Path]:
    rng, paths, number = np.random.default_rng(seed), [], 0
    for at, count in enumerate(counts):
        rows = [text_sample(number + i, rng, noisy=bool(rng.random() < noise)) for i in range(count)]
        if not labels:
            rows = [{name: value for name, value in row.items() if name != "cls"} for row in rows]
        number += count
        paths.append(write_shard(folder / f"train-{at:03d}.tar", rows))
    return paths
