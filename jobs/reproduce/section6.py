"""Beyond the paper: band, proxy, shortlist, cascade and loss_cap, re-measured; `python -m jobs.reproduce.lag` has lag.

Small: Fashion-MNIST with 10 % noise, MLP-512 and CNN targets; `loss_cap` where the IL is noisy (40 %, cross-fit). Full:
the same arms on CIFAR-10 with 10 % noise and on CIFAR-10N worse.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.cifar10n import WORSE
from jobs.reproduce.command import command
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, World

CNN: dict[str, Any] = {"model": "small-cnn"}
NOISE10_CNN = worlds.on_2000(worlds.NOISE10)
NOISE40_CNN = worlds.on_2000(worlds.NOISE40_CROSS)
CASCADE: dict[str, dict[str, Any]] = {
    "rho": {},
    "band: lowest 20 % of il dropped": {"band": "20%:100%"},
    "band: lowest 40 %, highest 10 %": {"band": "40%:90%"},
    "proxy picks 3 n_b": {"shortlist": "proxy:3"},
    "proxy picks 5 n_b": {"shortlist": "proxy:5"},
    "cascade: band 20-90 %, proxy 4 n_b": {"band": "20%:90%", "shortlist": "proxy:4"},
    "cascade: band 20-90 %, proxy 3 n_b": {"band": "20%:90%", "shortlist": "proxy:3"},
}


def cascade(world: World, steps: int, every: int, **train: Any) -> list[Arm]:
    """uniform, and rho with each of the variants; all but rho are paired with both."""
    common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": every}
    return [Arm(name="uniform", train={"rule": "uniform", **train}, baselines=(), **common),
            *(Arm(name=name, train={"rule": "rho", **stages, **train},
                  baselines=("uniform",) if name == "rho" else ("rho", "uniform"), **common)
              for name, stages in CASCADE.items())]  # fmt: skip


def capped(world: World, steps: int, every: int, **train: Any) -> list[Arm]:
    """uniform, rho and rho with both losses clipped at ln C."""
    common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": every}
    return [Arm(name="uniform", train={"rule": "uniform", **train}, baselines=(), **common),
            Arm(name="rho", train={"rule": "rho", **train}, **common),
            Arm(name="rho, loss_cap", train={"rule": "rho", "loss_cap": True, **train}, baselines=("rho", "uniform"),
                **common)]  # fmt: skip


EXPERIMENT = Experiment(
    name="section6", title="Cheaper and more robust selection", where="ours",
    scales={
        "quick": Scale(says="Fashion-MNIST, MLP only", seeds=3,
                       arms=[*cascade(worlds.NOISE10, 500, 20), *capped(worlds.NOISE40_CROSS, 500, 20)],
                       after={"noise10": (100, 200, 500)}),
        "small": Scale(says="Fashion-MNIST, an MLP and a CNN", seeds=5,
                       arms=[*cascade(worlds.NOISE10, 500, 20), *capped(worlds.NOISE40_CROSS, 500, 20),
                             *cascade(NOISE10_CNN, 280, 20, **CNN), *capped(NOISE40_CNN, 280, 20, **CNN)],
                       after={"noise10": (100, 200, 500), "noise10-cnn": (100, 200, 280)}),
        "full": Scale(says="CIFAR-10 with 10 % noise, CIFAR-10N worse", seeds=5,
                      arms=[*cascade(worlds.CIFAR10_NOISY, 100 * 78, 78, **worlds.RESNET),
                            *capped(WORSE, 50 * 156, 156, **worlds.RESNET)]),
    },
    shares=("noisy",),
    claims=[
        *(Claim(says="the cascade keeps at least 95 % of rho's gain over uniform", world=world, beyond=0.95,
                arm=f"cascade: band 20-90 %, proxy {r} n_b", metric="share of rho's gain", paper="not in the paper")
          for world in ("noise10", "noise10-cnn") for r in (4, 3)),
        *(Claim(says="the cascade costs no more than 55 % of rho a step", world=world, beyond=0.55, less=True,
                arm=f"cascade: band 20-90 %, proxy {r} n_b", metric="share of rho's cost", paper="not in the paper")
          for world in ("noise10", "noise10-cnn") for r in (4, 3)),
        *(Claim(says="loss_cap keeps fewer wrong labels where the IL is noisy", world=world, arm="rho, loss_cap",
                baseline="rho", metric="kept with a wrong label", less=True, paper="not in the paper")
          for world in ("noise40-cross", "noise40-cross-cnn")),
    ],
    notes=("band, proxy, shortlist and loss_cap are this library's, not the paper's",),
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
