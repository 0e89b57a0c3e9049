"""Any other recipe made like the web: wrong labels, near-duplicates, rare classes, all drawn once, by seed.

    base set > long tail > near-duplicates > labels redrawn > order

A near-duplicate's label noise is drawn independently of its original's: on the web two copies of a picture
are captioned by two people. What was drawn is written beside each sample, so that decisions can be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from rhostream.errors import UsageError
from shards.jitter import Jitters
from shards.sample import Ints, Sample, SampleSet, encode, generator

Noise = Literal["uniform", "structured", "none"]
Order = Literal["shuffled", "class-sorted"]
DEFAULT_RATE = {"uniform": 0.4, "structured": 0.5, "none": 0.0}


def samples(
    base: SampleSet,
    *,
    noise: Noise = "uniform",
    noise_rate: float | None = None,
    confuse: Sequence[tuple[int, int]] | None = None,
    copies: int = 1,
    duplicate_fraction: float = 1.0,
    imbalance: float = 1.0,
    order: Order = "shuffled",
    seed: int = 0,
) -> SampleSet:
    """`base` with noise, near-duplicates and a long tail; pure in its arguments.

    - noise "uniform": a share `noise_rate` (default 0.4) of all rows gets a label drawn from ALL classes, as
      in the paper's reference code, so only (1 - 1/C) of those are wrong; "structured": a share `noise_rate`
      (default 0.5) of class a becomes class b, for each (a, b) of `confuse` (default: the base's pairs).
    - copies, duplicate_fraction: that share of the originals appears `copies` times more, jittered.
    - imbalance: class c keeps a share imbalance^(-c/(C-1)) of the largest class, class 0 being the largest.
    - order "class-sorted" sorts by the label as given, noise included: as a crawl by search term does.

    The facts gain `true_label, is_noisy, noise_drawn, duplicate_of` (None or the original's key) and `group`
    (the original's key, for originals and copies alike: what folds have to keep together).
    Raises UsageError for settings outside their range, before any image is read.
    """
    rate = DEFAULT_RATE.get(noise, 0.0) if noise_rate is None else noise_rate
    if noise == "none" and noise_rate:
        raise UsageError(
            f"noise rate {noise_rate} without noise; choose uniform or structured, or drop --noise-rate"
        )
    if noise != "structured" and confuse is not None:
        raise UsageError(f"confused pairs belong to structured noise, got {noise!r}; drop --confuse")
    _check_range("noise rate", rate, 0.0, 1.0)
    _check_range("duplicate fraction", duplicate_fraction, 0.0, 1.0)
    _check_range("imbalance", imbalance, 1.0, 1e9)
    _check_range("copies", copies, 0, 1000)
    originals = _long_tail(base, imbalance, seed)
    source, copy = _duplicate(
        originals, copies, duplicate_fraction, seed
    )  # (N,), (N,): base row, 0 or number of copy
    truth = base.labels[source]
    drawn, labels = _draw_labels(truth, base, noise, rate, confuse, seed)
    jitters = Jitters.draw(len(source), generator(seed, "jitter"))
    permutation = generator(seed, "order").permutation(len(source))
    if order == "class-sorted":
        permutation = permutation[np.argsort(labels[permutation], kind="stable")]
    elif order != "shuffled":
        raise UsageError(f"unknown order {order!r}; expected shuffled or class-sorted")

    def pixels(i: int) -> npt.NDArray[np.uint8]:
        row = permutation[i]
        plain = base.pixels(int(source[row]))
        return jitters.apply(int(row), plain) if copy[row] else plain

    def load(i: int) -> Sample:
        row = permutation[i]
        original = base.load(int(source[row]))
        label, number = int(labels[row]), int(copy[row])
        facts = original.facts | {
            "true_label": int(truth[row]),
            "is_noisy": label != int(truth[row]),
            "noise_drawn": bool(drawn[row]),
            "duplicate_of": original.key if number else None,
            "group": original.key,
        }
        if number == 0:
            return replace(original, label=label, facts=facts)
        image = encode(pixels(i), original.extension)
        return replace(original, key=f"{original.key}-copy{number}", label=label, image=image, facts=facts)

    return replace(base, labels=labels[permutation], load=load, pixels=pixels)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails as well
        raise UsageError(f"{name} is {value}, expected {low:g} to {high:g}")


def _long_tail(base: SampleSet, ratio: float, seed: int) -> Ints:
    """The base rows that are kept, ascending; class sizes fall geometrically to 1/ratio of the first."""
    if ratio == 1.0:
        return np.arange(len(base))
    classes = len(base.class_names)
    available = np.bincount(base.labels, minlength=classes)
    share = ratio ** (-np.arange(classes) / max(classes - 1, 1))
    # The largest first class for which every class has enough: so the ratio holds for uneven sources too.
    largest = np.min(available / share)
    target = np.maximum(np.round(largest * share), 1).astype(np.int64)
    if np.any(target > available):
        raise UsageError(
            f"class sizes {available.tolist()} can't be given imbalance {ratio:g}: a class has no samples"
        )
    shuffled = generator(seed, "imbalance").permutation(len(base))
    kept = [shuffled[base.labels[shuffled] == c][: target[c]] for c in range(classes)]
    return np.sort(np.concatenate(kept))


def _duplicate(originals: Ints, copies: int, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """(base row, number of the copy) of each row; number 0 is the original."""
    chosen = np.sort(generator(seed, "duplicates").permutation(originals)[: round(fraction * len(originals))])
    source = np.concatenate([originals, np.tile(chosen, copies)])
    number = np.concatenate(
        [np.zeros(len(originals), np.int64), np.repeat(np.arange(1, copies + 1), len(chosen))]
    )
    return source, number


def _draw_labels(
    truth: Ints,
    base: SampleSet,
    noise: str,
    rate: float,
    confuse: Sequence[tuple[int, int]] | None,
    seed: int,
) -> tuple[npt.NDArray[np.bool_], Ints]:
    """(noise was drawn, label) of each row."""
    rng = generator(seed, "noise")
    classes = len(base.class_names)
    drawn = rng.random(len(truth)) < rate
    if noise == "uniform":
        return drawn, np.where(drawn, rng.integers(0, classes, len(truth)), truth)
    if noise == "structured":
        mistaken = _mistaken(base.confused if confuse is None else confuse, classes)
        drawn &= mistaken[truth] >= 0
        return drawn, np.where(drawn, mistaken[truth], truth)
    if noise == "none":
        return np.zeros(len(truth), np.bool_), truth
    raise UsageError(f"unknown noise {noise!r}; expected uniform, structured or none")


def _mistaken(pairs: Sequence[tuple[int, int]], classes: int) -> Ints:
    """For each class the one it is taken for, -1 for none."""
    if not pairs:
        raise UsageError("structured noise needs the classes that are confused, such as --confuse 3:5,9:7")
    mistaken = np.full(classes, -1, np.int64)
    for true, wrong in pairs:
        if not (0 <= true < classes and 0 <= wrong < classes) or true == wrong:
            raise UsageError(
                f"confused pair {true}:{wrong}, expected two different classes from 0 to {classes - 1}"
            )
        if mistaken[true] >= 0:
            raise UsageError(f"class {true} is confused twice; give each true class one pair")
        mistaken[true] = wrong
    return mistaken
