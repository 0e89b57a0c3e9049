"""What the selection log costs a run: the trainer's own time a step, all processor time, and bytes a row on disk.

As many steps as stand between two checkpoints are taken and flushed by a fresh writer, in turns with selection steps of
the small CNN. The trainer waits for `take` and, at the checkpoint, for `flush`; the rest happens in the background.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measure import Figure, ratios
from benchmarks.step import BUFFER, CASES, CLASSES, Step, buffer
from rhostream.candidates import Candidates
from rhostream.tables.selections import LogWriter

STEPS, MODEL_STEPS, SHARDS, TARGET = 500, 20, 1_000, 0.01
Columns = dict[str, np.ndarray]


def run(pairs: int) -> list[Figure]:
    """Seconds of the log over seconds of the fastest small-CNN selection step, and bytes a row."""
    torch.manual_seed(0)
    step = Step(next(case for case in CASES if case.model == "small-cnn"), torch.device("cpu"))
    ways = step.search()  # the fastest step, which the log is the most beside
    buffers = [_buffer(number) for number in range(STEPS)]
    model, taken, flushed, processor, row = [], list[float](), list[float](), list[float](), list[float]()
    step.selected(*ways)
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(pairs):
            model.append(statistics.median(step.selected(*ways) for _ in range(MODEL_STEPS)))
            took, flush, cpu, size = _log(Path(folder) / str(pair), buffers)
            taken.append(took), flushed.append(flush), processor.append(cpu), row.append(size)
    waited = [a + b for a, b in zip(taken, flushed, strict=True)]
    case = f"small-cnn, {BUFFER} rows a step"
    return [
        Figure("log", case, "trainer's time over a selection step", ratios(waited, model), TARGET, at_least=False),
        Figure("log", case, "all processor time over a selection step", ratios(processor, model)),
        Figure("log", case, "take", tuple(1e6 * s for s in taken), unit="us a step"),
        Figure("log", case, f"flush every {STEPS} steps", tuple(1e6 * s for s in flushed), unit="us a step"),
        Figure("log", case, "processor time, background included", tuple(1e6 * s for s in processor), unit="us a step"),
        Figure("log", case, "selection step", tuple(1000 * s for s in model), unit="ms"),
        Figure("log", "keys of 9 digits", "on disk", tuple(row), 24, at_least=False, unit="bytes a row"),
    ]  # fmt: skip


def _buffer(number: int) -> tuple[Candidates, Columns]:
    """A buffer and its decisions, as the stream and the selector hand them over."""
    rng = np.random.default_rng(number)
    shard = np.repeat(rng.integers(0, SHARDS, 32), BUFFER // 32).astype(np.int32)
    loss, scored = rng.exponential(1, BUFFER).astype(np.float32), rng.random(BUFFER) < 0.99
    kept = rng.random(BUFFER) < 0.1
    candidates = replace(
        buffer(), shard=shard, ordinal=rng.integers(0, 10_000, BUFFER).astype(np.int32),
        key=pa.array([f"{key:09d}" for key in rng.integers(0, 10**9, BUFFER)]),
        label=torch.from_numpy(rng.integers(0, CLASSES, BUFFER)),
        il=torch.from_numpy(rng.exponential(1, BUFFER).astype(np.float32)), fields=None, shard_names=NAMES,
    )  # fmt: skip
    return candidates, {
        "loss": np.where(scored, loss, np.float32(np.nan)), "score": loss - candidates.il.numpy(), "kept": kept,
        "correct": loss < 0.7, "reason": np.where(kept, 0, 1).astype(np.uint8),
        "weight": np.ones(BUFFER, np.float32),
    }  # fmt: skip


NAMES = pa.array([f"bucket/train-{number:05d}.tar" for number in range(SHARDS)])


def _log(run: Path, buffers: list[tuple[Candidates, Columns]]) -> tuple[float, float, float, float]:
    """Seconds a step of `take` and of `flush`, processor seconds a step, bytes a row."""
    writer, cpu, start = LogWriter(str(run), 0), time.process_time(), time.perf_counter()
    for step, (candidates, columns) in zip(count(), buffers):
        writer.take(candidates, step, columns, step)
    took = time.perf_counter()
    (segment,) = writer.flush()
    end, spent = time.perf_counter(), time.process_time() - cpu
    n = len(buffers)
    return (took - start) / n, (end - took) / n, spent / n, segment["bytes"] / segment["rows"]
