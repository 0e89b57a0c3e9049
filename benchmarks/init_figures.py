"""Do the intervals of `rhostream init` hold the truth, and does its advice? Over seeds, where the truth is known.

    python -m benchmarks.init_figures [--seeds 20] [--samples 2000] [--fashion-mnist FOLDER]

Made pictures (tests/support/made_worlds.py), and with a folder of Fashion-MNIST its images with labels redrawn. A line
a world: the advice given, how often the interval of labels that look wrong holds the share that is wrong, means of the
figures. Judged by the MLP that init takes where a CPU is slow.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from rhostream.guide.figures import Figures, advice
from rhostream.guide.judge import judge, speed_of
from rhostream.samples.fields import Fields
from rhostream.samples.image import ImageKind
from shards.idx import read_idx
from tests.support.made_worlds import SIDE, pictures

MADE: dict[str, dict[str, float]] = {
    "clean": {},
    "2 % wrong": {"wrong": 0.02},
    "10 % wrong": {"wrong": 0.1},
    "40 % wrong": {"wrong": 0.4},
    "labels that mean nothing": {"wrong": 5 / 6},
    "faint patterns": {"contrast": 6.0},
    "half of the pictures are of two classes": {"overlap": 0.5},
}


def fashion(folder: Path, samples: int, wrong: float, seed: int) -> tuple[Fields, Tensor, float]:
    """Images of Fashion-MNIST, a share of whose labels is another class's."""
    images = read_idx(folder / "train-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz", 1).astype(np.int64)
    rng = np.random.default_rng([3, seed])
    rows = rng.permutation(len(labels))[:samples]
    strange = rng.random(samples) < wrong
    label = np.where(strange, (labels[rows] + rng.integers(1, 10, samples)) % 10, labels[rows])
    pixels = torch.from_numpy(np.ascontiguousarray(images[rows][..., None]))
    return Fields({"pixels": pixels}), torch.from_numpy(label.astype(np.int64)), float(strange.mean())


def line(name: str, found: list[tuple[Figures, float]], seconds: float) -> str:
    """A row of the table."""
    given = Counter(advice(of)[0] for of, _ in found)
    held = sum(of.wrong.low <= truth <= of.wrong.high for of, truth in found)
    mean = {field: np.mean([getattr(of, field).value for of, _ in found]) for field in ("accuracy", "learned", "wrong")}
    words = ", ".join(f"{count} {rule}" for rule, count in given.most_common())
    return (
        f"| {name} | {words} | {held} of {len(found)} | {mean['wrong']:.1%} | {mean['accuracy']:.0%} | "
        f"{mean['learned']:.0%} | {seconds / len(found):.0f} s |"
    )


@click.command(help=__doc__)
@click.option("--seeds", default=20, show_default=True)
@click.option("--samples", default=2000, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of each cross-fit.")
@click.option("--only", multiple=True, help="Names of made worlds.  [default: all]")
@click.option("--fashion-mnist", type=click.Path(path_type=Path))
def main(seeds: int, samples: int, seconds: float, only: tuple[str, ...], fashion_mnist: Path | None) -> None:
    titles = ("labels", "advice", "interval holds the share", "looks wrong", "right", "reducible", "took")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    worlds = [
        (name, SIDE, 6, lambda seed, how=how: made(samples, seed, how))
        for name, how in MADE.items()
        if not only or name in only
    ]
    if fashion_mnist is not None:
        worlds += [
            (
                f"Fashion-MNIST, {wrong:.0%} wrong",
                28,
                10,
                lambda seed, w=wrong: fashion(fashion_mnist, samples, w, seed),
            )
            for wrong in (0.0, 0.1, 0.4)
        ]
    for name, side, classes, draw in worlds:
        kind, found, started = ImageKind(image_size=side, channels=1), list[tuple[Figures, float]](), time.monotonic()
        for seed in range(seeds):
            fields, label, truth = draw(seed)
            keys = [("s", str(row)) for row in range(samples)]
            of = judge(fields, label, keys, {}, kind, model="mlp-64", speed=speed_of(kind, "mlp-64", classes, 0.1),
                       seconds=seconds, seed=seed).figures  # fmt: skip
            found.append((of, truth))
        print(line(name, found, time.monotonic() - started), flush=True)


def made(samples: int, seed: int, how: dict[str, float]) -> tuple[Fields, Tensor, float]:
    """A made world, and the share of its labels that are wrong."""
    fields, label, strange = pictures(samples, seed=seed, **how)  # type: ignore[arg-type]
    return fields, label, float(strange.mean())


if __name__ == "__main__":
    main()
