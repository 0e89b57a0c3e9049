"""A folder of JPEGs as somebody has them: subfolders a class, names with blanks, many sizes, some in the wrong folder.

python -m tests.support.photo_folder photos [--count 2000] [--wrong 0.3]
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from tests.support.photographs import jpeg

CLASSES = {"blueberries": (70, 80, 190), "limes": (90, 180, 60), "ripe tomatoes": (200, 60, 50)}
NAMES = tuple(CLASSES)


def picture(label: int, rng: np.random.Generator) -> Image.Image:
    """A few round fruits of the class's colour somewhere on a textured ground; 40 to 110 pixels a side."""
    height, width = rng.integers(40, 110, 2)
    down, across = np.mgrid[:height, :width]
    ground = rng.uniform(60, 190, 3) + rng.uniform(-40, 40, 3) * (across / width)[..., None]
    pixels = ground + 10 * np.sin(across / 3 + down / 5)[..., None] + rng.normal(0, 12, (height, width, 3))
    for _ in range(int(rng.integers(1, 4))):
        radius = min(height, width) * rng.uniform(0.08, 0.2)
        x, y = rng.uniform(0.15, 0.85, 2) * (width, height)
        inside = (across - x) ** 2 + (down - y) ** 2 < radius**2
        pixels[inside] = np.array(CLASSES[NAMES[label]]) * rng.uniform(0.7, 1.1) + rng.normal(0, 15, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def photo_folder(folder: Path, count: int = 2000, wrong: float = 0.3, seed: int = 0) -> Path:
    """Write them; `wrong` is the share that lies in another class's folder. One file is no image."""
    rng = np.random.default_rng([7, seed])
    for name in NAMES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        label = int(rng.integers(len(NAMES)))
        strange = rng.random() < wrong
        named = (label + int(rng.integers(1, len(NAMES)))) % len(NAMES) if strange else label
        (folder / NAMES[named] / f"IMG {number:05d}.jpg").write_bytes(jpeg(picture(label, rng)))
    (folder / NAMES[0] / "not a photo.jpg").write_bytes(b"<html>404</html>")
    return folder


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=2000, show_default=True)
@click.option("--wrong", default=0.3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, count: int, wrong: float, seed: int) -> None:
    photo_folder(folder, count, wrong, seed)


if __name__ == "__main__":
    main()
