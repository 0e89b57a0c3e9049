"""How much of a buffer to keep, and how to look at it for less: the settings that were searched, each of them named.

The budget is what rho at 10 % spends in 160 steps of 320: 66,560 forward units. Every arm spends about as much, learns
from what it keeps in updates of 32, and is read against training on everything where both have spent the same, the IL
model free and on the bill. Two arms have an IL model that knows less than the target, where not to look is right.
`--ratio auto` was tuned on these two worlds, so what it does here proves nothing of others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.reproduce import worlds
from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Experiment, Scale, World
from jobs.reproduce.single_pass import steps_within

N_b, N_B = 32, 320
BUDGET = 160 * (N_B + 3 * N_b)
LONGER = 3_600  # of 96 units: the run and its IL model, 345,600 at most
WEAK = {"mlp-64 IL": IL(fit={"model": "mlp-64", "epochs": 2, "fit_samples": 10_000})}
ON = {"rule": "rho", "buffer_size": N_B, "batch_size": N_b, "update_size": N_b}
# Settings of rho on top of `ON`, and what a step of each costs in forward units: the look, and three for each kept.
LOOKS: dict[str, tuple[dict[str, Any], float]] = {
    "rho, 10 %": ({}, N_B + 3 * N_b),
    "rho, 20 %": ({"ratio": 0.2}, N_B + 3 * 64),
    "rho, 33 %": ({"ratio": 0.33}, N_B + 3 * 106),
    "rho, 50 %": ({"ratio": 0.5}, N_B + 3 * 160),
    "rho, 10 %, loss_cap": ({"loss_cap": True}, N_B + 3 * N_b),
    "rho, 10 %, band 20%:90%": ({"band": "20%:90%"}, N_B + 3 * N_b),
    "rho, 10 %, scored in bf16": ({"precision": "bfloat16"}, N_B + 3 * N_b),
    "rho, 10 %, shortlist proxy:4": ({"shortlist": "proxy:4", "proxy_model": "mlp-64"}, 260.0),
    "rho, 10 %, shortlist proxy:2": ({"shortlist": "proxy:2", "proxy_model": "mlp-64"}, 196.0),
    "rho, 10 %, the first half of the units, then uniform": ({"stop_after": 80}, 151.0),
    "uniform the first half of the units, then rho, 10 %": ({"warm_up": 340}, 158.0),
    "rho, 50 % for 42 steps, then 10 %": ({"ratio": "0:0.5,42:0.1"}, 545.0),
    "rho, 10 % for 80 steps, then 50 %": ({"ratio": "0:0.1,80:0.5"}, 543.0),
    "auto": ({"ratio": "auto"}, 560.0),
    "auto, loss_cap": ({"ratio": "auto", "loss_cap": True}, 560.0),
    "auto, from 5 %": ({"ratio": "auto", "batch_size": 16}, 560.0),
    "auto, of 640": ({"ratio": "auto", "buffer_size": 640}, 1120.0),
}


def _arms(world: World) -> list[Arm]:
    everything = {"rule": "uniform", "buffer_size": N_b, "batch_size": N_b}
    found = [
        Arm(name="everything, 20%:90%", world=world, steps=steps_within(BUDGET, N_b, N_b, False, 50), eval_every=50,
            baselines=(), equal=("everything",), train={**everything, "band": "20%:90%"}),
        Arm(name="everything", world=world, steps=LONGER, eval_every=50, baselines=(), train=everything),
    ]  # fmt: skip
    looks = [(name, "il", *how) for name, how in LOOKS.items()]
    looks += [(f"{name}, {il}", il, *LOOKS[name]) for il in WEAK for name in ("rho, 10 %", "rho, 50 %", "auto")]
    for name, il, train, units in looks:
        every = max(1, round(BUDGET / units / 12))  # a dozen evaluations
        found.append(Arm(name=name, world=world, steps=int(BUDGET / units) // every * every, eval_every=every, il=il,
                         baselines=(), equal=("everything",), train={**ON, **train}))  # fmt: skip
    return found


def _small(world: World) -> World:
    """Tested on 2,000 images, and with a weak IL model beside its own."""
    return replace(world, test=worlds.TEST_2000, ils={**world.ils, **WEAK})


TUNED = tuple(map(_small, (worlds.NOISE10, worlds.NOISE40_CROSS)))
SMALL = [arm for world in TUNED for arm in _arms(world)]
EXPERIMENT = Experiment(
    name="search", title="How much to keep, and how to look for less", where="section 5; ours",
    scales={"quick": Scale(says="one world", seeds=1, arms=_arms(TUNED[0])),
            "small": Scale(says="Fashion-MNIST, the worlds that auto was tuned on", seeds=3, arms=SMALL),
            "full": Scale(says="the same on more seeds", seeds=10, arms=SMALL)},
    figure="cost curves", shares=("noisy",),
    notes=("auto was tuned on these worlds", "an MLP takes pictures of one size, so no cheap view is searched here"),
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
