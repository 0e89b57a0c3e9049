"""What a commit and a resume cost at the 100th commit and at the 100,000th, on a disk and on a loopback S3 server.

Eight ranks' segments each: a commit writes eight segments of the log, one of the steps, two files of a small state and
the link that names them, and removes the oldest of three states. Chains are made at once, compacted as a run leaves
them; a resume finds the newest link and reads it. Medians leave out the whole link that every 256th commit is: its list
is bounded by the bytes of the log.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.data import FOLDER
from benchmarks.measure import Figure, ratios, timed
from rhostream import storage
from rhostream.runs.attempt import Attempt
from rhostream.tables.selections import LogWriter
from tests.stores.servers import BUCKET, run_s3
from tests.support.audit_fixtures import log_rows
from tests.support.chains import PINNED, RECORD, commit, long_chain, rows

FEW, MANY, RANKS, COMMITS, TARGET = 100, 100_000, 8, 15, 1.5
THREADS = 16


class Ranks8:
    """The log of eight ranks, for the one that commits."""

    def __init__(self, run: str, attempt: int) -> None:
        self._writers = [LogWriter(run, attempt, rank) for rank in range(RANKS)]

    def append(self, step: int) -> None:
        for writer in self._writers:
            log_rows(writer, rows(step, 0), step)

    def flush(self) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(RANKS) as pool:  # as ranks do: each its own, at the same time
            return [segment for each in pool.map(LogWriter.flush, self._writers) for segment in each]


def run(pairs: int) -> list[Figure]:
    """Seconds of a commit and of a resume at either length, and their ratio."""
    figures = []
    for place in ("disk", "S3"):
        with _chains(place) as urls:
            found = {links: [_measure(url) for _ in range(pairs)] for links, url in urls.items()}
        for what, at in (("a commit", 0), ("a resume", 1)):
            few, many = ([one[at] for one in found[links]] for links in (FEW, MANY))
            figures.append(
                Figure(
                    "commits", f"{place}, {MANY:,} over {FEW} commits", what, ratios(many, few), TARGET, at_least=False
                )
            )
            figures += [
                Figure(
                    "commits",
                    f"{place}, behind {links:,} commits",
                    what,
                    tuple(1000 * seconds for seconds in each),
                    unit="ms",
                )
                for links, each in ((FEW, few), (MANY, many))
            ]
    return figures


@contextmanager
def _chains(place: str) -> Iterator[dict[int, str]]:
    """Runs of either length; the long one on a disk is made once and copied by its names."""
    with tempfile.TemporaryDirectory(dir=FOLDER if FOLDER.exists() else None) as folder:
        if place == "disk":
            yield {links: _on_disk(Path(folder, str(links)), links) for links in (FEW, MANY)}
            return
        with run_s3(Path(folder)) as server:
            storage.configure("s3", server.options)
            urls = {links: f"s3://{BUCKET}/{links}" for links in (FEW, MANY)}
            for links, url in urls.items():
                with ThreadPoolExecutor(THREADS) as pool:
                    for _ in pool.map(
                        lambda one, url=url: storage.create(f"{url}/{one[0]}", one[1]), long_chain(links, RANKS)
                    ):
                        pass
            yield urls
            storage.configure("s3", None)


def _on_disk(run: Path, links: int) -> str:
    shutil.rmtree(run, ignore_errors=True)
    for path, data in long_chain(links, RANKS):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(data)
    return str(run)


def _measure(run: str) -> tuple[float, float]:
    """Seconds of a commit (the median of some) and of a resume; the chain is some commits longer afterwards."""
    attempt = Attempt(run, dict(PINNED))
    resumed = timed(lambda: attempt.open(RECORD))
    attempt.claim()
    log: Any = Ranks8(run, attempt.attempt)
    attempt.log, seconds = log, []
    for _ in range(COMMITS):
        log.append(attempt.step)
        attempt.steps.append({"step": attempt.step, "pass": 0, "kept": RANKS})
        attempt.step += 1
        start = time.perf_counter()
        commit(attempt)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), resumed
