"""Memory of a stream against the size of its table: a thousand times the rows, the same anonymous memory.

Tables of 100,000 to 100,000,000 rows in parts of 2,000, and of the largest in parts of 10,000 too, each streamed in a
process of its own with 32 lanes. A prefilter drops every row after the join, so no shard has to exist: what is left is
the plan, the join and its parts. The tables are made once and kept below the folder for temporary files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from benchmarks.data import FOLDER
from benchmarks.measure import Figure, interleave
from rhostream import open_stream
from rhostream.candidates import CANDIDATE, Reason
from rhostream.samples.image import ImageKind
from rhostream.stream.join import Joined
from rhostream.tables import il

LANES, BUFFERS, TARGET = 32, 600, 1.05
SIZES = ((100_000, 2_000), (1_000_000, 2_000), (10_000_000, 2_000), (100_000_000, 2_000),
         (100_000, 10_000), (100_000_000, 10_000))  # rows in all, rows a part  # fmt: skip


def run(pairs: int) -> list[Figure]:
    """Anonymous memory at each size, and the largest over the smallest for either size of parts."""
    for rows, of in SIZES:
        table(rows, of)
    # Memory is no clock: two rounds show what spread there is.
    found = interleave([lambda rows=rows, of=of: _measure(rows, of) for rows, of in SIZES], min(pairs, 2))
    runs = dict(zip(SIZES, found, strict=True))
    figures = []
    for of in (2_000, 10_000):
        least, most = runs[100_000, of], runs[100_000_000, of]
        for what, target in (("process, RssAnon", TARGET), ("a loader worker, RssAnon", TARGET)):
            key = "worker" if "worker" in what else "after"
            figures.append(Figure("memory", f"100,000,000 over 100,000 rows, parts of {of:,}", what,
                                  tuple(b[key] / a[key] for a, b in zip(least, most, strict=True)), target,
                                  at_least=False))  # fmt: skip
    for (rows, of), each in runs.items():
        case = f"{rows:,} rows in parts of {of:,}"
        for what, key, unit in (
            ("process, RssAnon", "after", "MiB"),
            ("of it before the stream", "before", "MiB"),
            ("a loader worker, RssAnon", "worker", "MiB"),
            ("sent to a worker", "sent", "MiB"),
            ("time to open", "open_s", "s"),
        ):
            figures.append(Figure("memory", case, what, tuple(f[key] for f in each), unit=unit))
    return figures


def table(rows: int, of: int) -> Path:
    """The folder of the table, made if it isn't there."""
    folder = FOLDER / f"table-{rows}-by-{of}"
    if not folder.exists():
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_table(unfinished, rows, of)
        unfinished.rename(folder)
    return folder


def write_table(table: Path, rows: int, n: int) -> None:
    """A table of synthetic parts of n rows, valid to the last law."""
    rng = np.random.default_rng(0)
    info = il.TableInfo(kind="il", ingredients={"benchmark": "memory"}, classes=10, roots={"data": "/nowhere"},
                        preprocess=ImageKind(image_size=32).to_json())  # fmt: skip
    member = [[{"ext": "jpg", "offset": 512 + 14_336 * row, "size": 12_000 + row}] for row in range(n)]
    part = pa.table(
        {"key": [f"{row:09d}" for row in range(n)], "ordinal": np.arange(n), "members": member,
         "label": rng.integers(0, 10, n), "il": rng.exponential(1, n).astype(np.float32),
         "predicted": rng.integers(0, 10, n), "fold": np.arange(n) % 2, "in_holdout": [False] * n,
         "status": [il.OK] * n, "error": pa.nulls(n, pa.string()),
         "il_tokens": pa.nulls(n, info.schema.field("il_tokens").type)},
        schema=info.schema,
    )  # fmt: skip
    table.mkdir(parents=True)
    (table / "_table.json").write_text(json.dumps(asdict(info)))
    for number in range(rows // n):
        name = f"data/{number:05d}.tar"
        facts = il.PartFacts(fingerprint=info.fingerprint, kind="il", shard=name, shard_size=14_336 * n, shard_tag="",
                             samples=n, statuses={il.OK: n}, members_seen=2 * n, members_used=n, members_ignored=n,
                             il_rows=n)  # fmt: skip
        path = Path(il.part_url(str(table), name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(il.encode_part(part, facts))


def _measure(rows: int, of: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", str(table(rows, of)), str(rows // of)]
    answer = [subprocess.run([*command, workers], check=True, capture_output=True, text=True).stdout
              for workers in ("0", "1")]  # fmt: skip
    alone, beside = (json.loads(text.splitlines()[-1]) for text in answer)
    found: dict[str, float] = {**alone, "worker": beside["worker"]}
    return found


def drop_all(joined: Joined, pass_index: int, index: int) -> None:
    """A prefilter that leaves nothing to read."""
    joined.reason[joined.reason == CANDIDATE] = Reason.below


def anonymous_mib(pid: int) -> float:
    """RssAnon of a process: no page cache, no mapped files."""
    line = next(ln for ln in Path(f"/proc/{pid}/status").read_text().splitlines() if ln.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@click.command()
@click.argument("table")
@click.argument("shards", type=int)
@click.argument("workers", type=int)
def main(table: str, shards: int, workers: int) -> None:
    """Stream BUFFERS buffers of TABLE and print the memory before and after, here or in the one worker."""
    warnings.simplefilter("ignore")
    before, start = anonymous_mib(os.getpid()), time.perf_counter()
    urls = f"/nowhere/{{00000..{shards - 1:05d}}}.tar"
    loader = open_stream(urls, table, passes=None, lanes=LANES, prefilter=drop_all, workers=workers)
    found = {"before": before, "open_s": time.perf_counter() - start, "sent": len(pickle.dumps(loader.stream)) / 2**20}
    for _ in islice(stream := iter(loader), BUFFERS):
        pass
    found |= {"after": anonymous_mib(os.getpid()), "worker": max(map(anonymous_mib, _loader_workers()), default=0.0)}
    stream.close()
    click.echo(json.dumps(found))


def _loader_workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


if __name__ == "__main__":
    main()
