"""Dealt rows against rows that stay where they were read: rows, and the gradient step, of the rank that has the most.

One process trains with the rule `rho`, and its log says which rows of each buffer were kept; a rank reads a contiguous
slice of every buffer, so the log of one rank tells how many each of 4 or 8 would hold. A step ends with its slowest
rank: the time of a gradient step is measured at the rows of the fullest rank and at n_b / ranks, in turns, alone on the
machine. Nothing is sent: what dealing costs, an all-to-all of the kept rows' bytes, comes as bytes.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import rhostream
from benchmarks.measure import Figure, interleave, ratios, timed
from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection.deal import shares
from rhostream.selection.gradient import take_step
from rhostream.selection.losses import cross_entropy
from rhostream.tables import selections
from tests.support.shards import make_shards

BUFFER, SIZES, RANKS, PIXELS = 320, (32, 128), (4, 8), 32
MODEL, STEPS, TIMED = "resnet18-small", 60, 12


def run(pairs: int) -> list[Figure]:
    """Rows of the fullest rank over the mean, and its step over one of n_b / ranks rows."""
    figures = []
    for n_b in SIZES:
        kept = kept_rows(n_b)
        for ranks in RANKS:
            case, share = f"n_b {n_b}, {ranks} ranks", n_b // ranks
            fullest = kept.reshape(len(kept), ranks, -1).sum(2).max(1)
            figures += [
                Figure("dealing", case, "rows of the fullest rank over the mean, undealt", (fullest.mean() / share,)),
                Figure("dealing", case, "the same, dealt", (max(shares(n_b, ranks)) / share,), 1.0, False),
            ]
            rows = fullest[:: len(fullest) // TIMED][:TIMED].tolist()
            step = Step()
            sides = [partial(step.of, [share] * len(rows)), partial(step.of, rows)]
            dealt, undealt = interleave(sides, pairs)
            figures.append(
                Figure("dealing", case, "step of the fullest rank, undealt over dealt", ratios(undealt, dealt))
            )
            sent = n_b * (1 - 1 / ranks) * PIXELS * PIXELS * 3 / 1024
            figures.append(Figure("dealing", case, "sent in all, at most", (sent,), unit="KiB"))
    return figures


def kept_rows(n_b: int) -> npt.NDArray[np.bool_]:
    """(steps, n_B): which rows of each buffer a real run kept."""
    with tempfile.TemporaryDirectory() as folder:
        shards_of, il_model, il, run_ = (str(Path(folder) / name) for name in ("shards", "model", "il", "run"))
        make_shards(Path(shards_of), [400] * 16)
        rhostream.fit_il([shards_of], il_model, model="mlp-64", epochs=2)
        rhostream.compute_il([shards_of], il_model, il)
        rhostream.train([shards_of], il, run_, model="mlp-64", steps=STEPS, buffer_size=BUFFER, batch_size=n_b)
        latest = checkpoint.latest(run_)
        assert latest is not None
        log = selections.read(run_, latest.log)
    steps = log["step"].fill_null(-1).to_numpy()
    return np.stack([log["kept"].to_numpy()[steps == step] for step in range(STEPS)])


class Step:
    """A gradient step on so many rows."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._model = build(MODEL, image_size=PIXELS, channels=3, classes=10)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), fused=True)

    def of(self, rows: list[int]) -> float:
        """Mean seconds."""
        return statistics.mean(timed(partial(self._take, max(n, 2))) for n in rows)

    def _take(self, rows: int) -> None:
        x, label = torch.randn(rows, 3, PIXELS, PIXELS), torch.zeros(rows, dtype=torch.long)
        take_step(self._model, self._optimizer, x, label, cross_entropy)
