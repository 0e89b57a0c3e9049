"""The loader against plain webdataset: the same shards and decode function, the join with the table on our side only.

Both sides hand 320 decoded 224-pixel images at a time to a consumer that does nothing. The first buffers are not
counted, so the start of processes isn't; what is counted is wall time and CPU time, that of all processes together.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset as wds

from benchmarks import data
from benchmarks.measure import Figure, cpu_seconds, interleave, ratios
from rhostream import open_stream
from rhostream.irreducible import compute_il, fit_il
from rhostream.stream.decode import OK, Decoder, decoder

BUFFER, SIZE, SKIP, TAKE = 320, 224, 4, 20
TARGETS = {("pillow", 0): 1.0, ("pillow", 2): 1.0, ("simplejpeg", 2): 1.5}
Rate = tuple[float, float]  # samples a second, CPU milliseconds a sample


def run(pairs: int) -> list[Figure]:
    """Rates of both sides for each decoder and number of workers."""
    shards, figures = data.photos(), []
    with tempfile.TemporaryDirectory() as folder:
        fit_il(shards[:2], f"{folder}/model", model="mlp-64", image_size=32, classes=data.CLASSES, fit_samples=400,
               epochs=1)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most shards were not learned from: the join doesn't mind
            compute_il(shards, f"{folder}/model", f"{folder}/il")
        for name in ("pillow", "simplejpeg"):
            for workers in (0, 2):
                sides = [
                    partial(_rate, partial(_ours, shards, f"{folder}/il", name, workers)),
                    partial(_rate, partial(_webdataset, shards, name, workers)),
                    partial(bare, shards, name, max(workers, 1)),
                ]
                case = f"{name}, {workers} workers"
                figures += _figures(case, interleave(sides, pairs), TARGETS.get((name, workers)))
    return figures


def _figures(case: str, results: list[list[Rate]], target: float | None) -> list[Figure]:
    (ours, ours_cpu), (plain, plain_cpu), (bare, bare_cpu) = (list(zip(*side, strict=True)) for side in results)
    line = partial(Figure, "loader", case)
    return [
        line("samples/s over webdataset", ratios(ours, plain), target),
        line("CPU a sample over webdataset", ratios(ours_cpu, plain_cpu), 1.0 if target else None, False),
        line("samples/s over bare decode", ratios(ours, bare)),
        line("rhostream", ours, unit="samples/s"),
        line("webdataset", plain, unit="samples/s"),
        line("bare decode", bare, unit="samples/s"),
        line("rhostream, CPU", ours_cpu, unit="ms"),
        line("webdataset, CPU", plain_cpu, unit="ms"),
        line("bare decode, CPU", bare_cpu, unit="ms"),
    ]


def _ours(shards: list[str], il: str, name: str, workers: int) -> Iterator[Any]:
    return iter(open_stream(shards, il, buffer_size=BUFFER, workers=workers, passes=None, image_size=SIZE,
                            decoder=name))  # fmt: skip


def _webdataset(shards: list[str], name: str, workers: int) -> Iterator[Any]:
    plain = wds.WebDataset(shards, shardshuffle=False).repeat().to_tuple("jpg", "cls")
    plain = plain.map_tuple(partial(_decode, decoder(name)[1]), int)
    context = "forkserver" if workers else None
    return iter(wds.WebLoader(plain, batch_size=BUFFER, num_workers=workers, multiprocessing_context=context))


def _decode(decode: Decoder, image: bytes) -> npt.NDArray[np.uint8]:
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    assert decode(image, out) == OK
    return out


def _rate(make: Callable[[], Iterator[Any]]) -> Rate:
    buffers = make()
    for _ in islice(buffers, SKIP):
        pass
    cpu, start = cpu_seconds(), time.perf_counter()
    for _ in islice(buffers, TAKE):
        pass
    wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    del buffers  # its workers end here, outside the measurement
    return TAKE * BUFFER / wall, 1000 * cpu / (TAKE * BUFFER)


def bare(shards: list[str], name: str, processes: int) -> Rate:
    """The decode function in a loop over bytes in memory, in that many processes at once: the ceiling."""
    with ProcessPoolExecutor(processes, get_context("forkserver")) as pool:
        done = list(pool.map(_loop, [shards[0]] * processes, [name] * processes))
    return sum(rate for rate, _ in done), sum(cpu for _, cpu in done) / processes


def _loop(shard: str, name: str, warm_up: float = 0.5, seconds: float = 2.0) -> Rate:
    samples = [sample["jpg"] for sample in wds.WebDataset([str(Path(shard))], shardshuffle=False)]
    decode, out, done = decoder(name)[1], np.empty((SIZE, SIZE, 3), np.uint8), 0
    begin = time.perf_counter() + warm_up
    while time.perf_counter() < begin:
        decode(samples[0], out)
    start, cpu = time.perf_counter(), time.process_time()
    while (wall := time.perf_counter() - start) < seconds:
        decode(samples[done % len(samples)], out)
        done += 1
    return done / wall, 1000 * (time.process_time() - cpu) / done
