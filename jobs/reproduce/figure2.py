"""Fig. 2: speed-ups on clean data by one IL model: small, without a holdout, reused over architectures and settings.

Full: CIFAR-10, CIFAR-100, CINIC-10; rows: IL by a ResNet-18, by the small CNN, cross-fit; 7 architectures; the grid
batch 160/320/960 x lr 1e-4/1e-3/1e-2 x weight decay 1e-3/1e-2/1e-1, uniform's best within 100 epochs. Small:
Fashion-MNIST; IL by an MLP-512, an MLP-64, cross-fit; targets MLP-256, MLP-512 and a CNN; the grid n_B x lr at one
weight decay. Architectures and grid use one IL table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.reproduce import nets, worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, World

ILS = {
    "il": worlds.BY_HOLDOUT,
    "mlp-512": IL(fit={"model": "mlp-512", "epochs": 5}, holdout=worlds.HOLDOUT),
    "mlp-64": IL(fit={"model": "mlp-64", "epochs": 5}, holdout=worlds.HOLDOUT),
    "cross-fit": worlds.CROSS_FIT,
}
WORLD = replace(worlds.CLEAN, ils=ILS)
CNN_WORLD = worlds.on_2000(worlds.CLEAN)
ARCHITECTURES = tuple(f"{nets.__name__}:{name}" for name in nets.__all__)


def _both(world: World, name: str, steps: int, every: int, il: str = "il", **train: Any) -> list[Arm]:
    """rho of some setting beside uniform of the same."""
    base = f"uniform, {name}"
    common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": every}
    return [Arm(name=base, train={"rule": "uniform", **train}, baselines=(), **common),
            Arm(name=name, train={"rule": "rho", **train}, il=il, baselines=(base,), **common)]  # fmt: skip


def _grid(
    world: World,
    steps: int,
    every: int,
    buffers: tuple[int, ...],
    lrs: tuple[float, ...],
    decays: tuple[float, ...] = (0.01,),
    *,
    longer: bool = False,
    **train: Any,
) -> list[Arm]:
    """`steps` and `every` are those of n_B = 320; other buffers see D as often, and are evaluated as often.

    `longer`: a uniform run each that spends rho's units, its IL model not charged.
    """
    found = []
    for n_B in buffers:
        mine = max(1, round(every * 320 / n_B))
        for lr in lrs:
            for decay in decays:
                name = f"n_B {n_B}, lr {lr:g}" + (f", wd {decay:g}" if len(decays) > 1 else "")
                both = _both(world, name, steps // every * mine, mine, buffer_size=n_B, batch_size=n_B // 10, lr=lr,
                             weight_decay=decay, **train)  # fmt: skip
                if longer:
                    units = steps // every * mine * (n_B + 3 * (n_B // 10))
                    more = worlds.longer(
                        world,
                        -(-units // (3 * (n_B // 10)) // 50) * 50 + 50,
                        f"uniform, longer, {name}",
                        n_B // 10,
                        lr=lr,
                        weight_decay=decay,
                        **train,
                    )
                    both = [both[0], replace(both[1], equal=(more.name,)), more]
                found += both
    return found


def _rows(steps: int, *names: str) -> list[Arm]:
    """Rows 1 to 3: one target, IL models of all kinds."""
    common: dict[str, Any] = {"world": WORLD, "steps": steps, "eval_every": 20}
    return [Arm(name="uniform", train={"rule": "uniform"}, baselines=(), **common),
            *(Arm(name=f"IL {name if name != 'il' else 'mlp-256'}", train={"rule": "rho"}, il=name, **common)
              for name in names)]  # fmt: skip


def _small() -> Scale:
    return Scale(
        says="Fashion-MNIST, 600 steps of 320 (6 passes)", seeds=3,
        arms=[*_rows(600, *ILS), *_both(WORLD, "target mlp-256", 600, 20, model="mlp-256"),
              *_both(WORLD, "target mlp-64", 600, 20, model="mlp-64"),
              *_both(CNN_WORLD, "target small-cnn", 400, 20, model="small-cnn"),
              *_grid(WORLD, 600, 20, (160, 320, 960), (1e-4, 1e-3, 1e-2), longer=True)])  # fmt: skip


def _quick() -> Scale:
    return Scale(
        says="Fashion-MNIST, 400 steps of 320 (4 passes)", seeds=2,
        arms=[*_rows(400, "mlp-512", "mlp-64", "cross-fit"),
              *_both(WORLD, "target mlp-256", 400, 20, model="mlp-256"),
              *_grid(WORLD, 400, 20, (160, 320), (1e-3, 1e-2))])  # fmt: skip


def _full() -> Scale:
    found: list[Arm] = []
    large, cross = IL(fit=worlds.RESNET_FIT, holdout=None), IL(fit=worlds.CNN_FIT)
    for base, epoch in ((worlds.CIFAR10, 78), (worlds.CIFAR100, 78), (worlds.CINIC10, 140)):
        ils = {**base.ils, "resnet18": replace(large, holdout=base.ils["il"].holdout), "cross-fit": cross}
        world, budget = replace(base, ils=ils), 100 * epoch
        train = dict(worlds.RESNET)
        found += _both(world, "target resnet18", budget, epoch, **train)
        found += [Arm(name=f"IL {il}", world=world, steps=budget, eval_every=epoch, train={"rule": "rho", **train},
                      il=il, baselines=("uniform, target resnet18",)) for il in ("resnet18", "cross-fit")]  # fmt: skip
        for model in ARCHITECTURES:
            found += _both(world, f"target {model.partition(':')[2]}", budget, epoch, **{**train, "model": model})
        found += _grid(world, budget, epoch, (160, 320, 960), (1e-4, 1e-3, 1e-2), (1e-3, 1e-2, 1e-1), **train)
    return Scale(says="100 epochs of |D|/n_B steps for both", arms=found, seeds=2)


EXPERIMENT = Experiment(
    name="figure2", title="One IL model for all: size, holdout, architectures, hyper-parameters", where="Fig. 2",
    scales={"quick": _quick(), "small": _small(), "full": _full()}, figure="dots",
    claims=[
        Claim(says="a small IL model speeds training up", world="clean", arm="IL mlp-64", metric="times fewer steps",
              beyond=1, paper="as much as the large one or more"),
        Claim(says="no holdout is needed", world="clean", arm="IL cross-fit", metric="times fewer steps", beyond=1,
              paper="Fig. 2, row 3"),
        Claim(says="another architecture profits from the same IL", world="clean-cnn", arm="target small-cnn",
              baseline="uniform, target small-cnn", metric="times fewer steps", beyond=1, paper="Fig. 2, row 4"),
        *(Claim(says="hyper-parameters: sooner at nearly all", world="clean", arm=f"n_B {n_B}, lr {lr:g}", beyond=1,
                baseline=f"uniform, n_B {n_B}, lr {lr:g}", metric="times fewer steps", paper="Fig. 2, row 5")
          for n_B in (160, 320, 960) for lr in (1e-4, 1e-3, 1e-2)),
    ],
    notes=("a network that is far worse under uniform training need not profit (the paper: VGG11, and settings where "
           "uniform stays under 80 %)",),
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
