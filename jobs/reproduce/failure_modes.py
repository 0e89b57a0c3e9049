"""Where selection by reducible loss may fail, each case beside uniform, and beside what mends it where something does.

Noisy holdout with structured noise; near-duplicates in a buffer; an imbalanced or shifted holdout; late training;
strong augmentation; a high ratio; an IL model stronger than the target; a memorised IL; and loss_cap and band
where the IL is noisy. Full: the last of these on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, World
from jobs.reproduce.worlds import FIT, HELD, NOISE10, NOISE40_CROSS, STRUCTURED, D, fashion

Variants = dict[str, dict[str, Any]]


def _held(world: World, name: str, says: str, holdout: IL) -> World:
    return replace(world, name=name, says=says, ils={"il": holdout})


NOISY_HOLDOUT = _held(
    STRUCTURED,
    "structured-everywhere",
    "structured noise in D and in the holdout alike",
    IL(fit=FIT, holdout=fashion("structured", 0.5, limit=HELD, skip=D)),
)
COPIES = replace(NOISE10, name="near-duplicates", says="8,000 images and 3 jittered copies of each, 10 % noise",
                 train=fashion("uniform", 0.1, "--copies", "3", limit=8000))  # fmt: skip
TAIL = fashion("none", None, "--imbalance", "17", limit=HELD, skip=D)
IMBALANCED = replace(NOISE10, name="imbalanced-holdout",
                     says="10 % noise; the holdout's classes differ 17 times in size",
                     ils={"il": IL(fit=FIT, holdout=TAIL), "balanced": IL(fit={**FIT, "balance": "sample"},
                                                                          holdout=TAIL)})  # fmt: skip
SHIFTED = _held(
    NOISE10,
    "shifted-holdout",
    "10 % noise; a holdout of 4,000 images and 6 jittered copies of each",
    IL(fit=FIT, holdout=fashion("none", None, "--copies", "6", limit=4000, skip=D)),
)
STRONG_IL = _held(NOISE10, "strong-il", "10 % noise; IL by an MLP-512, target an MLP-64",
                  IL(fit={"model": "mlp-512", "epochs": 8}, holdout=worlds.HOLDOUT))  # fmt: skip
MEMORISED = _held(NOISE10, "memorised-il", "10 % noise; the IL model learned from D itself, for 40 epochs",
                  IL(fit={"model": "mlp-512", "epochs": 40}, holdout=NOISE10.train))  # fmt: skip


def _beside(
    world: World, steps: int, variants: Variants, ils: Mapping[str, str] = MappingProxyType({}), **train: Any
) -> list[Arm]:
    """uniform and rho, and rho with each variant and each other IL (arm -> IL), paired with both."""
    common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": 20}
    return [Arm(name="uniform", train={"rule": "uniform", **train}, baselines=(), **common),
            Arm(name="rho", train={"rule": "rho", **train}, **common),
            *(Arm(name=name, train={"rule": "rho", **train, **changes}, baselines=("uniform", "rho"), **common)
              for name, changes in variants.items()),
            *(Arm(name=name, il=il, train={"rule": "rho", **train}, baselines=("uniform", "rho"), **common)
              for name, il in ils.items())]  # fmt: skip


CAP: Variants = {"rho, loss_cap": {"loss_cap": True}}
HOT: Variants = {
    **CAP,
    "rho, band: highest 30 % dropped": {"band": "0%:70%"},
    "rho, gumbel 0.5": {"gumbel": 0.5},
    "rho, loss_cap, gumbel 0.5": {"loss_cap": True, "gumbel": 0.5},
}


def _all(steps: int) -> list[Arm]:
    late = 3 * steps
    return [
        *_beside(NOISY_HOLDOUT, steps, CAP),
        *_beside(COPIES, steps, {"rho, deduplicate 0.99": {"deduplicate": 0.99}}),
        *_beside(IMBALANCED, steps, {"rho, class quota": {"class_quota": "balanced"}},
                 {"rho, balanced fit of the IL": "balanced"}),
        *_beside(SHIFTED, steps, {}),
        *_beside(replace(NOISE10, name="late-training"), late, {
            "rho, stops half-way": {"stop_after": late // 2}}),
        *_beside(replace(NOISE10, name="augmented"), steps, {}, augment="flip-shift"),
        *_beside(replace(NOISE10, name="high-ratio"), steps, {"rho, 80 %": {"buffer_size": 40}}, buffer_size=64),
        *_beside(STRONG_IL, steps, {}, model="mlp-64"),
        *_beside(MEMORISED, steps, CAP, keep_holdout=True),  # all of D is the holdout
        *_beside(NOISE40_CROSS, steps, HOT),
    ]  # fmt: skip


def _full() -> Scale:
    cifar = {"steps": 78 * 50, **worlds.RESNET}
    noisy = worlds.paper_world("cifar10", 50_000, 0.4)
    found = []
    for world, variants in ((worlds.CIFAR10_NOISY, CAP), (noisy, HOT)):
        found += [replace(arm, eval_every=78) for arm in _beside(world, cifar["steps"], variants, **worlds.RESNET)]
    return Scale(says="CIFAR-10 with 10 % noise and a clean holdout, and with 40 % noise and none", seeds=3, arms=found)


EXPERIMENT = Experiment(
    name="failure_modes", title="Failure modes", where="section 6 of the paper, and ours",
    scales={"quick": Scale(says="Fashion-MNIST, 300 steps", seeds=1, arms=_all(300)),
            "small": Scale(says="Fashion-MNIST, 300 steps", seeds=3, arms=_all(300)), "full": _full()},
    shares=("noisy",),
    claims=[
        Claim(says="a holdout with the same structured noise gains nothing", world="structured-everywhere", arm="rho",
              metric="final accuracy", beyond=0.02, less=True, paper="not in the paper"),
        Claim(says="a memorised IL gains nothing", world="memorised-il", arm="rho", metric="final accuracy", less=True,
              paper="not in the paper"),
        Claim(says="an IL stronger than the target still gains", world="strong-il", arm="rho", metric="final accuracy",
              paper="section 4.3: the reducible loss may be negative"),
        Claim(says="a high ratio gains less but still gains", world="high-ratio", arm="rho", metric="final accuracy",
              paper="Fig. 8"),
    ],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
