"""Every published world at equal cost: what a user gets for the same forward units, its IL model on the bill or not.

A forward through the target is the unit and a gradient step costs 3 a sample. Every arm gets `BUDGET` units, three
passes of rho at 10 % over 32,000 samples; the baselines go on until they have spent an IL model as well, so that they
can be read with and without it on rho's bill. "uniform" draws 32 of 320 and "everything, longer" trains on all that it
reads, as much fresh data as the budget buys: it sees samples again beyond |D| / 32 steps, which is 96,000 units where D
is 32,000, and never in the worlds of all 60,000. The IL model is a cheap one, named with the world.
Small: Fashion-MNIST, CIFAR-10N `worse`, Rotten Tomatoes (--source for the last two). Full: CIFAR-10, the paper's way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.reproduce import cifar10n, text, worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Experiment, Scale, World

N_b = 32
BUDGET = 124_800  # forward units: 300 steps of rho at 10 %
RATIOS = {10: 320, 20: 160, 33: 96, 50: 64}  # per cent kept -> n_B
BASELINES = ("uniform", "everything, longer")
GUARDED = ("auto", "rho, 10 %", "cascade")  # what the no-regret table shows of this experiment
TUNED = ("noise10", "noise40-cross", "structured")  # worlds that `--ratio auto` was chosen on
CASCADE: dict[str, Any] = {"band": "20%:90%", "shortlist": "proxy:4"}
TINY = {"model": "mlp-64", "epochs": 2}  # a twelfth of the target's multiply-adds
LENET = {"model": "small-cnn-lenet", "epochs": 6, "augment": "shift-flip"}


def _grid(per_step: float, budget: float, evaluations: int) -> tuple[int, int]:
    """(steps, steps between evaluations) of a budget of forward units: the nearest whole grid that ends within it."""
    every = max(1, round(budget / evaluations / per_step))
    return int(budget / per_step + 1e-6) // every * every, every


def arms(world: World, budget: int = BUDGET, *, beyond: float = 1.25, evaluations: int = 20, **train: Any) -> list[Arm]:
    """The arms of a world; `beyond`: how far the baselines go on, in budgets."""

    def made(name: str, per_step: float, n_B: int, goes_on: float = 1.0, **settings: Any) -> Arm:
        steps, every = _grid(per_step, budget * goes_on, round(evaluations * goes_on))
        told = name in BASELINES
        return Arm(name=name, world=world, steps=steps, eval_every=every, baselines=() if told else BASELINES,
                   equal=() if told else BASELINES,
                   train={**settings, "buffer_size": n_B, "batch_size": N_b, **train})  # fmt: skip

    plain = 3 * N_b
    found = [made("uniform", plain, 320, beyond, rule="uniform"),
             made("everything, longer", plain, N_b, beyond, rule="uniform")]  # fmt: skip
    found += [made(f"rho, {share} %", n_B + plain, n_B, rule="rho") for share, n_B in RATIOS.items()]
    if train != text.BAG:  # a proxy of text would be the target itself
        found += [made("cascade", 250, 320, rule="rho", **CASCADE)]
    # A step of auto costs what it keeps: the number of steps is a guess, they are read within the budget, or where it
    # ends before. Of 320 what a look decides, half of it at most, is learned in up to five updates, of 160 in two.
    for name, n_B, share in (("auto", 160, 0.9), ("auto, of 320", 320, 0.75)):
        steps, every = _grid(n_B + plain, share * budget, round(1.1 * evaluations))
        auto = made(name, plain, n_B, rule="rho", ratio="auto")
        found += [replace(auto, steps=steps, eval_every=every, units=budget)]
    return found


def cheap(world: World, fit: dict[str, Any] = TINY, **changes: Any) -> World:
    """The world with a cheap IL model in place of its own, on the same holdout or cross-fitted as that was."""
    model = f"IL: {fit['model']}, {fit['epochs']} epochs"
    held = world.ils["il"].holdout
    says = world.says.replace("two MLP-256", "two models")
    return replace(world, says=f"{says}; {model}", ils={"il": IL(fit=fit, holdout=held)}, **changes)


HALF = tuple(map(cheap, (worlds.NOISE10, worlds.CLEAN, worlds.STRUCTURED, worlds.NOISE40_CROSS, worlds.AMBIGUOUS,
                         worlds.NOISE20)))  # fmt: skip
ALL = tuple(map(cheap, (worlds.ALL_NOISE10, worlds.ALL_CLEAN)))
RELEVANCE = cheap(worlds.relevance(0))  # 7,936 samples: six passes of rho at 10 % are half the others' budget
CNN = cheap(worlds.on_2000(worlds.NOISE10))
WORSE = cheap(cifar10n.SMALL_WORSE, LENET)
TOMATOES = cheap(text.TOMATOES, text.FIT)  # no smaller text model is built in: its IL model costs as much a sample


def _small() -> list[Arm]:
    found = [arm for world in HALF for arm in arms(world)]
    found += arms(RELEVANCE, BUDGET // 2, beyond=1.5)
    found += [arm for world in ALL for arm in arms(world, beyond=1.5)]
    found += arms(TOMATOES, BUDGET // 2, beyond=1.9, **text.BAG)
    found += arms(CNN, BUDGET // 3, beyond=1.1, evaluations=10, model="small-cnn")
    found += arms(WORSE, BUDGET // 2, evaluations=10, beyond=1.4, **cifar10n.SMALL)
    return found


def _full() -> list[Arm]:
    fit = {"model": "small-cnn-lenet", "epochs": 5, "augment": "shift-flip"}
    chosen = (worlds.CIFAR10, worlds.CIFAR10_NOISY)
    return [arm for world in chosen for arm in arms(cheap(world, fit), 30 * 78 * 416, **worlds.RESNET)]


EXPERIMENT = Experiment(
    name="equal_cost", title="Every world at equal cost", where="section 1; ours",
    scales={"quick": Scale(says="Fashion-MNIST, 10 % noise", seeds=3, arms=arms(HALF[0], BUDGET // 3)),
            "small": Scale(says=f"{BUDGET:,} forward units, or as the world says", seeds=3, arms=_small()),
            "full": Scale(says="CIFAR-10, 30 passes of rho at 10 %", seeds=3, arms=_full())},
    figure="cost curves", shares=("noisy",),
    notes=("worlds that the ratio schedule was chosen on: " + ", ".join(TUNED),),
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
