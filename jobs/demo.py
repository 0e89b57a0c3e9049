"""The whole journey on real images, web-like: shards, IL model, IL table, three ways to train, SQL answers, a report.

30,000 Fashion-MNIST images and a jittered copy of each, 40 % of the labels redrawn at random (as many are wrong on
Clothing-1M). An MLP-256, cross-fitted on the noisy labels, gives the il; the targets are an MLP-512 (three seeds) and
a CNN with batch norm that outgrows its IL model.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

import rhostream
from rhostream.audit.metrics import best, smooth, speedup, steps_to_reach
from rhostream.audit.questions import run_question
from rhostream.audit.render import render
from rhostream.runs.cost import break_even

N_B, N_b, WINDOW = 320, 32, 5
EVERY = 25
CNN = ("cnn-rho", "cnn-rho-cap", "cnn-cascade")


@dataclass(frozen=True)
class Training:
    """One run of the demo."""

    name: str
    model: str
    rule: str
    seed: int = 0
    steps: int | None = None
    buffer_size: int = N_B
    loss_cap: bool = False
    band: str | None = None
    shortlist: str | None = None
    test: str = "test"

    def __call__(self, folder: str) -> tuple[str, float]:
        """Train it (again: resume it) in `folder`; returns its name and the seconds it took."""
        logging.basicConfig(level=logging.WARNING)
        start = time.monotonic()
        rhostream.train(
            [f"{folder}/train"],
            f"{folder}/il",
            f"{folder}/runs/{self.name}",
            model=self.model,
            rule=self.rule,
            seed=self.seed,
            steps=self.steps,
            buffer_size=self.buffer_size,
            batch_size=N_b,
            loss_cap=self.loss_cap,
            band=self.band,
            shortlist=self.shortlist,
            threads=1,
            test_shards=[f"{folder}/{self.test}"],
            eval_every=EVERY,
            smoothing=WINDOW,
        )
        return self.name, time.monotonic() - start


def trainings(seeds: int) -> list[Training]:
    """Longest first, so that two processes end together."""
    cnn: dict[str, Any] = {"model": "small-cnn", "test": "test-2000"}
    runs = [
        Training("cnn-rho", rule="rho", steps=400, **cnn),
        Training("cnn-rho-cap", rule="rho", steps=400, loss_cap=True, **cnn),
        Training("cnn-cascade", rule="rho", steps=400, loss_cap=True, band="20%:90%", shortlist="proxy:4", **cnn),
        Training("cnn-uniform", rule="uniform", steps=1500, **cnn),
    ]
    for seed in range(seeds):
        runs += [
            Training(f"mlp-uniform-{seed}", "mlp-512", "uniform", seed, 1500),
            Training(f"mlp-rho-{seed}", "mlp-512", "rho", seed, 400),
            Training(f"mlp-everything-{seed}", "mlp-512", "uniform", seed, None, buffer_size=N_b),
        ]
    return runs


def _shards(out: str, *arguments: str) -> None:
    # The recipes are programs of the repository; a job stands on the library alone, so it calls them as one does.
    subprocess.run(
        [sys.executable, "-m", "shards.make", *arguments, "--out", out], check=True, stdout=subprocess.DEVNULL
    )


def make_shards(folder: str) -> None:
    """train, test and test-2000 below `folder`; what is there already is not made again."""
    _shards(
        f"{folder}/train",
        "web",
        "--base",
        "fashion-mnist",
        "--limit",
        "30000",
        "--copies",
        "1",
        "--noise",
        "uniform",
        "--noise-rate",
        "0.4",
        "--seed",
        "0",
    )
    _shards(f"{folder}/test", "fashion-mnist", "--split", "test")
    _shards(f"{folder}/test-2000", "fashion-mnist", "--split", "test", "--limit", "2000")


def fit_and_score(folder: str, out: str) -> None:
    """The IL model and the IL table of the shards in `folder`, as il-model and il below `out`."""
    # Shards are known by name: with a named root the order and the folds are the same wherever the demo lies.
    roots = {"demo": folder}
    rhostream.fit_il(
        [f"{folder}/train"], f"{out}/il-model", model="mlp-256", group_by="duplicate_of", epochs=5, roots=roots
    )
    rhostream.compute_il(
        [f"{folder}/train"],
        f"{out}/il-model",
        f"{out}/il",
        keep={"is_noisy": "bool", "true_label": "int", "duplicate_of": "str"},
        roots=roots,
    )


def curve(ledger: Any, run: str) -> tuple[list[int], list[float]]:
    """(steps taken, test accuracy) of a run's evaluations."""
    rows = ledger.sql(
        "SELECT step + 1 AS step, test_accuracy FROM steps WHERE run = $run AND test_accuracy IS NOT "
        "NULL ORDER BY step",
        {"run": run},
    ).to_pydict()
    return rows["step"], rows["test_accuracy"]


def _number(value: float | None, form: str = ".2f") -> str:
    return "not reached" if value is None else format(value, form)


def compare(ledger: Any, rho: str, uniform: str, one_pass: int) -> dict[str, Any]:
    """A run against its uniform twin: steps to uniform's best, speed-up, points ahead after one pass."""
    ours, theirs = curve(ledger, rho), curve(ledger, uniform)
    target = best(theirs[1], WINDOW)
    at = max(i for i, step in enumerate(theirs[0]) if step <= one_pass)
    same = ours[0].index(theirs[0][at])
    ahead = float(smooth(ours[1], WINDOW)[same] - smooth(theirs[1], WINDOW)[at])
    return {
        "run": rho,
        "uniform_best": target,
        "uniform_steps": steps_to_reach(*theirs, target, WINDOW),
        "steps": steps_to_reach(*ours, target, WINDOW),
        "speedup": speedup(theirs, ours, WINDOW),
        "points_ahead": 100 * ahead,
        "final": float(smooth(ours[1], WINDOW)[-1]),
    }


def summary(folder: str, seeds: int) -> str:
    """What the demo found, as one screen of text."""
    runs = sorted(str(p) for p in Path(folder, "runs").iterdir() if p.is_dir())
    lines = [""]
    with rhostream.open_ledger(runs) as ledger:
        table = ledger.sql("SELECT * FROM runs ORDER BY run").to_pylist()
        facts = {row["run"]: row for row in table}
        one_pass = 60_000 // N_B
        lines.append(
            f"Steps to uniform's best of 1,500 steps (mean of {WINDOW} evaluations, every {EVERY} steps); "
            f"break-even in forwards is {break_even(N_B, N_b):.2f}x"
        )
        found = [compare(ledger, f"mlp-rho-{s}", f"mlp-uniform-{s}", one_pass) for s in range(seeds)]
        cnn = [compare(ledger, name, "cnn-uniform", one_pass) for name in CNN]
        for one in found + cnn:
            lines.append(
                f"  {one['run']:12} uniform's best {one['uniform_best']:.4f} at step "
                f"{one['uniform_steps']:>5}, rho at {_number(one['steps'], '5d'):>11}: "
                f"{_number(one['speedup']):>11}x fewer steps; "
                f"{one['points_ahead']:+.1f} points after one pass; final {one['final']:.4f}"
            )
        reached = [one["speedup"] for one in found if one["speedup"] is not None]
        if len(reached) == len(found):
            lines.append(
                f"  MLP mean     {sum(reached) / len(reached):.2f}x fewer steps, "
                f"{sum(o['points_ahead'] for o in found) / len(found):+.1f} points after one pass "
                f"({len(found)} seeds)"
            )
        else:
            lines.append(f"  MLP mean     not reached in {len(found) - len(reached)} of {len(found)} seeds")
        lines += ["", "Final accuracy beside the IL model's, and the cost (1 unit = one sample through one forward)"]
        for run, row in facts.items():
            lines.append(
                f"  {run:16} accuracy {row['final_test_accuracy']:.4f}   {row['steps']:>5} steps "
                f"{row['forward_units']:>10,.0f} units + {row['il_units']:>9,.0f} for the il"
            )
        il = next(row["il_accuracy"] for row in table if row["il_accuracy"] is not None)
        lines.append(f"  IL model         accuracy {il:.4f} on noisy labels that it didn't learn from")
        lines += ["", "Share of wrong labels among kept and skipped (rhostream sql RUN @noisy_share)"]
        lines.append(render(run_question(ledger, "noisy_share"), "table"))
    return "\n".join(lines)


@click.command()
@click.option("--out", default="demo", show_default=True, help="Folder of everything the demo makes.")
@click.option("--seeds", default=3, show_default=True, help="Seeds of the MLP comparison.")
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
    say("fit-il: MLP-256, two halves, duplicates kept together; compute-il: the irreducible loss of 60,000 samples")
    fit_and_score(folder, folder)
    say(f"train: uniform, rho and everything, {seeds} seeds of an MLP and a CNN; {jobs} at a time")
    # Not forked: a child of a process whose threads have computed waits for them for ever.
    with ProcessPoolExecutor(jobs, get_context("forkserver")) as pool:
        for future in [pool.submit(training, folder) for training in trainings(seeds)]:
            name, seconds = future.result()
            say(f"  {name} done ({seconds:.0f} s)")
    click.echo(summary(folder, seeds))
    runs = Path(folder, "runs")
    page = rhostream.write_report(
        [str(runs / f"mlp-rho-{seed}") for seed in range(seeds)],
        f"{folder}/report.html",
        against=[str(runs / f"mlp-{what}-{seed}") for what in ("uniform", "everything") for seed in range(seeds)],
    )
    cnn = rhostream.write_report(
        [str(runs / name) for name in reversed(CNN)], f"{folder}/report-cnn.html", against=[str(runs / "cnn-uniform")]
    )
    click.echo(f"\nReports: {page} and {cnn}")
    say("done")


if __name__ == "__main__":
    main()
