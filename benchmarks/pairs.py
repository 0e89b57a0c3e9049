"""The loader on pairs against two bare decode loops with tokenising: both members of the same samples, two workers.

`open_stream` plans, joins an index, reads both members and decodes them into reused slots; the bare loops decode and
tokenise bytes that are in memory already, into one reused row. CPU is user and system time of all processes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np
import webdataset as wds

from benchmarks import data
from benchmarks.measure import Figure, cpu_seconds, interleave, ratios
from rhostream.irreducible import index
from rhostream.samples.decoders import decoder
from rhostream.samples.tokenizers import find_tokenizer
from rhostream.stream.open import open_stream

SIZE, LENGTH, WORKERS, BUFFER = 224, 64, 2, 320
SKIP, TAKE, SECONDS = 4, 16, 4.0  # buffers; seconds of a bare loop
TOKENIZER = "words:30000"
BARE_TARGET, CPU_TARGET = 0.90, 1.15
Rate = tuple[float, float]  # samples a second, CPU milliseconds a sample


def run(pairs: int) -> list[Figure]:
    """The loader over the bare loops, for both decoders of images."""
    shards, origin = data.captioned()
    figures = list[Figure]()
    with tempfile.TemporaryDirectory() as folder:
        index(shards, f"{folder}/index", content="pair")
        for name in ("pillow", "simplejpeg"):
            stream, bare, tokens = interleave(
                [partial(_stream, shards, f"{folder}/index", name), partial(_bare, shards, name, _both),
                 partial(_bare, shards, name, _words)], pairs,
            )  # fmt: skip
            line = partial(Figure, "pairs", f"{name}, {WORKERS} workers, {LENGTH} tokens of {TOKENIZER}, {origin}")
            rates, bare_rates = ([rate for rate, _ in side] for side in (stream, bare))
            costs, bare_costs = ([cpu for _, cpu in side] for side in (stream, bare))
            figures += [
                line("samples/s over bare decode and tokenising", ratios(rates, bare_rates), BARE_TARGET),
                line("CPU a sample over bare decode and tokenising", ratios(costs, bare_costs), CPU_TARGET, False),
                line("rhostream", tuple(rates), unit="samples/s"),
                line("bare", tuple(bare_rates), unit="samples/s"),
                line("rhostream, CPU", tuple(costs), unit="ms"),
                line("bare, CPU", tuple(bare_costs), unit="ms"),
                line("of it tokenising, CPU", tuple(cpu for _, cpu in tokens), unit="ms"),
            ]
    return figures


def _stream(shards: list[str], table: str, name: str) -> Rate:
    """The loader, from its fifth buffer on."""
    buffers = iter(open_stream(shards, table, needs_il=False, buffer_size=BUFFER, workers=WORKERS, passes=None,
                               image_size=SIZE, channels=3, tokenizer=TOKENIZER, text_length=LENGTH,
                               decoder=name))  # fmt: skip
    for _ in islice(buffers, SKIP):
        pass
    cpu, start = cpu_seconds(), time.perf_counter()
    for _ in islice(buffers, TAKE):
        pass
    wall, cpu, samples = time.perf_counter() - start, cpu_seconds() - cpu, TAKE * BUFFER
    buffers.close()  # type: ignore[attr-defined]
    return samples / wall, 1000 * cpu / samples


def _bare(shards: list[str], name: str, work: Callable[[str], Callable[[bytes, bytes], None]]) -> Rate:
    """Loops over bytes in memory, in as many processes as there are workers: the ceiling."""
    with ProcessPoolExecutor(WORKERS, get_context("forkserver")) as pool:
        done = list(pool.map(partial(_loop, name=name, work=work), [shards] * WORKERS))
    return sum(rate for rate, _ in done), sum(cpu for _, cpu in done) / WORKERS


def _loop(shards: list[str], name: str, work: Callable[[str], Callable[[bytes, bytes], None]]) -> Rate:
    each = -(-2000 // len(shards))
    read = (islice(wds.WebDataset([shard], shardshuffle=False), each) for shard in shards)
    samples, decode, done = [(one["jpg"], one["txt"]) for some in read for one in some], work(name), 0
    for image, caption in samples[:200]:
        decode(image, caption)
    start, cpu = time.perf_counter(), time.process_time()
    while (wall := time.perf_counter() - start) < SECONDS:
        decode(*samples[done % len(samples)])
        done += 1
    return done / wall, 1000 * (time.process_time() - cpu) / done


def _both(name: str) -> Callable[[bytes, bytes], None]:
    """What decodes a picture and tokenises its caption."""
    decode, tokenise, pixels = decoder(name)[1], _words(name), np.empty((SIZE, SIZE, 3), np.uint8)

    def both(image: bytes, caption: bytes) -> None:
        decode(image, pixels)
        tokenise(image, caption)

    return both


def _words(name: str) -> Callable[[bytes, bytes], None]:
    """What tokenises a caption and does nothing else."""
    tokenizer, row = find_tokenizer(TOKENIZER), np.empty(LENGTH, np.int32)

    def tokenise(image: bytes, caption: bytes) -> None:
        assert tokenizer.encode is not None
        ids = tokenizer.encode(caption.decode(), LENGTH)
        row[: len(ids)], row[len(ids) :] = ids, tokenizer.padding

    return tokenise
