"""CIFAR-10N: real human label noise, no clean data anywhere: cross-fit on the noisy labels, MLP to ResNet targets.

Full: random1 (17 % wrong) and worse (40 %), ResNet-18 variant with the small CNN as IL model, 10 passes. Small: the
small CNN as target and as IL model, 3 passes; quick: one pass of `worse`. Needs the images of CIFAR-10 and the labels
of CIFAR-N: --source cifar10=DIR --source cifar10n=FILE.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, Shards, World
from jobs.reproduce.worlds import CNN_FIT, RESNET

PASS = 156  # steps of 320 in 50,000
SMALL_FIT = {"model": "small-cnn", "epochs": 3, "augment": "shift-flip"}
SMALL: dict[str, Any] = {"model": "small-cnn", "augment": "flip-shift"}


def world(level: str, fit: dict[str, Any], test: int | None = None, suffix: str = "") -> World:
    """CIFAR-10 with the labels of one level of CIFAR-10N, the true label kept; tested on all or `test` images."""
    limit = () if test is None else ("--limit", str(test))
    return World(name=f"cifar10n-{level}{suffix}", says=f"CIFAR-10N {level}: human labels; no clean data, cross-fit",
                 train=Shards(("cifar10n", "--noise-level", level), "cifar10", "cifar10n"), samples=50_000,
                 test=Shards(("cifar10", "--split", "test", *limit), "cifar10"), ils={"il": IL(fit=fit)})  # fmt: skip


RANDOM1, WORSE = world("random1", CNN_FIT), world("worse", CNN_FIT)
SMALL_RANDOM1, SMALL_WORSE = (world(level, SMALL_FIT, 2000, "-small") for level in ("random1", "worse"))


def _arms(chosen: World, steps: int, every: int, **train: Any) -> list[Arm]:
    common: dict[str, Any] = {"world": chosen, "steps": steps, "eval_every": every}
    plain = [Arm(name="uniform", train={"rule": "uniform", **train}, baselines=(), **common),
             *(Arm(name=rule, train={"rule": rule, **train}, **common) for rule in ("loss", "grad_norm_is", "rho"))]
    cap = Arm(name="rho, loss_cap", train={"rule": "rho", "loss_cap": True, **train}, baselines=("uniform", "rho"),
              **common)  # fmt: skip
    return [*plain, cap]


def _scale(chosen: tuple[World, ...], passes: int, every: int, seeds: int, says: str, **train: Any) -> Scale:
    return Scale(says=says, seeds=seeds, arms=[a for one in chosen for a in _arms(one, passes * PASS, every, **train)],
                 after={one.name: tuple(n * PASS for n in (1, 3, 10) if n <= passes) for one in chosen})  # fmt: skip


EXPERIMENT = Experiment(
    name="cifar10n", title="Human label noise", where="stands in for Clothing-1M's noise",
    scales={"quick": _scale((SMALL_WORSE,), 1, 26, 1, "one pass, small CNN", **SMALL),
            "small": _scale((SMALL_RANDOM1, SMALL_WORSE), 3, 52, 2, "3 passes, small CNN", **SMALL),
            "full": _scale((RANDOM1, WORSE), 10, 52, 5, "10 passes, ResNet-18 variant", **RESNET)},
    shares=("noisy",),
    claims=[
        *(Claim(says="rho is ahead of uniform at equal steps", world=one.name, arm=arm, metric="final accuracy",
                paper="72 against 70 % (Clothing-1M)")
          for one in (SMALL_RANDOM1, SMALL_WORSE, RANDOM1, WORSE) for arm in ("rho", "rho, loss_cap")),
        *(Claim(says="rho is ahead of uniform at equal forwards", world=one.name, arm="rho, loss_cap",
                metric="accuracy at equal forward units", paper="not in the paper")
          for one in (SMALL_RANDOM1, SMALL_WORSE, RANDOM1, WORSE)),
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
