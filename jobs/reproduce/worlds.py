"""The worlds of the experiments: Fashion-MNIST for two cores, and the paper's own sets as the full setting has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.reproduce.settings import FACTS, IL, Arm, Shards, World

D, HELD = 32_000, 28_000  # of Fashion-MNIST's 60,000: a pass over D is 100 steps of 320
PASS = D // 320


def fashion(
    noise: str = "none",
    rate: float | None = None,
    *more: str,
    limit: int | None = D,
    skip: int = 0,
    split: str = "train",
) -> Shards:
    """Fashion-MNIST through the web recipe, without copies unless `more` says so."""
    return Shards((
        "web", "--base", "fashion-mnist", "--split", split, "--noise", noise,
        *(() if rate is None else ("--noise-rate", str(rate))), *(() if limit is None else ("--limit", str(limit))),
        *(("--skip", str(skip)) if skip else ()), *(() if "--copies" in more else ("--copies", "0")),
        *more))  # fmt: skip


TEST = Shards(("fashion-mnist", "--split", "test", "--limit", "5000"))  # all 10,000 cost as much as the training
TEST_2000 = Shards(("fashion-mnist", "--split", "test", "--limit", "2000"))
HOLDOUT = fashion(limit=HELD, skip=D)
FIT = {"model": "mlp-256", "epochs": 5}
BY_HOLDOUT = IL(fit=FIT, holdout=HOLDOUT)
CROSS_FIT = IL(fit=FIT)


def _fashion_world(name: str, says: str, train: Shards, **changes: Any) -> World:
    settings: dict[str, Any] = {"test": TEST, "ils": {"il": BY_HOLDOUT}, "samples": D, **changes}
    return World(name=name, says=says, train=train, **settings)


CLEAN = _fashion_world("clean", "32,000 images as they are; clean holdout of 28,000 others", fashion())
NOISE10 = _fashion_world("noise10", "32,000 images, 10 % of the labels redrawn over all classes (9 % wrong); clean "
                         "holdout of 28,000 others", fashion("uniform", 0.1))  # fmt: skip
NOISE20 = _fashion_world("noise20", "32,000 images, 20 % of the labels redrawn over all classes; clean holdout of "
                         "28,000 others", fashion("uniform", 0.2))  # fmt: skip
NOISE40_CROSS = _fashion_world(
    "noise40-cross",
    "32,000 images, 40 % of the labels redrawn; no holdout: two MLP-256 cross-fitted on the noisy labels",
    fashion("uniform", 0.4),
    ils={"il": CROSS_FIT},
)
STRUCTURED = _fashion_world("structured", "32,000 images; half of each of 4 look-alike classes takes the other's "
                            "label; clean holdout", fashion("structured", 0.5))  # fmt: skip
AMBIGUOUS = _fashion_world("ambiguous", "32,000 images, mixtures with a second plausible label; clean holdout",
                           fashion("ambiguous"))  # fmt: skip
ALL_CLEAN = _fashion_world("all-clean", "all 60,000 images; no holdout: two MLP-256 cross-fitted",
                           fashion(limit=None), ils={"il": CROSS_FIT}, samples=60_000)  # fmt: skip
ALL_NOISE10 = _fashion_world("all-noise10", "all 60,000 images, 10 % of the labels redrawn; no holdout: two MLP-256 "
                             "cross-fitted on the noisy labels", fashion("uniform", 0.1, limit=None),
                             ils={"il": CROSS_FIT}, samples=60_000)  # fmt: skip


def relevance(seed: int) -> World:
    """CIFAR100-Relevance's form with ten classes: two of them, drawn by `seed`, are 80 % of D, holdout and test."""
    more = ("--relevant-classes", "2", "--seed", str(seed))
    return _fashion_world(
        f"relevance-{seed}", f"2 classes (draw {seed}) whole, 6 % of the other 8; holdout and test alike",
        fashion("none", None, *more), test=fashion("none", None, *more, limit=None, split="test"),
        keep={"relevant": "bool", **FACTS}, samples=7_936,
        ils={"il": IL(fit=FIT, holdout=fashion("none", None, *more, limit=HELD, skip=D))})  # fmt: skip


def longer(world: World, steps: int, name: str = "uniform, longer", n_b: int = 32, **train: Any) -> Arm:
    """What others are read against at equal units: every buffer is a batch, so it sees as many samples as it pays for.

    `steps` are generous: it must last until it has spent what the dearest of the others has, its IL model included.
    """
    return Arm(name=name, world=world, steps=steps, eval_every=50, baselines=(),
               train={"rule": "uniform", "buffer_size": n_b, "batch_size": n_b, **train})  # fmt: skip


# rho's 600 steps of 416 units and its IL model (fit, checks, the scoring of D): at most 500,000 units, of 96 a step.
LONGER = 5_200


def on_2000(world: World, **ils: IL) -> World:
    """The same, tested on 2,000 images: for networks whose forward over 10,000 costs as much as their training."""
    return replace(world, name=f"{world.name}-cnn", test=TEST_2000, ils=ils or world.ils)


# -- the paper's own -------------------------------------------------------------------------------------------------

AUGMENTED: dict[str, Any] = {"augment": "flip-shift"}
RESNET: dict[str, Any] = {"model": "resnet18-small-unpooled", **AUGMENTED}
RESNET_FIT = {"model": "resnet18-small-unpooled", "epochs": 50, "augment": "shift-flip"}
CNN_FIT = {**RESNET_FIT, "model": "small-cnn-lenet"}
MLP_FIT = {"model": "mlp-512", "epochs": 20}


def _noisy(base: str, rate: float, *more: str) -> tuple[str, ...]:
    return ("web", "--base", base, "--noise", "uniform" if rate else "none",
            *(("--noise-rate", str(rate)) if rate else ()), "--copies", "0", *more)  # fmt: skip


def halves(size: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What picks D and the holdout out of one split, disjoint."""
    return ("--limit", str(size)), ("--skip", str(size), "--limit", str(size))


def paper_world(
    base: str,
    size: int,
    rate: float = 0.0,
    *,
    fit: dict[str, Any] = CNN_FIT,
    test: str = "test",
    parts: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
) -> World:
    """A set of the paper: D and a clean holdout by `parts`, by default halves; of `size` all, cross-fit, for no parts.

    The size of D is `size`.
    """
    mine, others = parts or ((), ())
    noise = f", {100 * rate:g} % of D's labels redrawn" if rate else ""
    holdout = Shards(_noisy(base, 0.0, *others), base) if parts else None
    return World(name=base + ("-noisy" if rate else "") + ("" if parts else "-all"),
                 says=f"{base}: {size:,} in D{noise}; " + ("a clean holdout" if parts else "cross-fit"),
                 train=Shards(_noisy(base, rate, *mine), base), test=Shards((base, "--split", test), base),
                 samples=size, ils={"il": IL(fit=fit, holdout=holdout)})  # fmt: skip


def _cifar(base: str, rate: float = 0.0) -> World:
    return paper_world(base, 25_000, rate, parts=halves(25_000))


def _cinic(rate: float = 0.0) -> World:
    return paper_world("cinic10", 90_000, rate, parts=(("--split", "train"), ("--split", "valid")))


def qmnist(rate: float = 0.0) -> World:
    """60,000 of QMNIST, holdout: its 50,000 extra test digits, test: MNIST's 10,000."""
    return paper_world("qmnist", 60_000, rate, fit=MLP_FIT, test="test10k",
                       parts=(("--split", "train"), ("--split", "test50k")))  # fmt: skip


CIFAR10, CIFAR10_NOISY, CIFAR10_20 = _cifar("cifar10"), _cifar("cifar10", 0.1), _cifar("cifar10", 0.2)
CIFAR100, CIFAR100_NOISY = _cifar("cifar100"), _cifar("cifar100", 0.1)
CINIC10, CINIC10_NOISY = _cinic(), _cinic(0.1)
QMNIST = qmnist(0.1)
CLOTHING1M = World(
    name="clothing1m", says="clean_train + clean_val + noisy, labels from the web; IL: ResNet-18 on a reused 10 %",
    train=Shards(("clothing1m", "--split", "train"), "clothing1m"), samples=1_061_883,
    test=Shards(("clothing1m", "--split", "test"), "clothing1m"), keep={},
    ils={"il": IL(fit={"model": "torchvision:resnet18", "holdout_fraction": 0.1, "epochs": 3, "fit_samples": 110_000,
                       "image_size": 224, "resize": "crop", "augment": "shift-flip",
                       "memory_bytes": 24 << 30})})  # fmt: skip
# D is all of it: what the IL model learned from is a candidate like the rest.
CLOTHING: dict[str, Any] = {
    "model": "torchvision:resnet50@IMAGENET1K_V2",
    "image_size": 224,
    "keep_holdout": True,
    **AUGMENTED,
}
