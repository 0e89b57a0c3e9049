"""`python -m benchmarks.against [COMMIT]`: this tree against another commit, the same public calls of both in turns.

Each side is a fresh process with one of the two packages first on its path, which warms up, then times the calls
itself: imports and the machine's other work fall on both alike. A ratio is the time of this tree over that of the other
commit, pair by pair, so above 1 is slower. For moves inside the house, which must cost nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

from benchmarks import data
from benchmarks.house import unpacked
from benchmarks.measure import Figure, interleave, ratios, table

READERS = {
    "status": "main(['status', run])",
    "sql": "main(['sql', run, 'select count(*) from selections'])",
    "verify": "main(['verify', run])",
    "report": "main(['report', run, '-o', out + '.html'])",
}
SETUP = """
import contextlib, io, sys, time, warnings
warnings.simplefilter("ignore")
shards, run, out = sys.argv[1:4]
"""
LIBRARY = (
    SETUP
    + """
import torch, rhostream
torch.set_num_threads(1)
{prepare}
def work(to):
    {work}
work(out + "-warm")
began = time.perf_counter()
work(out)
print(time.perf_counter() - began)
"""
)
PROGRAMS = {
    "walk: index": ("", "rhostream.index([shards], to)"),
    "offline: compute-il": (
        "rhostream.fit_il([shards], out + '-m', model='mlp-64', epochs=1, fit_samples=500)",
        "rhostream.compute_il([shards], out + '-m', to)",
    ),
    "loader: a pass": (
        "rhostream.index([shards], out + '-ix')",
        "sum(len(c) for c in rhostream.open_stream([shards], out + '-ix', needs_il=False, buffer_size=320, seed=3))",
    ),
    "step: mlp-64, 320 to 32": (
        "rhostream.index([shards], out + '-ix')",
        "rhostream.train([shards], out + '-ix', to, rule='loss', model='mlp-64', steps=150, passes=99, threads=1, "
        "device='cpu')",
    ),
    "step: small-cnn, 64 to 16": (
        "rhostream.index([shards], out + '-ix')",
        "rhostream.train([shards], out + '-ix', to, rule='loss', model='small-cnn', steps=60, passes=99, threads=1, "
        "device='cpu', buffer_size=64, batch_size=16)",
    ),
}
READER = (
    SETUP
    + """
began = time.perf_counter()
from rhostream.cli import cli
def main(words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli(words, standalone_mode=False)
{work}
print(time.perf_counter() - began)
"""
)


def seconds(root: Path, program: str, shards: str, run: str) -> float:
    """What a program prints that runs with the package below `root`."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, shards, run, f"{folder}/out"],
            cwd=folder, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return float(done.stdout.split()[-1])


@click.command()
@click.argument("commit", default="HEAD")
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="times both sides are measured")
@click.option("--only", default="", help="cases whose name holds this")
def main(commit: str, pairs: int, only: str) -> None:
    """Time this tree over COMMIT, case by case, and print the ratios."""
    shards = str(Path(data.drawings(20, 300)[0]).parent)
    cases = {name: LIBRARY.format(prepare=prepare, work=work) for name, (prepare, work) in PROGRAMS.items()}
    cases |= {f"reader: {name}": READER.format(work=work) for name, work in READERS.items()}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        now, then = unpacked(None, Path(folder) / "now"), unpacked(commit, Path(folder) / "then")
        run = f"{folder}/run"
        made = (
            f"import rhostream; rhostream.index([{shards!r}], {run + '-ix'!r}); "
            f"rhostream.train([{shards!r}], {run + '-ix'!r}, {run!r}, rule='loss', model='mlp-64', steps=40)"
        )
        subprocess.run(
            [sys.executable, "-c", made],
            check=True, capture_output=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(then)},
        )  # fmt: skip
        for name, program in cases.items():
            if only in name:
                sides = [partial(seconds, root, program, shards, run) for root in (now, then)]
                figures.append(Figure("against", name, f"seconds over those of {commit}",
                                      ratios(*interleave(sides, pairs))))  # fmt: skip
                click.echo(table(figures[-1:]).splitlines()[-1], err=True)
    click.echo(table(figures))


if __name__ == "__main__":
    main()
