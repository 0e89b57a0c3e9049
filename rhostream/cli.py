"""The command line: every verb of rhostream, composed from the wings.

Results go to stdout, everything else to stderr. Exit codes: 0 all well; 1 internal error; 2 usage or configuration,
before any work; 3 finished or stopped with bad shards, samples or tables; 130 / 143 interrupted, the same command
resumes.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rhostream import console, summaries
from rhostream.config.command_line import Choice, Group
from rhostream.config.shared import ROOT as ROOT_HELP
from rhostream.errors import Interrupted, RhostreamError, UsageError
from rhostream.own_code import keep_out_current_folder
from rhostream.setting import defaults_of
from rhostream.signals import own_process

if TYPE_CHECKING:
    from rhostream.config import ComputeILConfig, EstimateConfig, FitILConfig, IndexConfig, ShardsConfig, TrainConfig

EPILOG = (
    "Exit codes: 0 all well; 1 internal error; 2 usage or configuration, before any work; 3 bad shards, samples "
    "or tables; 130/143 interrupted, the same command resumes."
)


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rhostream")
def cli() -> None:
    """Train on the few points of each buffer that are learnable, worth learning and not yet learnt.

    \b
    A first run on your shards:
      rhostream fit-il     --shards data/train-{000..059}.tar --out il-model --model small-cnn
      rhostream compute-il --shards data/train-{000..059}.tar --il-model il-model --out il
      rhostream train      --shards data/train-{000..059}.tar --il il --run runs/first --model resnet18-small
      rhostream sql        runs/first "select reason, count(*) from selections group by all"
      rhostream report     runs/first -o report.html
    """


ROOT = click.option("--root", "roots", multiple=True, metavar="NAME=URL", help=ROOT_HELP)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _given(config: Any, *left_out: str) -> dict[str, Any]:
    """The fields of a config as keywords, without some."""
    return {name: value for name, value in vars(config).items() if name not in left_out}


@cli.verb("shards", "ShardsConfig")
def shards(config: ShardsConfig) -> None:
    """Make shards of a folder of images, one subfolder a class: a training set, a test set and a list of the classes.

    The same command again finishes a stopped one; nothing is ever overwritten.

    \b
    Examples:
      rhostream shards photos --out data --test-fraction 0.2
      rhostream shards photos --out s3://bucket/photos --labels photos/labels.csv
      rhostream shards photos/test --out data --split test --classes-from data
    """
    from dataclasses import asdict

    from rhostream.making.job import make_shards as run

    made = run(config)
    click.echo(json.dumps(asdict(made), indent=1) if config.as_json else made.text())


@cli.verb("fit-il", "FitILConfig")
def fit_il(config: FitILConfig) -> None:
    """Train the small model whose loss counts as irreducible.

    Without --holdout or --holdout-fraction two models are cross-fitted, each on one half of the data.

    \b
    Examples:
      rhostream fit-il --shards data/*.tar --out il-model --model mlp-256 --group-by duplicate_of
      rhostream fit-il --shards data/*.tar --out il-model --checkpoints 4 --min-accuracy 0.7
    """
    from rhostream.irreducible import fit_il as run
    from rhostream.storage import redact

    info = run(config)
    shown: dict[str, Any] = {
        "accuracy": round(info.accuracy, 4),
        "val_loss": round(info.val_loss, 4),
        "out": redact(config.out),
        "read": info.read,
    }
    if quality := info.quality:
        shown |= {
            "worst_class": quality["worst_class"],
            "ece": quality["reliability"]["ece"],
            "temperature": quality["temperature"],
            "doubts": quality["doubts"] + quality["empty_classes"],
        }
    shown |= {"checkpoints": info.checkpoints} if info.checkpoints else {}
    following = summaries.command("compute-il", "--il-model", shown["out"], "--out", "il", "--shards")
    following += f" {summaries.shards_again(config.shards)}"
    lines = summaries.fit_lines(shown, info.class_names)
    summaries.show(shown, lines, doubts=shown.get("doubts", ()), next_=following, indent=None)
    _bad_shards(info.read.get("bad_shards", {}))


def _finish(*accounts: Any) -> None:
    """Print the accounts of an offline job, a list where it made several tables; bad shards are exit code 3, and so is
    a job that has no usable sample, however few there are."""
    from dataclasses import asdict

    found = [asdict(account) for account in accounts]
    lines = itertools.chain(*(summaries.job_lines(account) for account in found))
    doubts = [doubt for account in found for doubt in account["doubts"]]
    summaries.show(found[0] if len(found) == 1 else found, lines, doubts=doubts)
    _bad_shards(accounts[0].bad_shards)
    if any(account.useless for account in accounts):
        raise SystemExit(3)


def _bad_shards(found: dict[str, str]) -> None:
    """Name the shards that gave nothing: exit code 3."""
    if found:
        for name, why in found.items():
            console.say(f"bad shard {name}: {why}")
        raise SystemExit(3)


def _keep_fields(config: ComputeILConfig | IndexConfig) -> None:
    """`--from`: options of a job that scores (or examines) samples are refused, not ignored."""
    from rhostream.irreducible import keep_fields as run
    from rhostream.storage import listed
    from rhostream.tables.il import checked_keep

    taken = ("shards", "roots", "keep", "table", "out", "index", "max_bad_shards", "fail_fast")
    defaults = defaults_of(config)
    if other := [name for name, value in _given(config, *taken).items() if value != defaults[name]]:
        raise click.UsageError(f"--{other[0].replace('_', '-')} goes with scoring; --from TABLE copies rows")
    if len(out := listed(config.out)) != 1:
        raise click.UsageError(f"--from makes one table: {len(out)} --out were given")
    _finish(
        run(
            config.shards,
            str(config.table),
            out[0],
            checked_keep(config.keep),
            roots=config.roots,
            index=config.index,
            max_bad_shards=config.max_bad_shards,
            fail_fast=config.fail_fast,
        )
    )


@cli.verb("compute-il", "ComputeILConfig")
def compute_il(config: ComputeILConfig) -> None:
    """Write the irreducible loss of every sample, one part a shard; run again, it computes only what is missing.

    \b
    Examples:
      rhostream compute-il --shards data/*.tar --il-model il-model --out il --keep is_noisy:bool,true_label:int
      rhostream compute-il --shards data/*.tar --il-model il-a il-b il-c --out tables/a tables/b tables/c
      rhostream compute-il --shards data/*.tar --from il --keep source:str --out il-with-source
    """
    if config.table is not None:
        return _keep_fields(config)
    if not config.il_model:
        raise click.UsageError("--il-model is required: the folder that fit-il wrote (or --from TABLE)")
    from rhostream.irreducible import compute_ils as run

    _finish(*run(config))


@cli.verb("index", "IndexConfig")
def index(config: IndexConfig) -> None:
    """Write the same table without il, for rules that need none (uniform, loss).

    \b
    Example:
      rhostream index --shards data/*.tar --out index
    """
    if config.table is not None:
        return _keep_fields(config)
    from rhostream.irreducible import index as run

    _finish(run(config))


@cli.verb("train", "TrainConfig")
def train(config: TrainConfig) -> None:
    """Train with selection: score n_B samples, keep n_b, step; every decision is logged.

    Over several GPUs or machines it is started by torchrun, with n_B and n_b counted over all ranks.

    \b
    Examples:
      rhostream train --shards data/*.tar --il il --run runs/rho --model resnet18-small --test-shards test/*.tar
      rhostream train --shards data/*.tar --il il --run runs/is --rule grad_norm_is --tau --shadow rho,loss
      rhostream train --config runs/rho/run.json --run runs/rho-1 --seed 1
      torchrun --nproc-per-node 4 --no-python -- rhostream train --shards data/*.tar --il il --run runs/rho
    """
    from rhostream.storage import redact
    from rhostream.training.start import train as run

    summary = run(config)
    if os.environ.get("RANK", "0") == "0":  # the other ranks of a launcher have nothing to add
        kept, tail = (summary.reasons.get(reason, 0) for reason in ("kept", "tail"))
        shown = {
            "run": redact(summary.run),
            "steps": summary.steps,
            "planned": summary.planned,
            "kept": kept,
            "skipped": summary.planned - kept - tail,
            "tail": tail,
            "reasons": summary.reasons,
            "retried": summary.cost["retried"],
            "test_accuracy": summary.test_accuracy,
            "test_samples": summary.test_samples,
            "test_left_out": summary.test_left_out,
            "doubts": summary.doubts,
        }
        page = summaries.command("report", shown["run"], "-o", "report.html")
        summaries.show(shown, summaries.train_lines(shown), doubts=summary.doubts, next_=page)


@cli.command("sql")
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
            if run.checkpoint is None or not run.checkpoint.log:
                click.echo(f"run {escape(run.name)} has no committed step yet: its log is empty", err=True)
            elif run.checkpoint.doubt:
                click.echo(f"run {escape(run.name)}: {run.checkpoint.doubt}", err=True)
        table = run_question(ledger, query[1:]) if query.startswith("@") else ledger.sql(query)
    click.echo(render(table, style))


@cli.command("report")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...|TABLE")
@click.option("--against", multiple=True, metavar="DIR...", help="Runs to compare with: uniform, train-on-everything.")
@click.option("-o", "--out", default="report.html", show_default=True, help="The page: static, without script.")
@click.option("--json", "as_json", is_flag=True, help="Of an IL table: print its figures instead of a page.")
@ROOT
def report(folders: tuple[str, ...], against: tuple[str, ...], out: str, as_json: bool, roots: tuple[str, ...]) -> None:
    """Write a page that says what was kept and skipped, why, and whether selection paid; or what an IL table is worth.

    Several runs are seeds of one setting, or settings to compare; pictures and details are of the first.

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
        click.echo(write_report(folders, out, against=list(against), roots=parse_roots(roots)))
        return
    if against:
        raise click.UsageError("--against compares runs; the page of a table is of that table alone")
    from rhostream.audit.il_quality import il_quality, write_il_report
    from rhostream.audit.views import open_ledger

    if as_json:
        with open_ledger(table, roots=parse_roots(roots)) as ledger:
            click.echo(json.dumps(il_quality(ledger), indent=1))
    else:
        click.echo(write_il_report(table, out, roots=parse_roots(roots)))


JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@cli.command("status")
@click.argument("folder", metavar="URL|DIR")
@_options(
    click.option("--shards", multiple=True, metavar="URL...", help="Also say which of these shards have no part yet."),
    ROOT,
    JSON,
)
def status(folder: str, shards: tuple[str, ...], roots: tuple[str, ...], as_json: bool) -> None:
    """Say how far a table or a run is, what is quarantined and why, and what to do next.

    \b
    Examples:
      rhostream status il --shards data/train-{000..059}.tar
      rhostream status runs/rho --json
    """
    from rhostream.audit.says import render_status
    from rhostream.audit.status import status_of
    from rhostream.tables.names import parse_roots

    found = status_of(folder, shards, parse_roots(roots))
    click.echo(json.dumps(found, indent=1) if as_json else render_status(found), nl=as_json)


@cli.command("verify")
@click.argument("folder", metavar="URL|DIR")
@_options(
    click.option(
        "--shards",
        multiple=True,
        metavar="URL...",
        help="Compare these shards with a table: changed or without a part is a problem.",
    ),
    ROOT,
    click.option("--repair", is_flag=True, help="Make bad parts again, or set a run's damaged checkpoint aside."),
    click.option("--il-model", metavar="DIR", help="With --repair: the table's IL model.  [default: where it lay]"),
    click.option("--workers", type=int, help="With --repair: processes that read and decode."),
    click.option("--max-bad-fraction", type=float, help="With --repair: as for compute-il."),
    click.option("--model", metavar="NAME", help="With --repair: as for compute-il."),
    click.option("--kind", metavar="NAME", help="With --repair: as for compute-il."),
    click.option("--allow-compressed", is_flag=True, help="With --repair: as for compute-il."),
    click.option("--accept-missing-eof", is_flag=True, help="With --repair: as for compute-il."),
    JSON,
)
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


@cli.command("prune")
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


@cli.verb("estimate", "EstimateConfig")
def estimate(config: EstimateConfig) -> None:
    """Say what selection will cost here, before a run: measures your model on a few of your shards.

    The step and its bottleneck, the workers and threads it wants, what each lever saves (band, shortlist, view,
    bfloat16, ratio), and from how many times fewer steps selection pays, the IL included. Writes nothing.

    \b
    Examples:
      rhostream estimate --shards data/*.tar --model resnet18-small --workers 4
      rhostream estimate --shards s3://bucket/train-{000..059}.tar --il il --model my.nets:vit --device cuda --json
    """
    from rhostream.advisor.estimate import estimate as run
    from rhostream.advisor.estimate import parse_band
    from rhostream.advisor.render import render

    found = run(**{**_given(config, "as_json"), "band": parse_band(config.band)})
    click.echo(json.dumps(found.as_json(), indent=1) if config.as_json else render(found), nl=config.as_json)


@cli.command("doctor")
@click.argument("url", required=False, metavar="[URL]")
@_options(
    click.option("--json", "as_json", is_flag=True, help="As JSON."),
    click.option("--scoring", is_flag=True, help="Measure how well cheap scores agree with full ones."),
    click.option("--shards", multiple=True, metavar="URL...", help="With --scoring: tar shards."),
    ROOT,
    click.option("--il", metavar="URL", help="With --scoring: the table of compute-il."),
    click.option("--model", help="With --scoring: built-in name or package.module:function."),
    click.option("--weights", metavar="FILE", help="With --scoring: safetensors weights of the model."),
    click.option("--run", metavar="DIR", help="With --scoring: a run's newest weights; its settings where none given."),
    click.option(
        "--view-size",
        "view_sizes",
        type=int,
        multiple=True,
        metavar="V...",
        help="With --scoring: cheap views in pixels.  [default: a half and a quarter]",
    ),
    click.option("--rule", help="With --scoring.  [default: the run's, else rho]"),
    click.option("--buffer-size", type=int, help="n_B, with --scoring.  [default: the run's, else 320]"),
    click.option("--batch-size", type=int, help="n_b, with --scoring.  [default: the run's, else 32]"),
    click.option("--buffers", type=int, help="How many buffers to compare, with --scoring.  [default: 5]"),
    click.option("--proxy-batches", type=int, help="Kept batches a proxy learns from first.  [default: 50]"),
    click.option("--device", help="With --scoring: auto, cpu, cuda, cuda:1.  [default: auto]"),
)
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
    from rhostream.advisor.environment import examine_environment
    from rhostream.advisor.render import render_environment
    from rhostream.advisor.store import probe_store, render_store

    there, store = examine_environment(), probe_store(url) if url else None
    if as_json:
        click.echo(json.dumps(there.as_json() | ({"store": store.as_json()} if store else {}), indent=1))
    else:
        click.echo(render_environment(there) + (render_store(store) if store else ""), nl=False)
    if store is not None and not store.usable:
        raise SystemExit(3)


def main() -> None:
    """The console script: errors become one line on stderr and a documented exit code."""
    keep_out_current_folder()
    console.open_console()
    with own_process():
        _run()


def _run() -> None:
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as exc:
        raise SystemExit(exc.exit_code) from None
    except click.ClickException as exc:
        shown = io.StringIO()
        exc.show(shown)
        console.say(shown.getvalue().rstrip())
        raise SystemExit(2) from None
    except (KeyboardInterrupt, click.Abort) as exc:
        click.echo("interrupted; the same command resumes", err=True)
        raise SystemExit(getattr(exc.__cause__ or exc, "exit_code", 130)) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except Interrupted as exc:
        console.say(str(exc))
        raise SystemExit(exc.exit_code) from None
    except RhostreamError as exc:
        console.say(f"{'usage' if exc.exit_code == UsageError.exit_code else 'error'}: {exc}")
        for note in getattr(exc, "__notes__", []):
            console.say(f"  {note}")
        raise SystemExit(exc.exit_code) from None
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            console.say_internal(exc)
            raise SystemExit(1) from None
        console.say(
            "error: too many open files: raise the limit (`ulimit -n 4096`), or take fewer --workers and, in a "
            "stream, fewer --lanes"
        )
        raise SystemExit(3) from None
    except Exception as exc:
        console.say_internal(exc)
        raise SystemExit(1) from None
