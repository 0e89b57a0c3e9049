"""Seconds to uniform's best accuracy on the demo's stream, everything included: reading, decoding, scoring, log.

Each method is trained with evaluations, which say after how many steps it reaches the best smoothed accuracy of
uniform's whole run; and again without, for its first 200 steps and twice in turns with the others, which says what a
step takes. The start of the worker processes is not counted: the first steps are left out. Seconds are steps times
seconds a step; the IL model's own time is measured in the same run. So "times faster" is "times fewer steps" over "a
step over uniform's", and both stand beside it, with the seconds that the run itself took to that step.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rhostream
from benchmarks import data
from benchmarks.measure import Figure, interleave, timed
from jobs.demo import N_B, WINDOW, N_b, curve, fit_and_score, make_shards
from rhostream.audit.metrics import best, steps_to_reach
from rhostream.selection.hardware import bf16_supported

EVERY = 25  # steps between evaluations
FIRST, TIMED = 20, 200  # steps of a timed run that are not counted, and all of them
WORLD = data.FOLDER / "demo"
NOT_REACHED = 0.0  # as a speed-up: none


@dataclass(frozen=True)
class Target:
    """A model that is trained, and how each method trains it."""

    model: str
    seeds: int
    test: str
    uniform_steps: int
    steps: int
    everywhere: Mapping[str, Any] = field(default_factory=dict)
    selected: Mapping[str, Any] = field(default_factory=dict)

    def methods(self) -> dict[str, dict[str, Any]]:
        """Settings of `train` by method; everything and uniform are the baselines."""
        rho = {"rule": "rho", "buffer_size": N_B, "steps": self.steps, **self.selected}
        return {
            "uniform": {"rule": "uniform", "buffer_size": N_B, "steps": self.uniform_steps},
            "everything": {"rule": "uniform", "buffer_size": N_b, "passes": 1},
            "rho": rho,
            "cascade": {**rho, "band": "20%:90%", "shortlist": "proxy:4"},
        }


def targets() -> list[Target]:
    """An MLP and a CNN with batch norm; bfloat16 where the machine has it, for every method alike."""
    fast = "bfloat16" if bf16_supported(torch.device("cpu")) else "float32"
    return [
        Target("mlp-512", 5, "test", 1500, 400, {"workers": 1, "threads": 1}),
        Target("small-cnn", 3, "test-2000", 1500, 400,
               {"workers": 0, "threads": 2, "precision": fast, "train_precision": fast, "chunk": 80},
               {"loss_cap": True}),
    ]  # fmt: skip


def prepare() -> None:
    """The demo's shards, whose files may have to be fetched: found out before anything is measured."""
    make_shards(str(WORLD))


def run(pairs: int) -> list[Figure]:
    """Speed-ups in seconds and in steps, by target and method, each seed a value; and what the IL cost."""
    with tempfile.TemporaryDirectory(dir=data.FOLDER) as place:
        il_seconds = timed(lambda: fit_and_score(str(WORLD), place, "mlp-256", epochs=5))
        figures = [Figure("accuracy", "irreducible loss", "fit-il and compute-il", (il_seconds,), unit="s")]
        for target in targets():
            figures += _target(target, str(WORLD), place, il_seconds, min(pairs, target.seeds))
    return figures


def _target(target: Target, world: str, place: str, il_seconds: float, seeds: int) -> list[Figure]:
    reached: dict[str, list[int | None]] = {name: [] for name in target.methods()}
    seconds: dict[str, list[float]] = {name: [] for name in target.methods()}
    a_step: dict[str, list[float]] = {name: [] for name in target.methods()}
    took: dict[str, list[float]] = {name: [] for name in target.methods()}
    figures = []
    for seed in range(seeds):
        curves = {name: _curve(target, world, place, name, seed) for name in target.methods()}
        goal = best(curves["uniform"][1], WINDOW)
        steps = {name: steps_to_reach(*found, goal, WINDOW) for name, found in curves.items()}
        rates = interleave([partial(_seconds_a_step, target, world, place, name, seed) for name in steps], 2)
        for (name, found), rate in zip(curves.items(), rates, strict=True):
            each = statistics.median(rate)
            reached[name].append(steps[name])
            a_step[name].append(each)
            took[name].append(_took(target, place, name, seed, steps[name] or found[0][-1]))
            seconds[name].append(each * (steps[name] or found[0][-1]))
            if seed == 0:
                case = f"{target.model}, {name}"
                figures += [Figure("accuracy", case, "curve, seconds", tuple(each * np.array(found[0])), unit="s"),
                            Figure("accuracy", case, "curve, accuracy", tuple(found[1]), unit="")]  # fmt: skip
    return figures + figures_of(target.model, reached, seconds, a_step, took, il_seconds)


def figures_of(
    model: str,
    reached: Mapping[str, list[int | None]],
    seconds: Mapping[str, list[float]],
    a_step: Mapping[str, list[float]],
    took: Mapping[str, list[float]],
    il_seconds: float,
) -> list[Figure]:
    """What is said of a model's methods, a value a seed. Each mapping is by method: steps to the goal (None: never),
    seconds to it or to the end, seconds of a step, and what the run itself took so far, evaluations left out."""
    figures = []
    for name, taken in seconds.items():
        figures.append(Figure("accuracy", f"{model}, {name}", "to uniform's best, or to its end", tuple(taken),
                              unit="s"))  # fmt: skip
        figures.append(
            Figure("accuracy", f"{model}, {name}", "the same, of the run itself", tuple(took[name]), unit="s")
        )
        if name == "uniform":
            continue
        for what, extra in (("", 0.0), (", IL paid by this run alone", il_seconds if name != "everything" else None)):
            if extra is None:
                continue
            ups = tuple(NOT_REACHED if at is None else theirs / (own + extra)
                        for at, own, theirs in zip(reached[name], taken, seconds["uniform"], strict=True))  # fmt: skip
            wanted = {"rho": 2.0, "cascade": 3.0}.get(name) if not extra else None
            figures.append(Figure("accuracy", f"{model}, {name}", f"times faster than uniform{what}", ups, wanted))
        steps = tuple(NOT_REACHED if at is None else (own or 0) / at
                      for at, own in zip(reached[name], reached["uniform"], strict=True))  # fmt: skip
        figures.append(Figure("accuracy", f"{model}, {name}", "times fewer steps than uniform", steps))
        dearer = tuple(own / theirs for own, theirs in zip(a_step[name], a_step["uniform"], strict=True))
        figures.append(Figure("accuracy", f"{model}, {name}", "a step over uniform's", dearer))
        if name != "everything":
            pairs = zip(reached[name], taken, seconds["everything"], strict=True)
            ahead = tuple(NOT_REACHED if at is None else theirs / own for at, own, theirs in pairs)
            figures.append(Figure("accuracy", f"{model}, {name}", "times faster than everything", ahead, 1.0))
    return figures


def _train(target: Target, world: str, place: str, run: Path, name: str, seed: int, **changes: Any) -> None:
    settings = {**target.methods()[name], **changes}
    rhostream.train([f"{world}/train"], f"{place}/il", str(run), model=target.model, seed=seed, batch_size=N_b,
                    checkpoint_every=10**6, smoothing=WINDOW, **target.everywhere, **settings)  # fmt: skip


def _curve(target: Target, world: str, place: str, name: str, seed: int) -> tuple[list[int], list[float]]:
    run = Path(place, "runs", f"{target.model}-{name}-{seed}")
    _train(target, world, place, run, name, seed, test_shards=[f"{world}/{target.test}"], eval_every=EVERY)
    with rhostream.open_ledger(str(run)) as ledger:
        return curve(ledger, run.name)


def _took(target: Target, place: str, name: str, seed: int, steps: int) -> float:
    """Seconds of a run's first steps, as its own steps table has them: evaluations are in none of its columns."""
    with rhostream.open_ledger(str(Path(place, "runs", f"{target.model}-{name}-{seed}"))) as ledger:
        asked = "SELECT sum(seconds_wait + seconds_score + seconds_train + seconds_log) AS s FROM steps WHERE step < $n"
        return float(ledger.sql(asked, {"n": steps}).to_pydict()["s"][0])


def _seconds_a_step(target: Target, world: str, place: str, name: str, seed: int) -> float:
    """Of a run without evaluations, its first steps not counted."""
    run = Path(place, "timed")
    shutil.rmtree(run, ignore_errors=True)
    _train(target, world, place, run, name, seed, steps=TIMED)
    with rhostream.open_ledger(str(run)) as ledger:
        total = ledger.sql("SELECT sum(seconds_wait + seconds_score + seconds_train + seconds_log) AS s FROM steps "
                           "WHERE step >= $first", {"first": FIRST}).to_pydict()["s"][0]  # fmt: skip
    return float(total) / (TIMED - FIRST)
