"""How far a job is that goes on or was stopped: what its attempts note, what its files' names and times tell.

For people alone: nothing is decided by what stands here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rhostream import storage
from rhostream.errors import RhostreamError
from rhostream.inert import shell_words
from rhostream.runs.attempts import going_on
from rhostream.runs.chain import segments
from rhostream.runs.link import Link
from rhostream.selection.clashes import AUTO
from rhostream.tables.steps import last_evaluation, newest_ratio, steps_seen
from rhostream.tables.unfinished import Unfinished


def job_of(run: str, latest: Link | None) -> dict[str, Any] | None:
    """The newest attempt: {"attempt", "begun", "host", "pid", "running" (None: can't be seen from here), "step",
    "seconds_ago"}. `step`: how far its steps are written, committed or not, and how long ago the newest of them were.
    """
    newest = going_on(run, latest)
    if newest is None:
        return None
    attempt, note, running = newest
    seen = steps_seen(run, attempt)
    step, url = seen if seen is not None else (0, None)
    return {
        "attempt": attempt, **{name: note.get(name) for name in ("begun", "host", "pid")}, "running": running,
        "step": max(step, latest.step if latest else 0), "seconds_ago": None if url is None else seconds_ago(url),
    }  # fmt: skip


def run_next(job: Mapping[str, Any] | None, command: str) -> str:
    """What to do with a run that isn't complete: nothing that would undo the steps of a job which is going on."""
    if job is None or job["running"] is False:
        return command
    if job["running"]:
        return f"wait: it is running; `kill {job['pid']}` ends it after its step, which it commits"
    return (
        f"{command}   (once attempt {job['attempt']} has ended, which nobody can see from here: it takes the run over)"
    )


def evaluation_of(run: str, latest: Link | None) -> dict[str, Any] | None:
    """The newest evaluation of the steps table: {step, test_loss, test_accuracy, class_accuracy, test_samples}."""
    if latest is None:
        return None
    try:
        return last_evaluation(run, segments(run, latest, "steps"))
    except RhostreamError:
        return None  # `verify` says so


def ratio_of(run: str, latest: Link | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `--ratio auto` keeps now, and what each share is worth; None without that option."""
    if latest is None or settings.get("ratio") != AUTO:
        return None
    try:
        return newest_ratio(run, segments(run, latest, "steps"))
    except RhostreamError:
        return None  # `verify` says so


def fit_status(folder: str, files: Mapping[str, Unfinished]) -> dict[str, Any]:
    """Of a fit-il that goes on, or was stopped: what a second one would find."""
    fits: dict[str, dict[str, Any]] = {}
    for url, one in sorted(files.items(), key=lambda item: item[1]):
        fit = fits.setdefault(one.identity, {"models": one.models, "epochs": one.of, "kept": {}, "seconds_ago": None})
        fit["kept"][one.model] = one.epochs  # of each network the highest comes last
        fit["seconds_ago"] = min(filter(None, [fit["seconds_ago"], seconds_ago(url)]), default=None)
    return {
        "kind": "unfinished-il-model",
        "fits": list(fits.values()),
        "next": f"the same `rhostream fit-il ... --out {shell_words(storage.redact(folder))}` again, unless it is "
        "running: it reads the samples and goes on behind the epochs that are kept",
    }


def seconds_ago(url: str) -> float | None:
    """How long ago a file was written, by this machine's clock; None where nobody knows. Decides nothing."""
    try:
        written = storage.modified(url)
    except RhostreamError:
        return None
    return None if written is None else round(max(time.time() - written, 0.0), 1)


def last_part(table: str, urls: Sequence[str]) -> float | None:
    """How long ago the newest part was written; None in a store, which would be asked about each."""
    ages = [seconds_ago(url) for url in urls] if storage.is_local(table) else []
    return min((age for age in ages if age is not None), default=None)
