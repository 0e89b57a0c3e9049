"""Clothing-1M: a million photographs from shops in 14 classes, labelled by the text around them, about 38 % wrong.

The paper's D is `train`: clean_train, clean_val and noisy_train together, 1,061,883 images; its test set is clean_test.
The files' bytes are kept, and nothing but one shard's images is ever held: the lists take some 300 MB at most.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rhostream.errors import UnknownNameError, UsageError
from rhostream.making.folder import decode_image, extension, read_image
from shards.key_lists import KeyList, LabelFile, read_key_list, read_label_file, safe_join
from shards.sample import Ints, Pixels, Sample, SampleSet, seeded_rows
from shards.sources import find, folder_of, read_text

CLASSES = 14
LISTS = {
    "train": ("clean_train", "clean_val", "noisy_train"),
    "clean_train": ("clean_train",),
    "clean_val": ("clean_val",),
    "noisy_train": ("noisy_train",),
    "test": ("clean_test",),
}
CONFUSED_PAIRS = 4
INSTRUCTIONS = (
    "ask the authors of Clothing-1M (Xiao et al. 2015; project Cysu/noisy_label) for it, unpack it, and give the "
    "folder with clean_train_key_list.txt, noisy_train_key_list.txt, clean_label_kv.txt, noisy_label_kv.txt, "
    "category_names_eng.txt and images as --source"
)


def samples(
    *,
    source: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
) -> SampleSet:
    """The images of a split's lists, one list after the other, keyed `clothing1m-<list>-<line>`.

    Clean lists are labelled by clean_label_kv.txt, the noisy one by noisy_label_kv.txt. The facts say the `origin`
    (the list), `path`, `group` (the path: one that stands in two lists stays in one fold), the `noisy_label`, and
    `true_label` and `is_noisy`, both None where nobody looked.
    Raises UsageError for missing files, a line that isn't a path below the source, a path without a label, twice in
    one list, or a label beyond the classes; and, when its shard is made, for an image that isn't there.
    """
    if split not in LISTS:
        raise UnknownNameError.of("split of clothing1m", split, LISTS)
    root = folder_of(source, "clothing1m", INSTRUCTIONS)
    folder = find(root, ["clean_label_kv.txt"], ("annotations",), INSTRUCTIONS)
    class_names = _class_names(folder, root)
    clean = read_label_file(folder / "clean_label_kv.txt", CLASSES, INSTRUCTIONS)
    noisy = read_label_file(folder / "noisy_label_kv.txt", CLASSES, INSTRUCTIONS)
    lists = [read_key_list(folder / f"{name}_key_list.txt", INSTRUCTIONS) for name in LISTS[split]]
    noisy_labels = np.concatenate([noisy.of(keys) for keys in lists])  # (N,) -1 for none
    truth = np.concatenate([clean.of(keys) for keys in lists])  # (N,) -1 for none
    is_noisy_list = np.repeat([name == "noisy_train" for name in LISTS[split]], [len(keys) for keys in lists])
    labels = np.where(is_noisy_list, noisy_labels, truth)
    starts = np.cumsum([0, *(len(keys) for keys in lists)])
    _check_labelled(labels, lists, starts, clean, noisy, LISTS[split])
    confused = _confused(folder, clean, noisy)
    rows = seeded_rows(len(labels), limit=limit, skip=skip, seed=seed)
    images = _Images(root)

    def place(i: int) -> tuple[int, int, str]:
        """(number of the list, line from 0, path) of a row."""
        which = int(np.searchsorted(starts, rows[i], side="right")) - 1
        line = int(rows[i] - starts[which])
        return which, line, lists[which].key(line)

    def load(i: int) -> Sample:
        which, line, key = place(i)
        row = int(rows[i])
        label, true = int(labels[row]), int(truth[row])
        path = images.path(key, lists[which], line)
        facts = {
            "true_label": true if true >= 0 else None,
            "is_noisy": label != true if true >= 0 else None,
            "noisy_label": int(noisy_labels[row]) if noisy_labels[row] >= 0 else None,
            "origin": LISTS[split][which],
            "class_name": class_names[label],
            "path": key,
            "group": key,
        }
        name = f"clothing1m-{LISTS[split][which]}-{line:07d}"
        return Sample(key=name, label=label, extension=extension(path), content=read_image(path), facts=facts)

    def pixels(i: int) -> Pixels:
        which, line, key = place(i)
        return decode_image(images.path(key, lists[which], line))

    unknown = int(np.sum(truth[rows] < 0))
    return SampleSet(
        split=split,
        labels=labels[rows],
        class_names=class_names,
        load=load,
        pixels=pixels,
        truth=truth[rows],
        confused=confused,
        notes=(f"nobody has looked at the labels of {unknown:,} samples: is_noisy is null there",) if unknown else (),
    )


class _Images:
    """Where the images are: below the source as the lists say, or with `images/` left out, as some unpack them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = "" if (root / "images").is_dir() else "images/"

    def path(self, key: str, keys: KeyList, line: int) -> Path:
        """The file of a key. Raises UsageError when there is none."""
        path = safe_join(self.root, key.removeprefix(self.prefix))
        if not path.is_file():
            raise UsageError(
                f"{path} does not exist, and {keys.path.name} names it in line {line + 1:,}; unpack all of "
                "images/0 to images/9, then run the same command again"
            )
        return path


def _class_names(folder: Path, root: Path) -> tuple[str, ...]:
    name = "category_names_eng.txt"
    path = next((place / name for place in (folder, root) if (place / name).is_file()), folder / name)
    names = tuple(line.strip() for line in read_text(path, INSTRUCTIONS, limit=1 << 16).splitlines() if line.strip())
    if len(names) != CLASSES or len(set(names)) != CLASSES:
        raise UsageError(f"{path} names {len(set(names))} classes in {len(names)} lines, expected {CLASSES} of each")
    return names


def _check_labelled(
    labels: Ints, lists: list[KeyList], starts: Ints, clean: LabelFile, noisy: LabelFile, names: tuple[str, ...]
) -> None:
    without = np.flatnonzero(labels < 0)
    if len(without):
        which = int(np.searchsorted(starts, without[0], side="right")) - 1
        line = int(without[0] - starts[which])
        source = noisy if names[which] == "noisy_train" else clean
        raise UsageError(
            f"{lists[which].path}, line {line + 1:,}: {lists[which].key(line)[:100]} has no label in "
            f"{source.path.name}, and {len(without):,} paths in all; expected one for each, copy the files again"
        )


def _confused(folder: Path, clean: LabelFile, noisy: LabelFile) -> tuple[tuple[int, int], ...]:
    """The classes that the text around the images confuses most, by the images of clean_train with both labels.

    One pair a class and none in both directions; empty where no image has both.
    """
    path = folder / "clean_train_key_list.txt"
    if not path.is_file():
        return ()
    keys = read_key_list(path, INSTRUCTIONS)
    true, given = clean.of(keys), noisy.of(keys)
    both = (true >= 0) & (given >= 0) & (true != given)
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(counts, (true[both], given[both]), 1)
    pairs: list[tuple[int, int]] = []
    for cell in np.argsort(-counts, axis=None, kind="stable"):
        pair = (int(cell) // CLASSES, int(cell) % CLASSES)
        if not counts[pair] or len(pairs) == CONFUSED_PAIRS:
            break
        if pair[::-1] not in pairs and pair[0] not in [a for a, _ in pairs]:
            pairs.append(pair)
    return tuple(pairs)
