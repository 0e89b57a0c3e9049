"""One pass over a long stream at equal cost: train on all that the budget reaches, or look at more and keep less.

The budget is what rho at 10 % spends on one pass over D: n_B + 3 n_b forwards a step. Training on everything spends it
on less than half as many samples; rho at 20 and 50 % lies between. No arm sees a sample twice; the IL model is extra.
Full: Clothing-1M. Small: all 60,000 of Fashion-MNIST, 10 and 40 % noise, cross-fitted on the noisy labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, World

N_b = 32
ALL_NOISE40 = replace(worlds.ALL_NOISE10, name="all-noise40", train=worlds.fashion("uniform", 0.4, limit=None),
                      says=worlds.ALL_NOISE10.says.replace("10 %", "40 %"))  # fmt: skip


def steps_within(units: float, buffer_size: int, batch_size: int, scored: bool, every: int) -> int:
    """The steps, a multiple of `every`, that a budget of forward units pays: n_B + 3 n_b each, 3 n_b unscored."""
    return int(units // (3 * batch_size + (buffer_size if scored else 0))) // every * every


def _arms(world: World, every: int, **train: Any) -> list[Arm]:
    whole = world.samples // (10 * N_b) // every * every
    budget = whole * (10 * N_b + 3 * N_b)
    found = [
        Arm(name="everything", world=world, eval_every=every, baselines=(),
            steps=steps_within(budget, N_b, N_b, False, every),
            train={"rule": "uniform", "buffer_size": N_b, "batch_size": N_b, **train}),
        Arm(name="uniform", world=world, eval_every=every, baselines=(), steps=whole,
            train={"rule": "uniform", "buffer_size": 10 * N_b, "batch_size": N_b, **train}),
    ]  # fmt: skip
    for share in (10, 20, 50):
        n_B = 100 * N_b // share
        found.append(Arm(name=f"rho, {share} %", world=world, eval_every=every, baselines=("everything", "uniform"),
                         steps=steps_within(budget, n_B, N_b, True, every),
                         train={"rule": "rho", "buffer_size": n_B, "batch_size": N_b, **train}))  # fmt: skip
    return found


def _fashion(seeds: int, *chosen: World) -> Scale:
    arms = [arm for world in chosen for arm in _arms(world, 10)]
    return Scale(says="one pass over Fashion-MNIST", seeds=seeds, arms=arms)


CLOTHING: dict[str, Any] = {"model": "torchvision:resnet50@IMAGENET1K_V2", "image_size": 224, **worlds.AUGMENTED}
EXPERIMENT = Experiment(
    name="single_pass", title="One pass at equal cost", where="section 1 and section 5; ours",
    scales={"quick": _fashion(3, worlds.ALL_NOISE10), "small": _fashion(5, worlds.ALL_NOISE10, ALL_NOISE40),
            "full": Scale(says="one pass over Clothing-1M", seeds=3, arms=_arms(worlds.CLOTHING1M, 100, **CLOTHING))},
    figure="cost curves", shares=("noisy",),
    claims=[Claim(says=f"rho at {share} % ends higher than training on everything, at equal forwards", world=world,
                  arm=f"rho, {share} %", baseline="everything", metric="final accuracy", paper="not in the paper")
            for world in ("all-noise10", "all-noise40") for share in (10, 20, 50)],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
