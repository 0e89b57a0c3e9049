"""Streaming from a store whose every request takes 0, 20 and 100 ms, over streaming the same shards from a disk.

An S3 server on loopback behind the proxy of the tests, which waits before it passes a request on, in a process of its
own. Shards and the parts of their table lie in the store. What is read is small and the consumer takes its time, a
simulated step of `STEP` seconds, so that requests are what can hold the loader up, and not two cores that carry the
store as well. A cold spool for every measure; the first buffer, for which every lane's shard must come, is told beside
the rate of the rest.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import data
from benchmarks.loader import table
from benchmarks.measure import Figure, interleave, ratios
from rhostream import open_stream, storage
from rhostream.storage import ahead
from rhostream.stream import dataset
from tests.faults.rig.proxy import Proxy
from tests.stores.servers import BUCKET, run_s3, s3_options

DELAYS = (0.0, 0.02, 0.1)  # seconds a request
SHARDS, SAMPLES, BUFFER, LANES, TARGET = 60, 100, 160, 8, 0.9
STEP = 0.16  # seconds a buffer: a shard in a tenth of a second
Rate = tuple[float, float]  # samples a second behind the first buffer, and seconds to it


def run(pairs: int, shards_ahead: Sequence[int] = (), threads: int | None = None) -> list[Figure]:
    """Samples a second from the store over those from the disk, by what a request takes and how much is brought ahead.

    `shards_ahead` and `threads`: other numbers than those that the loader takes by itself.
    """
    shards = data.drawings(SHARDS, SAMPLES)
    case = f"{SHARDS} shards of {SAMPLES} in {LANES} lanes, a shard in {STEP * SAMPLES / BUFFER:.1f} s"
    figures = list[Figure]()
    with tempfile.TemporaryDirectory() as folder, run_s3(_made(Path(folder) / "s3")) as server, ExitStack() as held:
        table(shards, folder)
        storage.configure("s3", server.options)
        remote = [f"s3://{BUCKET}/{Path(path).parent.name}/{Path(path).name}" for path in shards]
        for path, url in zip(shards, remote, strict=True):
            storage.replace(url, Path(path).read_bytes())
        for path in storage.list_files(f"{folder}/il", ""):
            storage.replace(f"s3://{BUCKET}/il{path.removeprefix(f'{folder}/il')}", Path(path).read_bytes())
        ports = [held.enter_context(_delayed(server.port, delay)) for delay in DELAYS]
        for number in shards_ahead or (dataset.AHEAD_SHARDS,):
            sides = [partial(measure, shards, f"{folder}/il", folder)]
            sides += [partial(measure, remote, f"s3://{BUCKET}/il", folder, port, number, threads) for port in ports]
            local, *stores = interleave(sides, pairs)
            for delay, found in zip(DELAYS, stores, strict=True):
                which = f"{delay * 1000:.0f} ms a request, {number} shards ahead"
                rate = ratios([r for r, _ in found], [r for r, _ in local])
                figures.append(Figure("remote", case, f"{which}: samples/s over a disk's", rate, TARGET))
                figures.append(Figure("remote", case, f"{which}: first buffer", tuple(s for _, s in found), unit="s"))
    storage.configure("s3", None)
    return figures


def measure(shards: Sequence[str], il: str, folder: str, port: int = 0, number: int = 0, threads: int | None = None,
            ) -> Rate:  # fmt: skip
    """One pass from a cold spool."""
    if port:
        storage.configure("s3", s3_options(port))
    spool = Path(folder) / "spool"
    storage.configure_spool(spool)
    usual = dataset.AHEAD_SHARDS, ahead.THREADS
    dataset.AHEAD_SHARDS, ahead.THREADS = number or usual[0], threads or usual[1]
    try:
        stream = open_stream(list(shards), il, buffer_size=BUFFER, lanes=LANES, image_size=28,
                             roots={data.FOLDER.name: _above(shards)})  # fmt: skip
        start, first, samples = time.perf_counter(), 0.0, 0
        for buffer in stream:
            now = time.perf_counter()
            first, samples = (first or now), samples + (len(buffer) if first else 0)
            time.sleep(STEP)
        return samples / (now - first), first - start
    finally:
        dataset.AHEAD_SHARDS, ahead.THREADS = usual
        storage.configure_spool(None)
        shutil.rmtree(spool, ignore_errors=True)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextmanager
def _delayed(upstream: int, delay: float) -> Iterator[int]:
    """The port of a proxy in a process of its own."""
    context = get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(upstream, delay, theirs), daemon=True)
    process.start()
    try:
        yield int(ours.recv())
    finally:
        ours.send(None)
        process.join(10)


def _serve(upstream: int, delay: float, pipe: Connection) -> None:
    with Proxy(upstream, delay=delay) as proxy:
        pipe.send(proxy.port)
        pipe.recv()


def _above(shards: Sequence[str]) -> str:
    """The folder or bucket above the shards' own: what the table's names begin below."""
    return shards[0].rsplit("/", 2)[0]
