"""Fig. 6: patterns of label noise: uniform, structured (look-alikes at 50 %), ambiguous images.

Full: QMNIST, holdout 50,000, MLP 2x512 for target and IL. Small: Fashion-MNIST. Noise is on D; the holdout is clean.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, Shards, World
from jobs.reproduce.table2 import arms

RULES = ("uniform", "loss", "grad_norm", "grad_norm_is", "rho")


def _qmnist(name: str, *noise: str) -> World:
    clean = worlds.qmnist()
    return replace(clean, name=f"qmnist-{name}", says=f"QMNIST, D with {name} noise, clean holdout of 50,000",
                   train=Shards(("web", "--base", "qmnist", "--copies", "0", *noise), "qmnist"))


def _of(chosen: tuple[World, ...], steps: int, every: int, seeds: int, says: str) -> Scale:
    found: list[Arm] = [arm for world in chosen for arm in arms(world, steps, every) if arm.name in RULES]
    return Scale(says=says, seeds=seeds, arms=found)


SMALL = (worlds.NOISE10, worlds.STRUCTURED, worlds.AMBIGUOUS)
FULL = (_qmnist("none", "--noise", "none"), _qmnist("uniform", "--noise", "uniform", "--noise-rate", "0.1"),
        _qmnist("structured", "--noise", "structured"), _qmnist("ambiguous", "--noise", "ambiguous"))
EXPERIMENT = Experiment(
    name="figure6", title="Patterns of label noise", where="Fig. 6, App. C",
    scales={"quick": _of((worlds.STRUCTURED,), 500, 20, 3, "Fashion-MNIST, 5 passes"),
            "small": _of(SMALL, 600, 20, 3, "Fashion-MNIST, 6 passes"),
            "full": _of(FULL, 10 * 187, 187, 3, "10 epochs")},
    shares=("noisy",),
    claims=[
        Claim(says="rho is robust to structured noise (here: at least 10 points above uniform)", world="structured",
              arm="rho", metric="final accuracy", beyond=0.10, paper="Fig. 6, middle"),
        Claim(says="loss degrades under structured noise", world="structured", arm="loss", metric="final accuracy",
              less=True, paper="Fig. 6, middle"),
        Claim(says="grad_norm degrades under structured noise", world="structured", arm="grad_norm", less=True,
              metric="final accuracy", paper="Fig. 6, middle"),
        Claim(says="rho is robust to ambiguous images", world="ambiguous", arm="rho", metric="final accuracy",
              paper="Fig. 6, right"),
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
