"""CIFAR-10N: real human label noise, no clean data anywhere: cross-fit on the noisy labels, MLP to ResNet targets.

Full: random1 (17 % wrong) and worse (40 %), ResNet-18 variant with the small CNN as IL model, 10 passes. Small: 12,800
of the images, the small CNN as target and as IL model, 10 passes; quick: 3 passes of `worse`. Needs the images of
CIFAR-10 and the labels of CIFAR-N: --source cifar10=DIR --source cifar10n=FILE.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, Shards, World
from jobs.reproduce.worlds import CNN_FIT, RESNET

ALL, SOME = 50_000, 12_800  # images of D: two cores take hours for ten passes over all
SMALL_FIT = {"model": "small-cnn", "epochs": 6, "augment": "shift-flip"}
SMALL: dict[str, Any] = {"model": "small-cnn", "augment": "flip-shift"}


def world(level: str, fit: dict[str, Any], some: int | None = None, test: int | None = None) -> World:
    """CIFAR-10 with the labels of one level of CIFAR-10N, the true label kept; all of it or `some`, `test` images."""
    mine, theirs = (() if size is None else ("--limit", str(size)) for size in (some, test))
    return World(name=f"cifar10n-{level}" + ("-small" if some else ""), samples=some or ALL,
                 says=f"CIFAR-10N {level}, {some or ALL:,} human labels; no clean data, cross-fit",
                 train=Shards(("cifar10n", "--noise-level", level, *mine), "cifar10", "cifar10n"),
                 test=Shards(("cifar10", "--split", "test", *theirs), "cifar10"), ils={"il": IL(fit=fit)})  # fmt: skip


RANDOM1, WORSE = world("random1", CNN_FIT), world("worse", CNN_FIT)
SMALL_RANDOM1, SMALL_WORSE = (world(level, SMALL_FIT, SOME, 2000) for level in ("random1", "worse"))


def _arms(chosen: World, steps: int, every: int, **train: Any) -> list[Arm]:
    common: dict[str, Any] = {"world": chosen, "steps": steps, "eval_every": every}
    plain = [
        Arm(name="uniform", train={"rule": "uniform", **train}, baselines=(), **common),
        *(Arm(name=rule, train={"rule": rule, **train}, **common) for rule in ("loss", "grad_norm_is", "rho")),
    ]
    cap = Arm(name="rho, loss_cap", train={"rule": "rho", "loss_cap": True, **train}, baselines=("uniform", "rho"),
              **common)  # fmt: skip
    return [*plain, cap]


def _scale(chosen: tuple[World, ...], passes: int, every: int, seeds: int, says: str, **train: Any) -> Scale:
    of_pass = chosen[0].samples // 320
    return Scale(
        says=says,
        seeds=seeds,
        arms=[arm for one in chosen for arm in _arms(one, passes * of_pass, every, **train)],
        after={one.name: tuple(n * of_pass for n in (1, 3, 10) if n <= passes) for one in chosen},
    )


EXPERIMENT = Experiment(
    name="cifar10n", title="Human label noise", where="stands in for Clothing-1M's noise",
    scales={"quick": _scale((SMALL_WORSE,), 3, 20, 1, "3 passes, small CNN", **SMALL),
            "small": _scale((SMALL_RANDOM1, SMALL_WORSE), 10, 20, 3, "10 passes, small CNN", **SMALL),
            "full": _scale((RANDOM1, WORSE), 10, 52, 5, "10 passes, ResNet-18 variant", **RESNET)},
    shares=("noisy",),
    claims=[
        *(Claim(says="rho ends higher than uniform at equal steps", world=one.name, arm="rho", metric="final accuracy",
                paper="72 against 70 % (Clothing-1M)") for one in (SMALL_RANDOM1, SMALL_WORSE, RANDOM1, WORSE)),
        *(Claim(says="rho with loss_cap is ahead of uniform at equal steps", world=one.name, arm="rho, loss_cap",
                metric="final accuracy", paper="not in the paper")
          for one in (SMALL_RANDOM1, SMALL_WORSE, RANDOM1, WORSE)),
        *(Claim(says="rho with loss_cap is ahead of uniform at equal forwards", world=one.name, arm="rho, loss_cap",
                metric="accuracy at equal forward units", paper="not in the paper")
          for one in (SMALL_RANDOM1, SMALL_WORSE, RANDOM1, WORSE)),
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
