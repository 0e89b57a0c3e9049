"""What a verb prints when it is done: JSON for whoever reads it by program, aligned lines for people at a terminal.

`--json`, or a stdout that is no terminal, asks for JSON. What people read holds no more than the JSON does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rhostream import console
from rhostream.inert import escape, shell_words

if TYPE_CHECKING:
    from rhostream.config import FitILConfig
    from rhostream.il_model.info import ModelInfo
    from rhostream.irreducible.accounts import Summary as JobSummary
    from rhostream.training.summary import Summary as TrainSummary

AGAIN = 4  # shards of a command that are named in the next one
JSON_OPTION = "as_json"  # click's name of --json
Line = tuple[str, str]  # name, value


def wants_json() -> bool:
    """Whether the verb at hand was given --json, or nobody looks at its stdout."""
    return bool(click.get_current_context().params.get(JSON_OPTION)) or not sys.stdout.isatty()


def show(
    data: Any, lines: Iterator[Line], *, doubts: Sequence[str] = (), next_: str = "", indent: int | None = 1
) -> None:
    """Print `data` as JSON, or `lines` for people: names and values aligned, a doubt a line, then the next command."""
    if wants_json():
        click.echo(json.dumps(data, indent=indent))
        return
    found = [(name, value) for name, value in lines if value]
    width = max((len(name) for name, _ in found), default=0)
    text = [f"{name:<{width}}  {value}" for name, value in found]
    text += [f"{'doubtful':<{width}}  {doubt}" for doubt in doubts] + ([f"next: {next_}"] if next_ else [])
    click.echo("\n".join(escape(line) for line in text))


def counts(by_name: Mapping[str, int]) -> str:
    """`12 dup, 3 json`, the most frequent first."""
    return ", ".join(f"{n:,} {name}" for name, n in sorted(by_name.items(), key=lambda item: -item[1]) if n)


def percent(share: float, digits: int = 1) -> str:
    """`10.0 %`."""
    return f"{100 * share:.{digits}f} %"


def share(part: int, whole: int) -> str:
    """`3,200 (10.0 %)`."""
    return f"{part:,}" + (f" ({percent(part / whole)})" if whole else "")


def command(verb: str, *words: object) -> str:
    """A command of rhostream, to be pasted into a shell."""
    return shell_words("rhostream", verb, *map(str, words))


def shards_again(shards: str | Iterable[Any]) -> str:
    """The shards of a command for the next one: as given, quoted; in words where a shell made a long list of them."""
    given = [shards] if isinstance(shards, str) else [str(shard) for shard in shards]
    return shell_words(*map(console.clean, given)) if len(given) <= AGAIN else f"... (the same {len(given):,})"


def show_fit(info: ModelInfo, config: FitILConfig) -> None:
    """Print what fit-il made."""
    from rhostream.storage import redact

    shown: dict[str, Any] = {
        "accuracy": None if info.accuracy is None else round(info.accuracy, 4),
        "val_loss": round(info.val_loss, 4),
        "out": redact(config.out),
        "read": info.read,
    }
    if quality := info.quality:
        shown |= {
            "worst_class": quality["worst_class"],
            "ece": quality["reliability"]["ece"],
            "doubts": quality["doubts"] + quality["empty_classes"],
        }
    following = command("compute-il", "--il-model", shown["out"], "--out", "il", "--shards")
    following += f" {shards_again(config.shards)}"
    lines = fit_lines(shown, info.class_names)
    show(shown, lines, doubts=shown.get("doubts", ()), next_=following, indent=None)


def show_job(account: JobSummary) -> None:
    """Print the account of an offline job."""
    record = asdict(account)
    show(record, job_lines(record), doubts=record["doubts"])


def show_train(summary: TrainSummary) -> None:
    """Print what train did."""
    from rhostream.storage import redact

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
    page = command("report", shown["run"], "-o", "report.html")
    show(shown, train_lines(shown), doubts=summary.doubts, next_=page)


def fit_lines(found: Mapping[str, Any], class_names: Mapping[int, str]) -> Iterator[Line]:
    """Of the summary of fit-il."""
    from rhostream.tables.classes import named as label_named  # --help has no use for the storage below it

    yield "IL model", str(found["out"])
    yield "accuracy", percent(found["accuracy"]) + " on samples that it didn't learn from"
    yield "loss", f"{found['val_loss']:.3f} nats"
    if worst := found.get("worst_class"):
        name = label_named(class_names, worst["class"])
        yield "worst class", f"{name}: {percent(worst['accuracy'])} of {worst['samples']:,}"
    if "ece" in found:
        yield "calibration", f"expected error {found['ece']:.3f}"
    yield "read", _read(found["read"])


def _read(read: Mapping[str, Any]) -> str:
    """Samples by status, and shards that could not be read."""
    bad = counts({name: n for name, n in read.items() if isinstance(n, int) and name not in ("samples", "ok")})
    said = f"{read.get('samples', 0):,} samples" + (f", of which can't be used: {bad}" if bad else "")
    return said + (f"; {len(read['bad_shards']):,} bad shards" if read.get("bad_shards") else "")


def _retried(retried: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(f"{place}: {counts(kinds)}" for place, kinds in retried.items())


def job_lines(found: Mapping[str, Any]) -> Iterator[Line]:
    """Of the account of one table of compute-il or index."""
    bad = f", {len(found['bad_shards']):,} bad" if found["bad_shards"] else ""
    yield "shards", f"{found['shards']:,}: {found['made']:,} made, {found['present']:,} there already{bad}"
    yield "samples", f"{found['samples']:,}: {share(found['ok'], found['samples'])} can be used"
    yield "quarantined", counts(found["quarantined"])
    yield "first", "; ".join(found["first_bad"])
    yield "bad fields", counts(found["bad_fields"])
    if found["scored"]:
        rate = found["scored"] / found["seconds"] if found["seconds"] else 0
        yield "scored", f"{found['scored']:,} samples in {found['seconds']:.0f} s ({rate:,.0f}/s)"
    yield "tried again", _retried(found["retried"])


def train_lines(found: Mapping[str, Any]) -> Iterator[Line]:
    """Of the summary of train."""
    yield "run", str(found["run"])
    yield "steps", f"{found['steps']:,}"
    yield "kept", f"{share(found['kept'], found['planned'])} of {found['planned']:,} samples that were drawn"
    reasons = {name: n for name, n in found["reasons"].items() if name != "kept"}
    yield "skipped", counts(reasons)
    if found["test_accuracy"] is not None:
        of = f" of {found['test_samples']:,} test samples" if found["test_samples"] else ""
        left = found["test_left_out"]
        yield "accuracy", percent(found["test_accuracy"], 2) + of + (f"; left out: {counts(left)}" if left else "")
    yield "tried again", _retried(found["retried"])
