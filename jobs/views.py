"""What augmentation and mixup of the kept samples change: test accuracy after equal steps, by rule and seed.

On the demo's data, 30,000 Fashion-MNIST images and a jittered copy of each with 40 % of the labels redrawn, and its
il, n_B 320, n_b 32.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import click

import rhostream
from jobs.demo import EVERY, N_B, WINDOW, N_b, curve, fit_and_score, make_shards
from rhostream.audit.metrics import smooth

VIEWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "random_resized_crop-flip": {"augment": "random_resized_crop-flip"},
    "randaugment": {"augment": "randaugment"},
    "mixup 0.2": {"mixup": 0.2},
    "label smoothing 0.1": {"label_smoothing": 0.1},
}
RULES = ("uniform", "rho")


def accuracy(folder: Path, model: str, rule: str, seed: int, steps: int, options: dict[str, Any]) -> float:
    """The last test accuracy of a run, the mean of the last five evaluations; what is there is gone on with."""
    name = f"{model}-{rule}-{seed}-{steps}-{'-'.join(map(str, options.values())) or 'plain'}"
    rhostream.train(
        [f"{folder}/train"], f"{folder}/il", f"{folder}/runs/{name}", model=model, rule=rule, seed=seed,
        steps=steps, buffer_size=N_B, batch_size=N_b, threads=1, test_shards=[f"{folder}/test-2000"],
        eval_every=EVERY, smoothing=WINDOW, **options,
    )  # fmt: skip
    with rhostream.open_ledger(f"{folder}/runs/{name}") as ledger:
        return float(smooth(curve(ledger, name)[1], WINDOW)[-1])


@click.command()
@click.option("--out", required=True, help="Folder of the shards, the il and the runs.")
@click.option("--model", default="mlp-512")
@click.option("--seeds", default=3)
@click.option("--steps", default=400)
def main(out: str, model: str, seeds: int, steps: int) -> None:
    """Train each, seed by seed, and say what was reached."""
    folder = Path(out)
    if not (folder / "il").exists():
        make_shards(out)
        fit_and_score(out, out, "mlp-256", epochs=5)
    reached: dict[str, list[float]] = {}
    for seed in range(seeds):
        for view, options in VIEWS.items():
            for rule in RULES:
                start = time.monotonic()
                reached.setdefault(f"{rule}, {view}", []).append(accuracy(folder, model, rule, seed, steps, options))
                click.echo(f"{rule}, {view}, seed {seed}: {reached[f'{rule}, {view}'][-1]:.4f} "
                           f"({time.monotonic() - start:.0f} s)")  # fmt: skip
    for name, values in reached.items():
        click.echo(f"{name}: {100 * mean(values):.1f} % ({100 * min(values):.1f} to {100 * max(values):.1f})")
    (folder / "views.json").write_text(json.dumps(reached))


if __name__ == "__main__":
    main()
