"""An IL model that costs a tenth of the run: how few samples, epochs and pixels, how small a model, and what rho keeps.

Every IL model of a world is made for the same D, and rho runs with it for the same steps. "il" is that of the other
experiments: five epochs (six of the CNN) that somebody chose. The others end by themselves, when the loss on samples
that they don't learn from no longer falls: `fit_il`'s default. They differ in the network, the pixels that it sees and
the samples that it may learn from (`single_pass` has two of a fixed number of epochs, which are too few).
Full: CIFAR-10 with 10 % noise, CIFAR-10N worse (small CNN). Small: Fashion-MNIST (MLP-512).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.reproduce import cifar10n, worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Options, Scale, World

SMALL: dict[str, Any] = {"model": "mlp-64", "image_size": 16, "lr": 3e-3}
FASHION: dict[str, Options] = {
    "mlp-64, 16 px": SMALL,
    "mlp-64, 16 px, 8,000 samples": {**SMALL, "fit_samples": 8_000},
}
FLIPPED = {"augment": "shift-flip"}
CIFAR: dict[str, Options] = {
    "small-cnn, 16 px": {"model": "small-cnn", "image_size": 16, **FLIPPED},
    "mlp-256, 16 px": {"model": "mlp-256", "image_size": 16, **FLIPPED},
}


def cheap(world: World, fits: dict[str, Options]) -> World:
    """The world with further IL models, learned from what its own learned from."""
    own = {name: IL(fit=fit, holdout=world.ils["il"].holdout) for name, fit in fits.items()}
    return replace(world, ils={**world.ils, **own})


def arms(world: World, steps: int, every: int, side: int, **train: Any) -> list[Arm]:
    """uniform, rho with the world's own IL model, and rho with each of the others, held against both."""
    common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": every}
    # A table of smaller pictures would have the target see those.
    sized = {name: {"image_size": side} if "image_size" in il.fit else {} for name, il in world.ils.items()}
    return [Arm(name="uniform", train={"rule": "uniform", **train}, baselines=(), **common),
            *(Arm(name="rho" if il == "il" else f"rho, {il}", il=il, train={"rule": "rho", **sized[il], **train},
                  baselines=("uniform",) if il == "il" else ("rho", "uniform"), **common)
              for il in world.ils)]  # fmt: skip


NOISE10, NOISE40 = (cheap(world, FASHION) for world in (worlds.NOISE10, worlds.NOISE40_CROSS))
ON_FASHION = [*arms(NOISE10, 600, 20, 28), *arms(NOISE40, 600, 20, 28)]
WORSE = cheap(cifar10n.SMALL_WORSE, CIFAR)
CIFAR10 = cheap(worlds.CIFAR10_NOISY, {"small-cnn, 16 px": CIFAR["small-cnn, 16 px"]})
TENTH = "mlp-64, 16 px"
FINALISTS = ((NOISE10.name, f"rho, {TENTH}"), (NOISE40.name, f"rho, {TENTH}"), (WORSE.name, "rho, mlp-256, 16 px"),
             (WORSE.name, "rho, small-cnn, 16 px"))  # fmt: skip
EXPERIMENT = Experiment(
    name="cheap_il", title="An IL model at a tenth of the run", where="section 3; ours",
    scales={
        "quick": Scale(says="Fashion-MNIST", seeds=1, arms=ON_FASHION),
        "small": Scale(says="Fashion-MNIST", seeds=3, arms=ON_FASHION),
        "full": Scale(says="CIFAR-10 with 10 % noise, CIFAR-10N worse", seeds=3,
                      arms=[*arms(CIFAR10, 50 * 78, 78, 32, **worlds.RESNET),
                            *arms(WORSE, 400, 20, 32, **cifar10n.SMALL)]),
    },
    shares=("noisy",),
    claims=[
        *(Claim(says="a cheap IL model keeps at least 95 % of rho's gain over uniform", world=world, arm=arm,
                beyond=0.95, metric="share of rho's gain", paper="not in the paper") for world, arm in FINALISTS),
        *(Claim(says="it costs at most a tenth of the run", world=world, arm=arm, beyond=0.1, less=True,
                metric="share of the run that its IL model costs", paper="not in the paper")
          for world, arm in FINALISTS),
    ],
    notes=("the cost of an IL model: its fit, its looks at itself, and the scoring of all of D",),
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
