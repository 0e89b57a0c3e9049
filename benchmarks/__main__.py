"""`python -m benchmarks`: every benchmark a ratio measured side by side in one run, with its spread and its date."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import page, results
from benchmarks.measure import Figure, table

BENCHMARKS = (
    "walk",
    "loader",
    "decode",
    "pairs",
    "join",
    "scaling",
    "offline",
    "step",
    "reuse",
    "dealing",
    "augment",
    "log",
    "audit",
    "commits",
    "memory",
    "remote",
    "accuracy",
)


@click.command()
@click.option("--only", default=",".join(BENCHMARKS), show_default=True, help="some of them, comma-separated")
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="times both sides are measured")
@click.option("--out", default=results.FOLDER, type=click.Path(path_type=Path), help="[default: benchmarks/results]")
@click.option("--page/--no-page", "write_page", default=True, help="write docs/performance.md and its plots at the end")
def main(only: str, pairs: int, out: Path, write_page: bool) -> None:
    """Measure, print a table, and write every value to OUT/<date>-<device>.parquet and the page."""
    chosen = [name.strip() for name in only.split(",")]
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise click.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(BENCHMARKS)}", param_hint="--only")
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    commit = results.commit()  # of what is measured, even when the repository moves on meanwhile
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in chosen}
    for module in modules.values():
        getattr(module, "prepare", lambda: None)()  # what may fail, before hours of the others
    for name, module in modules.items():
        load = os.getloadavg()[0]
        click.echo(f"{name} ...", err=True)
        run: Callable[[int], list[Figure]] = module.run
        figures = run(pairs)
        click.echo(table(figures) + "\n")
        # Saved one by one: a run that is cut short keeps what it has measured.
        path = results.save(out, name, figures, command, load, commit)
        click.echo(f"wrote {path}", err=True)
    if write_page:
        click.echo(f"wrote {page.write(out)}", err=True)


if __name__ == "__main__":
    main()
