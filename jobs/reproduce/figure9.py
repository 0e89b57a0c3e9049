"""Fig. 9: active-learning rules by MC dropout as online batch selection: BALD, entropies, loss minus an entropy.

Full: MNIST with an MLP 2x512 (dropout 0.5) and CIFAR-10 with a small CNN (dropout 0.05), 10 draws. Small: Fashion-MNIST
with the same MLP.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, World

ACTIVE = ("bald", "entropy", "conditional_entropy", "loss_minus_conditional_entropy")


def _all(world: World, steps: int, every: int, **train: Any) -> list[Arm]:
    common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": every}
    return [Arm(name=rule, train={"rule": rule, **({"mc_draws": 10} if rule in ACTIVE else {}), **train},
                baselines=() if rule == "uniform" else ("uniform",), **common)
            for rule in ("uniform", "rho", *ACTIVE)]  # fmt: skip


MLP: dict[str, Any] = {"model": "mlp-512-dropout"}
CNN: dict[str, Any] = {"model": "small-cnn-dropout", **worlds.AUGMENTED}
EXPERIMENT = Experiment(
    name="figure9", title="Active-learning rules", where="Fig. 9, App. G",
    scales={"quick": Scale(says="Fashion-MNIST, 300 steps", seeds=2, arms=_all(worlds.CLEAN, 300, 20, **MLP)),
            "small": Scale(says="Fashion-MNIST, 400 steps", seeds=3, arms=_all(worlds.CLEAN, 400, 20, **MLP)),
            "full": Scale(says="QMNIST and CIFAR-10", seeds=3,
                          arms=[*_all(worlds.qmnist(), 1870, 187, **MLP),
                                *_all(worlds.CIFAR10, 150 * 78, 78, **CNN)])},
    claims=[
        Claim(says="rho accelerates training", world="clean", arm="rho", metric="times fewer steps", beyond=1,
              paper="Fig. 9"),
        *(Claim(says="active-learning rules accelerate training on an easy set", world="clean", arm=rule, beyond=1,
                metric="times fewer steps", paper="Fig. 9, left (MNIST; on CIFAR-10 they do not)") for rule in ACTIVE),
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
