"""What training views of the kept samples cost: a step with a random crop decoded again over the plain one, in turns.

A step is a buffer of 320 photographs of 256 pixels read and decoded to 96 by two workers, scored, 32 kept, and the
forward and backward of those. A second read and decode of the 32 is timed without anything else beside it, and so is
the gradient step, forward, backward and optimizer, that mixup and label smoothing are part of.
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
from rhostream.selection.gradient import take_step
from rhostream.selection.losses import LossFunction, SmoothedCrossEntropy, cross_entropy
from rhostream.selection.selector import Selector
from rhostream.stream.open import open_stream
from rhostream.training.mixup import mixed

SIZE, SHARDS = 96, 6
BUFFER, BATCH, WARM_UP, STEPS = 320, 32, 1, 3
PLAIN, CROP = "none", "random_resized_crop-flip"
COLOUR, RANDAUGMENT = f"{CROP}-colour", f"{CROP}-randaugment"
ALPHA, SHARE, GRADIENTS = 0.2, 0.1, 10


def run(pairs: int) -> list[Figure]:
    """The ratio of a step, and milliseconds a sample: kept ones decoded again, all decoded once."""
    shards, origin = data.photographs()
    shards = shards[:SHARDS]
    with tempfile.TemporaryDirectory() as folder:
        table(shards, folder)
        open_it = partial(open_stream, shards, f"{folder}/il", buffer_size=BUFFER, image_size=SIZE, channels=3)
        plain, crop, again, colour, operations, once, gradient, mixed_up, smoothed = interleave(
            [partial(_step, open_it, PLAIN), partial(_step, open_it, CROP),
             *(partial(_again, open_it, name) for name in (CROP, COLOUR, RANDAUGMENT)), partial(_once, open_it),
             _gradient, partial(_gradient, alpha=ALPHA), partial(_gradient, share=SHARE)], pairs,
        )  # fmt: skip
    line = partial(Figure, "augment", f"small-cnn, {SIZE} px, {WORKERS} workers, {origin}")
    return [
        line("step with a crop over plain step", ratios(crop, plain)),
        line("a kept sample read and cropped over a sample read and decoded plainly", ratios(again, once)),
        line(
            "second decodes of a step over plain step", tuple(BATCH * a / b for a, b in zip(again, plain, strict=True))
        ),
        line("a kept sample with colour over one read and cropped", ratios(colour, again)),
        line("a kept sample with randaugment over one read and cropped", ratios(operations, again)),
        line("a gradient step with mixup over plain gradient step", ratios(mixed_up, gradient)),
        line("a gradient step with label smoothing over plain gradient step", ratios(smoothed, gradient)),
        line("plain gradient step", tuple(1000 * s for s in gradient), unit="ms"),
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


def _again(open_it, augment: str) -> float:  # type: ignore[no-untyped-def]
    """Seconds a kept sample of the second read and decode, without a model beside it."""
    seconds = []
    for candidates in islice(open_it(augment=augment), WARM_UP + STEPS):
        rows = np.sort(np.random.default_rng(0).choice(BUFFER, BATCH, replace=False))
        start = time.perf_counter()
        candidates.again(rows)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[WARM_UP:])) / BATCH


def _gradient(alpha: float = 0.0, share: float = 0.0) -> float:
    """Seconds of a gradient step on a kept batch, the median of several."""
    torch.manual_seed(0)
    model = build("small-cnn", image_size=SIZE, channels=3, classes=data.CLASSES)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, label = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, data.CLASSES, (BATCH,))
    seconds = []
    for step in range(WARM_UP + GRADIENTS):
        start = time.perf_counter()
        loss: LossFunction = SmoothedCrossEntropy(share) if share else cross_entropy
        x, target = inputs, label
        if alpha:
            x, target, loss = mixed(x, target, loss, alpha, seed=0, step=step)
        take_step(model, optimizer, x, target, loss)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[WARM_UP:]))


def _once(open_it) -> float:  # type: ignore[no-untyped-def]
    """Seconds a sample of the plain read and decode in one process."""
    buffers = iter(open_it())
    next(buffers)
    start = time.perf_counter()
    for _ in islice(buffers, STEPS):
        pass
    return (time.perf_counter() - start) / STEPS / BUFFER
