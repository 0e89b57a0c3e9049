"""What grows with the data, at the sizes that people fear: `python -m benchmarks.scale table|log|commits`.

    table      a table of 100,000 parts on the loopback S3 of the tests: opened by its footers, and by its catalogue
    log        the kept rate by class over logs of 10 million rows and more, on a disk or on that store
    commits    a run of 100,000 steps on 8 ranks, a commit a step: the 1,000th commit beside the 100,000th

Each prints lines of JSON. Seconds depend on the machine and stand in docs/scale.md with their date; requests and bytes
don't, and the tests hold them at a small size.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from rhostream import storage
from rhostream.audit.status import status_of
from rhostream.audit.views import open_ledger
from rhostream.runs.attempt import Attempt
from rhostream.tables import il
from tests.faults.rig.proxy import Proxy
from tests.stores.servers import BUCKET, run_s3, s3_options
from tests.support.chains import PINNED, RECORD, commit, long_chain
from tests.support.synthetic import make_run, make_table, shard_urls

KEPT = "SELECT label, count(*) FILTER (kept) / count(*) AS kept_rate FROM selections GROUP BY label ORDER BY label"


@click.group()
def main() -> None:
    """Measure one thing at one size and print it."""


@main.command()
@click.option("--parts", default=100_000, show_default=True)
@click.option("--rows", default=20, show_default=True, help="of each part; footers are as long for any number")
@click.option("--footers/--no-footers", default=True, help="open it by its footers too")
def table(parts: int, rows: int, footers: bool) -> None:
    """Open a table on the loopback S3: requests and bytes as the server saw them."""
    with _store() as (url, proxy):
        made, seconds = _timed(lambda: make_table(f"{url}/il", parts, rows, alike=True))
        _through(proxy)
        _tell("made", parts=parts, seconds=seconds)
        info, shards = il.open_info(made[0]), list(shard_urls(parts))
        if footers:
            _asked(proxy, "opened by footers", lambda: il.open_table(made[0], shards))
        _asked(proxy, "catalogue written", lambda: il.write_catalogue(made[0], info))
        _asked(proxy, "opened by the catalogue", lambda: il.open_table(made[0], shards))
        _asked(proxy, "status", lambda: status_of(made[0]))


@main.command()
@click.option("--segments", default=10, show_default=True, help="of a million rows each")
@click.option("--store/--disk", default=False, show_default=True, help="on the loopback S3, or on this disk")
@click.option("--folder", default=None, help="where the log is made  [default: a temporary folder]")
def log(segments: int, store: bool, folder: str | None) -> None:
    """Open a log and ask for the kept rate by class, twice."""
    with _store(folder) if store else _disk(folder) as (url, proxy):
        run, seconds = _timed(lambda: make_run(f"{url}/run", segments, 1_000_000))
        _through(proxy)
        _tell("made", rows=segments * 1_000_000, seconds=seconds)
        for turn in ("first", "second"):
            ledger = _asked(proxy, f"opened, {turn} time", lambda: open_ledger(run))
            with ledger:
                answer = _asked(proxy, f"kept rate by class, {turn} time", partial(ledger.sql, KEPT))
                assert answer.num_rows == 14


@main.command()
@click.option("--steps", default=100_000, show_default=True)
@click.option("--ranks", default=8, show_default=True)
def commits(steps: int, ranks: int) -> None:
    """Commit behind few and many commits of as many ranks, on this disk; medians of 15."""
    for links in (1_000, steps):
        with _disk(None) as (url, _):
            run = f"{url}/{links}"
            for path, data in long_chain(links, ranks):
                place = Path(run, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            attempt = Attempt(run, dict(PINNED))
            _, opened = _timed(lambda attempt=attempt: attempt.open(RECORD))
            attempt.claim()
            seconds = []
            for _ in range(15):
                attempt.step += 1
                seconds.append(_timed(lambda attempt=attempt: commit(attempt))[1])
            _tell("a commit", behind=links, seconds=statistics.median(seconds), resume_seconds=opened)


@contextlib.contextmanager
def _disk(folder: str | None) -> Iterator[tuple[str, Proxy | None]]:
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        yield inside, None


@contextlib.contextmanager
def _store(folder: str | None = None) -> Iterator[tuple[str, Proxy | None]]:
    """A folder of the loopback S3, and the proxy that counts."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        (server_folder := Path(inside, "s3")).mkdir()
        with run_s3(server_folder) as server, Proxy(server.port) as proxy:
            storage.configure("s3", server.options)
            storage.configure_spool(Path(inside, "spool"))
            yield f"s3://{BUCKET}/scale", proxy


def _through(proxy: Proxy | None) -> None:
    """From here on requests are counted; what was made before went past the proxy."""
    if proxy:
        storage.configure("s3", s3_options(proxy.port))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - start


def _asked(proxy: Proxy | None, what: str, work: Callable[[], Any]) -> Any:
    """Time it, and count what the server was asked."""
    if proxy:
        proxy.calm()
    cpu = time.process_time()
    answer, seconds = _timed(work)
    seen = list(proxy.seen) if proxy else []
    _tell(
        what,
        seconds=seconds,
        cpu_seconds=time.process_time() - cpu,  # of this process: on a store the proxy's too
        requests=len(seen) if proxy else None,
        listings=sum("list-type" in one.target for one in seen) if proxy else None,
        bytes_read=sum(one.answered for one in seen) if proxy else None,
        listed_bytes=sum(one.answered for one in seen if "list-type" in one.target) if proxy else None,
    )
    return answer


def _tell(what: str, **figures: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    kept = {name: value for name, value in rounded.items() if value is not None}
    print(json.dumps({"what": what, **kept, "peak_MiB": peak, "load": round(os.getloadavg()[0], 1)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
