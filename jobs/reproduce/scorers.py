"""Old scores beside training: what a shortlist by the target a step ago costs, with its next update predicted or not.

What `--scorers` does over ranks is `--shortlist stale:R` or `predicted:R` in one process, so that is what is trained
here. Fashion-MNIST, 10 % noise, clean holdout; MLP-512, and the small CNN with batch norm by the buffer and by running
statistics. Not a part of the suite: `python -m jobs.reproduce.scorers`, about an hour on two cores.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, World

EVERY = 20
CNN_WORLD = worlds.on_2000(worlds.NOISE10)
LISTS = ("predicted:3", "predicted:2", "stale:3", "stale:2")
EVAL = ("predicted:3", "predicted:2", "stale:2")


def _arms(world: World, steps: int, fresh: str, lists: tuple[str, ...], **train: Any) -> list[Arm]:
    beside = fresh.removeprefix("fresh")
    arms = [Arm(name=fresh, world=world, steps=steps, eval_every=EVERY, train={"rule": "rho", **train}, baselines=())]
    return arms + [
        Arm(name=name + beside, world=world, steps=steps, eval_every=EVERY, baselines=(fresh,),
            train={"rule": "rho", "shortlist": name, **train})
        for name in lists
    ]  # fmt: skip


def _uniform(world: World, steps: int, **train: Any) -> Arm:
    return Arm(name="uniform", world=world, steps=steps, eval_every=EVERY, baselines=(),
               train={"rule": "uniform", **train})  # fmt: skip


def _scale(seeds: int) -> Scale:
    return Scale(says="Fashion-MNIST, 500 steps of the MLP and 160 of the CNN", seeds=seeds, arms=[
        *_arms(worlds.NOISE10, 500, "fresh", LISTS), _uniform(worlds.NOISE10, 500),
        *_arms(CNN_WORLD, 160, "fresh", LISTS, model="small-cnn"), _uniform(CNN_WORLD, 160, model="small-cnn"),
        *_arms(CNN_WORLD, 160, "fresh, batch norm eval", EVAL, model="small-cnn", batch_norm="eval"),
    ])  # fmt: skip


EXPERIMENT = Experiment(
    name="scorers", title="Old scores beside training", where="ours",
    scales={"quick": _scale(1), "small": _scale(3), "full": _scale(5)},
    claims=[
        Claim(says="a shortlist of 3 n_b by predicted weights is within a point of fresh scores", world=world,
              arm="predicted:3", baseline="fresh", beyond=-0.01, metric="final accuracy", paper="not in the paper")
        for world in ("noise10", "noise10-cnn")
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
