"""The verb that takes what the ledger knows elsewhere: export."""

from __future__ import annotations

import json
from typing import Any

import click

from rhostream.audit.export_forms import FORMS
from rhostream.config.command_line import Choice, Command
from rhostream.readers import JSON, ROOT


@click.command("export", cls=Command)
@click.argument("folders", nargs=-1, required=True, metavar="RUN...|TABLE")
@click.option("-o", "--out", required=True, metavar="URL", help="Where to; nothing is ever overwritten.")
@click.option("--as", "form", type=Choice(FORMS), help="The form.  [default: by the ending: .parquet, .csv, .npy]")
@click.option("--where", metavar="SQL", help="Rows of `selections` for which this holds.  [default: kept]")
@click.option(
    "--sql", metavar="QUERY", help="The answer to a question instead, as of `rhostream sql`; @NAME for a named one."
)
@click.option("--with-samples", is_flag=True, help="Parquet of one row a sample, with its picture and text.")
@click.option("--samples-per-shard", type=int, default=10_000, show_default=True, help="Of new shards, at most.")
@click.option("--shard-bytes", type=int, default=1 << 30, show_default=True, help="Of a new shard, at most.")
@ROOT
@JSON
def export(folders: tuple[str, ...], roots: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Take what was kept, or any answer or slice, elsewhere. Exit code 3: some samples couldn't be read.

    \b
    Examples:
      rhostream export runs/rho -o kept.parquet
      rhostream export runs/rho -o noisy.parquet --where "reason = 'below' and il > 3" --with-samples
      rhostream export runs/rho -o keep.parquet --as keep-list --sql @suspected_label_errors
      rhostream export runs/rho -o s3://bucket/kept --as shards
    """
    from rhostream.audit.export import export as run
    from rhostream.tables.names import parse_roots

    made = run(folders, roots=parse_roots(roots), **options)
    click.echo(json.dumps(made.as_json(), indent=1) if as_json else made.text())
    if made.unread:
        raise SystemExit(3)
