"""The command of an experiment: state it > make what it needs > train > measure > compare > results and figure.

The same command again does only what is missing: shards, tables and run folders know when they are whole.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from jobs.reproduce.available import missing
from jobs.reproduce.compare import Comparison, compare, in_words, line, verdict
from jobs.reproduce.execute import DONE, Training, complete, run_all
from jobs.reproduce.figures import draw
from jobs.reproduce.measure import EARLY, IL_ACCURACY, Curve, measure
from jobs.reproduce.results import claim_rows, comparison_rows, evaluation_rows, setting_rows, stated, write
from jobs.reproduce.settings import Claim, Experiment, Scale
from rhostream.errors import RhostreamError, UnknownNameError, UsageError

SCALES = ("quick", "small", "full")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asked for."""

    scale: str = "small"
    seeds: int | None = None
    jobs: int = 2
    workers: int = 0
    out: str = "reproduce"
    sources: Mapping[str, str] = field(default_factory=dict)
    only_list: bool = False
    collect: bool = False
    arms: str | None = None  # names of worlds and of arms, by commas: only these


def reproduce(experiment: Experiment, asked: Asked) -> list[Comparison]:
    """Do it; the results file and the figure are written and the findings printed. Raises RhostreamError."""
    scale, start = experiment.scales[asked.scale], time.monotonic()
    seeds = asked.seeds or scale.seeds
    left_out = unasked(scale, asked.arms)
    left_out |= {arm.label: why for arm in scale.arms
                 if arm.label not in left_out and (why := missing(arm, asked.sources))}  # fmt: skip
    click.echo(stated(experiment, asked.scale, scale, left_out))
    if asked.only_list:
        return []

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - start:4.0f} s] {text}", err=True)

    arms = [arm for arm in scale.arms if arm.label not in left_out]
    if asked.collect:
        states = complete(arms, seeds, asked.out)
    else:
        states = run_all(arms, seeds, asked.out, jobs=asked.jobs, workers=asked.workers, sources=asked.sources, say=say)
    curves = measured(experiment, scale, states, asked.out)
    found = compare(scale, curves, tuple(dict.fromkeys((*experiment.shares, IL_ACCURACY))))
    rows = setting_rows(scale.arms, states, seeds, left_out)
    if asked.collect:  # of an arm with fewer seeds than others its own figures say so
        begun = {arm for arm, _ in states}
        rows = [row for row in rows if row["state"] == DONE or f"{row['world']}: {row['arm']}" not in begun]
    rows += [row for arm in arms for seed, curve in curves[arm.label].items()
             for row in evaluation_rows(arm, seed, curve)]  # fmt: skip
    finish(experiment, asked, rows, found)
    figure = draw(experiment, scale, curves, found, f"{asked.out}/figures/{experiment.name}-{asked.scale}.png")
    click.echo(f"figure   {figure or 'nothing to draw'}")
    say("done")
    return found


def unasked(scale: Scale, arms: str | None) -> dict[str, str]:
    """The arms that `arms` (names of worlds and of arms, by commas) leaves out, with why. Raises UnknownNameError."""
    known, of_arms = {world.name for world in scale.worlds}, {arm.name for arm in scale.arms}
    names = _told_apart(arms or "", known | of_arms)
    worlds, others = names & known or known, names & of_arms or of_arms
    return {arm.label: f"{arm.label}: not asked for" for arm in scale.arms
            if arm.world.name not in worlds or arm.name not in others}  # fmt: skip


def _told_apart(text: str, known: set[str]) -> set[str]:
    """The names in a list by commas, which names hold themselves too ("rho, 10 %"): the longest known one counts."""
    words, found = [word for word in map(str.strip, text.split(",")) if word], set[str]()
    while words:
        ends = (n for n in range(len(words), 0, -1) if ", ".join(words[:n]) in known)
        if not (end := next(ends, 0)):
            raise UnknownNameError.of("world or arm", words[0], sorted(known))
        found.add(", ".join(words[:end]))
        words = words[end:]
    return found


def measured(
    experiment: Experiment, scale: Scale, states: Mapping[tuple[str, int], str], out: str
) -> dict[str, dict[int, Curve]]:
    """The curves of all runs that completed, by arm and seed.

    Of `EARLY` only the steps count in which a run was below the weakest arm's final accuracy (the paper's Fig. 3,
    right): over whole runs the better arm looks the more redundant.
    """
    trainings = {(arm.label, seed): Training(arm, seed, out) for arm in scale.arms for label, seed in states
                 if label == arm.label and states[label, seed] == DONE}  # fmt: skip
    curves: dict[str, dict[int, Curve]] = {arm.label: {} for arm in scale.arms}
    for (label, seed), training in trainings.items():
        curves[label][seed] = measure(training, (*experiment.shares, IL_ACCURACY))
    if EARLY in experiment.shares:
        for world in scale.worlds:
            mine = {key: t for key, t in trainings.items() if t.arm.world.name == world.name}
            weakest = min((curves[label][seed].final for label, seed in mine), default=math.nan)
            for (label, seed), training in mine.items():
                until = _until(curves[label][seed], weakest)
                curves[label][seed].shares[EARLY] = measure(training, [EARLY], until).shares[EARLY]
    return curves


def _until(curve: Curve, accuracy: float) -> int:
    """Steps before the first evaluation that reaches an accuracy; at least those before the first evaluation."""
    above = [step for step, value in zip(curve.steps, curve.accuracy, strict=True) if value >= accuracy]
    return above[0] if above else curve.steps[-1]


def finish(experiment: Experiment, asked: Asked, rows: list[dict[str, Any]], found: Sequence[Comparison]) -> None:
    """Write the results file, and print what was found and what it says of the paper's claims."""
    rows = [*rows, *comparison_rows(found), *claim_rows(experiment.claims, found)]
    path = write(asked.out, experiment.name, asked.scale, rows)
    for world in dict.fromkeys(one.world for one in found):
        click.echo(f"\n{world}")
        for one in found:
            if one.world == world:
                click.echo(f"  {line(one)}")
    if experiment.claims:
        click.echo("\nThe paper's claims")
    for claim in experiment.claims:
        click.echo(f"  {claim_line(claim, found)}")
    if experiment.claims:
        same = in_words([(claim.says, verdict(claim, found)[1]) for claim in experiment.claims])
        click.echo(f"  {same}")
    click.echo(f"\nresults  {path}")


def claim_line(claim: Claim, found: Sequence[Comparison]) -> str:
    """Claim, the paper's number, ours, and whether they point the same way."""
    one, words = verdict(claim, found)
    ours = "" if one is None else f"; ours ({claim.world}): {' '.join(line(one).split())}"
    return f"{claim.says}; paper: {claim.paper}{ours} -> {words}"


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = dict(value.partition("=")[::2] for value in values)
    if bad := [name for name, folder in found.items() if not folder]:
        raise click.BadParameter(f"{bad[0]!r}: expected NAME=PATH, such as cifar10=/data/cifar10")
    return found


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all experiments share."""
    for option in reversed((
        click.option("--quick", "scale", flag_value="quick", help="Minutes: fewer arms, steps and seeds."),
        click.option("--small", "scale", flag_value="small", default="small",
                     help="Real data on two cores, in tens of minutes (the default)."),
        click.option("--full", "scale", flag_value="full", help="The paper's setting, for GPUs."),
        click.option("--seeds", type=click.IntRange(1), help="Seeds 0 to N-1, for every arm alike."),
        click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="Runs at a time."),
        click.option("--workers", default=0, show_default=True, help="Loader workers of each run."),
        click.option("--out", default="reproduce", show_default=True,
                     help="Folder of everything made; experiments that share it share shards, tables and runs."),
        click.option("--source", "sources", multiple=True, metavar="NAME=PATH", callback=_pairs,
                     help="Where you have the files of a data set, such as cifar10=/data/cifar10."),
        click.option("--collect", is_flag=True,
                     help="Train nothing: the results of the runs that are complete, the others as not run."),
        click.option("--list", "only_list", is_flag=True, help="State the setting and what is left out; do nothing."),
    )):  # fmt: skip
        command = option(command)
    return command


def guarded(work: Callable[[], object]) -> None:
    """Run it; an error of rhostream is a sentence and its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        work()
    except RhostreamError as exc:
        click.echo(f"error: {exc}", err=True)
        for note in getattr(exc, "__notes__", ()):
            click.echo(f"  {note}", err=True)
        sys.exit(exc.exit_code)


def command(experiment: Experiment) -> click.Command:
    """The command line of an experiment."""

    @click.command(help=f"{experiment.title} ({experiment.where}).")
    @options
    @click.option("--arms", metavar="NAME,...", help="Only these worlds and arms, as --list names them.")
    def main(**asked: Any) -> None:
        guarded(lambda: reproduce(experiment, Asked(**asked)))

    return main


def require_scales(experiment: Experiment) -> None:
    """Raise UsageError unless an experiment has all scales, unique labels, baselines that exist and whole grids."""
    if set(experiment.scales) != set(SCALES):
        raise UsageError(f"{experiment.name} has scales {sorted(experiment.scales)}, expected {SCALES}")
    for name, scale in experiment.scales.items():
        labels = [arm.label for arm in scale.arms]
        if len(set(labels)) != len(labels):
            raise UsageError(f"{experiment.name} {name}: two arms have the same label")
        for arm in scale.arms:
            scale.baselines(arm), scale.equals(arm)
            arm.world.il_folder(arm.il)
            if arm.steps % arm.eval_every:
                raise UsageError(f"{arm.label}: {arm.steps} steps are no multiple of eval_every {arm.eval_every}")
