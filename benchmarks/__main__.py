"""`python -m benchmarks`: every benchmark a ratio measured side by side in one run, with its spread and its date."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.measure import Figure, table

BENCHMARKS = {"a": "loader", "b": "offline", "c": "step", "d": "memory", "e": "walk", "f": "audit",
              "g": "log", "h": "accuracy"}


@click.command()
@click.option("--only", default=",".join(BENCHMARKS), show_default=True,
              help=", ".join(f"{letter} {name}" for letter, name in BENCHMARKS.items()))
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="times both sides are measured")
@click.option("--out", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
def main(only: str, pairs: int, out: Path) -> None:
    """Measure, print a table, and write it with all values to OUT/<date>-<device>.json."""
    chosen = [letter.strip() for letter in only.split(",")]
    if unknown := [letter for letter in chosen if letter not in BENCHMARKS]:
        raise click.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(BENCHMARKS)}", param_hint="--only")
    for letter in chosen:
        name, load = BENCHMARKS[letter], os.getloadavg()[0]
        click.echo(f"{name} ...", err=True)
        run: Callable[[int], list[Figure]] = importlib.import_module(f"benchmarks.{name}").run
        figures = run(pairs)
        click.echo(table(figures) + "\n")
        # Saved one by one: a run that is cut short keeps what it has measured.
        path = save(out, name, figures, {"pairs": pairs, "load_before": round(load, 2)})
    click.echo(f"wrote {path}", err=True)


def save(out: Path, name: str, figures: list[Figure], settings: dict[str, Any]) -> Path:
    """Put one benchmark's figures into today's file of this device, in place of its earlier ones."""
    out.mkdir(parents=True, exist_ok=True)
    device = "-".join(re.findall(r"[a-z0-9]+", cpu_name().lower())) + f"-{os.cpu_count()}-cores"
    now = datetime.datetime.now(datetime.UTC)
    path = out / f"{now:%Y-%m-%d}-{device}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"benchmarks": {}}
    record |= {
        "date": f"{now:%Y-%m-%d}", "cpu": cpu_name(), "cores": os.cpu_count(), "device": "cpu",
        "torch": torch.__version__, "torch_threads": torch.get_num_threads(), "python": platform.python_version(),
    }  # fmt: skip
    record["benchmarks"][name] = {
        "time": now.isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        **settings,
        "figures": [figure.to_json() for figure in figures],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def cpu_name() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "cpu"


if __name__ == "__main__":
    main()
