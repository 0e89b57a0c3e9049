"""Icons with their names as captions: real words, a long tail, 130 styles, from the package `@iconify/json`.

sets by licence > names in words > a share of the captions swapped (none by default) > drawn one at a time
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter

from rhostream.errors import UsageError
from shards.icons import draw, read_icons, read_sets, require_resvg
from shards.pairs import of_pairs
from shards.sample import SampleSet, seeded_rows

LICENCES = "MIT,Apache-2.0"
SIZES = (8, 1024)  # pixels, from and to


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    swap: float = 0.0,
    size: int = 32,
    licences: str = LICENCES,
    sets: str | None = None,
    image_format: str = "png",
) -> SampleSet:
    """The icons of the unpacked package `source`, keyed `icons-<split>-<position>`, set by set; (size, size, 3).

    `licences` (SPDX names) and `sets` (the package's names; None: all) are lists with commas. `split` only names the
    shards. Facts beside those of every pair: `set, set_name, icon, author, licence, licence_url`, and `group`, the key
    of the first icon with the same drawing. Raises MissingExtraError where nothing can draw SVG.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise UsageError(f"size {size}, expected {SIZES[0]} to {SIZES[1]:,} pixels")
    records, folder = read_sets(source, _listed(licences), _listed(sets or ""))
    require_resvg()
    icons, notes = read_icons(folder, records)
    rows = seeded_rows(len(icons), limit=limit, skip=skip, seed=seed).tolist()
    first: dict[bytes, int] = {}
    same = [first.setdefault(hashlib.blake2b(icon.body.encode(), digest_size=16).digest(), i)
            for i, icon in enumerate(icons)]  # fmt: skip
    chosen = [icons[row] for row in rows]

    def key(row: int) -> str:
        return f"icons-{split}-{row:07d}"

    def facts(i: int) -> dict[str, str]:
        icon = chosen[i]
        record = records[icon.set]
        licence = record["license"]
        return {
            "set": icon.set,
            "set_name": str(record.get("name", icon.set)),
            "icon": icon.name,
            "author": str((record.get("author") or {}).get("name", "")),
            "licence": str(licence["spdx"]),
            "licence_url": str(licence.get("url", "")),
            "group": key(same[rows[i]]),
        }

    count = Counter(record["license"]["spdx"] for record in records.values())
    return of_pairs(
        keys=[key(row) for row in rows],
        captions=[icon.words for icon in chosen],
        pixels=lambda i: draw(chosen[i], size),
        facts=facts,
        split=split,
        swap=swap,
        seed=seed,
        image_format=image_format,
        notes=(f"sets by licence: {', '.join(f'{name} {count[name]}' for name in count)}", *notes),
    )


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
