"""Pairs that a small model can learn in seconds: a square in a corner, in words; some captions are another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.shards import png, write_shard

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
PLACES = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}
TEXT = {"tokenizer": "words:500", "text_length": 8}


def drawn(rng: np.random.Generator) -> tuple[bytes, str]:
    """A picture of 16 pixels, and the caption that is true of it."""
    colour, place = rng.choice(list(COLOURS)), rng.choice(list(PLACES))
    pixels = rng.integers(0, 40, (16, 16, 3), np.uint8)
    y, x = PLACES[place]
    pixels[y : y + 8, x : x + 8] = COLOURS[colour]
    return png(pixels), f"a {colour} square at the {place}"


def make_pair_shards(folder: Path, counts: list[int], seed: int = 0, swapped: float = 0.0) -> str:
    """Shards of so many pairs, captions as .txt; json says which are swapped."""
    rng = np.random.default_rng(seed)
    for number, count in enumerate(counts):
        made = [drawn(rng) for _ in range(count)]
        samples: list[dict[str, Any]] = []
        for n, (image, caption) in enumerate(made):
            wrong = rng.random() < swapped
            other = made[int(rng.integers(count))][1] if wrong else caption
            facts = json.dumps({"swapped": bool(wrong)})
            samples.append({"__key__": f"{number}-{n:03d}", "png": image, "txt": other, "json": facts})
        write_shard(folder / f"{number}.tar", samples)
    return str(folder)
