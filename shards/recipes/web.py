"""Any other recipe made like the web: wrong labels, near-duplicates, rare classes, all drawn once, by seed.

    base set > long tail > near-duplicates > labels redrawn (`shards.noise`) > order

A near-duplicate's label noise is drawn independently of its original's: on the web two copies of a picture
are captioned by two people. What was drawn is written beside each sample, so that decisions can be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from rhostream.errors import UsageError
from shards.jitter import Jitters
from shards.noise import DEFAULT_RATE, Mixtures, Noise, draw_labels, draw_mixtures, mix_label, mixed_with
from shards.sample import Ints, Pixels, Sample, SampleSet, encode, generator

Order = Literal["shuffled", "class-sorted"]


def samples(
    base: SampleSet,
    *,
    noise: Noise = "uniform",
    noise_rate: float | None = None,
    confuse: Sequence[tuple[int, int]] | None = None,
    copies: int = 1,
    duplicate_fraction: float = 1.0,
    imbalance: float = 1.0,
    relevant_classes: int | None = None,
    rare_share: float = 0.06,
    order: Order = "shuffled",
    seed: int = 0,
) -> SampleSet:
    """`base` with noise, near-duplicates and a long tail; pure in its arguments.

    - noise "uniform": a share `noise_rate` (default 0.4) of all rows gets a label drawn from ALL classes, as
      in the paper's reference code, so only (1 - 1/C) of those are wrong; "structured": a share `noise_rate`
      (default 0.5) of class a becomes class b, for each (a, b) of `confuse` (default: the base's pairs);
      "ambiguous": a share `noise_rate` (default 1) of the images of those classes, both a and b, is blended with one
      of the other class and labelled as one of the two, by their weights: AmbiguousMNIST's kind of noise.
    - copies, duplicate_fraction: that share of the originals appears `copies` times more, jittered.
    - imbalance: class c keeps a share imbalance^(-c/(C-1)) of the largest class, class 0 being the largest.
    - relevant_classes: so many classes, drawn by the seed alone, are kept whole, and a share `rare_share` of each
      other (at least one sample): the form of CIFAR100-Relevance, holdout and test alike. The facts gain `relevant`.
    - order "class-sorted" sorts by the label as given, noise included: as a crawl by search term does.

    The facts gain `true_label, is_noisy, noise_drawn, duplicate_of` (None or the original's key) and `group`
    (the base's group, or the original's key, for originals and copies alike: what folds have to keep together).
    Ambiguous noise adds `ambiguous, second_label, mix_weight` (of the image's own class, above a half) and
    `mixed_with` (the key of the other image); `true_label` stays the image's own.
    A base that is noisy itself keeps its labels where nothing is drawn; its true labels stay true.
    Raises UsageError for settings outside their range, before any image is read.
    """
    if not base.class_names:
        raise UsageError(
            "web redraws labels, and this base is pairs, which have none: pairs have a --swap of their own"
        )
    rate = DEFAULT_RATE.get(noise, 0.0) if noise_rate is None else noise_rate
    if noise == "none" and noise_rate:
        raise UsageError(
            f"noise rate {noise_rate} without noise; choose uniform, structured or ambiguous, or drop --noise-rate"
        )
    if noise not in ("structured", "ambiguous") and confuse is not None:
        raise UsageError(f"confused pairs belong to structured noise, got {noise!r}; drop --confuse")
    _check_range("noise rate", rate, 0.0, 1.0)
    _check_range("duplicate fraction", duplicate_fraction, 0.0, 1.0)
    _check_range("imbalance", imbalance, 1.0, 1e9)
    _check_range("copies", copies, 0, 1000)
    chosen = _relevant(len(base.class_names), relevant_classes, rare_share, seed)
    if chosen is not None and imbalance != 1.0:
        raise UsageError("a long tail and a few relevant classes at once: drop --imbalance or --relevant-classes")
    if base.pixels is None and copies:
        raise UsageError("near-duplicates are made of images, and this base is text; add --copies 0")
    if base.pixels is None and noise == "ambiguous":
        raise UsageError("ambiguous noise blends images, and this base is text; choose uniform or structured")
    originals = _long_tail(base, imbalance, seed) if chosen is None else _thinned(base, chosen, rare_share, seed)
    source, copy = _duplicate(originals, copies, duplicate_fraction, seed)  # (N,), (N,): base row, 0 or number of copy
    truths = base.labels if base.truth is None else base.truth  # -1: nobody knows
    pairs = base.confused if confuse is None else confuse
    truth, classes = truths[source], len(base.class_names)
    mixtures: Mixtures | None = None
    if noise == "ambiguous":
        mixtures = draw_mixtures(truths, originals, pairs, classes, rate, seed)
        drawn, labels = mix_label(mixtures, source, base.labels[source], seed)
    else:
        drawn, labels = draw_labels(truth, base.labels[source], noise, pairs, classes, rate, seed)
    jitters = Jitters.draw(len(source), generator(seed, "jitter"))
    permutation = generator(seed, "order").permutation(len(source))
    if order == "class-sorted":
        permutation = permutation[np.argsort(labels[permutation], kind="stable")]
    elif order != "shuffled":
        raise UsageError(f"unknown order {order!r}; expected shuffled or class-sorted")

    def pixels(i: int) -> Pixels:
        assert base.pixels is not None  # asked for images alone
        row = permutation[i]
        own = int(source[row])
        plain = base.pixels(own) if mixtures is None else mixtures.image(own, base.pixels)
        return jitters.apply(int(row), plain) if copy[row] else plain

    def load(i: int) -> Sample:
        row = permutation[i]
        own = int(source[row])
        original = base.load(own)
        label, number, true = int(labels[row]), int(copy[row]), int(truth[row])
        facts = original.facts | {
            "true_label": true if true >= 0 else None,
            "is_noisy": label != true if true >= 0 else None,
            "noise_drawn": bool(drawn[row]),
            "duplicate_of": original.key if number else None,
            "group": original.facts.get("group", original.key),
        }
        if mixtures is not None:
            facts |= mixed_with(mixtures, own, base)
        if chosen is not None:
            facts["relevant"] = int(base.labels[own]) in chosen
        changed = number or (mixtures is not None and mixtures.partner[own] >= 0)
        return replace(
            original,
            key=f"{original.key}-copy{number}" if number else original.key,
            label=label,
            content=encode(pixels(i), original.extension) if changed else original.content,
            facts=facts,
        )

    return replace(
        base,
        labels=labels[permutation],
        truth=truth[permutation],
        load=load,
        pixels=None if base.pixels is None else pixels,
    )


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
        raise UsageError(f"class sizes {available.tolist()} can't be given imbalance {ratio:g}: a class has no samples")
    shuffled = generator(seed, "imbalance").permutation(len(base))
    kept = [shuffled[base.labels[shuffled] == c][: target[c]] for c in range(classes)]
    return np.sort(np.concatenate(kept))


def _relevant(classes: int, count: int | None, share: float, seed: int) -> frozenset[int] | None:
    """The classes that are kept whole, None for all of them."""
    if count is None:
        return None
    if not 1 <= count < classes:
        raise UsageError(f"{count} relevant classes, expected 1 to {classes - 1}")
    if not 0 < share <= 1:  # NaN fails as well
        raise UsageError(f"rare share is {share}, expected more than 0 and at most 1")
    return frozenset(generator(seed, "relevant classes").permutation(classes)[:count].tolist())


def _thinned(base: SampleSet, whole: frozenset[int], share: float, seed: int) -> Ints:
    """The base rows that are kept, ascending: all of the classes in `whole`, a share of each other."""
    shuffled = generator(seed, "relevance").permutation(len(base))
    of_class = [shuffled[base.labels[shuffled] == c] for c in range(len(base.class_names))]
    kept = [own if c in whole else own[: max(round(share * len(own)), 1)] for c, own in enumerate(of_class)]
    return np.sort(np.concatenate(kept))


def _duplicate(originals: Ints, copies: int, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """(base row, number of the copy) of each row; number 0 is the original."""
    chosen = np.sort(generator(seed, "duplicates").permutation(originals)[: round(fraction * len(originals))])
    source = np.concatenate([originals, np.tile(chosen, copies)])
    number = np.concatenate([np.zeros(len(originals), np.int64), np.repeat(np.arange(1, copies + 1), len(chosen))])
    return source, number
