"""Small pictures of samples, decoded and encoded again by us: the bytes of a shard never reach a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rhostream import storage
from rhostream.audit.plots import png_uri
from rhostream.errors import RhostreamError
from rhostream.stream.decode import OK, decode_into
from rhostream.stream.tar import IMAGE_EXTENSIONS

SIDE = 96


def thumbnails(rows: Sequence[Mapping[str, Any]], urls: Mapping[str, str]) -> tuple[list[str | None], int]:
    """A data URI for each row (shard, members), None where it can't be read; and how many couldn't."""
    found: list[str | None] = []
    for row in rows:
        found.append(_thumbnail(row, urls))
    return found, sum(one is None for one in found)


def _thumbnail(row: Mapping[str, Any], urls: Mapping[str, str]) -> str | None:
    image = next((m for m in row["members"] or [] if m["ext"] in IMAGE_EXTENSIONS), None)
    if image is None:
        return None
    try:
        with storage.open_reader(urls.get(row["shard"], row["shard"])) as reader:
            data = reader.pread(image["size"], image["offset"])
    except (RhostreamError, OSError):
        return None
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    if decode_into(data, pixels) != OK:
        return None
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return png_uri(sink.getvalue())
