"""Does a class quota help? Batches of few classes, measured: three sets, seeds, and what each quota does to a run.

    python -m jobs.balance --out DIR                    the tables of docs/results/balance.md; again: it goes on
    python -m jobs.balance --out DIR --cifar10 FOLDER   photographs too, of the files that recipe cifar10 reads

Sets of Fashion-MNIST: two classes of equal size that are hard to tell apart, learned at two rates; ten classes with
wrong labels; ten classes of which the largest is 50 times the smallest. Of CIFAR-10: cats and dogs. The il is by a
model cross-fitted on D: MLP-256, and a small CNN for photographs.
"""

from __future__ import annotations

import io
import logging
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np

import rhostream
from jobs import recipes
from jobs.reproduce.markdown import table
from rhostream.audit.metrics import best, smooth, steps_to_reach

N_B, N_b, EVERY, WINDOW, EARLY = 320, 32, 5, 3, 40
SHIRTS = (0, 6)  # T-shirt and shirt: the two classes of Fashion-MNIST that are confused most often
CATS_AND_DOGS = (3, 5)  # of CIFAR-10, likewise


@dataclass(frozen=True)
class Set:
    """A set of shards, the model that learns on it, and for how long; `pair`: of these two classes, as 0 and 1."""

    name: str
    folder: str  # of shards and IL table, which settings share
    train: tuple[str, ...]  # arguments of shards.make
    test: tuple[str, ...]
    model: str
    steps: int
    lr: float = 1e-3
    pair: tuple[int, ...] = ()
    il_model: str = "mlp-256"


_TEST = ("fashion-mnist", "--split", "test")
SETS = (
    Set("two classes", "two-classes", ("fashion-mnist",), (*_TEST, "--limit", "5000"), "small-cnn", 150, pair=SHIRTS),
    Set("two classes, a high rate", "two-classes", ("fashion-mnist",), (*_TEST, "--limit", "5000"), "small-cnn", 150,
        lr=5e-3, pair=SHIRTS),
    Set("ten classes, 40 % of the labels redrawn", "ten-classes",
        ("web", "--base", "fashion-mnist", "--limit", "30000", "--copies", "0", "--noise-rate", "0.4"),
        (*_TEST, "--limit", "2000"), "mlp-512", 200),
    Set("ten classes, the largest 50 times the smallest", "ten-classes-tail",
        ("web", "--base", "fashion-mnist", "--copies", "0", "--noise", "none", "--imbalance", "50"),
        (*_TEST, "--limit", "2000"), "mlp-512", 200),
)  # fmt: skip
PHOTOGRAPHS = Set(
    "cats and dogs", "cats-and-dogs", ("cifar10",), ("cifar10", "--split", "test"), "small-cnn", 200,
    pair=CATS_AND_DOGS, il_model="small-cnn"
)  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"rule": "uniform"},
    "rho": {"rule": "rho"},
    "rho, mild": {"rule": "rho", "class_quota": "mild"},
    "rho, balanced": {"rule": "rho", "class_quota": "balanced"},
}


@dataclass(frozen=True)
class Training:
    """One run: its place says what it is."""

    of: Set
    arm: str
    seed: int
    out: str

    @property
    def folder(self) -> str:
        rate = "" if self.of.lr == 1e-3 else f"-lr{self.of.lr:g}"
        return str(Path(self.out, self.of.folder, "runs", f"{self.arm.replace(', ', '-')}{rate}-{self.seed}"))

    def __call__(self) -> str:
        logging.basicConfig(level=logging.ERROR)
        at, start = Path(self.out, self.of.folder), time.monotonic()
        rhostream.train(
            [str(at / "train")], str(at / "il"), self.folder, model=self.of.model, seed=self.seed, steps=self.of.steps,
            buffer_size=N_B, batch_size=N_b, test_shards=[str(at / "test")], eval_every=EVERY, smoothing=WINDOW,
            lr=self.of.lr, threads=1, **ARMS[self.arm])  # fmt: skip
        return f"{self.of.name}: {self.arm}, seed {self.seed} ({time.monotonic() - start:.0f} s)"


def make(out: str, of: Set, source: str | None) -> None:
    """The shards, the IL model and the table of a set; what is there isn't made again. `source`: of photographs."""
    at = Path(out, of.folder)
    for name, arguments in (("train", of.train), ("test", of.test)):
        whole = at / "all" / name if of.pair else at / name
        recipes.make(whole, *arguments, *(["--source", source] if source and of is PHOTOGRAPHS else []))
        if of.pair:
            _take_pair(whole, at / name, of.pair)
    rhostream.fit_il([str(at / "train")], str(at / "il-model"), model=of.il_model, epochs=5)
    rhostream.compute_il([str(at / "train")], str(at / "il-model"), str(at / "il"))


def _take_pair(whole: Path, out: Path, pair: Sequence[int]) -> None:
    """The samples of two classes, as classes 0 and 1, in shards of the same names."""
    out.mkdir(parents=True, exist_ok=True)
    for shard in sorted(whole.glob("*.tar")):
        if (out / shard.name).exists():
            continue
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        part = out / f"{shard.name}.part"
        with tarfile.open(part, "w") as tar:
            for name, data in files.items():
                label = int(files[f"{name.partition('.')[0]}.cls"])
                if label in pair and not name.endswith(".json"):
                    member = tarfile.TarInfo(name)
                    data = str(pair.index(label)).encode() if name.endswith(".cls") else data
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        part.rename(out / shard.name)


def facts(run: str) -> dict[str, Any]:
    """What is read of a run: effective classes of its kept batches, and its evaluations."""
    with rhostream.open_ledger(run) as ledger:
        effective = ledger.sql(
            "SELECT effective_classes FROM steps WHERE effective_classes IS NOT NULL ORDER BY step"
        ).to_pydict()["effective_classes"]
        tests = ledger.sql(
            "SELECT step + 1 AS step, test_accuracy, class_accuracy FROM steps WHERE test_accuracy IS NOT NULL "
            "ORDER BY step"
        ).to_pydict()
    return {
        "early": float(np.mean(effective[:EARLY])), "overall": float(np.mean(effective)), "steps": tests["step"],
        "accuracy": tests["test_accuracy"], "final": float(smooth(tests["test_accuracy"], WINDOW)[-1]),
        "worst": float(np.mean([min(a for a in one if a is not None) for one in tests["class_accuracy"][-WINDOW:]])),
    }  # fmt: skip


def rows(out: str, of: Set, seeds: int) -> list[dict[str, Any]]:
    """One row an arm: means over the seeds, and the steps of each seed to two accuracies that uniform reaches."""
    found = {arm: [facts(Training(of, arm, seed, out).folder) for seed in range(seeds)] for arm in ARMS}
    goal = float(np.mean([best(one["accuracy"], WINDOW) for one in found["uniform"]]))
    goals = [goal - 0.03, goal]

    def reached(one: dict[str, Any], accuracy: float) -> str:
        return str(steps_to_reach(one["steps"], one["accuracy"], accuracy, WINDOW) or "-")

    return [
        {
            "arm": arm,
            f"effective classes, first {EARLY} steps": _each([one["early"] for one in runs], ".2f"),
            "all steps": _each([one["overall"] for one in runs], ".2f"),
            **{f"steps to {goal:.3f}": " ".join(reached(one, goal) for one in runs) for goal in goals},
            "final accuracy": _each([one["final"] for one in runs], ".3f"),
            "worst class": _each([one["worst"] for one in runs], ".3f"),
        }
        for arm, runs in found.items()
    ]


def _each(values: Sequence[float], form: str) -> str:
    """The mean, and in brackets the seeds."""
    return f"{np.mean(values):{form}} ({' '.join(format(v, form) for v in values)})"


@click.command()
@click.option("--out", default="balance", show_default=True, help="Folder of everything that is made.")
@click.option("--seeds", default=3, show_default=True, help="Seeds of each arm.")
@click.option("--jobs", default=2, show_default=True, help="Runs at a time, one thread each.")
@click.option("--cifar10", default=None, help="Folder of CIFAR-10's files: cats and dogs are measured too.")
def main(out: str, seeds: int, jobs: int, cifar10: str | None) -> None:
    """Measure it; what is there already is not made again."""
    sets = [*SETS, *([PHOTOGRAPHS] if cifar10 else [])]
    for one in sets:
        make(out, one, cifar10)
    runs = [Training(one, arm, seed, out) for seed in range(seeds) for one in sets for arm in ARMS]
    # Not forked: a child of a process whose threads have computed waits for them for ever.
    with ProcessPoolExecutor(jobs, get_context("forkserver")) as pool:
        for future in [pool.submit(run) for run in runs]:
            click.echo(future.result(), err=True)
    for one in sets:
        found = rows(out, one, seeds)
        says = f"{one.model}, lr {one.lr:g}, {one.steps} steps, {seeds} seeds"
        listed = table([*found[0]], ([str(value) for value in row.values()] for row in found))
        click.echo(f"\n**{one.name}** ({says})\n\n{listed}")


if __name__ == "__main__":
    main()
