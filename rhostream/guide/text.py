"""What `rhostream init` prints: facts a line each, the advice, the commands; and the script that is written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rhostream.guide.facts import Disk, Facts, Spread
from rhostream.guide.figures import BOTH, RHO, advice, warnings
from rhostream.guide.judge import Judged
from rhostream.guide.plan import Command, Plan
from rhostream.inert import escape, shell_words

WIDTH = 110
WIDE, LISTED, SUSPECTS = 10, 8, 3
TIED = "\1"  # a space at which no line is broken
MEANS = {
    RHO: "rho: choose samples by their reducible loss",
    BOTH: "undecided: run rho and uniform, and compare",
}
PLAIN = "uniform: train on samples drawn by chance, without an il"


def report_of(facts: Facts, plan: Plan) -> str:
    """All of it for people, without the commands."""
    lines = [*_facts(facts), *_disk(plan.disk), *_il(facts)]
    lines += [("note", note) for note in [*facts.notes, *plan.notes]]
    return "\n".join(line for name, text in lines for line in _wrapped(name, escape(text)))


def _wrapped(name: str, text: str) -> list[str]:
    """A fact, its name in front, on as many lines as it needs."""
    return textwrap.wrap(text, WIDTH, initial_indent=f"{name:<{WIDE}}", subsequent_indent=" " * (WIDE + 2),
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _facts(facts: Facts) -> Iterator[tuple[str, str]]:
    number = f"{facts.samples:,} samples" if facts.counted else f"about {facts.samples:,} samples (a guess)"
    shards = f" in {facts.shards:,} shards" if facts.shards else ""
    tested = f" (and {facts.test_samples:,} to test on)" if facts.test_samples else ""
    tested = f" (and {facts.test_shards:,} shards to test on)" if facts.test_shards else tested
    yield "data", f"{facts.words}: {facts.where}"
    yield "", f"{number}{shards}{tested}, {size(facts.bytes)}; each is taken as {facts.content}, {facts.seen_as}"
    if facts.classes:
        among = "" if not facts.shards else f" (of {facts.looked:,} looked at)"
        shown = [f"{name} {n:,}" for name, n in sorted(facts.classes.items(), key=lambda item: -item[1])]
        more = f" and {len(shown) - LISTED:,} more" if len(shown) > LISTED else ""
        yield "classes", f"{len(shown):,}{among}: {', '.join(shown[:LISTED])}{more}"
        most, least = max(facts.classes.values()), min(facts.classes.values())
        if most >= 3 * max(least, 1):
            yield "", f"imbalanced: the largest has {most / max(least, 1):.0f} times as many as the smallest"
    for row, spread in enumerate(facts.sizes):
        yield "" if row else "sizes", _spread(spread)
    where = f" of {facts.looked_in:,} shards" if facts.shards else ""
    all_of_it = " (all)" if facts.counted and facts.looked >= facts.samples else ", drawn by chance"
    yield "looked at", f"{facts.looked:,} samples{where}{all_of_it}: {facts.bad_samples:,} of them can't be used"
    for bad in facts.bad:
        yield "bad", f"{bad.samples:,} {bad.status}, first {'; '.join(bad.first)}"
    for shard, why in list(facts.unreadable.items())[:LISTED]:
        yield "bad", f"shard {shard} can't be read: {why}"
    if facts.too_bad:
        yield "", "more than 1 % can't be used, at which fit-il stops: mend them, or allow it with --max-bad-fraction"


def _spread(of: Spread) -> str:
    return f"{of.least:,} to {of.most:,} {of.what}, median {of.median:,} ({of.of:,} looked at)"


def _disk(disk: Disk) -> Iterator[tuple[str, str]]:
    parts = [(disk.shards, "shards"), (disk.table, "table"), (disk.runs, "two runs")]
    named = ", ".join(f"{name} {size(count)}" for count, name in parts if count)
    short = f": NOT ENOUGH in {disk.where}" if disk.needed > disk.free else ""
    yield "disk", f"{size(disk.needed)} will be written ({named}); {size(disk.free)} are free{short}"


def _il(facts: Facts) -> Iterator[tuple[str, str]]:
    if (judged := facts.judged) is None:
        yield "il", f"not asked: {facts.not_judged}"
        return
    of = judged.figures
    yield (
        "il",
        (
            f"{judged.folds} networks ({judged.model}, {judged.seen_as}, {judged.epochs} epochs, "
            f"{judged.seconds:.0f} s) judged {of.samples:,} samples that they didn't learn from, with 95 % intervals:"
        ),
    )
    yield (
        "",
        f"{of.accuracy.percent()} right; a guess of the most frequent class is right in {100 * of.largest_class:.0f} %",
    )
    yield "", f"{of.learned.percent()} of the loss can be taken away (is reducible)"
    yield "", f"{of.hard.percent()} have a label that they give less than a half"
    most = "at most " if of.rising else ""
    yield "", f"{most}{of.wrong.percent()} of the labels look wrong, by the {of.sure:,} samples that they are surest of"
    yield from (("", f"such as {suspect}") for suspect in _suspects(judged))
    if judged.copies:
        yield "", f"{judged.copies:,} look the same as another one"
    chosen, why = advice(of)
    yield "advice", MEANS.get(chosen, PLAIN)
    yield "", why
    yield from (("warning", warning) for warning in warnings(of))


def _suspects(judged: Judged) -> list[str]:
    if judged.figures.wrong.low <= 0 or not judged.figures.learnable:
        return []
    return [
        f"{suspect.key}: labelled {suspect.label}, looks like {suspect.looks_like} ({100 * suspect.probability:.0f} %)"
        for suspect in judged.suspects[:SUSPECTS]
    ]


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float | None) -> str:
    """`about 40 s`; "" where it isn't known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds)):,} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def command_line(command: Command) -> str:
    """The command with every setting typed, on lines of a readable length."""
    words = [f"rhostream {command.verb}"]
    config = dict(command.config)
    if command.verb == "shards":
        words.append(shell_words(str(config.pop("folder"))))
    words += [f"--{name.replace('_', '-')} {_typed(value)}" for name, value in config.items()]
    words += _pairs(command.typed)
    together = " ".join(word.replace(" ", TIED) for word in words)  # an option and its value stay on one line
    lines = textwrap.wrap(together, 100, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines).replace(TIED, " ")


def _pairs(typed: Sequence[str]) -> list[str]:
    """Options with their values, which stay on one line."""
    lines = list[str]()
    for word in typed:
        if lines and lines[-1].startswith("-") and " " not in lines[-1] and not word.startswith("-"):
            lines[-1] += f" {shell_words(word)}"
        else:
            lines.append(shell_words(word))
    return lines


def _typed(value: object) -> str:
    """A value as a shell takes it; patterns of shards stay patterns."""
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join(word if (word := str(one)).isprintable() and _plain(word) else shell_words(word) for one in values)


def _plain(word: str) -> bool:
    return all(letter.isalnum() or letter in "/._-+=:,@%*{}" for letter in word)


def script(facts: Facts, plan: Plan) -> str:
    """run.sh: what was found as comments, and a command a step, each with its config file."""
    head = report_of(facts, plan).splitlines()
    lines = ["#!/bin/sh", "# Made by `rhostream init`. Read it, change it, run it: sh run.sh", "#"]
    lines += [f"# {line}".rstrip() for line in head]
    lines += ["", "set -eu", 'cd "$(dirname "$0")"', ""]
    for command in plan.commands:
        about = f" ({duration(command.seconds)})" if command.seconds is not None else ""
        lines.append(f"# {escape(command.why)}{about}")
        line = escape(" ".join([f"rhostream {command.verb}", *_config(command), *_pairs(command.typed)]))
        lines.append(f"# {line}" if command.waits else line)
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _config(command: Command) -> list[str]:
    return [f"--config {command.name}.toml"] if command.name else []


def steps(plan: Plan) -> str:
    """The commands for people, each with what it does and costs."""
    lines = ["Next:", ""]
    for command in plan.commands:
        about = f" ({duration(command.seconds)})" if command.seconds is not None else ""
        lines += [f"  # {command.why}{about}", *(f"  {line}" for line in command_line(command).splitlines()), ""]
    return "\n".join(escape(line) for line in lines).rstrip()
