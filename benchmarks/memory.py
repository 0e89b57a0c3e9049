"""Memory of a stream against the size of its table: a hundred times the rows, the same anonymous memory.

Tables of 100,000, 1,000,000 and 10,000,000 rows in parts of 2,000, each streamed in a process of its own with 32 lanes.
A prefilter drops every row after the join, so no shard has to exist: what is left is the plan, the join and its parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from benchmarks.measure import Figure, interleave
from rhostream import open_stream
from rhostream.candidates import CANDIDATE, Reason
from rhostream.stream.decode import Preprocess
from rhostream.stream.join import Joined
from rhostream.tables import il

ROWS, ROWS_A_PART, LANES, BUFFERS = (100_000, 1_000_000, 10_000_000), 2_000, 32, 600
TARGET = 1.10


def run(pairs: int) -> list[Figure]:
    """Anonymous memory at each size, and the largest over the smallest."""
    with tempfile.TemporaryDirectory() as folder:
        for rows in ROWS:
            write_table(Path(folder) / str(rows), rows)
        # Memory is no clock: two rounds show what spread there is.
        found = interleave([lambda rows=rows: _measure(folder, rows) for rows in ROWS], min(pairs, 2))
    used = [[f["after"] for f in runs] for runs in found]
    grown = [[f["after"] - f["before"] for f in runs] for runs in found]
    label = f"{ROWS[-1]:,} over {ROWS[0]:,} rows"
    figures = [
        Figure("memory", label, "process, RssAnon", tuple(b / a for a, b in zip(used[0], used[-1], strict=True)),
               TARGET, at_least=False),
        Figure("memory", label, "added by the stream", tuple(b / a for a, b in zip(grown[0], grown[-1], strict=True))),
    ]  # fmt: skip
    for rows, total, added, runs in zip(ROWS, used, grown, found, strict=True):
        figures += [
            Figure("memory", f"{rows:,} rows", "process, RssAnon", tuple(total), unit="MiB"),
            Figure("memory", f"{rows:,} rows", "added by the stream", tuple(added), unit="MiB"),
            Figure("memory", f"{rows:,} rows", "time to open", tuple(f["open_s"] for f in runs), unit="s"),
        ]
    return figures


def write_table(table: Path, rows: int) -> None:
    """A table of synthetic parts, valid to the last law."""
    rng, n = np.random.default_rng(0), ROWS_A_PART
    info = il.TableInfo(kind="il", ingredients={"benchmark": "memory"}, classes=10, roots={"data": "/nowhere"},
                        preprocess=Preprocess(image_size=32).to_json())  # fmt: skip
    member = [[{"ext": "jpg", "offset": 512 + 14_336 * row, "size": 12_000 + row}] for row in range(n)]
    part = pa.table(
        {"key": [f"{row:09d}" for row in range(n)], "ordinal": np.arange(n), "members": member,
         "label": rng.integers(0, 10, n), "il": rng.exponential(1, n).astype(np.float32),
         "predicted": rng.integers(0, 10, n), "fold": np.arange(n) % 2, "in_holdout": [False] * n,
         "status": [il.OK] * n, "error": pa.nulls(n, pa.string())},
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


def _measure(folder: str, rows: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", str(Path(folder) / str(rows)), str(rows // ROWS_A_PART)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def drop_all(joined: Joined, pass_index: int, index: int) -> None:
    """A prefilter that leaves nothing to read."""
    joined.reason[joined.reason == CANDIDATE] = Reason.below


def anonymous_mib() -> float:
    """RssAnon of this process: no page cache, no mapped files."""
    line = next(ln for ln in Path(f"/proc/{os.getpid()}/status").read_text().splitlines() if ln.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@click.command()
@click.argument("table")
@click.argument("shards", type=int)
def main(table: str, shards: int) -> None:
    """Stream BUFFERS buffers of TABLE and print the memory before and after."""
    warnings.simplefilter("ignore")
    urls = [f"/nowhere/{number:05d}.tar" for number in range(shards)]
    before, start = anonymous_mib(), time.perf_counter()
    loader = open_stream(urls, table, passes=None, lanes=LANES, prefilter=drop_all)
    opened = time.perf_counter() - start
    for _ in islice(iter(loader), BUFFERS):
        pass
    click.echo(json.dumps({"before": before, "after": anonymous_mib(), "open_s": opened}))


if __name__ == "__main__":
    main()
