"""What augmenting the kept samples costs: a step with a random crop decoded again over the plain one, in turns.

A step is a buffer of 320 photographs of 256 pixels read and decoded to 96 by two workers, scored, 32 kept, and the
forward and backward of those; "alone" is the second read and decode of the 32 without anything else.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import data
from benchmarks.loader import WORKERS, table
from benchmarks.measure import Figure, interleave, ratios
from rhostream.models import build
from rhostream.selection.selector import Selector
from rhostream.stream.open import open_stream

SIZE, SHARDS = 96, 6
BUFFER, BATCH, WARM_UP, STEPS = 320, 32, 1, 3
PLAIN, CROP = "none", "random_resized_crop-flip"


def run(pairs: int) -> list[Figure]:
    """The ratio of a step, and milliseconds a sample: kept ones decoded again, all decoded once."""
    shards, origin = data.photographs()
    shards = shards[:SHARDS]
    with tempfile.TemporaryDirectory() as folder:
        table(shards, folder)
        open_it = partial(open_stream, shards, f"{folder}/il", buffer_size=BUFFER, image_size=SIZE, channels=3)
        plain, crop, again, once = interleave(
            [partial(_step, open_it, PLAIN), partial(_step, open_it, CROP), partial(_again, open_it),
             partial(_once, open_it)], pairs,
        )  # fmt: skip
    line = partial(Figure, "augment", f"small-cnn, {SIZE} px, {WORKERS} workers, {origin}")
    return [
        line("step with a crop over plain step", ratios(crop, plain)),
        line("a kept sample read and cropped over a sample read and decoded plainly", ratios(again, once)),
        line(
            "second decodes of a step over plain step", tuple(BATCH * a / b for a, b in zip(again, plain, strict=True))
        ),
        line("plain step", tuple(1000 * s for s in plain), unit="ms"),
        line("a kept sample read and cropped", tuple(1000 * s for s in again), unit="ms"),
    ]


def _step(open_it, augment: str) -> float:  # type: ignore[no-untyped-def]
    """Seconds of a step."""
    torch.manual_seed(0)
    model = build("small-cnn", image_size=SIZE, channels=3, classes=data.CLASSES)
    selector, start = Selector(model, "rho", BATCH), 0.0
    for number, candidates in enumerate(islice(open_it(workers=WORKERS, augment=augment), WARM_UP + STEPS)):
        if number == WARM_UP:
            start = time.perf_counter()
        kept = selector(candidates)
        model.zero_grad(set_to_none=True)
        kept.mean(F.cross_entropy(model(kept.input), kept.label, reduction="none")).backward()
    return (time.perf_counter() - start) / STEPS


def _again(open_it) -> float:  # type: ignore[no-untyped-def]
    """Seconds a kept sample of the second read and decode, without a model beside it."""
    seconds = []
    for candidates in islice(open_it(augment=CROP), WARM_UP + STEPS):
        rows = np.sort(np.random.default_rng(0).choice(BUFFER, BATCH, replace=False))
        start = time.perf_counter()
        candidates.again(rows)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[WARM_UP:])) / BATCH


def _once(open_it) -> float:  # type: ignore[no-untyped-def]
    """Seconds a sample of the plain read and decode in one process."""
    buffers = iter(open_it())
    next(buffers)
    start = time.perf_counter()
    for _ in islice(buffers, STEPS):
        pass
    return (time.perf_counter() - start) / STEPS / BUFFER
