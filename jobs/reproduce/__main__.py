"""`python -m jobs.reproduce`: all experiments in one folder, one after the other; the same command goes on."""

from __future__ import annotations

from typing import Any

import click

from jobs.reproduce import lag, table1
from jobs.reproduce.command import Asked, guarded, options, reproduce
from jobs.reproduce.suite import EXPERIMENTS
from rhostream.errors import UnknownNameError

OWN = {"table1": table1.reproduce, "lag": lag.reproduce}  # with training code of their own


@click.command()
@options
@click.option("--only", help="Names of experiments, separated by commas.")
def main(only: str | None, **asked: Any) -> None:
    """Run the paper's experiments: table1 to table4, figure2 to figure9, single_pass, section6, failure_modes, ..."""
    guarded(lambda: run(only.split(",") if only else [*EXPERIMENTS, *OWN], Asked(**asked)))


def run(names: list[str], asked: Asked) -> None:
    """Run those experiments. Raises UnknownNameError before any work."""
    for name in names:
        if name not in EXPERIMENTS and name not in OWN:
            raise UnknownNameError.of("experiment", name, [*EXPERIMENTS, *OWN])
    for name in names:
        click.echo(f"\n== {name}")
        if name in OWN:
            OWN[name](asked)
        else:
            reproduce(EXPERIMENTS[name], asked)


if __name__ == "__main__":
    main()
