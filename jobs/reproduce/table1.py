"""Table 1: how the chain of approximations ranks points, by Spearman's correlation with the most faithful one (App. E).

    0   ensembles of 5 for both terms; 5 epochs on each batch of points acquired
    1a  one MLP each, trained like that
    1b  one gradient step on each batch; D five times over, compared where gradient steps are equal
    2   like 1b, the IL frozen after D_ho
    3   like 2, the IL by an MLP of 256 units

In 0 to 1b the IL learns from as many points of D_ho beside each batch ("D_ho + D_t"); "1b alone": from the batch alone.
n_B 1000, n_b 100, 10 % of D's labels redrawn. Full: QMNIST, 60,000 and 50,000; small: Fashion-MNIST, D 30,000 and
D_ho 30,000.

App. E has 0 and 1a "trained to convergence on each batch of points acquired", at most 5 epochs, so that 0 and 1b "have
taken the equivalent number of gradient steps": before buffer t every network but a frozen one has taken 5 t steps on
acquired points.

Decided here, where App. E says nothing: networks go on from their weights and AdamW state (no fresh start); always all
5 epochs, so that steps are equal; the IL model's fit on D_ho ends when an epoch lowers the mean loss by less than 1 %,
or after 20; batches of 100; one initialisation (member 0 of the ensembles) for all approximations, and one IL model
after D_ho for 1a, 1b and 2; an ensemble's loss is that of its mean probability; 1b to 3 see five copies of D as one
shuffled set, and are scored after 5 t of their steps on buffer t of approximation 0; every approximation trains on its
own picks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.reproduce import figures, paper, worlds
from jobs.reproduce.available import missing_files
from jobs.reproduce.command import Asked, finish, guarded, options
from jobs.reproduce.compare import Comparison
from jobs.reproduce.execute import pool
from jobs.reproduce.images import load_images
from jobs.reproduce.prepare import make_shards, quiet, shards_of
from jobs.reproduce.settings import Claim, Experiment, Shards
from jobs.reproduce.statistics import interval, paired, spearman
from rhostream.audit import plots
from rhostream.models import build

N_B, N_b, EPOCHS, COPIES, MEMBERS = 1000, 100, 5, 5, 5
TARGET, SMALL_IL = "mlp-512", "mlp-256"
ENOUGH = 0.01  # an epoch that lowers the loss by less of itself is the last
APPROXIMATIONS = ("0", "1a", "1b", "1b alone", "2", "3")
Scores = npt.NDArray[np.float32]  # (buffers, N_B)


@dataclass(frozen=True)
class Setting:
    """D and D_ho at one scale."""

    train: Shards
    holdout: Shards
    buffers: int
    seeds: int
    says: str


SETTINGS = {
    "quick": Setting(worlds.fashion("uniform", 0.1, limit=8_000), worlds.fashion(limit=3_000, skip=8_000), 8, 2,
                     "Fashion-MNIST, D 8,000, D_ho 3,000"),
    "small": Setting(worlds.fashion("uniform", 0.1, limit=30_000), worlds.fashion(limit=30_000, skip=30_000), 30, 3,
                     "Fashion-MNIST, D 30,000, D_ho 30,000"),
    "full": Setting(worlds.QMNIST.train, worlds.QMNIST.ils["il"].holdout or worlds.HOLDOUT, 60, 3,
                    "QMNIST, D 60,000, D_ho 50,000"),
}  # fmt: skip
EXPERIMENT = Experiment(
    name="table1", title="The chain of approximations", where="Table 1, App. E", scales={},
    claims=[
        *(Claim(says=f"{more} ranks more like 0 than {less} does", world="table1", arm=more, baseline=less,
                metric="Spearman", paper=f"{paper.TABLE1[more]} against {paper.TABLE1[less]}")
          for more, less in (("1a", "2"), ("1b", "2"), ("2", "3"))),
    ],
)  # fmt: skip


class Learner:
    """One network, or an ensemble, with its optimizers; weights are a function of (seed, role, member)."""

    def __init__(self, seed: int, role: int, *, members: int, width: str, like: Tensor, classes: int) -> None:
        self.networks: list[nn.Module] = []
        for member in range(members):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 1000 + role * 100 + member)
                self.networks.append(build(width, image_size=like.shape[-1], channels=like.shape[1], classes=classes))
        self.optimizers = [torch.optim.AdamW(n.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
                           for n in self.networks]  # fmt: skip

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) nats: -log of the members' mean probability of the label."""
        each = torch.stack([functional.log_softmax(n(x), 1).gather(1, y[:, None])[:, 0] for n in self.networks])
        return math.log(len(self.networks)) - each.logsumexp(0)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One gradient step of each member on a batch; the mean of their losses."""
        total = 0.0
        for network, optimizer in zip(self.networks, self.optimizers, strict=True):
            loss = functional.cross_entropy(network(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        return total / len(self.networks)

    def converge(self, x: Tensor, y: Tensor, order: torch.Generator, epochs: int = EPOCHS) -> int:
        """Epochs of batches of `N_b` until one lowers the mean loss by less than `ENOUGH` of it; returns how many."""
        before = float("inf")
        for epoch in range(1, epochs + 1):
            batches = torch.randperm(len(y), generator=order).split(N_b)
            now = float(np.mean([self.step(x[rows], y[rows]) for rows in batches]))
            if now > before * (1 - ENOUGH):
                return epoch
            before = now
        return epochs


def picked(target: Tensor, il: Tensor) -> Tensor:
    """Rows of the N_b largest reducible losses, ascending, ties to the lower row."""
    return (target - il).argsort(descending=True, stable=True)[:N_b].sort().values


def _order(count: int, seed: int, copies: int) -> Iterator[Tensor]:
    """Rows of each buffer: `copies` of the set, shuffled as one."""
    order = torch.Generator().manual_seed(seed)
    rows = torch.randperm(count * copies, generator=order) % count
    return iter(rows[: len(rows) // N_B * N_B].split(N_B))


@dataclass(frozen=True)
class Approximate:
    """The scores of one approximation with one seed on the buffers of approximation 0; a value for another process."""

    setting: Setting
    approximation: str
    seed: int
    out: str

    @property
    def path(self) -> Path:
        """Where the scores are left."""
        name = f"{self.setting.train.folder}-{self.setting.holdout.folder}-{self.approximation}-equal-s{self.seed}.npy"
        return Path(self.out, "table1", name.replace(" ", "_"))

    def __call__(self) -> str:
        """Compute them unless they are there."""
        quiet()
        if not self.path.exists():
            torch.set_num_threads(1)
            d = load_images(self.out, shards_of(self.out, self.setting.train))
            held = load_images(self.out, shards_of(self.out, self.setting.holdout))
            found = scores(self.approximation, self.seed, d, held, self.setting.buffers)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(f".{os.getpid()}.tmp")
            with open(part, "wb") as sink:
                np.save(sink, found)
            os.replace(part, self.path)
        return f"approximation {self.approximation}, seed {self.seed}: complete"


def scores(
    approximation: str, seed: int, d: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], buffers: int
) -> Scores:
    """(buffers, N_B) reducible losses of buffer t of the first epoch, before anything is learned from it."""
    (x, y), classes = d, int(max(d[1].max(), held[1].max())) + 1
    members = MEMBERS if approximation == "0" else 1
    common: dict[str, Any] = {"members": members, "like": x[:1], "classes": classes}
    target = Learner(seed, 0, width=TARGET, **common)
    il = Learner(seed, 1, width=SMALL_IL if approximation == "3" else TARGET, **common)
    order = torch.Generator().manual_seed(seed)
    il.converge(*held, order, epochs=4 * EPOCHS)
    seen = list(_order(len(y), seed, 1))[:buffers]
    if approximation in ("0", "1a"):
        return _batch_by_batch(target, il, d, held, seen, order)
    many = _order(len(y), seed + 1, COPIES)
    found = np.empty((len(seen), N_B), np.float32)
    for t, rows in enumerate(seen):
        found[t] = (target.loss(x[rows], y[rows]) - il.loss(x[rows], y[rows])).numpy()
        for _ in range(COPIES):
            mine = next(many)
            mine = mine[picked(target.loss(x[mine], y[mine]), il.loss(x[mine], y[mine]))]
            target.step(x[mine], y[mine])
            if approximation == "1b":
                il.step(*_with_held(x[mine], y[mine], held, order))
            elif approximation == "1b alone":
                il.step(x[mine], y[mine])
    return found


def _with_held(x: Tensor, y: Tensor, held: tuple[Tensor, Tensor], order: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch, and as many points of D_ho."""
    again = torch.randint(len(held[1]), (len(y),), generator=order)
    return torch.cat([x, held[0][again]]), torch.cat([y, held[1][again]])


def _batch_by_batch(
    target: Learner,
    il: Learner,
    d: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    seen: Sequence[Tensor],
    order: torch.Generator,
) -> Scores:
    x, y = d
    found = np.empty((len(seen), N_B), np.float32)
    for t, rows in enumerate(seen):
        own, others = target.loss(x[rows], y[rows]), il.loss(x[rows], y[rows])
        found[t] = (own - others).numpy()
        mine = rows[picked(own, others)]
        for _ in range(EPOCHS):
            target.step(x[mine], y[mine])
            il.step(*_with_held(x[mine], y[mine], held, order))
    return found


def correlations(of: Scores, with_0: Scores) -> list[float]:
    """Spearman's correlation on each buffer."""
    return [spearman(mine, reference) for mine, reference in zip(of, with_0, strict=True)]


def _comparisons(means: dict[str, list[float]]) -> list[Comparison]:
    seeds = tuple(range(len(means["1a"])))
    found = []
    for name, values in means.items():
        others: list[str | None] = [other for other in means if other > name]
        for other in others or [None]:
            pair = paired(values, means[other]) if other else None
            words = "" if pair is None or len(seeds) < 2 else "undecided" if pair.low <= 0 <= pair.high else "decided"
            found.append(Comparison("table1", name, other, "Spearman's correlation with approximation 0", seeds,
                                    tuple(values), interval(values)[0], pair, words))  # fmt: skip
    return found


def _draw(each: dict[str, list[list[float]]]) -> Any:
    """Bars of the means with every seed, the paper's number as a mark; and the correlation buffer by buffer."""
    canvas, (left, right) = figures.panels(2)
    means = [float(np.mean(runs)) for runs in each.values()]
    left.bar(range(len(each)), means, color=plots.BLUE, alpha=0.75, width=0.6)
    for at, (name, runs) in enumerate(each.items()):
        left.scatter([at] * len(runs), [np.mean(run) for run in runs], s=10, color="#222222", zorder=3)
        if name in paper.TABLE1:
            left.plot([at - 0.36, at + 0.36], [paper.TABLE1[name]] * 2, color=plots.ORANGE, linewidth=2,
                      label=None if at else "paper (QMNIST)")  # fmt: skip
        right.plot(range(1, len(runs[0]) + 1), np.mean(runs, axis=0), label=name, color=figures.SPARE[at],
                   linestyle=figures.DASHES[at % len(figures.DASHES)], linewidth=2)  # fmt: skip
    left.set_xticks(range(len(each)), list(each))
    left.set(title="mean over the first epoch", ylabel="Spearman with approximation 0", ylim=(0, 1))
    left.legend(loc="upper right")
    right.set(title="buffer by buffer", xlabel="buffer of the first epoch", ylim=(-0.1, 1))
    right.legend(loc="lower right")
    return canvas


def reproduce(asked: Asked) -> None:
    """Do it; results, figure and findings as for every experiment. Raises RhostreamError."""
    setting = SETTINGS[asked.scale]
    seeds = asked.seeds or setting.seeds
    click.echo(f"{EXPERIMENT.title} ({EXPERIMENT.where}), {asked.scale}: {setting.says}; {seeds} seeds\n{__doc__}")
    left_out = [why for one in (setting.train, setting.holdout) for why in missing_files(one, asked.sources)]
    if left_out:
        click.echo(f"  left out: {left_out[0]}")
    if asked.only_list or asked.collect or left_out:
        return
    for one in (setting.train, setting.holdout):
        make_shards(asked.out, one, asked.sources)
    jobs = [Approximate(setting, name, seed, asked.out) for seed in range(seeds) for name in APPROXIMATIONS]
    with pool(asked.jobs) as processes:
        for future in [processes.submit(job) for job in jobs]:
            click.echo(future.result(), err=True)
    found = {(job.approximation, job.seed): np.load(job.path) for job in jobs}
    each = {name: [correlations(found[name, s], found["0", s]) for s in range(seeds)] for name in APPROXIMATIONS[1:]}
    compared = _comparisons({name: [float(np.mean(run)) for run in runs] for name, runs in each.items()})
    rows = [{"kind": "evaluation", "world": "table1", "arm": name, "seed": seed, "step": t, "metric": "Spearman",
             "middle": value} for name, runs in each.items() for seed, run in enumerate(runs)
            for t, value in enumerate(run)]  # fmt: skip
    rows += [{"kind": "setting", "world": "table1", "arm": job.approximation, "seed": job.seed, "state": "complete",
              "run": job.path.name, "settings": setting.says} for job in jobs]  # fmt: skip
    finish(EXPERIMENT, asked, rows, compared)
    click.echo(f"figure   {figures.paint(lambda: _draw(each), f'{asked.out}/figures/table1-{asked.scale}.png')}")


@click.command(help="Table 1: the chain of approximations.")
@options
def main(**asked: Any) -> None:
    """The command line."""
    guarded(lambda: reproduce(Asked(**asked)))


if __name__ == "__main__":
    main()
