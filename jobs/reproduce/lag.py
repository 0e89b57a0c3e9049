"""Stale scores: what scores k steps old cost, and how fresh scores of a shortlist mend it.

`train` scores with the current weights only, so this is a loop of one's own: a stream, a selector on a copy of the
model that is k steps behind, the target. Each run ends as one small JSON file: what is there is not done again, and a
run that was stopped starts anew (it takes a minute). Fashion-MNIST, 10 % noise, clean holdout, MLP-512; in
the small form the small CNN too.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import rhostream
from jobs.reproduce import worlds
from jobs.reproduce.available import missing
from jobs.reproduce.command import Asked, finish, guarded, options
from jobs.reproduce.compare import compare
from jobs.reproduce.execute import Training, pool, run_all
from jobs.reproduce.figures import draw
from jobs.reproduce.il_accuracy import by_pass
from jobs.reproduce.images import load_images
from jobs.reproduce.measure import IL_ACCURACY, Curve
from jobs.reproduce.prepare import quiet, shards_of, table_of
from jobs.reproduce.results import evaluation_rows, setting_rows, stated
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale, World

VARIANTS: dict[str, dict[str, int]] = {
    "uniform": {"lag": 0, "shortlist": 1},
    "fresh": {"lag": 0, "shortlist": 1},
    "1 step old": {"lag": 1, "shortlist": 1},
    "4 steps old": {"lag": 4, "shortlist": 1},
    "1 step old picks 2 n_b, then fresh": {"lag": 1, "shortlist": 2},
    "4 steps old picks 5 n_b, then fresh": {"lag": 4, "shortlist": 5},
}
ONE_STEP = ("uniform", "fresh", "1 step old", "1 step old picks 2 n_b, then fresh")
CNN_WORLD = worlds.on_2000(worlds.NOISE10)
EVERY = 20


def _rule(name: str) -> str:
    return "uniform" if name == "uniform" else "rho"


def _arms(steps: int, world: World, names: Iterable[str] = VARIANTS, **train: Any) -> list[Arm]:
    return [Arm(name=name, world=world, steps=steps, eval_every=EVERY, train={"rule": _rule(name), **train},
                baselines={"uniform": (), "fresh": ("uniform",)}.get(name, ("fresh", "uniform")))
            for name in names]  # fmt: skip


def _scale(steps: int, seeds: int, world: World = worlds.NOISE10, *more: Arm) -> Scale:
    return Scale(
        says=f"Fashion-MNIST, {steps} steps",
        seeds=seeds,
        after={world.name: (100, 200, 500)},
        arms=[*_arms(steps, world), *more],
    )


EXPERIMENT = Experiment(
    name="lag", title="Stale scores", where="ours",
    scales={"quick": _scale(200, 2),
            "small": _scale(500, 5, worlds.NOISE10, *_arms(160, CNN_WORLD, ONE_STEP, model="small-cnn")),
            "full": _scale(500, 5, worlds.CIFAR10_NOISY)},
    claims=[
        *(Claim(says="scores one step old are harmful", world=world, arm="1 step old", baseline="fresh", less=True,
                metric="final accuracy", paper="not in the paper") for world in ("noise10", "noise10-cnn")),
        *(Claim(says="a shortlist of them with fresh scores is not (here: within half a point)", world=world,
                arm="1 step old picks 2 n_b, then fresh", baseline="fresh", beyond=-0.005, metric="final accuracy",
                paper="not in the paper") for world in ("noise10", "noise10-cnn")),
    ],
    notes=("units are the trainer's own: stale scores can be made elsewhere, so their forwards are not charged to it",),
)  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """One run of one's own loop; a value, so that another process can do it."""

    arm: Arm
    seed: int
    out: str

    @property
    def path(self) -> Path:
        """Where its curve is left."""
        return Path(self.out, "lag", f"{self.arm.folder(self.seed)}-{self.arm.steps}.json")

    def __call__(self) -> tuple[str, int]:
        """Train it unless its file is there; returns its name and seed."""
        quiet()
        if not self.path.exists():
            curve = _train(self.arm, self.seed, self.out)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(f".{os.getpid()}.tmp")
            part.write_text(json.dumps(curve))
            os.replace(part, self.path)
        return self.arm.name, self.seed


def _train(arm: Arm, seed: int, out: str) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from rhostream.models import build
    from rhostream.selection.forward import Forward

    torch.set_num_threads(1)
    started, how = time.monotonic(), VARIANTS[arm.name]
    n_B, n_b = arm.settings["buffer_size"], arm.settings["batch_size"]
    stream = rhostream.open_stream([shards_of(out, arm.world.train)], table_of(out, arm.world, arm.il),
                                   buffer_size=n_B, seed=seed, passes=None)  # fmt: skip
    test = load_images(out, shards_of(out, arm.world.test))
    torch.manual_seed(seed)
    model = build(arm.settings["model"], classes=10, **stream.stream.preprocess.model_arguments())
    stale = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    first = rhostream.Selector(stale, rule=_rule(arm.name), batch_size=n_b * how["shortlist"], seed=seed)
    fresh_logits = Forward(model)  # leaves running statistics as they are
    behind: deque[dict[str, torch.Tensor]] = deque(maxlen=how["lag"] + 1)
    curve: dict[str, Any] = {"steps": [], "accuracy": [], "loss": [], "worst": [], "units": []}
    for step, candidates in enumerate(stream, 1):
        behind.append({name: value.clone() for name, value in model.state_dict().items()})
        stale.load_state_dict(behind[0])
        chosen = first(candidates)
        x, y = chosen.input, chosen.label
        assert x is not None
        if how["shortlist"] > 1:
            il = candidates.il[torch.from_numpy(chosen.rows)]
            score = functional.cross_entropy(fresh_logits(x), y, reduction="none") - il
            best = score.argsort(descending=True, stable=True)[:n_b].sort().values
            x, y = x[best], y[best]
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % arm.eval_every == 0:
            fresh = n_b * how["shortlist"] if how["shortlist"] > 1 else 0
            if arm.name == "fresh":
                fresh = n_B
            _evaluate(model, *test, curve)
            curve["steps"].append(step)
            curve["units"].append(float(step * (fresh + 3 * n_b)))
        if step == arm.steps:
            break
    return {**curve, "seconds": time.monotonic() - started}


def _evaluate(model: Any, x: Any, y: Any, curve: dict[str, Any]) -> None:
    import torch
    from torch.nn import functional

    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(1000)])
    model.train()
    right = (logits.argmax(1) == y).float()
    curve["accuracy"].append(float(right.mean()))
    curve["loss"].append(float(functional.cross_entropy(logits, y)))
    curve["worst"].append(min(float(right[y == c].mean()) for c in y.unique()))


def reproduce(asked: Asked) -> None:
    """Do it; results, figure and findings as for every experiment. Raises RhostreamError."""
    scale = EXPERIMENT.scales[asked.scale]
    seeds = asked.seeds or scale.seeds
    left_out = {arm.label: why for arm in scale.arms if (why := missing(arm, asked.sources))}
    click.echo(stated(EXPERIMENT, asked.scale, scale, left_out))
    if asked.only_list or asked.collect or left_out:
        return
    run_all(scale.arms, 0, asked.out, jobs=asked.jobs, workers=0, sources=asked.sources,
            say=lambda text: click.echo(text, err=True))  # fmt: skip
    loops = [Loop(arm, seed, asked.out) for seed in range(seeds) for arm in scale.arms]
    with pool(asked.jobs) as processes:
        for future in [processes.submit(loop) for loop in loops]:
            click.echo("{}, seed {}: complete".format(*future.result()), err=True)
    curves: dict[str, dict[int, Curve]] = {arm.label: {} for arm in scale.arms}
    for loop in loops:
        told = json.loads(loop.path.read_text())
        known = math.nan if loop.arm.name == "uniform" else by_pass(Training(loop.arm, loop.seed, asked.out))[-1]
        curves[loop.arm.label][loop.seed] = Curve(**told, il_units=0.0, shares={IL_ACCURACY: known}, by_pass={})
    found = compare(scale, curves, (IL_ACCURACY,))
    rows = setting_rows(scale.arms, {(loop.arm.label, loop.seed): "complete" for loop in loops}, seeds, {})
    rows += [row for loop in loops for row in evaluation_rows(loop.arm, loop.seed, curves[loop.arm.label][loop.seed])]
    finish(EXPERIMENT, asked, rows, found)
    click.echo(f"figure   {draw(EXPERIMENT, scale, curves, found, f'{asked.out}/figures/lag-{asked.scale}.png')}")


@click.command(help="Stale scores: what they cost, and how a shortlist mends it.")
@options
def main(**asked: Any) -> None:
    """The command line."""
    guarded(lambda: reproduce(Asked(**asked)))


if __name__ == "__main__":
    main()
