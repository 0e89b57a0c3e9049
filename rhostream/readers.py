"""The verbs that look at what is there: sql, report, view, status, verify, doctor; and prune, which says what would go.

Each imports its room when it runs: a verb starts without torch unless it measures a model or mends a table.
"""

from __future__ import annotations

import json
import os
from typing import Any

import click

from rhostream.config.command_line import Choice, Command
from rhostream.config.shared import ROOT as ROOT_HELP

ROOT = click.option("--root", "roots", multiple=True, metavar="NAME=URL", help=ROOT_HELP)
JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.command("sql", cls=Command)
@click.argument("words", nargs=-1, required=True, metavar="DIR... [QUERY]")
@click.option("--format", "style", default="table", show_default=True, type=Choice(["table", "json", "csv"]))
@ROOT
def sql(words: tuple[str, ...], style: str, roots: tuple[str, ...]) -> None:
    """Ask runs (or an IL table) a question in SQL, or a named one: @noisy_share. Without a question, list them.

    Views: selections, steps, il, samples, quarantine, runs, shadow.

    \b
    Examples:
      rhostream sql runs/rho "select reason, count(*) from selections group by all"
      rhostream sql runs/rho @kept_by_class
      rhostream sql runs/rho runs/uniform "select run, avg(test_accuracy) from steps group by all"
    """
    from rhostream.audit.questions import QUESTIONS, run_question
    from rhostream.audit.render import escape, render
    from rhostream.audit.views import open_ledger
    from rhostream.tables.names import parse_roots

    # Of several words the last is the question, as a shell gives no other sign of where the folders end.
    folders, query = (words[:-1], words[-1]) if len(words) > 1 else (words, "@")
    if query == "@":
        for name, question in QUESTIONS.items():
            click.echo(f"@{name:24} {question.says}")
        return
    with open_ledger(folders, roots=parse_roots(roots)) as ledger:
        for run in ledger.runs:
            if caution := run.caution:
                click.echo(caution, err=True)
        table = run_question(ledger, query[1:]) if query.startswith("@") else ledger.sql(query)
        text = QUESTIONS[query[1:]].sql if query[1:] in QUESTIONS else query
        for says in ledger.without_classes(text):
            click.echo(escape(says), err=True)
    click.echo(render(table, style))


@click.command("report", cls=Command)
@click.argument("folders", nargs=-1, required=True, metavar="DIR...|TABLE")
@click.option("--against", multiple=True, metavar="DIR...", help="Runs to compare with: uniform, train-on-everything.")
@click.option(
    "--il-test", metavar="TABLE", help="IL table of the test shards, by the same IL model: how right that is."
)
@click.option("-o", "--out", default="report.html", show_default=True, help="The page: static, without script.")
@click.option("--json", "as_json", is_flag=True, help="Of an IL table: print its figures instead of a page.")
@ROOT
def report(
    folders: tuple[str, ...],
    against: tuple[str, ...],
    il_test: str | None,
    out: str,
    as_json: bool,
    roots: tuple[str, ...],
) -> None:
    """Write a page that says whether selection paid, what was kept and skipped, and why; or what an IL table is worth.

    Several runs are seeds of one setting, or settings to compare; pictures are of the first run of each.

    \b
    Examples:
      rhostream report runs/rho --against runs/uniform runs/everything -o report.html
      rhostream report runs/rho-0 runs/rho-1 --against runs/uniform-0 runs/uniform-1
      rhostream report il -o il.html
    """
    from rhostream import storage
    from rhostream.audit.runs import is_table
    from rhostream.tables.names import parse_roots

    table = storage.resolve(folders[0])
    if len(folders) > 1 or not is_table(table):
        from rhostream.audit.report import write_report

        if as_json:
            raise click.UsageError("--json is for IL tables; ask a run with `rhostream sql`")
        known = parse_roots(roots)
        click.echo(write_report(folders, out, against=list(against), il_test=il_test, roots=known))
        return
    if il_test:
        raise click.UsageError("--il-test is about runs; the page of a table is of that table alone")
    if against:
        raise click.UsageError("--against compares runs; the page of a table is of that table alone")
    from rhostream.audit.il_quality import il_quality, write_il_report
    from rhostream.audit.views import open_ledger

    if as_json:
        with open_ledger(table, roots=parse_roots(roots)) as ledger:
            click.echo(json.dumps(il_quality(ledger), indent=1))
    else:
        click.echo(write_il_report(table, out, roots=parse_roots(roots)))


@click.command("view", cls=Command)
@click.argument("folders", nargs=-1, required=True, metavar="RUN...")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of 127.0.0.1.  [default: one that is free]")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@ROOT
def view(folders: tuple[str, ...], port: int, no_browser: bool, roots: tuple[str, ...]) -> None:
    """Look at runs in a browser: linked charts, the samples behind any selection, SQL; it follows a run that goes on.

    The page is for this machine alone, behind the token in its address, and changes nothing. Ctrl-C ends it.

    \b
    Examples:
      rhostream view runs/rho
      rhostream view runs/rho runs/uniform --no-browser
    """
    from rhostream.audit.viewer.run import view as run
    from rhostream.tables.names import parse_roots

    run(folders, port=port, roots=parse_roots(roots), browser=not no_browser, say=click.echo)


@click.command("status", cls=Command)
@click.argument("folder", metavar="URL|DIR")
@click.option("--shards", multiple=True, metavar="URL...", help="Also say which of these shards have no part yet.")
@click.option(
    "--missing-only", is_flag=True, help="Of --shards print those without a part and nothing else, one a line."
)
@ROOT
@JSON
def status(folder: str, shards: tuple[str, ...], missing_only: bool, roots: tuple[str, ...], as_json: bool) -> None:
    """Say how far a table or a run is, what is quarantined and why, and what to do next.

    \b
    Examples:
      rhostream status il --shards data/train-{000..059}.tar
      rhostream status il --shards data/*.tar --missing-only > missing.txt     (then: compute-il --shards @missing.txt)
      rhostream status runs/rho --json
    """
    from rhostream.audit.missing import missing_shards
    from rhostream.audit.says import render_status
    from rhostream.audit.status import status_of
    from rhostream.tables.names import parse_roots

    if missing_only:
        if not shards:
            raise click.UsageError("--missing-only is about the shards of --shards: name them")
        urls = missing_shards(folder, shards, parse_roots(roots))
        lines = os.fsencode("".join(f"{url}\n" for url in urls))  # a path need not be UTF-8
        return click.echo(json.dumps(urls, indent=1) if as_json else lines, nl=as_json)
    found = status_of(folder, shards, parse_roots(roots))
    click.echo(json.dumps(found, indent=1) if as_json else render_status(found), nl=as_json)


@click.command("verify", cls=Command)
@click.argument("folder", metavar="URL|DIR")
@click.option(
    "--shards",
    multiple=True,
    metavar="URL...",
    help="Compare these shards with a table: changed or without a part is a problem.",
)
@ROOT
@click.option("--repair", is_flag=True, help="Make bad parts again, or set a run's damaged checkpoint aside.")
@click.option("--il-model", metavar="DIR", help="With --repair: the table's IL model.  [default: where it lay]")
@click.option("--reference", metavar="NAME", help="With --repair: as for compute-il.")
@click.option("--reference-id", metavar="TEXT", help="With --repair: as for compute-il.")
@click.option("--workers", type=int, help="With --repair: processes that read and decode.")
@click.option("--max-bad-fraction", type=float, help="With --repair: as for compute-il.")
@click.option("--model", metavar="NAME", help="With --repair: as for compute-il.")
@click.option("--kind", metavar="NAME", help="With --repair: as for compute-il.")
@click.option("--loss", metavar="NAME", help="With --repair: as for compute-il.")
@click.option("--allow-compressed", is_flag=True, help="With --repair: as for compute-il.")
@click.option("--accept-missing-eof", is_flag=True, help="With --repair: as for compute-il.")
@JSON
def verify(
    folder: str, shards: tuple[str, ...], roots: tuple[str, ...], repair: bool, as_json: bool, **options: Any
) -> None:
    """Prove a table, a run or an IL model: every byte, laws, keys, steps. Exit code 3: something is wrong.

    \b
    Examples:
      rhostream verify il
      rhostream verify il --shards data/*.tar --repair
      rhostream verify runs/rho
    """
    from rhostream.audit.says import render_verify
    from rhostream.tables.names import parse_roots

    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if repair:
        from rhostream.repair import repair as mend

        found = mend(folder, shards=shards, roots=parse_roots(roots), **given)
    else:
        from rhostream.audit.verify import verify as prove

        if given:
            raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs --repair")
        found = prove(folder, shards=shards, roots=parse_roots(roots))
    click.echo(json.dumps(found, indent=1) if as_json else render_verify(found), nl=as_json)
    if found["problems"]:
        raise SystemExit(3)


@click.command("prune", cls=Command)
@click.argument("folder", metavar="RUN")
@click.option(
    "--before", type=click.IntRange(0), required=True, metavar="STEP", help="The first step whose state stays."
)
@click.option("--delete", is_flag=True, help="Do it; without, only say what would go.")
def prune(folder: str, before: int, delete: bool) -> None:
    """Remove tensors and merged log segments that only states before STEP need; those can't be loaded afterwards.

    \b
    Examples:
      rhostream prune runs/rho --before 90000
      rhostream prune runs/rho --before 90000 --delete
    """
    from rhostream.audit.render import escape
    from rhostream.runs.prune import prune as run

    click.echo(escape(str(run(folder, before=before, delete=delete))))


@click.command("doctor", cls=Command)
@click.argument("url", required=False, metavar="[URL]")
@JSON
@click.option("--scoring", is_flag=True, help="Measure how well cheap scores agree with full ones.")
@click.option("--shards", multiple=True, metavar="URL...", help="With --scoring: tar shards.")
@ROOT
@click.option("--il", metavar="URL", help="With --scoring: the table of compute-il.")
@click.option("--model", help="With --scoring: built-in name or package.module:function.")
@click.option("--weights", metavar="FILE", help="With --scoring: safetensors weights of the model.")
@click.option("--run", metavar="DIR", help="With --scoring: a run's newest weights; its settings where none given.")
@click.option(
    "--view-size",
    "view_sizes",
    type=int,
    multiple=True,
    metavar="V...",
    help="With --scoring: cheap views in pixels.  [default: a half and a quarter]",
)
@click.option("--rule", help="With --scoring.  [default: the run's, else rho]")
@click.option("--buffer-size", type=int, help="n_B, with --scoring.  [default: the run's, else 320]")
@click.option("--batch-size", type=int, help="n_b, with --scoring.  [default: the run's, else 32]")
@click.option("--buffers", type=int, help="How many buffers to compare, with --scoring.  [default: 5]")
@click.option("--proxy-batches", type=int, help="Kept batches a proxy learns from first.  [default: 50]")
@click.option("--device", help="With --scoring: auto, cpu, cuda, cuda:1.  [default: auto]")
def doctor(url: str | None, as_json: bool, scoring: bool, roots: tuple[str, ...], **options: Any) -> None:
    """Show what is installed and what this machine can do; probe a store; or examine scoring on your data.

    With a URL: whether results can be kept there, and whether a second commit is refused; exit code 3 when they can't.
    With --scoring: rank agreement of scores by cheap views, bfloat16, chunks, il alone and a proxy with full float32
    scores, and the shortlist that finds 95 % of what would be kept.

    \b
    Examples:
      rhostream doctor
      rhostream doctor s3://bucket/runs
      rhostream doctor --scoring --run runs/rho --view-size 16 12
    """
    given = {name: value for name, value in options.items() if value}
    if scoring:
        if url:
            raise click.UsageError("--scoring takes no URL: name the data with --shards and --il, or --run")
        from rhostream.advisor.scoring import render_scoring, scoring_report
        from rhostream.tables.names import parse_roots

        report = scoring_report(roots=parse_roots(roots), **given)
        click.echo(json.dumps(report.as_json(), indent=1) if as_json else render_scoring(report), nl=as_json)
        return
    if given or roots:
        raise click.UsageError(f"--{next(iter(given), 'root').replace('_', '-')} needs --scoring")
    from rhostream.doctor import examine_environment, probe_store, render_environment, render_store

    there, store = examine_environment(), probe_store(url) if url else None
    if as_json:
        click.echo(json.dumps(there.as_json() | ({"store": store.as_json()} if store else {}), indent=1))
    else:
        click.echo(render_environment(there) + (render_store(store) if store else ""), nl=False)
    if store is not None and not store.usable:
        raise SystemExit(3)


VERBS = (sql, report, view, status, verify, prune, doctor)
