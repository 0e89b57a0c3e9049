"""The command line: every verb of rhostream, composed from the wings.

Results go to stdout, everything else to stderr. Exit codes: 0 all well; 1 internal error; 2 usage or configuration,
before any work; 3 finished or stopped with bad shards, samples or tables; 130 / 143 interrupted, the same command
resumes.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from typing import Any

import click

from rhostream import console
from rhostream.errors import Interrupted, RhostreamError, UsageError
from rhostream.own_code import keep_out_current_folder
from rhostream.signals import own_process

RULES, CASCADE = "Options on the rule", "Cheaper selection"  # headings of train --help
MACHINE, RECORDS = "This machine", "What is written"
EPILOG = ("Exit codes: 0 all well; 1 internal error; 2 usage or configuration, before any work; 3 bad shards, samples "
          "or tables; 130/143 interrupted, the same command resumes.")


class _Command(click.Command):
    """A command whose repeatable options take several values: `--shards a.tar b.tar`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values, then let click do its work."""
        many = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        out: list[str] = []
        current: str | None = None
        for at, arg in enumerate(args):
            if arg.startswith("-") and arg != "-":
                current = arg if arg in many else None
                out.append(arg)
            elif current and at and args[at - 1] != current:
                out += [current, arg]
            else:
                out.append(arg)
        return super().parse_args(ctx, out)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options below their headings, those without one first."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                found.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        helps = found["Options"]
        last = next(at for at, one in enumerate(helps) if "--help" in one[0])
        for group in found:
            with formatter.section(group):
                formatter.write_dl([one for at, one in enumerate(found[group]) if group != "Options" or at != last])
        with formatter.section("More"):
            formatter.write_dl([helps[last]])


class _GroupedOption(click.Option):
    """An option with a heading of its own in the help."""

    def __init__(self, *args: Any, group: str, **how: Any) -> None:
        super().__init__(*args, **how)
        self.group = group


class _Choice(click.Choice[str]):
    """A choice that guesses what was meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as exc:
            import difflib

            near = difflib.get_close_matches(str(value), [str(choice) for choice in self.choices], n=1)
            self.fail(exc.message.rstrip(".") + (f"; did you mean {near[0]!r}?" if near else ""), param, ctx)


class _Group(click.Group):
    command_class = _Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """With a guess for a mistyped verb."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            raise click.UsageError(f"no such command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
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


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


MODEL_HELP = "Built-in name, torchvision:NAME, timm:NAME or package.module:function; docs/models.md has them."
SHARDS = click.option("--shards", required=True, multiple=True, metavar="URL...",
                      help="Tar shards: paths, s3:// gs:// https:// URLs, brace ranges, patterns or folders.")
ROOT = click.option("--root", "roots", multiple=True, metavar="NAME=URL",
                    help="Name the place of the shards, so that tables and logs survive when the data moves.")
KEEP = click.option("--keep", metavar="FIELD:TYPE,...",
                    help="Keep these fields of each sample's .json in the table (bool, int, float, str).")
INDEX = click.option("--index", metavar="I/N",
                     help="Do every N-th shard by name, from the I-th on: one of N machines, I from 0.")
WORKERS = click.option("--workers", default=0, show_default=True, help="Processes that read and decode.")
BUDGET = _options(
    click.option("--max-bad-fraction", default=0.01, show_default=True,
                 help="More bad samples than this, in one shard or in all, stop the job: something systematic."),
    click.option("--max-bad-samples", type=int, metavar="N",
                 help="More bad samples than this in the whole job stop it.  [default: by --max-bad-fraction]"),
    click.option("--max-bad-shards", type=float, default=0.1, show_default=True, metavar="N|F",
                 help="More unreadable shards than this stop the job: a number, or below 1 a fraction (10 are free)."),
    click.option("--fail-fast", is_flag=True, help="Stop at the first bad shard instead of naming it at the end."),
)

TEXT = _options(
    click.option("--tokenizer", metavar="NAME",
                 help="Of text: bytes, words:N, hf:NAME; ids:N for .npy arrays of ids.  [default: the table's or the "
                      "model's, else words:30000]"),
    click.option("--text-length", type=int, metavar="T", help="Tokens of a text; longer ones are cut.  [default: 128]"),
    click.option("--task", type=_Choice(["label", "language"]),
                 help="What a model of text learns.  [default: language of text-lm, label of any other]"),
)
LENIENT = _options(
    click.option("--allow-compressed", is_flag=True,
                 help="Inflate gzip shards into the spool; their table can be asked, not trained from."),
    click.option("--accept-missing-eof", is_flag=True,
                 help="Take a tar without its end marker for whole; one cut between two members looks the same."),
)


CHANNELS = click.option("--channels", type=int, metavar="1|3",
                        help="1 for grey, 3 for RGB.  [default: the table's, else RGB where any of some images has "
                             "colour]")
IMAGE_MEMBER = click.option("--image-member", metavar="EXT,...",
                            help="Of several images in a sample the first of these is meant: jpg, or jpg,png.")
MIN_ACCURACY = click.option("--min-accuracy", type=float, metavar="F",
                            help="Refuse an IL model that is worse, or no better than naming the largest class.")


@cli.command("fit-il")
@_options(
    SHARDS, ROOT, WORKERS, BUDGET, LENIENT, TEXT,
    click.option("--out", required=True, metavar="DIR", help="Folder of the IL model (weights and model.json)."),
    click.option("--model", default="small-cnn", show_default=True, help=MODEL_HELP),
    click.option("--holdout", multiple=True, metavar="URL...", help="Shards of their own to learn from."),
    click.option("--holdout-fraction", type=float, help="Learn from this fraction of the samples, chosen by hash."),
    click.option("--folds", default=2, show_default=True,
                 help="Cross-fit: each model learns from the other folds and scores its own. Used without a holdout."),
    click.option("--group-by", metavar="FIELD", help="Samples with the same value of this json field share a fold."),
    click.option("--fit-samples", default=100_000, show_default=True, help="Learn from at most this many."),
    click.option("--epochs", default=5, show_default=True),
    click.option("--lr", default=1e-3, show_default=True, help="AdamW learning rate."),
    click.option("--init", metavar="WEIGHTS", help="Start from these safetensors weights; the classifier may differ."),
    click.option("--classes", type=int, help="Number of classes; else the largest label + 1."),
    click.option("--image-size", type=int,
                 help="Pixels of the square input.  [default: the median of some images' shorter sides, at most 256]"),
    CHANNELS,
    IMAGE_MEMBER,
    click.option("--seed", default=0, show_default=True),
    click.option("--balance", default="none", show_default=True, type=_Choice(["none", "sample", "weight"]),
                 help="Learn from every class alike: by drawing it as often, or by weighing its losses."),
    click.option("--checkpoints", metavar="N|LOSS,...",
                 help="Keep earlier states as IL models: OUT/checkpoint-0, ... : so many, or at these losses in nats."),
    click.option("--temperature", is_flag=True, help="Divide logits by the temperature that suits unseen samples."),
    MIN_ACCURACY,
)
def fit_il(shards: tuple[str, ...], out: str, holdout: tuple[str, ...], roots: tuple[str, ...], **options: Any) -> None:
    """Train the small model whose loss counts as irreducible.

    Without --holdout or --holdout-fraction two models are cross-fitted, each on one half of the data.

    \b
    Examples:
      rhostream fit-il --shards data/*.tar --out il-model --model mlp-256 --group-by duplicate_of
      rhostream fit-il --shards data/*.tar --out il-model --checkpoints 4 --min-accuracy 0.7
    """
    from rhostream.irreducible import fit_il as run
    from rhostream.storage import redact
    from rhostream.tables.il import parse_roots

    info = run(shards, out, holdout=holdout or None, roots=parse_roots(roots), **options)
    shown = {"accuracy": round(info.accuracy, 4), "val_loss": round(info.val_loss, 4), "out": redact(out),
             "read": info.read}
    if quality := info.quality:
        shown |= {"worst_class": quality["worst_class"], "ece": quality["reliability"]["ece"],
                  "temperature": quality["temperature"], "doubts": quality["doubts"] + quality["empty_classes"]}
    click.echo(json.dumps(shown | ({"checkpoints": info.checkpoints} if info.checkpoints else {})))
    _bad_shards(info.read.get("bad_shards", {}))


def _finish(*summaries: Any) -> None:
    """Print the accounts of an offline job, a list where it made several tables; bad shards are exit code 3, and so is
    a job that has no usable sample, however few there are."""
    from dataclasses import asdict

    found = [asdict(summary) for summary in summaries]
    click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=1))
    _bad_shards(summaries[0].bad_shards)
    if any(summary.useless for summary in summaries):
        raise SystemExit(3)


def _bad_shards(found: dict[str, str]) -> None:
    """Name the shards that gave nothing: exit code 3."""
    if found:
        for name, why in found.items():
            console.say(f"bad shard {name}: {why}")
        raise SystemExit(3)


FROM = click.option("--from", "table", metavar="TABLE",
                    help="Add the fields of --keep to this table, in a new one with its rows and il; none is scored.")


def _keep_fields(shards: tuple[str, ...], table: str, out: tuple[str, ...], keep: str | None, roots: tuple[str, ...],
                 options: dict[str, Any]) -> None:
    """`--from`: options of a job that scores (or examines) samples are refused, not ignored."""
    from rhostream.irreducible import keep_fields as run
    from rhostream.tables.il import parse_keep, parse_roots

    how = {name: options.pop(name) for name in ("index", "max_bad_shards", "fail_fast")}
    context = click.get_current_context()
    defaults = {p.name: p.get_default(context) for p in context.command.params}
    if given := [name for name, value in options.items() if value and value != defaults.get(name)]:
        raise click.UsageError(f"--{given[0].replace('_', '-')} goes with scoring; --from TABLE copies rows")
    if len(out) != 1:
        raise click.UsageError(f"--from makes one table: {len(out)} --out were given")
    _finish(run(shards, table, out[0], parse_keep(keep), roots=parse_roots(roots), **how))


@cli.command("compute-il")
@_options(
    SHARDS, ROOT, KEEP, WORKERS, BUDGET, LENIENT, INDEX,
    click.option("--model", multiple=True, metavar="NAME...",
                 help="The IL model's package.module:function, where it is your own code."),
    click.option("--il-model", multiple=True, metavar="DIR...",
                 help="What fit-il wrote; several are scored in one pass, each into its own --out."),
    FROM,
    click.option("--out", required=True, multiple=True, metavar="URL...",
                 help="Where the IL table goes: one Parquet part a shard; as many as IL models."),
    MIN_ACCURACY,
    click.option("--il-dtype", default="float32", show_default=True, type=_Choice(["float32", "float16"]),
                 help="How il is stored; readers get float32."),
)
def compute_il(shards: tuple[str, ...], roots: tuple[str, ...], keep: str | None, il_model: tuple[str, ...],
               out: tuple[str, ...], table: str | None, **options: Any) -> None:
    """Write the irreducible loss of every sample, one part a shard; run again, it computes only what is missing.

    \b
    Examples:
      rhostream compute-il --shards data/*.tar --il-model il-model --out il --keep is_noisy:bool,true_label:int
      rhostream compute-il --shards data/*.tar --il-model il-a il-b il-c --out tables/a tables/b tables/c
      rhostream compute-il --shards data/*.tar --from il --keep source:str --out il-with-source
    """
    if table is not None:
        _keep_fields(shards, table, out, keep, roots, {"il_model": il_model, **options})
        return
    if not il_model:
        raise click.UsageError("--il-model is required: the folder that fit-il wrote (or --from TABLE)")
    from rhostream.irreducible import compute_ils as run
    from rhostream.tables.il import parse_keep, parse_roots

    _finish(*run(shards, il_model, out, roots=parse_roots(roots), keep=parse_keep(keep), **options))


@cli.command("index")
@_options(
    SHARDS, ROOT, KEEP, WORKERS, BUDGET, LENIENT, INDEX,
    click.option("--out", required=True, metavar="URL", help="The table."),
    FROM,
    click.option("--content", metavar="KIND",
                 help="What samples are: image, text (.txt) or tokens (.npy).  [default: as most of those looked at]"),
    IMAGE_MEMBER,
)
def index(shards: tuple[str, ...], roots: tuple[str, ...], keep: str | None, out: str, table: str | None,
          **options: Any) -> None:
    """Write the same table without il, for rules that need none (uniform, loss).

    \b
    Example:
      rhostream index --shards data/*.tar --out index
    """
    if table is not None:
        _keep_fields(shards, table, (out,), keep, roots, options)
        return
    from rhostream.irreducible import index as run
    from rhostream.tables.il import parse_keep, parse_roots

    _finish(run(shards, out, roots=parse_roots(roots), keep=parse_keep(keep), **options))


def _option(group: str, *names: str, **how: Any) -> Callable[[Any], Any]:
    """An option that the help shows below the heading `group`."""
    return click.option(*names, cls=_GroupedOption, group=group, **how)


@cli.command("train")
@_options(
    SHARDS, ROOT, WORKERS, TEXT,
    click.option("--il", required=True, metavar="URL", help="The table of compute-il, or of index."),
    click.option("--run", required=True, metavar="DIR", help="Run folder; the same command again resumes it."),
    click.option("--model", default="mlp", show_default=True, help=MODEL_HELP),
    click.option("--rule", default="rho", show_default=True, metavar="NAME",
                 help="uniform, loss, small_loss, grad_norm, grad_norm_is, irreducible, rho, rho_updated, entropy, "
                      "conditional_entropy, bald, loss_minus_conditional_entropy or your module:function."),
    click.option("--buffer-size", default=320, show_default=True, help="n_B: samples looked at each step."),
    click.option("--batch-size", default=32, show_default=True, help="n_b: samples kept for the gradient."),
    click.option("--test-shards", multiple=True, metavar="URL...", help="Evaluated for reporting only."),
    click.option("--max-bad-fraction", default=0.01, show_default=True,
                 help="Of the test shards: more bad samples than this in one, or in all, stop the run."),
    click.option("--max-bad-samples", type=int, metavar="N",
                 help="More bad samples in all test shards stop the run.  [default: by --max-bad-fraction]"),
    click.option("--passes", type=int, help="Passes over the shards.  [default: 1, or as many as --steps needs]"),
    click.option("--steps", type=int, help="Stop after this many steps."),
    click.option("--missing-il", default="error", show_default=True, type=_Choice(["error", "skip", "uniform"]),
                 help="What happens to samples without an il."),
    click.option("--init", metavar="WEIGHTS", help="Start from these safetensors weights; the classifier may differ."),
    click.option("--accumulate", default=1, show_default=True, help="Split the kept batch into this many forwards."),
    click.option("--lr", default=1e-3, show_default=True, help="AdamW learning rate."),
    click.option("--weight-decay", default=0.01, show_default=True),
    click.option("--loss", default="cross_entropy", show_default=True, metavar="NAME",
                 help="cross_entropy or your module:function of (logits, label), one loss a sample."),
    click.option("--token-share", type=float, metavar="F",
                 help="Of language: train on this share of a kept sequence's tokens, the largest loss - il (Rho-1)."),
    click.option("--augment", default="none", show_default=True, help="none, flip, shift or flip-shift; kept samples."),
    click.option("--keep-holdout", is_flag=True, help="Candidates may be samples that the IL model learned from."),
    click.option("--classes", type=int, help="Number of classes; else the table's."),
    click.option("--seed", default=0, show_default=True),
    _option(RULES, "--loss-cap", is_flag=True, help="Clip loss and il at ln C (ours; for noisy IL models)."),
    _option(RULES, "--clip", is_flag=True, help="Scores below 0 count as 0; equal ones are ranked by chance."),
    _option(RULES, "--gumbel", type=float, metavar="T",
            help="Draw without replacement from softmax(score / T): Gumbel top-k."),
    _option(RULES, "--warm-up", default=0, show_default=True, metavar="N", help="Uniform for the first N steps."),
    _option(RULES, "--stop-after", type=int, metavar="N", help="Uniform from step N on."),
    _option(RULES, "--uniform-every", type=int, metavar="K", help="One step in K is uniform."),
    _option(RULES, "--ratio", metavar="STEP:SHARE,...",
            help="From step s on keep that share of the buffer: 0:0.5,1000:0.1."),
    _option(RULES, "--class-quota", metavar="F|balanced|reducr[:ETA]",
            help="No class has more than the share F of a batch; equal shares; or class weights that follow the "
                 "classes' excess losses."),
    _option(RULES, "--deduplicate", type=float, metavar="R",
            help="Of pictures of one buffer whose small views correlate by R (0.95) only the best is kept."),
    _option(RULES, "--tau", is_flag=True, help="grad_norm_is: uniform until importance sampling pays."),
    _option(RULES, "--mc-draws", default=10, show_default=True, metavar="K",
            help="Forwards with dropout on, for the rules that compare them."),
    _option(RULES, "--shadow", metavar="RULE,...",
            help="Also log what these rules would have kept of the same forward."),
    _option(RULES, "--il-model", metavar="DIR",
            help="rho_updated: the IL model that learns along.  [default: where the table's lay]"),
    _option(RULES, "--il-lr-scale", default=0.01, show_default=True, metavar="S", help="Its rate, times --lr."),
    _option(RULES, "--il-code", metavar="NAME", help="Its package.module:function, where it is your own code."),
    _option(CASCADE, "--band", metavar="LOW:HIGH",
            help="Drop samples whose il is outside, before they are read: 20%:90% of the table, or nats."),
    _option(CASCADE, "--keep-list", metavar="FILE",
            help="Parquet, CSV or JSON of (shard, ordinal) or (shard, key): nothing else is a candidate."),
    _option(CASCADE, "--shortlist", metavar="KIND:R",
            help="proxy:4 or view:4: a cheaper forward picks 4 n_b, and fresh scores pick n_b of these."),
    _option(CASCADE, "--proxy-model", default="mlp-64", show_default=True,
            help="The small model of --shortlist proxy; it learns from what is kept."),
    _option(CASCADE, "--view-size", type=int,
            help="Decode at this many pixels to score or shortlist; what goes on is decoded at full size."),
    _option(MACHINE, "--precision", default="float32", show_default=True, help="Of scoring: float32 or bfloat16."),
    _option(MACHINE, "--train-precision", default="float32", show_default=True,
            help="Of the gradient step: float32 or bfloat16."),
    _option(MACHINE, "--chunk", type=int, help="Score at most this many samples at once (memory)."),
    _option(MACHINE, "--batch-norm", default="buffer", show_default=True, type=_Choice(["buffer", "eval"]),
            help="Statistics while scoring."),
    _option(MACHINE, "--lanes", type=int, help="Shards that are mixed at a time.  [default: up to 64]"),
    _option(MACHINE, "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1."),
    _option(MACHINE, "--threads", type=int,
            help="Threads of the model.  [default: the cores that the workers leave, as the run began]"),
    _option(MACHINE, "--compile", is_flag=True, help="Run the model through torch.compile."),
    _option(MACHINE, "--image-size", type=int, help="Pixels of the square input; else the table's."),
    _option(MACHINE, "--channels", type=int, metavar="1|3",
            help="1 for grey, 3 for RGB; else the table's."),
    _option(MACHINE, "--decoder", default="auto", show_default=True, help="auto, pillow or simplejpeg."),
    _option(MACHINE, "--selection", default="global", show_default=True, type=click.Choice(["global", "rank"]),
            help="Under torchrun: the best n_b of the whole buffer, or n_b / ranks of each rank's share."),
    _option(MACHINE, "--rank-timeout", default=600.0, show_default=True,
            help="Seconds that a rank waits for the others before it stops."),
    _option(RECORDS, "--eval-every", default=100, show_default=True, help="Steps between evaluations."),
    _option(RECORDS, "--checkpoint-every", default=500, show_default=True, help="Steps between checkpoints."),
    _option(RECORDS, "--keep-checkpoints", default=2, show_default=True, help="How many checkpoints stay."),
    _option(RECORDS, "--change", multiple=True, metavar="NAME=VALUE...",
            help="Of a run that goes on: another lr, weight_decay, accumulate, augment, chunk, precision, ... from its "
                 "newest checkpoint on; recorded, and said by status and report."),
    _option(RECORDS, "--tensorboard", is_flag=True, help="Also write TensorBoard events below the run."),
)
def train(shards: tuple[str, ...], roots: tuple[str, ...], tensorboard: bool, **options: Any) -> None:
    """Train with selection: score n_B samples, keep n_b, step; every decision is logged.

    Over several GPUs or machines it is started by torchrun, with n_B and n_b counted over all ranks.

    \b
    Examples:
      rhostream train --shards data/*.tar --il il --run runs/rho --model resnet18-small --test-shards test/*.tar
      rhostream train --shards data/*.tar --il il --run runs/is --rule grad_norm_is --tau --shadow rho,loss
      torchrun --nproc-per-node 4 --no-python -- rhostream train --shards data/*.tar --il il --run runs/rho
    """
    from rhostream.storage import redact
    from rhostream.tables.il import parse_roots
    from rhostream.training.start import train as run

    first = os.environ.get("RANK", "0") == "0"  # the other ranks of a launcher have nothing to add
    metrics = _tensorboard(options["run"]) if tensorboard and first else None
    options["test_shards"] = options["test_shards"] or ()
    summary = run(shards, options.pop("il"), options.pop("run"), roots=parse_roots(roots), metrics=metrics, **options)
    if first:
        kept, tail = (summary.reasons.get(reason, 0) for reason in ("kept", "tail"))
        click.echo(json.dumps({"run": redact(summary.run), "steps": summary.steps, "planned": summary.planned,
                               "kept": kept, "skipped": summary.planned - kept - tail, "tail": tail,
                               "reasons": summary.reasons, "retried": summary.cost["retried"],
                               "test_accuracy": summary.test_accuracy, "test_samples": summary.test_samples,
                               "test_left_out": summary.test_left_out}, indent=1))


def _tensorboard(run: str) -> Callable[[dict[str, Any]], None]:
    from rhostream.training.tensorboard import writer

    return writer(run)


@cli.command("sql")
@click.argument("folder", metavar="DIR")
@click.argument("query", required=False)
@click.option("--format", "style", default="table", show_default=True, type=_Choice(["table", "json", "csv"]))
@ROOT
def sql(folder: str, query: str | None, style: str, roots: tuple[str, ...]) -> None:
    """Ask a run (or an IL table) a question in SQL, or a named one: @noisy_share. Without a question, list them.

    Views: selections, steps, il, samples, quarantine, runs, shadow.

    \b
    Examples:
      rhostream sql runs/rho "select reason, count(*) from selections group by all"
      rhostream sql runs/rho @kept_by_class
    """
    from rhostream.audit.questions import QUESTIONS, run_question
    from rhostream.audit.render import escape, render
    from rhostream.audit.views import open_ledger
    from rhostream.tables.il import parse_roots

    if query is None or query == "@":
        for name, question in QUESTIONS.items():
            click.echo(f"@{name:24} {question.says}")
        return
    with open_ledger(folder, roots=parse_roots(roots)) as ledger:
        for run in ledger.runs:
            if run.checkpoint is None or not run.checkpoint.log:
                click.echo(f"run {escape(run.name)} has no committed step yet: its log is empty", err=True)
            elif run.checkpoint.doubt:
                click.echo(f"run {escape(run.name)}: {run.checkpoint.doubt}", err=True)
        table = run_question(ledger, query[1:]) if query.startswith("@") else ledger.sql(query)
    click.echo(render(table, style))


@cli.command("report")
@click.argument("folder", metavar="DIR|TABLE")
@click.option("--against", multiple=True, metavar="DIR...", help="Runs to compare with: uniform, train-on-everything.")
@click.option("-o", "--out", default="report.html", show_default=True, help="The page: static, without script.")
@click.option("--json", "as_json", is_flag=True, help="Of an IL table: print its figures instead of a page.")
@ROOT
def report(folder: str, against: tuple[str, ...], out: str, as_json: bool, roots: tuple[str, ...]) -> None:
    """Write a page that says what was kept and skipped, why, and whether selection paid; or what an IL table is worth.

    \b
    Examples:
      rhostream report runs/rho --against runs/uniform runs/everything -o report.html
      rhostream report il -o il.html
    """
    from rhostream import storage
    from rhostream.audit.runs import is_table
    from rhostream.tables.il import parse_roots

    table = storage.resolve(folder)
    if not is_table(table):
        from rhostream.audit.report import write_report

        if as_json:
            raise click.UsageError("--json is for IL tables; ask a run with `rhostream sql`")
        click.echo(write_report([folder], out, against=list(against), roots=parse_roots(roots)))
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
    ROOT, JSON,
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
    from rhostream.tables.il import parse_roots

    found = status_of(folder, shards, parse_roots(roots))
    click.echo(json.dumps(found, indent=1) if as_json else render_status(found), nl=as_json)


@cli.command("verify")
@click.argument("folder", metavar="URL|DIR")
@_options(
    click.option("--shards", multiple=True, metavar="URL...",
                 help="Compare these shards with a table: changed or without a part is a problem."),
    ROOT,
    click.option("--repair", is_flag=True, help="Make bad parts again, or set a run's damaged checkpoint aside."),
    click.option("--il-model", metavar="DIR", help="With --repair: the table's IL model.  [default: where it lay]"),
    click.option("--workers", type=int, help="With --repair: processes that read and decode."),
    click.option("--max-bad-fraction", type=float, help="With --repair: as for compute-il."),
    click.option("--model", metavar="NAME", help="With --repair: as for compute-il."),
    click.option("--allow-compressed", is_flag=True, help="With --repair: as for compute-il."),
    click.option("--accept-missing-eof", is_flag=True, help="With --repair: as for compute-il."),
    JSON,
)
def verify(folder: str, shards: tuple[str, ...], roots: tuple[str, ...], repair: bool, as_json: bool,
           **options: Any) -> None:
    """Prove a table, a run or an IL model: every byte, laws, keys, steps. Exit code 3: something is wrong.

    \b
    Examples:
      rhostream verify il
      rhostream verify il --shards data/*.tar --repair
      rhostream verify runs/rho
    """
    from rhostream.audit.says import render_verify
    from rhostream.tables.il import parse_roots

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
@click.option("--before", type=click.IntRange(0), required=True, metavar="STEP",
              help="The first step whose state stays.")
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


@cli.command("estimate")
@_options(
    SHARDS, ROOT, WORKERS, TEXT,
    click.option("--il", metavar="URL", help="A table of compute-il or index: samples are counted, the loader timed."),
    click.option("--model", default="mlp", show_default=True, help=MODEL_HELP),
    click.option("--buffer-size", default=320, show_default=True, help="n_B: samples looked at each step."),
    click.option("--batch-size", default=32, show_default=True, help="n_b: samples kept for the gradient."),
    click.option("--image-size", type=int, help="Pixels of the square input; else the table's or the images'."),
    CHANNELS,
    click.option("--view-size", "view_sizes", type=int, multiple=True, metavar="V...",
                 help="Cheap views to price, in pixels.  [default: a half and a quarter]"),
    click.option("--classes", type=int, help="Number of classes; else the table's or the largest label seen + 1."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1."),
    click.option("--il-model", metavar="NAME", help="The IL model to price.  [default: the table's, else small-cnn]"),
    click.option("--steps", type=int, help="Steps of the run to weigh it against.  [default: one pass, all trained]"),
    click.option("--band", default="20%:90%", show_default=True, metavar="LO:HI", help="Quantiles of il to price."),
    click.option("--shortlist", default=4, show_default=True, help="R: shortlists of R x n_b to price."),
    click.option("--seconds", default=45.0, show_default=True, help="How long to measure, about."),
    click.option("--json", "as_json", is_flag=True, help="Everything measured and predicted, as JSON."),
)
def estimate(shards: tuple[str, ...], roots: tuple[str, ...], band: str, as_json: bool, **options: Any) -> None:
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
    from rhostream.tables.il import parse_roots

    found = run(shards, roots=parse_roots(roots), band=parse_band(band), **options)
    click.echo(json.dumps(found.as_json(), indent=1) if as_json else render(found), nl=as_json)


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
    click.option("--view-size", "view_sizes", type=int, multiple=True, metavar="V...",
                 help="With --scoring: cheap views in pixels.  [default: a half and a quarter]"),
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
        from rhostream.tables.il import parse_roots

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
        console.say("error: too many open files: raise the limit (`ulimit -n 4096`), or take fewer --workers and, in a "
                    "stream, fewer --lanes")
        raise SystemExit(3) from None
    except Exception as exc:
        console.say_internal(exc)
        raise SystemExit(1) from None
