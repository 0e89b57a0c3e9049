"""Results as Parquet: one row per measured value, one file a day and device, written benchmark by benchmark.

figures > save: `<date>-<device>.parquet`, in place of that benchmark's rows of the day > newest > page
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.measure import Figure

FOLDER = Path(__file__).resolve().parent / "results"
SCHEMA = pa.schema([
    ("date", pa.string()), ("time", pa.string()), ("device", pa.string()), ("cpu", pa.string()), ("cores", pa.int32()),
    ("torch", pa.string()), ("threads", pa.int32()), ("commit", pa.string()), ("command", pa.string()),
    ("load_before", pa.float64()), ("benchmark", pa.string()), ("case", pa.string()), ("figure", pa.string()),
    ("unit", pa.string()), ("pair", pa.int32()), ("value", pa.float64()), ("target", pa.float64()),
    ("at_least", pa.bool_()),
])  # fmt: skip


def save(folder: Path, benchmark: str, figures: Sequence[Figure], command: str, load_before: float,
         commit: str = "") -> Path:  # fmt: skip
    """Put one benchmark's figures into today's file of this device, in place of its earlier ones.

    A figure without values (what could not be measured) is one row whose pair and value are null.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    facts: dict[str, Any] = {
        "date": f"{now:%Y-%m-%d}", "time": f"{now:%H:%M:%S}", "device": device(), "cpu": cpu_name(),
        "cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads(), "commit": commit,
        "command": command, "load_before": round(load_before, 2), "benchmark": benchmark,
    }  # fmt: skip
    rows = [
        facts | {"case": f.case, "figure": f.what, "unit": f.unit, "pair": None if value is None else pair,
                 "value": value, "target": f.target, "at_least": f.at_least}
        for f in figures for pair, value in enumerate(f.values or (None,))
    ]  # fmt: skip
    path = folder / f"{facts['date']}-{slug(facts['device'])}.parquet"
    table = pa.Table.from_pylist(rows, SCHEMA)
    if path.exists():
        before = pq.read_table(path, schema=SCHEMA)
        table = pa.concat_tables([before.filter(pc.not_equal(before["benchmark"], benchmark)), table])
    unfinished = path.with_suffix(".part")
    pq.write_table(table, unfinished, write_page_checksum=True)
    unfinished.replace(path)
    return path


def newest(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The rows of the latest run of each benchmark on each device, in the order in which they were written."""
    latest: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.parquet")):  # by date: a later file's rows replace an earlier one's
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in pq.read_table(path, schema=SCHEMA).to_pylist():
            found.setdefault((row["device"], row["benchmark"]), []).append(row)
        latest |= found
    return [row for rows in latest.values() for row in rows]


def figures_of(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """The figures that `rows` of one benchmark were written from."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["case"], row["figure"], row["unit"]), []).append(row)
    return [
        Figure(group[0]["benchmark"], case, what, tuple(row["value"] for row in group if row["value"] is not None),
               group[0]["target"], group[0]["at_least"], unit)
        for (case, what, unit), group in grouped.items()
    ]  # fmt: skip


def device() -> str:
    """What the results are of: the GPU's name when torch sees one, else the processor with its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {os.cpu_count()} cores"


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def cpu_name() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "cpu"


def commit() -> str:
    """The commit measured, "-dirty" when tracked files differ from it, "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=FOLDER.parent, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
