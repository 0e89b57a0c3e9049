"""A folder as img2dataset leaves it (version 1.4x, `--output_format webdataset`), with nothing downloaded.

    00000.tar           KEY.jpg KEY.txt KEY.json of each row that came, in the order in which downloads ended
    00000.parquet       every row, failed ones too, with status and error message
    00000_stats.json    counts, times, and how often each status

A key is nine digits: the shard's number and the row's place in its shard, so those of failed rows are missing. A row
without a caption has an empty .txt. `python -m tests.support.img2dataset FOLDER [--samples N]` makes one to try.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from webdataset import TarWriter

COLUMNS = {
    "caption": pa.string(),
    "url": pa.string(),
    "key": pa.string(),
    "status": pa.string(),
    "error_message": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "exif": pa.string(),
    "sha256": pa.string(),
}
SHARD_DIGITS = 5
STARTED = 1_700_000_000.0  # seconds since 1970, so that the same call gives the same files
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "grey")
SHAPES = ("ellipse", "rectangle")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the list of addresses: its caption if it has one, and the image that came, or why none did."""

    url: str
    caption: str | None
    image: Image.Image | None = None
    error: str | None = None
    status: str = "failed_to_download"  # or failed_to_resize, of a row without an image


def write_folder(
    folder: Path, rows: Sequence[Row], *, samples_per_shard: int = 10_000, image_size: int = 256, seed: int = 0
) -> list[Path]:
    """Write it; returns the tars. Images are scaled to fit in a white square of `image_size`, as its mode `border`."""
    folder.mkdir(parents=True, exist_ok=True)
    tars = []
    for number, start in enumerate(range(0, len(rows), samples_per_shard)):
        own = rows[start : start + samples_per_shard]
        ended = np.random.default_rng([seed, number]).permutation(len(own)).tolist()  # downloads end in any order
        name, metas, statuses = f"{number:0{SHARD_DIGITS}d}", list[dict[str, object]](), Counter[str]()
        digits = math.ceil(math.log10(samples_per_shard))
        with TarWriter(str(folder / f"{name}.tar"), mtime=STARTED) as tar:
            for place in ended:
                row = own[place]
                key = f"{10**digits * number + place:0{digits + SHARD_DIGITS}d}"
                meta: dict[str, object] = dict.fromkeys(COLUMNS)
                meta |= {"caption": row.caption, "url": row.url, "key": key}
                if row.image is None:
                    meta |= {"status": row.status, "error_message": row.error}
                    statuses[str(row.error)] += 1
                else:
                    original, data = _bytes(row.image), _bytes(_bordered(row.image, image_size))
                    meta |= {"status": "success", "width": image_size, "height": image_size, "exif": "{}",
                             "original_width": row.image.width, "original_height": row.image.height,
                             "sha256": hashlib.sha256(original).hexdigest()}  # fmt: skip
                    statuses["success"] += 1
                    text = "" if row.caption is None else row.caption
                    tar.write({"__key__": key, "jpg": data, "txt": text, "json": json.dumps(meta, indent=4)})
                metas.append(meta)
        table = {column: [meta[column] for meta in metas] for column in COLUMNS}
        pq.write_table(pa.table(table, schema=pa.schema(list(COLUMNS.items()))), folder / f"{name}.parquet")
        failed = Counter(str(meta["status"]) for meta in metas)
        stats = {
            "count": len(own),
            "successes": failed["success"],
            "failed_to_download": failed["failed_to_download"],
            "failed_to_resize": failed["failed_to_resize"],
            "duration": 1.0,
            "start_time": STARTED,
            "end_time": STARTED + 1.0,
            "status_dict": dict(statuses),
        }
        (folder / f"{name}_stats.json").write_text(json.dumps(stats, indent=4))
        tars.append(folder / f"{name}.tar")
    return tars


def sample_rows(count: int, *, seed: int = 0, failed: float = 0.1) -> list[Row]:
    """Coloured shapes with captions that say so; a share failed, and every 200th row has no caption."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        url = f"https://example.org/{i}.jpg"
        colour, shape = COLOURS[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
        width, height = rng.integers(24, 64, 2).tolist()
        caption = None if i % 200 == 199 else f"A {colour} {shape}, {'wide' if width > height else 'tall'}"
        if rng.random() < failed:
            resized = rng.random() < 0.3
            why = "image decoding error" if resized else "HTTP Error 404: Not Found"
            status = "failed_to_resize" if resized else "failed_to_download"
            rows.append(Row(url=url, caption=caption, error=why, status=status))
            continue
        image = Image.new("RGB", (width, height), "white")
        getattr(ImageDraw.Draw(image), shape)((3, 3, width - 4, height - 4), fill=colour)
        rows.append(Row(url=url, caption=caption, image=image))
    return rows


def _bordered(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    scaled = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    square = Image.new("RGB", (size, size), "white")
    square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
    return square


def _bytes(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--samples", default=2000, show_default=True, help="Rows of the list, failed ones included.")
@click.option("--samples-per-shard", default=1000, show_default=True)
@click.option("--image-size", default=32, show_default=True, help="Side of the images in pixels.")
def main(folder: Path, samples: int, samples_per_shard: int, image_size: int) -> None:
    """Make a folder to try."""
    tars = write_folder(folder, sample_rows(samples), samples_per_shard=samples_per_shard, image_size=image_size)
    click.echo(f"{len(tars)} shards in {folder}")


if __name__ == "__main__":
    main()
