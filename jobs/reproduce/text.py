"""Text: rho against uniform on real sentences, with the built-in model here and ALBERT v2 in the full setting.

Full: SST-2 and CoLA from GLUE's own files, half as holdout, ALBERT-base v2 (lr 2e-5, weight decay 0.02, 32 of 320), the
same model as IL. Small: Rotten Tomatoes (8,530 sentences, half as holdout), the built-in text model for both.
"""

from __future__ import annotations

from typing import Any

from jobs.reproduce import paper
from jobs.reproduce.command import command
from jobs.reproduce.settings import IL, Arm, Claim, Experiment, Scale, Shards, World

ALBERT: dict[str, Any] = {"model": "hf:albert-base-v2", "lr": 2e-5, "weight_decay": 0.02}
ALBERT_FIT = {"model": "hf:albert-base-v2", "lr": 2e-5, "epochs": 3}
BAG: dict[str, Any] = {"model": "text-bag"}


def _world(recipe: str, source: str, size: int, fit: dict[str, Any], *, test: str, says: str, **ils: IL) -> World:
    holdout = Shards((recipe, "--split", "train", "--skip", str(size), "--limit", str(size)), source)
    return World(name=recipe, says=says, train=Shards((recipe, "--split", "train", "--limit", str(size)), source),
                 test=Shards((recipe, "--split", test), source), samples=size, keep={},
                 ils={"il": IL(fit=fit, holdout=holdout), **ils})  # fmt: skip


SST2 = _world("sst2", "sst2", 33_600, ALBERT_FIT, test="dev", says="GLUE's SST-2, half as holdout; tested on dev")
COLA = _world("cola", "cola", 4_275, ALBERT_FIT, test="dev", says="GLUE's CoLA, half as holdout; tested on dev")
FIT = {"model": "text-bag", "epochs": 5}
TOMATOES = World(
    name="rotten-tomatoes", says="4,000 sentences labelled by sentiment; holdout of 3,200 others, test of 1,330",
    train=Shards(("rotten-tomatoes", "--limit", "4000"), "rotten-tomatoes"), samples=4000, keep={},
    test=Shards(("rotten-tomatoes", "--skip", "7200", "--limit", "1330"), "rotten-tomatoes"),
    ils={"il": IL(fit=FIT, holdout=Shards(("rotten-tomatoes", "--skip", "4000", "--limit", "3200"),
                                          "rotten-tomatoes")),
         "cross-fit": IL(fit=FIT)})  # fmt: skip


def _tomatoes(steps: int, seeds: int) -> Scale:
    common: dict[str, Any] = {"world": TOMATOES, "steps": steps, "eval_every": 10}
    return Scale(
        says="Rotten Tomatoes with the built-in bag of words", seeds=seeds,
        arms=[Arm(name="uniform", train={"rule": "uniform", **BAG}, baselines=(), **common),
              *(Arm(name=rule, train={"rule": rule, **BAG}, **common) for rule in ("loss", "grad_norm_is", "rho")),
              Arm(name="rho, cross-fit", train={"rule": "rho", **BAG}, il="cross-fit", **common)])  # fmt: skip


def _glue() -> Scale:
    found = []
    for world, steps, every in ((SST2, 10 * 105, 35), (COLA, 40 * 13, 13)):
        common: dict[str, Any] = {"world": world, "steps": steps, "eval_every": every}
        found += [Arm(name="uniform", train={"rule": "uniform", **ALBERT}, baselines=(), **common),
                  Arm(name="rho", train={"rule": "rho", **ALBERT}, **common)]  # fmt: skip
    return Scale(says="GLUE with ALBERT v2", arms=found, seeds=4,
                 targets={name: paper.targets(name) for name in ("sst2", "cola")})  # fmt: skip


EXPERIMENT = Experiment(
    name="text", title="Sentences", where="Table 2 (SST-2, CoLA), Fig. 5",
    scales={"quick": _tomatoes(240, 2), "small": _tomatoes(480, 5), "full": _glue()},
    claims=[Claim(says="rho reaches uniform's best in at most half the steps", world="rotten-tomatoes", arm="rho",
                  metric="times fewer steps", beyond=2,
                  paper=f"{paper.printed('cola', 'rho')}, uniform {paper.printed('cola', 'uniform')} (CoLA)")],
)  # fmt: skip
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
