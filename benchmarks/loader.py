"""The loader against its peers and against bare decode loops: the same JPEGs, the same decode to 224, two workers.

Every side runs in a process of its own, in turns with the others, and hands buffers of 320 to a consumer that does
nothing. rhostream alone joins its samples with an IL table. A peer that can't run here is a line that says so.

"Bare decode" has its bytes in memory and one row, which stays in the processor's cache. What no loader of distinct
samples can do without stands beside it: "bare read and decode" reads each picture from its shard and fills the rows of
as many buffers as a worker of the loader has.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np
import webdataset as wds

from benchmarks import data
from benchmarks.measure import Figure, interleave, ratios
from benchmarks.peers import environment
from benchmarks.peers.side import Absent, Rate, measure
from benchmarks.peers.sides import OWN, SIDES, Task
from rhostream import storage
from rhostream.irreducible import compute_il, fit_il
from rhostream.samples.decoders import decoder
from rhostream.samples.image import EXTENSIONS
from rhostream.stream.dataset import SLOTS
from rhostream.stream.tar import TarWalk

SIZE, WORKERS, IMAGES = 224, 2, 2_000
BARE_TARGET, CPU_TARGET, AS_USED, READ = 0.97, 1.03, "webdataset as used", "bare read and decode"
AHEAD = {"webdataset": 1.9, AS_USED: 3.4}  # and 1.0 of every other peer


def run(pairs: int) -> list[Figure]:
    """rhostream over every side, and the rates, by decoder."""
    shards, origin = data.photographs()
    figures = list[Figure]()
    with tempfile.TemporaryDirectory() as folder:
        table(shards, folder)
        task = Task(shards, folder)
        absent = _prepared(task)
        for name in ("pillow", "simplejpeg", "turbo"):
            sides = [side for side in SIDES if side not in absent and (name != "turbo" or side in OWN)]
            found = interleave([partial(_side, Task(shards, folder, name), side) for side in sides]
                               + [partial(bare, shards, name, WORKERS, read=read) for read in (False, True)],
                               pairs)  # fmt: skip
            case = f"{name}, {WORKERS} workers, {origin}"
            figures += _figures(case, dict(zip([*sides, "bare decode", READ], found, strict=True)), absent)
    return figures


def table(shards: Sequence[str], folder: str) -> None:
    """An IL table of the shards as `folder`/il, by a model that learned next to nothing: the join doesn't mind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_il(list(shards[:2]), f"{folder}/model", model="mlp-64", image_size=32, resize="crop", classes=data.CLASSES,
               fit_samples=200, epochs=1)  # fmt: skip
        compute_il(list(shards), f"{folder}/model", f"{folder}/il")


def _prepared(task: Task) -> dict[str, str]:
    """Install the peers, copy the images into their formats and try each once; those that fail, and why."""
    if why := environment.make():
        return {side: f"not installed: {why}" for side in SIDES if side not in OWN}
    absent = {}
    for side in SIDES:
        if side not in OWN:
            try:
                measure(side, task, only_prepare=True)
                measure(side, task, skip=1, take=1)
            except Absent as exc:
                absent[side] = str(exc)
    return absent


def _side(task: Task, side: str) -> Rate:
    return measure(side, task)


def _figures(case: str, found: dict[str, list[Rate]], absent: dict[str, str]) -> list[Figure]:
    rate = {side: tuple(r for r, _ in rates) for side, rates in found.items()}
    cpu = {side: tuple(c for _, c in rates) for side, rates in found.items()}
    line = partial(Figure, "loader", case)
    peers = [side for side in SIDES if side != "rhostream"]
    figures = [
        line("samples/s over bare decode", ratios(rate["rhostream"], rate["bare decode"]), BARE_TARGET),
        line("CPU a sample over bare decode", ratios(cpu["rhostream"], cpu["bare decode"]), CPU_TARGET, False),
        line(f"samples/s over {READ}", ratios(rate["rhostream"], rate[READ])),
        line(f"CPU a sample over {READ}", ratios(cpu["rhostream"], cpu[READ])),
    ]
    for peer in peers:
        if peer in absent:
            figures.append(line(f"samples/s over {peer}; absent: {absent[peer]}", (), AHEAD.get(peer, 1.0)))
        elif peer in rate:
            figures.append(line(f"samples/s over {peer}", ratios(rate["rhostream"], rate[peer]), AHEAD.get(peer, 1.0)))
    figures += [line(side, values, unit="samples/s") for side, values in rate.items()]
    figures += [line(f"{side}, CPU", values, unit="ms") for side, values in cpu.items()]
    return figures


def bare(shards: list[str], name: str, processes: int, size: int = SIZE, *, read: bool = False) -> Rate:
    """The decode function in a loop, in that many processes at once: the ceiling. Over bytes in memory into one row, or
    with `read` from the shards into rows of their own."""
    with ProcessPoolExecutor(processes, get_context("forkserver")) as pool:
        done = list(pool.map(partial(_loop, name=name, size=size, read=read), [list(shards)] * processes))
    return sum(rate for rate, _ in done), sum(cpu for _, cpu in done) / processes


def _loop(shards: list[str], name: str, size: int, warm_up: float = 0.5, seconds: float = 2.0, *,
          read: bool = False) -> Rate:  # fmt: skip
    # Some of every shard: what the loaders read is not what one shard alone holds.
    each, get = -(-IMAGES // len(shards)), _read(shards) if read else None
    if get is None:
        held = (islice(wds.WebDataset([shard], shardshuffle=False), each) for shard in shards)
        get = [partial(_same, sample["jpg"]) for some in held for sample in some]
    rows = np.ones((SLOTS * Task.buffer_size if read else 1, size, size, 3), np.uint8)
    decode, done = decoder(name)[1], 0
    begin = time.perf_counter() + warm_up
    while time.perf_counter() < begin:
        decode(get[0](), rows[0])
    start, cpu = time.perf_counter(), time.process_time()
    while (wall := time.perf_counter() - start) < seconds:
        decode(get[done % len(get)](), rows[done % len(rows)])
        done += 1
    return done / wall, 1000 * (time.process_time() - cpu) / done


def _same(image: bytes) -> bytes:
    return image


def _read(shards: list[str]) -> list[partial[bytes]]:
    """What reads each picture of the shards from its file, the shards in turns."""
    found = list[list[partial[bytes]]]()
    for shard in shards:
        reader = storage.open_reader(shard)
        found.append([partial(reader.pread, n, at) for sample in TarWalk(reader, shard) for extension, at, n in
                      sample.members if extension in EXTENSIONS])  # fmt: skip
    return [one for turn in zip(*found, strict=False) for one in turn]
