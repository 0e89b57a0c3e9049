"""What the loader's samples cost against the buffer size n_B, the number of workers, and the image size."""

from __future__ import annotations

import tempfile
from functools import partial

from benchmarks import data
from benchmarks.loader import table
from benchmarks.measure import Figure, interleave
from benchmarks.peers.side import measure
from benchmarks.peers.sides import Task

BUFFERS, WORKERS, SIZES = (80, 320, 960), (0, 1, 2), (32, 112, 224)
SAMPLES = 3840  # counted at each setting, after a quarter as many that aren't


def run(pairs: int) -> list[Figure]:
    """Samples a second and CPU a sample, one setting moved at a time from n_B 320, 2 workers and 224 pixels."""
    shards, _ = data.photographs()
    with tempfile.TemporaryDirectory() as folder:
        table(shards, folder)
        given = partial(Task, shards, folder, "simplejpeg")
        settings = {f"n_B {n}": given(buffer_size=n) for n in BUFFERS}
        settings |= {f"{n} workers": given(workers=n) for n in WORKERS}
        settings |= {f"{n} pixels": given(image_size=n) for n in SIZES}
        found = interleave([partial(_side, task) for task in settings.values()], pairs)
    figures = list[Figure]()
    for case, rates in zip(settings, found, strict=True):
        figures += [
            Figure("scaling", case, "rhostream", tuple(rate for rate, _ in rates), unit="samples/s"),
            Figure("scaling", case, "rhostream, CPU", tuple(cpu for _, cpu in rates), unit="ms"),
        ]
    return figures


def _side(task: Task) -> tuple[float, float]:
    take = SAMPLES // task.buffer_size
    # At least as many buffers as two workers hold ready, so that none of those is counted as work.
    return measure("rhostream", task, skip=max(take // 4, 6), take=take)
