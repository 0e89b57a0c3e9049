"""Fig. 3: what each rule keeps in its own run: wrong labels, less relevant classes, what is classified correctly.

Full: CIFAR-10 with 10 % noise, CIFAR100-Relevance, CIFAR-10; 150 epochs, read from the logs by SQL. Small:
Fashion-MNIST with 10 % noise; for relevance two classes whole and 6 % of the others, in three draws of the classes,
because with ten of them much hangs on which two, and holdout and test alike. "Already correct" is
shown over the whole run, and as in the paper over the steps in which a run was below the weakest rule's final accuracy
(here the negative IL's, so these are few); uniform makes a forward once more, so that it is known of it.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.measure import EARLY, SAYS
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, Shards, World
from jobs.reproduce.table2 import arms

SCORED = "jobs.reproduce.choices:random_choice"
RELEVANCE = World(
    name="cifar100-relevance", says="20 random classes whole, 6 % of the other 80; holdout and test alike",
    train=Shards(("cifar100-relevance", "--split", "train", "--limit", "6200"), "cifar100"), samples=6_200,
    test=Shards(("cifar100-relevance", "--split", "test"), "cifar100"), keep={"relevant": "bool"},
    ils={"il": IL(fit=worlds.CNN_FIT, holdout=Shards(
        ("cifar100-relevance", "--split", "train", "--skip", "6200", "--limit", "6200"), "cifar100"))})  # fmt: skip


def _seen(world: World, steps: int, every: int, **train: Any) -> list[Arm]:
    """All rules, and uniform once more with a forward."""
    scored = Arm(name="uniform, scored", world=world, steps=steps, eval_every=every, train={"rule": SCORED, **train})
    return [*(arm for arm in arms(world, steps, every, **train) if arm.name != "svp"), scored]


def _fashion(steps: int, seeds: int, *tails: World) -> Scale:
    few = [a for world in tails for a in _seen(world, steps, 20) if a.name in ("uniform", "loss", "rho")]
    return Scale(says="Fashion-MNIST", seeds=seeds, arms=[*_seen(worlds.NOISE10, steps, 20), *few])


RELEVANCES = tuple(worlds.relevance(draw) for draw in range(3))


def _full() -> Scale:
    sets = ((worlds.CIFAR10_NOISY, 78), (worlds.CIFAR10, 78), (RELEVANCE, 19))
    return Scale(
        says="150 epochs",
        seeds=3,
        arms=[a for world, epoch in sets for a in _seen(world, 150 * epoch, epoch, **worlds.RESNET)],
    )


EXPERIMENT = Experiment(
    name="figure3", title="What each rule keeps", where="Fig. 3",
    scales={"quick": _fashion(500, 3), "small": _fashion(600, 3, *RELEVANCES),
            "full": _full()},
    shares=("noisy", "less relevant", "correct", EARLY), figure="shares",
    claims=[
        Claim(says="rho keeps fewer wrong labels than uniform", world="noise10", arm="rho", less=True,
              metric="kept with a wrong label", paper="Fig. 3, left"),
        *(Claim(says="loss and grad_norm keep far more of them (here: by 36 points, five times the base rate)",
                world="noise10",
                arm=rule, metric="kept with a wrong label", beyond=0.36, paper="Fig. 3, left")
          for rule in ("loss", "grad_norm")),
        *(Claim(says="rho keeps somewhat fewer of the less relevant", world=world.name, arm="rho", less=True,
                metric=SAYS["less relevant"], paper="Fig. 3, middle") for world in RELEVANCES),
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
