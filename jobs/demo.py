"""The whole journey on real images, web-like: shards, IL model, IL table, four ways to train, SQL answers, the bill.

30,000 Fashion-MNIST images and a jittered copy of each, 40 % of the labels redrawn at random (as many are wrong on
Clothing-1M). The target is a CNN with batch norm; an MLP-64, cross-fitted on the noisy labels, gives the il: it has 259
times fewer multiply-adds, and is the weaker of the two. At the end stands the account of a first run: who reaches the
best accuracy of uniform sampling for less, the IL model on the bill, in forwards and in seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

import rhostream
from jobs import recipes
from jobs.first_run import account, in_words
from rhostream.audit.metrics import best, smooth, steps_to_reach
from rhostream.audit.questions import run_question
from rhostream.audit.render import render
from rhostream.runs.cost import break_even

N_B, N_b, WINDOW = 320, 32, 5
EVERY, STEPS = 25, 1000
MODEL, IL = "small-cnn", "mlp-64"
RHO = {"rule": "rho", "steps": 300, "loss_cap": True}
WAYS: dict[str, dict[str, Any]] = {  # longest first, so that two processes end together
    "everything": {"rule": "uniform", "steps": STEPS, "buffer_size": N_b},
    "rho": RHO,
    "uniform": {"rule": "uniform", "steps": STEPS},
    "cascade": {**RHO, "band": "20%:90%", "shortlist": "proxy:4"},
}
BASELINES = ("uniform", "everything")


@dataclass(frozen=True)
class Training:
    """One run of the demo."""

    name: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, folder: str) -> tuple[str, float]:
        """Train it (again: resume it) in `folder`; returns its name and the seconds it took."""
        logging.basicConfig(level=logging.WARNING)
        start, options = time.monotonic(), {"buffer_size": N_B, "batch_size": N_b, "model": MODEL, **self.options}
        rhostream.train(
            [f"{folder}/train"], f"{folder}/il", f"{folder}/runs/{self.name}", seed=self.seed, threads=1,
            test_shards=[f"{folder}/test-2000"], eval_every=EVERY, smoothing=WINDOW, **options,
        )  # fmt: skip
        return self.name, time.monotonic() - start


def trainings(seeds: int) -> list[Training]:
    """Each way with each seed."""
    return [Training(f"{way}-{seed}", seed, options) for seed in range(seeds) for way, options in WAYS.items()]


def make_shards(folder: str) -> None:
    """train, test and test-2000 below `folder`; what is there already is not made again."""
    noise = ("--noise", "uniform", "--noise-rate", "0.4", "--seed", "0")
    recipes.make(f"{folder}/train", "web", "--base", "fashion-mnist", "--limit", "30000", "--copies", "1", *noise)
    recipes.make(f"{folder}/test", "fashion-mnist", "--split", "test")
    recipes.make(f"{folder}/test-2000", "fashion-mnist", "--split", "test", "--limit", "2000")


def fit_and_score(folder: str, out: str, model: str = IL, **fit: Any) -> None:
    """The IL model and the IL table of the shards in `folder`, as il-model and il below `out`."""
    # Shards are known by name: with a named root the order and the folds are the same wherever the demo lies.
    roots, keep = {"demo": folder}, {"is_noisy": "bool", "true_label": "int", "duplicate_of": "str"}
    rhostream.fit_il([f"{folder}/train"], f"{out}/il-model", model=model, group_by="duplicate_of", roots=roots, **fit)
    rhostream.compute_il([f"{folder}/train"], f"{out}/il-model", f"{out}/il", keep=keep, roots=roots)


def curve(ledger: Any, run: str) -> tuple[list[int], list[float]]:
    """(steps taken, test accuracy) of a run's evaluations."""
    rows = ledger.sql(
        "SELECT step + 1 AS step, test_accuracy FROM steps WHERE run = $run AND test_accuracy IS NOT "
        "NULL ORDER BY step",
        {"run": run},
    ).to_pydict()
    return rows["step"], rows["test_accuracy"]


def summary(folder: str, seeds: int) -> str:
    """What the demo found, as one screen of text."""
    runs = sorted(str(p) for p in Path(folder, "runs").iterdir() if p.is_dir())
    with rhostream.open_ledger(runs) as ledger:
        lines = [
            "", f"Steps to uniform's best of {STEPS:,} (mean of {WINDOW} evaluations, every {EVERY} steps); a step of "
            f"rho costs {break_even(N_B, N_b):.2f} of uniform's in forwards",
        ]  # fmt: skip
        for seed in range(seeds):
            goal = best(curve(ledger, f"uniform-{seed}")[1], WINDOW)
            told = []
            for way in sorted(WAYS, key=lambda way: way not in BASELINES):
                found = curve(ledger, f"{way}-{seed}")
                reached = steps_to_reach(*found, goal, WINDOW)
                told.append(f"{way} {reached or 'never'}, ends at {smooth(found[1], WINDOW)[-1]:.4f}")
            lines.append(f"  seed {seed}: {goal:.4f}: {'; '.join(told)}")
        il = ledger.sql("SELECT max(il_accuracy) AS il FROM runs").to_pydict()["il"][0]
        lines += [f"  IL model {IL}: accuracy {il:.4f} on noisy labels that it didn't learn from", ""]
        ways = [way for way in WAYS if way not in BASELINES]
        lines += in_words(account(ledger, f"{folder}/il", BASELINES, ways, range(seeds), WINDOW))
        lines += ["", "Share of wrong labels among kept and skipped (rhostream sql RUN @noisy_share)"]
        lines.append(render(run_question(ledger, "noisy_share"), "table"))
    return "\n".join(lines)


@click.command()
@click.option("--out", default="demo", show_default=True, help="Folder of everything the demo makes.")
@click.option("--seeds", default=2, show_default=True, help="Seeds of the comparison.")
@click.option("--jobs", default=2, show_default=True, help="Runs at a time, one thread each.")
def main(out: str, seeds: int, jobs: int) -> None:
    """Run the demo; what is there already is not made again."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    folder, start = str(Path(out).resolve()), time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - start:4.0f} s] {text}", err=True)

    say("shards: 30,000 Fashion-MNIST images, a jittered copy of each, 40 % of the labels redrawn")
    make_shards(folder)
    say(f"fit-il: {IL}, two halves, duplicates kept together; compute-il: the irreducible loss of 60,000 samples")
    fit_and_score(folder, folder)
    say(f"train: {', '.join(WAYS)}, {seeds} seeds of a CNN; {jobs} at a time")
    # Not forked: a child of a process whose threads have computed waits for them for ever.
    with ProcessPoolExecutor(jobs, get_context("forkserver")) as pool:
        for future in [pool.submit(training, folder) for training in trainings(seeds)]:
            name, seconds = future.result()
            say(f"  {name} done ({seconds:.0f} s)")
    click.echo(summary(folder, seeds))
    page = rhostream.write_report(
        [f"{folder}/runs/cascade-{seed}" for seed in range(seeds)], f"{folder}/report.html",
        against=[f"{folder}/runs/{way}-{seed}" for way in BASELINES for seed in range(seeds)],
    )  # fmt: skip
    click.echo(f"\nReport: {page}")
    say("done")


if __name__ == "__main__":
    main()
