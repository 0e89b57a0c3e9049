"""One pass over a long stream at equal cost: train on all that the budget reaches, or look at more and keep less.

The budget is what rho at 10 % spends on one pass over D: n_B + 3 n_b forwards a step. Training on everything spends it
on less than half as many samples; rho at 20 and 50 % lies between. No arm sees a sample twice.

Two bills. IL not charged: the model is made once, for many runs. IL charged to the first run: "everything, longer"
goes on until it has spent the run and its IL model (forward and backward of the fit, its checks, the scoring of D):
first the rest of D, then further passes, because there is no more of it. The dear IL model is the one of the other
experiments (two MLP-256, five epochs over halves of D); the cheap ones are small or learn from less.
Full: Clothing-1M. Small: all 60,000 of Fashion-MNIST, 10 and 40 % noise, cross-fitted on the noisy labels.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.compare import EQUAL
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, World

N_b = 32
SHARES = (10, 20, 50)  # per cent that rho keeps
CHEAP = {"mlp-64 IL": IL(fit={"model": "mlp-64", "epochs": 2, "fit_samples": 10_000}),
         "mlp-256 IL, 1 epoch": IL(fit={"model": "mlp-256", "epochs": 1, "fit_samples": 20_000})}  # fmt: skip
ALL_NOISE10 = replace(worlds.ALL_NOISE10, ils={**worlds.ALL_NOISE10.ils, **CHEAP})
ALL_NOISE40 = replace(ALL_NOISE10, name="all-noise40", train=worlds.fashion("uniform", 0.4, limit=None),
                      says=ALL_NOISE10.says.replace("10 %", "40 %"))  # fmt: skip
LONGER = 6_400  # of 96 units: one pass of rho at 10 %, and an IL model of at most 530,000


def steps_within(units: float, buffer_size: int, batch_size: int, scored: bool, every: int) -> int:
    """The steps, a multiple of `every`, that a budget of forward units pays: n_B + 3 n_b each, 3 n_b unscored."""
    return int(units // (3 * batch_size + (buffer_size if scored else 0))) // every * every


def _arms(world: World, every: int, longer: int = 0, **train: Any) -> list[Arm]:
    whole = world.samples // (10 * N_b) // every * every
    budget = whole * (10 * N_b + 3 * N_b)
    found = [
        Arm(name="everything", world=world, eval_every=every, baselines=(),
            steps=steps_within(budget, N_b, N_b, False, every),
            train={"rule": "uniform", "buffer_size": N_b, "batch_size": N_b, **train}),
        Arm(name="uniform", world=world, eval_every=every, baselines=(), steps=whole,
            train={"rule": "uniform", "buffer_size": 10 * N_b, "batch_size": N_b, **train}),
    ]  # fmt: skip
    equal = ("everything, longer",) if longer else ()
    found += [worlds.longer(world, longer, "everything, longer", **train)] if longer else []
    for il, share in itertools.product(world.ils, SHARES):
        n_B = 100 * N_b // share
        found.append(Arm(name=f"rho, {share} %" + ("" if il == "il" else f", {il}"), world=world, eval_every=every,
                         il=il, baselines=("everything", "uniform"), equal=equal,
                         steps=steps_within(budget, n_B, N_b, True, every),
                         train={"rule": "rho", "buffer_size": n_B, "batch_size": N_b, **train}))  # fmt: skip
    return found


def _fashion(seeds: int, *chosen: World) -> Scale:
    arms = [arm for world in chosen for arm in _arms(world, 10, LONGER)]
    return Scale(says="one pass over Fashion-MNIST", seeds=seeds, arms=arms)


WORLDS = ("all-noise10", "all-noise40")
EXPERIMENT = Experiment(
    name="single_pass", title="One pass at equal cost", where="section 1 and section 5; ours",
    scales={"quick": _fashion(3, ALL_NOISE10), "small": _fashion(5, ALL_NOISE10, ALL_NOISE40),
            "full": Scale(says="one pass over Clothing-1M", seeds=3,
                          arms=_arms(worlds.CLOTHING1M, 100, **worlds.CLOTHING))},
    figure="cost curves", shares=("noisy",),
    claims=[
        *(Claim(says="rho ends higher than training on everything, at equal forwards, IL not charged", world=world,
                arm=f"rho, {share} %", baseline="everything", metric="final accuracy", paper="not in the paper")
          for world in WORLDS for share in SHARES),
        *(Claim(says="rho ends higher than training on everything, its IL model charged to the run", world=world,
                arm=f"rho, {share} %", baseline="everything, longer", metric=EQUAL[True], paper="not in the paper")
          for world in WORLDS for share in SHARES),
        *(Claim(says="rho with a cheap IL model ends higher than training on everything, IL charged", world=world,
                arm=f"rho, {share} %, {il}", baseline="everything, longer", metric=EQUAL[True],
                paper="not in the paper") for world in WORLDS for il in CHEAP for share in SHARES),
    ],
    notes=("D is all that there is: beyond 60,000 samples \"everything, longer\" sees them again",),
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
