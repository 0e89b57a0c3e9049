"""Fig. 6: patterns of label noise: uniform, structured (look-alikes at 50 %), ambiguous images.

Full: QMNIST, holdout 50,000, MLP 2x512 for target and IL. Small: Fashion-MNIST. Noise is on D; the holdout is clean.
"Degrades" is against the rule's own run on clean labels, tested on the same images.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.compare import GROWTH
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, Shards, World
from jobs.reproduce.table2 import arms

RULES = ("uniform", "loss", "grad_norm", "grad_norm_is", "rho")
ALL = (*RULES, "uniform, longer")


def _qmnist(name: str, *noise: str) -> World:
    clean = worlds.qmnist()
    return replace(
        clean,
        name=f"qmnist-{name}",
        says=f"QMNIST, D with {name} noise, clean holdout of 50,000",
        train=Shards(("web", "--base", "qmnist", "--copies", "0", *noise), "qmnist"),
    )


def _of(chosen: tuple[World, ...], steps: int, every: int, seeds: int, says: str, longer: int = 0) -> Scale:
    """The first world is the clean one, which every rule is held against as well."""
    clean, *noisy = chosen
    found = [arm for arm in arms(clean, steps, every, longer=longer) if arm.name in ALL]
    for world in noisy:
        found += [_beside(arm, clean) for arm in arms(world, steps, every, longer=longer) if arm.name in ALL]
    return Scale(says=says, seeds=seeds, arms=found)


def _beside(arm: Arm, clean: World) -> Arm:
    return arm if arm.name not in RULES else replace(arm, baselines=(*arm.baselines, f"{clean.name}: {arm.name}"))


SMALL = (worlds.CLEAN, worlds.NOISE10, worlds.STRUCTURED, worlds.AMBIGUOUS)
FULL = (
    _qmnist("none", "--noise", "none"),
    _qmnist("uniform", "--noise", "uniform", "--noise-rate", "0.1"),
    _qmnist("structured", "--noise", "structured"),
    _qmnist("ambiguous", "--noise", "ambiguous"),
)
EXPERIMENT = Experiment(
    name="figure6", title="Patterns of label noise", where="Fig. 6, App. C",
    scales={"quick": _of((worlds.CLEAN, worlds.STRUCTURED), 500, 20, 3, "Fashion-MNIST, 5 passes"),
            "small": _of(SMALL, 600, 20, 3, "Fashion-MNIST, 6 passes", worlds.LONGER),
            "full": _of(FULL, 10 * 187, 187, 3, "10 epochs")},
    shares=("noisy",),
    claims=[
        *(Claim(says="the speed-up grows with noise", world=world, arm="rho", baseline="clean: rho", metric=GROWTH,
                beyond=1, paper="section 4.4: it grows on noisier data") for world in ("structured", "ambiguous")),
        Claim(says="rho is robust to structured noise (here: at least 10 points above uniform)", world="structured",
              arm="rho", metric="final accuracy", beyond=0.10, paper="Fig. 6, middle"),
        *(Claim(says="loss and grad_norm degrade under noise, against their own clean runs", world=world, arm=rule,
                baseline=f"clean: {rule}", metric="final accuracy", less=True, paper="Fig. 6")
          for world in ("noise10", "structured", "ambiguous") for rule in ("loss", "grad_norm")),
        Claim(says="rho is robust to ambiguous images", world="ambiguous", arm="rho", metric="final accuracy",
              paper="Fig. 6, right"),
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
