"""Fig. 8: the share that is kept: n_b = 32 of n_B = 640 to 64, at equal steps and, beside it, at equal units.

Full: CIFAR-10, CIFAR-100, CINIC-10 (n_b = 64). Small: Fashion-MNIST with 10 % noise.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, World

PER_CENT = (5, 10, 20, 50)


LONGER = 7_200  # what 600 steps that keep 5 % spend, 736 units each, and the IL model


def _shares(
    world: World, steps: int, every: int, per_cent: tuple[int, ...], n_b: int = 32, *, longer: int = 0, **train: Any
) -> list[Arm]:
    common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": every}
    size = {"batch_size": n_b, "buffer_size": 10 * n_b, **train}
    return [Arm(name="uniform", train={"rule": "uniform", **size}, baselines=(), **common),
            *([worlds.longer(world, longer, **train)] if longer else []),
            *(Arm(name=f"rho, {share} %", train={"rule": "rho", **size, "buffer_size": 100 * n_b // share},
                  equal=("uniform, longer",) if longer else (), **common)
              for share in per_cent)]  # fmt: skip


def _full() -> Scale:
    sets = ((worlds.CIFAR10, 32), (worlds.CIFAR100, 32), (worlds.CINIC10, 64))
    return Scale(says="150 epochs of |D| / (10 n_b) steps", seeds=3, arms=[
        arm for world, n_b in sets
        for arm in _shares(world, 150 * (world.samples // (10 * n_b)), world.samples // (10 * n_b), PER_CENT, n_b,
                           **worlds.RESNET)])  # fmt: skip


EXPERIMENT = Experiment(
    name="figure8", title="The share that is kept", where="Fig. 8, App. F",
    scales={"quick": Scale(says="Fashion-MNIST, 400 steps", seeds=3,
                           arms=_shares(worlds.NOISE10, 400, 20, (5, 10, 20, 50))),
            "small": Scale(says="Fashion-MNIST, 600 steps", seeds=3,
                           arms=_shares(worlds.NOISE10, 600, 20, PER_CENT, longer=LONGER)),
            "full": _full()},
    shares=("noisy",),
    claims=[Claim(says="rho ends higher than uniform whatever the share", world="noise10", arm=f"rho, {share} %",
                  metric="final accuracy", paper="Fig. 8: the best share differs by set") for share in PER_CENT],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
