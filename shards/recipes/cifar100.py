"""CIFAR-100: 50,000 + 10,000 photographs of 32x32, 100 classes in 20 superclasses, python or binary version."""

from __future__ import annotations

import os
from typing import Any

from shards.arrays import of_arrays
from shards.cifar_files import Cifar, Layout, read_cifar
from shards.sample import Ints, SampleSet, seeded_rows

CLASS_NAMES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)
SUPERCLASS_NAMES = tuple(
    """aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
    vehicles_1 vehicles_2""".split()  # noqa: SIM905
)
CONFUSED = (
    (81, 13), (32, 46), (59, 52), (99, 78), (97, 34), (52, 96), (47, 52), (91, 1), (74, 50), (71, 23),
    (50, 36), (95, 30), (13, 58), (92, 62), (96, 33), (73, 95), (1, 32), (10, 61), (30, 73), (24, 7),
    (45, 26), (25, 20), (60, 23), (35, 98), (63, 74), (64, 50), (17, 37), (42, 88), (54, 62), (16, 9),
    (56, 59), (11, 2), (72, 55), (70, 62), (76, 37), (4, 50), (79, 7), (49, 23), (28, 10), (69, 76),
)  # fmt: skip
"""The 40 classes whose commonest mistake is the most frequent in CIFAR-100N's human labels, as large a share as the
four of ten of the sets with 10 classes; no pair in both directions."""
LAYOUT = Layout(
    name="cifar100",
    classes=CLASS_NAMES,
    files={"train": ("train",), "test": ("test",)},
    below=("cifar-100-python", "cifar-100-binary"),
    fields=("coarse_labels", "fine_labels"),
    binary_fields=(20, 100),
    meta=(("meta", "fine_label_names"), ("fine_label_names.txt", "")),
    instructions="unpack cifar-100-python.tar.gz or cifar-100-binary.tar.gz of the CIFAR-100 page (University of "
    "Toronto) and give that folder as --source",
    checksums={
        "train": "md5:16019d7e3df5f24257cddd939b257f8d",
        "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
)


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    require_checksums: bool = False,
) -> SampleSet:
    """The images of one split, keyed `cifar100-<split>-<position>`, in the order of the file, by their fine label.

    The facts say the superclass: `coarse_label`, `coarse_name`. Raises UsageError for missing or broken files.
    """
    cifar = read_cifar(LAYOUT, source, split, require_checksums=require_checksums)
    rows = seeded_rows(len(cifar.labels), limit=limit, skip=skip, seed=seed)
    return of_rows(cifar, rows, split)


def of_rows(cifar: Cifar, rows: Ints, split: str, extra: dict[int, dict[str, Any]] | None = None) -> SampleSet:
    """Those rows of a split; `extra` are facts by class."""
    coarse = cifar.coarse
    assert coarse is not None  # both layouts have it

    def facts(position: int) -> dict[str, Any]:
        superclass = int(coarse[position])
        own = extra[int(cifar.labels[position])] if extra else {}
        return {"coarse_label": superclass, "coarse_name": SUPERCLASS_NAMES[superclass], **own}

    return of_arrays(
        cifar.images,
        cifar.labels,
        rows,
        name="cifar100",
        split=split,
        class_names=CLASS_NAMES,
        confused=CONFUSED,
        facts=facts,
        notes=cifar.notes,
    )
