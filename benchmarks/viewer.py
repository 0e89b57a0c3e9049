"""The viewer at the size that people have: `python -m benchmarks.viewer make FOLDER`, then `... measure FOLDER`.

    make       three runs (rho, loss, uniform) of 10 million rows each, in more than 1,000 commits each, by `train`
    measure    in chromium: first paint, brushes, and how soon a run's new steps are seen, while `train` runs

Both go on where they were stopped. Seconds depend on the machine and stand in docs/view.md with their date.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

import rhostream

N_b, EVERY, THREADS = 32, 3, {"OMP_NUM_THREADS": "1"}
# More than 10 million rows each. Compaction merges a rank's segments at every 256th commit, so that most segments are
# in force just before it: four ranks end there, with 255 segments of each rank and those that were merged.
RUNS = {"rho": (4, 3328, 3069), "loss": (1, 3200, 3126), "uniform": (1, 3200, 3126)}  # ranks, n_B, steps


@click.group()
def main() -> None:
    """Make the runs, or measure the viewer on them."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def make(folder: Path) -> None:
    """Shards of 60,000 images, an IL table and three runs."""
    web = ("web", "--base", "fashion-mnist", "--limit", "30000", "--copies", "1", "--noise-rate", "0.4")
    subprocess.run([sys.executable, "-m", "shards.make", *web, "--out", str(folder / "train")], check=True)
    train, model, table = [str(folder / "train")], str(folder / "il-model"), str(folder / "il")
    if not Path(model, "model.json").exists():
        rhostream.fit_il(train, model, model="mlp-64", epochs=3, group_by="duplicate_of")
    rhostream.compute_il(train, model, table)
    for rule, (ranks, buffer_size, steps) in RUNS.items():
        training(folder, rule, rule, ranks, buffer_size, steps).wait()


def training(folder: Path, name: str, rule: str, ranks: int, buffer_size: int, steps: int) -> subprocess.Popen[bytes]:
    """`rhostream train` of one of the runs, which goes on where it was stopped."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python", "--"]
    places = ["--shards", str(folder / "train"), "--il", str(folder / "il"), "--run", str(folder / "runs" / name)]
    sizes = {"steps": steps, "buffer-size": buffer_size, "batch-size": N_b, "checkpoint-every": EVERY, "threads": 1}
    options = [f"--{option}={value}" for option, value in {"model": "mlp-64", "rule": rule, **sizes}.items()]
    command = [*(launch if ranks > 1 else []), str(Path(sys.executable).with_name("rhostream")), "train"]
    return subprocess.Popen([*command, *places, *options], env={**os.environ, **THREADS})


if __name__ == "__main__":
    sys.exit(main())
