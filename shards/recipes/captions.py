"""Pictures with captions that are true of them, and a share of captions that are another picture's.

    images of Fashion-MNIST or CIFAR-10 > six attributes drawn and applied (`shards.attributes`) > captions > swaps

What it measures: whether a rule that sees image and caption alone leaves the wrong pairs out.
"""

from __future__ import annotations

import os

from rhostream.errors import UnknownNameError
from shards.attributes import Attributes
from shards.pairs import of_pairs
from shards.recipes import cifar10, fashion_mnist
from shards.sample import SampleSet, generator, seeded_rows

IMAGES = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}
FASHION = (
    "a t-shirt",
    "trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)
PHOTOGRAPHS = tuple(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in cifar10.CLASS_NAMES)
NAMES = {"fashion-mnist": FASHION, "cifar10": PHOTOGRAPHS}
"""What captions call the classes, by label."""


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    swap: float = 0.4,
    images: str = "fashion-mnist",
    image_format: str = "png",
) -> SampleSet:
    """The images of one split with the attributes of `seed`, in the order of the files.

    A share `swap` of the samples has the caption of another one of the set. An image's attributes hang on the seed and
    its place in the source alone, so (limit=n) and (skip=n) are a training set and a holdout of one world.
    Facts beside those of every pair: `true_label, class_name, group` of the image and its attributes.
    """
    if images not in IMAGES:
        raise UnknownNameError.of("set of images", images, IMAGES)
    base = IMAGES[images].samples(source=source, split=split)
    rows = seeded_rows(len(base), limit=limit, skip=skip, seed=seed)
    attributes = Attributes.draw(base.labels, generator(seed, "attributes"))
    names, plain = NAMES[images], base.pixels
    assert plain is not None

    return of_pairs(
        keys=[f"captions-{images}-{split}-{row:07d}" for row in rows.tolist()],
        captions=[attributes.caption(row, names[base.labels[row]]) for row in rows.tolist()],
        pixels=lambda i: attributes.apply(int(rows[i]), plain(int(rows[i]))),
        facts=lambda i: base.load(int(rows[i])).facts | attributes.facts(int(rows[i])),
        split=split,
        swap=swap,
        seed=seed,
        image_format=image_format,
        notes=base.notes,
    )
