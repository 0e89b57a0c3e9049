"""The search behind `--ratio auto`, in memory: shares, schedules, a band and formulas, each with the same units.

    python -m jobs.reproduce.variants --out reproduce --seeds 3

A world's pictures, labels and il are read once; then every setting spends `UNITS` forward units on an MLP-128, in
updates of 32, in one process, on one thread: what can be tried some hundred times. What was chosen is in the library,
and `jobs.reproduce.search` runs that. The worlds are those of `search`, each with its own IL model and two that know
less.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rhostream
from jobs.reproduce import worlds
from jobs.reproduce.command import guarded
from jobs.reproduce.prepare import MakeIL, make_shards, shards_of, table_of
from jobs.reproduce.settings import IL, World
from jobs.reproduce.statistics import paired
from rhostream.selection.ratio import rungs
from rhostream.selection.trial import Trial

N_b, N_B, UNITS = 32, 320, 80_000
LOOKS = 20  # an evaluation each so many-th of the run, of which the last five are averaged
CLASSES = 10
CEILING = math.log(CLASSES)
WEAK = {"mlp-64, 2 epochs": IL(fit={"model": "mlp-64", "epochs": 2, "fit_samples": 10_000}),
        "mlp-256, 1 epoch": IL(fit={"model": "mlp-256", "epochs": 1, "fit_samples": 20_000})}  # fmt: skip
_OF_HOLDOUT: dict[str, dict[str, Any]] = {
    "mlp-64, 2 epochs of a holdout": {"model": "mlp-64", "epochs": 2},
    "mlp-256, 5,000 of a holdout": {"model": "mlp-256", "epochs": 1, "fit_samples": 5_000},
    "mlp-64, 3,000 of a holdout": {"model": "mlp-64", "epochs": 1, "fit_samples": 3_000},
}
OF_HOLDOUT = {name: IL(fit=fit, holdout=worlds.HOLDOUT) for name, fit in _OF_HOLDOUT.items()}
TUNED = (replace(worlds.NOISE10, ils={**worlds.NOISE10.ils, **WEAK, **OF_HOLDOUT}),
         replace(worlds.NOISE40_CROSS, ils={**worlds.NOISE40_CROSS.ils, **WEAK}),
         replace(worlds.STRUCTURED, ils={**worlds.STRUCTURED.ils, **OF_HOLDOUT}))  # fmt: skip


@dataclass
class Fixed:
    """The share of a schedule: (units from which on, rows), the last that holds; a row of `N_B` is no look."""

    plan: tuple[tuple[float, int], ...]
    cap: bool = False
    band: tuple[float, float] = (0.0, 1.0)
    buffer: int = N_B
    looks = False  # at a buffer that is kept whole

    def next(self, spent: float) -> int:
        return next(n for start, n in reversed(self.plan) if start <= spent)

    def see(self, loss: Any, il: Any) -> None:
        """Nothing is made of it."""


@dataclass
class Auto:
    """`excess`: what a row's gain is measured by; `mirror`: the lowest are taken off; the rest as in the library."""

    excess: str = "cap"
    mirror: bool = True
    weight: float = 1.0  # of the lowest
    sure: float | None = None  # the same of rows that the target is sure of, with an IL model of a holdout
    signed: bool = True  # with an IL model of a holdout: what is kept counts with its sign
    outside: bool = False  # whether it is one
    window: int = 16
    margin: float = 0.05
    rows: tuple[int, ...] = (32, 64, 96, 160, N_B)
    cap: bool = False
    band: tuple[float, float] = (0.0, 1.0)
    seen: list[list[float]] = field(default_factory=list)
    now: int = 0
    kept: list[int] = field(default_factory=list)
    trial: Trial | None = None  # with an IL model of a holdout, as in the library

    def next(self, spent: float) -> int:
        back = self.trial is not None and self.trial.back()
        if not self.seen:
            self.now = self.rows[0]
        else:
            gains = np.sum(self.seen[-self.window :], 0)
            prices = [self.buffer * (n < self.buffer) + 3 * n for n in self.rows]
            worth = {n: gain / price for n, gain, price in zip(self.rows, gains, prices, strict=True)
                     if (n < self.buffer if back else gain > 0 or n == self.buffer or not self.mirror)}  # fmt: skip
            best = max(worth, key=lambda n: worth[n])
            held = worth.get(self.now)
            self.now = self.now if held is not None and worth[best] <= held + self.margin * abs(held) else best
        if self.trial is not None:
            self.trial.take(self.now == self.buffer)
        self.kept.append(self.now)
        return self.now

    @property
    def buffer(self) -> int:
        return self.rows[-1]

    @property
    def looks(self) -> bool:
        return self.trial is not None and self.trial.looks

    def see(self, loss: Any, il: Any) -> None:
        if self.trial is not None and (self.now < self.buffer or self.trial.looks):
            self.trial.see(loss, il, CLASSES)
        e = {"nats": loss - il, "cap": np.minimum(loss, CEILING) - np.minimum(il, CEILING),
             "p": np.exp(-il) - np.exp(-loss), "positive": np.maximum(loss - il, 0)}[self.excess]  # fmt: skip
        best = np.argsort(il - loss, kind="stable")
        gained, weight = np.maximum(e[best], 0) if self.mirror else e[best], self.weight
        if self.outside and self.sure is not None:
            gained, weight = e[best] if self.signed else gained, self.sure * np.maximum(2 * np.exp(-loss) - 1, 0)
        lost = np.sort(weight * np.minimum(e, 0)).cumsum() if self.mirror else np.zeros(len(e))
        gained = gained.cumsum()
        self.seen.append([float(gained[n - 1] + lost[n - 1]) for n in self.rows])


def _auto_of(size: int) -> Auto:
    return Auto(weight=2.0, sure=4.0, trial=Trial(), rows=tuple(rungs(N_b, size)))


Policy = Callable[[], Fixed | Auto]
POLICIES: dict[str, Policy] = {
    "everything": lambda: Fixed(((0, N_B),)),
    **{f"{n} of 320": lambda n=n: Fixed(((0, n),)) for n in (16, 32, 64, 96, 160)},  # type: ignore[misc]
    "32 of 320, both capped at ln C": lambda: Fixed(((0, 32),), cap=True),
    "32 of 320, band 20%:90%": lambda: Fixed(((0, 32),), band=(0.2, 0.9)),
    "everything, band 20%:90%": lambda: Fixed(((0, N_B),), band=(0.2, 0.9)),
    # half of each buffer, learned in 1, 2, 10 and 20 updates of one look
    **{f"{n // 2} of {n}": lambda n=n: Fixed(((0, n // 2),), buffer=n) for n in (64, 128, 640, 1280)},  # type: ignore[misc]
    "32, then everything": lambda: Fixed(((0, 32), (0.5, N_B))),
    "everything, then 32": lambda: Fixed(((0, N_B), (0.5, 32))),
    "160, then 32": lambda: Fixed(((0, 160), (0.5, 32))),
    "32, then 160": lambda: Fixed(((0, 32), (0.5, 160))),
    "everything for a tenth, then 96": lambda: Fixed(((0, N_B), (0.1, 96))),
    "auto (as it is)": partial(_auto_of, N_B),
    **{f"auto, buffers of {n}": partial(_auto_of, n) for n in (64, 96, 160, 640)},
    "auto, without a trial": lambda: Auto(weight=2.0, sure=4.0),
    "auto, the lowest count twice": lambda: Auto(weight=2.0),
    "auto, the sure count twice": lambda: Auto(weight=2.0, sure=2.0),
    "auto, the sure count 3 times": lambda: Auto(weight=2.0, sure=3.0),
    "auto, without signs": lambda: Auto(weight=2.0, sure=4.0, signed=False),
    "auto, the lowest count once": Auto,
    "auto, both capped at ln C": lambda: Auto(cap=True),
    "auto, no mirror": lambda: Auto(mirror=False),
    "auto, the lowest count 1.5 times": lambda: Auto(weight=1.5),
    "auto, no cap": lambda: Auto(excess="nats"),
    "auto, no cap, no mirror": lambda: Auto(excess="nats", mirror=False),
    "auto, gains above 0 alone": lambda: Auto(excess="positive", mirror=False),
    "auto, by probabilities": lambda: Auto(excess="p"),
    "auto, by probabilities, no mirror": lambda: Auto(excess="p", mirror=False),
    "auto, window 4": lambda: Auto(window=4),
    "auto, window 64": lambda: Auto(window=64),
    "auto, margin 0": lambda: Auto(margin=0.0),
    "auto, margin 25 %": lambda: Auto(margin=0.25),
    "auto, from 5 %": lambda: Auto(rows=(16, 32, 64, 96, 160, N_B)),
    "auto, 10 % or everything": lambda: Auto(rows=(32, N_B)),
}  # fmt: skip


def read(out: str, world: World, il: str) -> dict[str, Any]:
    """D in memory: pictures (n, 784) float32, labels, il; and 2,000 test pictures."""
    index = str(Path(out, "il", "index-of-test"))
    rhostream.index([shards_of(out, worlds.TEST_2000)], index)
    held: dict[str, Any] = {}
    for name, shards, table in (("", world.train, table_of(out, world, il)), ("test_", worlds.TEST_2000, index)):
        x, label, ils = [], [], []
        for buffer in rhostream.open_stream(
            [shards_of(out, shards)], il=table, buffer_size=N_B, passes=1, needs_il=table != index
        ):
            assert buffer.image is not None
            x.append(buffer.image.numpy().reshape(len(buffer), -1).copy())
            label.append(buffer.label.numpy().copy())
            ils.append(buffer.il.numpy().copy())
        held[f"{name}x"] = torch.from_numpy(np.concatenate(x)).float() / 127.5 - 1
        held[f"{name}label"], held[f"{name}il"] = torch.from_numpy(np.concatenate(label)).long(), np.concatenate(ils)
    return held


def train(data: dict[str, Any], policy: Fixed | Auto, seed: int, budget: float = UNITS) -> float:
    """The mean test accuracy of the last five evaluations, the others aren't made."""
    torch.manual_seed(seed)
    rng, units, accuracies, order = np.random.default_rng(seed), 0.0, list[float](), np.zeros(0, np.int64)
    size = policy.buffer
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    low, high = np.quantile(data["il"], policy.band)
    eligible = np.flatnonzero((data["il"] >= low) & (data["il"] <= high))
    while units < budget:
        if len(order) < size:
            order = rng.permutation(eligible)
        rows, order = order[:size], order[size:]
        n = policy.next(units / budget)
        look = n < size or policy.looks
        x, label, il = data["x"][rows], data["label"][rows], data["il"][rows]
        kept = np.arange(size)
        if look:
            with torch.no_grad():
                loss = cross_entropy(model(x), label, reduction="none").numpy()
            units += size
            policy.see(loss, il)
        if n < size:
            score = loss - il if not policy.cap else np.minimum(loss, CEILING) - np.minimum(il, CEILING)
            kept = np.sort(np.argsort(-score, kind="stable")[:n])
        heard = np.zeros(n, np.float32)
        parts = -(-n // N_b)
        for part in range(parts):
            at = np.arange(part, n, parts)
            loss_b: Tensor = cross_entropy(model(x[kept[at]]), label[kept[at]], reduction="none")
            optimizer.zero_grad()
            loss_b.mean().backward()
            optimizer.step()
            heard[at] = loss_b.detach().numpy()
        units += 3 * n
        if not look:
            policy.see(heard, il)
        if units >= budget * (LOOKS - 4 + len(accuracies)) / LOOKS:
            with torch.no_grad():
                right = model(data["test_x"]).argmax(1) == data["test_label"]
            accuracies.append(float(right.float().mean()))
    return float(np.mean(accuracies))


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: a row a setting, a column a world and IL model; points beside everything, with intervals."""
    columns = list(found)
    lines = ["| setting | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in POLICIES:
        cells = []
        for column in columns:
            mine, base = found[column].get(name), found[column].get("everything")
            if not mine or not base:
                cells.append("")
                continue
            both = min(len(mine), len(base))
            cell = f"{100 * float(np.mean(mine)):.1f}"
            if name != "everything":
                pair = paired(mine[:both], base[:both])
                cell += f"; {100 * pair.mean:+.1f}"
                cell += f" ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})" if math.isfinite(pair.low) else ""
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def search(out: str, seeds: int, names: Sequence[str], units: int) -> dict[str, dict[str, list[float]]]:
    """Train what isn't trained yet; the accuracies lie in `<out>/variants.json`. Those of `units` are given back."""
    torch.set_num_threads(1)
    path = Path(out, "variants.json")
    found: dict[str, dict[str, list[float]]] = json.loads(path.read_text()) if path.exists() else {}
    for world in TUNED:
        for shards in (world.train, worlds.TEST_2000, worlds.HOLDOUT):
            make_shards(out, shards, {})
        for il in world.ils:
            MakeIL(out, world, il)()
    of_units = "" if units == UNITS else f", {units:,} units"
    columns = {f"{world.name}, {'its own IL' if il == 'il' else il}{of_units}": (world, il)
               for world in TUNED for il in world.ils}  # fmt: skip
    data = {column: read(out, *of) for column, of in columns.items()}
    for seed, (column, one), name in itertools.product(range(seeds), data.items(), names):
        values = found.setdefault(column, {}).setdefault(name, [])
        if len(values) == seed:
            policy = POLICIES[name]()
            if isinstance(policy, Auto):
                world, il = columns[column]
                policy.outside = world.ils[il].holdout is not None
                policy.trial = policy.trial if policy.outside else None
            values.append(train(one, policy, seed, units))
            kept = "" if not isinstance(policy, Auto) else f", keeps {np.mean(policy.kept) / policy.buffer:.0%}"
            click.echo(f"seed {seed}, {column}, {name}: {values[-1]:.4f}{kept}", err=True)
            path.write_text(json.dumps(found))
    return {column: found[column] for column in columns}


@click.command()
@click.option("--out", default="reproduce", show_default=True, help="Folder of everything made.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--units", default=UNITS, show_default=True, help="Forward units of a run.")
@click.option("--only", multiple=True, type=click.Choice(list(POLICIES)), help="These settings.")
def main(out: str, seeds: int, units: int, only: tuple[str, ...]) -> None:
    """Shares, schedules and formulas of `--ratio auto` at equal forward units, in memory."""
    guarded(lambda: click.echo(table(search(out, seeds, only or list(POLICIES), units))))


if __name__ == "__main__":
    main()
