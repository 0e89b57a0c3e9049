"""The command line: every verb of rhostream, composed from the wings.

Results go to stdout, everything else to stderr. Exit codes: 0 all well; 1 internal error; 2 usage or configuration,
before any work; 3 finished or stopped with bad shards, samples or tables; 130 / 143 interrupted, the same command
resumes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rhostream import console, exports, readers, summaries
from rhostream.config.command_line import Group
from rhostream.own_code import keep_out_current_folder
from rhostream.setting import defaults_of
from rhostream.signals import own_process

if TYPE_CHECKING:
    from rhostream.config import (
        ComputeILConfig,
        EstimateConfig,
        FitILConfig,
        IndexConfig,
        InitConfig,
        ShardsConfig,
        TrainConfig,
    )
    from rhostream.irreducible.accounts import Summary

EPILOG = (
    "Exit codes: 0 all well; 1 internal error; 2 usage or configuration, before any work; 3 bad shards, samples "
    "or tables; 130/143 interrupted, the same command resumes."
)


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rhostream")
def cli() -> None:
    """Train on the few points of each buffer that are learnable, worth learning and not yet learnt.

    \b
    A first look at your images or shards, and what to run on them:
      rhostream init       photos
    \b
    A first run on your shards:
      rhostream fit-il     --shards data/train-{000..059}.tar --out il-model --model small-cnn
      rhostream compute-il --shards data/train-{000..059}.tar --il-model il-model --out il
      rhostream train      --shards data/train-{000..059}.tar --il il --run runs/first --model resnet18-small
      rhostream sql        runs/first "select reason, count(*) from selections group by all"
      rhostream report     runs/first -o report.html
    """


for _verb in (*readers.VERBS, exports.export):
    cli.add_command(_verb)


def _given(config: Any, *left_out: str) -> dict[str, Any]:
    """The fields of a config as keywords, without some."""
    return {name: value for name, value in vars(config).items() if name not in left_out}


@cli.verb("init", "InitConfig")
def init(config: InitConfig) -> None:
    """Look at a folder of images or at shards, and say what to do with exactly this data.

    Kind, classes, sizes, what can't be used, disk; in about a minute, with intervals, whether irreducible losses would
    separate anything here; then the commands to run, with settings that suit the data. With --out they are written as
    a script, run.sh, with a config file each.

    \b
    Examples:
      rhostream init photos
      rhostream init photos --out first && sh first/run.sh
      rhostream init s3://bucket/train-{000..059}.tar --json
    """
    from rhostream.guide.job import guide as run

    made = run(config)
    click.echo(json.dumps(made.as_json(), indent=1) if config.as_json else made.text())
    if made.facts.too_bad or made.facts.unreadable:
        raise SystemExit(3)


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
      rhostream fit-il --shards data/*.tar --out il-model --min-accuracy 0.7
    """
    from rhostream.irreducible import fit_il as run

    info = run(config)
    summaries.show_fit(info, config)
    _bad_shards(info.read.get("bad_shards", {}))


def _finish(account: Summary) -> None:
    """Print the account of an offline job; bad shards are exit code 3, and so is a job that has no usable sample."""
    summaries.show_job(account)
    _bad_shards(account.bad_shards)
    if account.useless:
        raise SystemExit(3)


def _bad_shards(found: Mapping[str, str]) -> None:
    """Name the shards that gave nothing: exit code 3."""
    for name, why in found.items():
        console.say(f"bad shard {name}: {why}", "bad_shard", logging.ERROR, shard=console.clean(name))
    if found:
        raise SystemExit(3)


def _keep_fields(config: ComputeILConfig | IndexConfig) -> None:
    """`--from`: options of a job that scores (or examines) samples are refused, not ignored."""
    from rhostream.irreducible import keep_fields as run
    from rhostream.tables.il import checked_keep

    taken = ("shards", "roots", "keep", "table", "out", "index", "max_bad_shards", "fail_fast")
    defaults = defaults_of(config)
    if other := [name for name, value in _given(config, *taken).items() if value != defaults[name]]:
        raise click.UsageError(f"--{other[0].replace('_', '-')} goes with scoring; --from TABLE copies rows")
    _finish(
        run(
            config.shards,
            str(config.table),
            config.out,
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
      rhostream compute-il --shards data/*.tar --reference mine:zero_shot --out il-reference
      rhostream compute-il --shards data/*.tar --from il --keep source:str --out il-with-source
    """
    if config.table is not None:
        return _keep_fields(config)
    if not config.il_model and config.reference is None:
        raise click.UsageError(
            "--il-model is required: the folder that fit-il wrote (or --reference NAME, a model that exists, or --from "
            "TABLE)"
        )
    from rhostream.irreducible import compute_il as run

    _finish(run(config))


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
    from rhostream.training.start import train as run

    summary = run(config)
    if os.environ.get("RANK", "0") == "0":  # the other ranks of a launcher have nothing to add
        summaries.show_train(summary)


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


def main() -> None:
    """The console script: errors become one line on stderr and a documented exit code."""
    keep_out_current_folder()
    console.open_console(sys.argv[1:])
    with own_process():
        console.run(cli)
