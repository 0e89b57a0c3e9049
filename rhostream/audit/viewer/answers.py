"""What the page asks, answered: how far it is, the charts, samples, one sample's history, a question in SQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rhostream import storage
from rhostream.audit.runs import is_table
from rhostream.audit.viewer.axes import Axes, axes_of
from rhostream.audit.viewer.crossfilter import Counter
from rhostream.audit.viewer.filters import checked_filters
from rhostream.audit.viewer.find import different, first_rows, looks
from rhostream.audit.viewer.live import Follower
from rhostream.audit.viewer.looks import LOOKS, RUNS
from rhostream.audit.viewer.questions import Questions, named_questions
from rhostream.audit.viewer.rows import REASONS, Array
from rhostream.audit.viewer.samples import Samples
from rhostream.errors import UsageError
from rhostream.tables.names import checked_roots

WAIT_SECONDS = 10.0  # how long the page is let wait for news
GROWN = 1.25  # times the rows after which the axes are looked at again
MOST_CLASSES = 400  # bars
MOST_RUNS = len(RUNS)
MOST_TILES = 60  # samples of an answer


class Viewer:
    """The runs of a page. Its methods take and give JSON values; all but `state` raise UsageError."""

    def __init__(self, folders: Sequence[str], roots: Mapping[str, str] | None = None) -> None:
        if len(folders) > MOST_RUNS:
            raise UsageError(f"{len(folders)} runs were named; a page compares up to {MOST_RUNS}")
        if tables := [url for url in folders if is_table(storage.resolve(url))]:
            raise UsageError(
                f"{storage.redact(tables[0])} is an IL table, and the page is of runs: `rhostream report` and "
                "`rhostream sql` look at tables"
            )
        self._roots = checked_roots(roots)
        self._follower = Follower(folders)
        self._counter = Counter()
        self._samples = [Samples(run.folder, self._roots) for run in self._follower.runs]
        self._questions = Questions(folders, self._roots)
        self._axes: Axes = {}
        self._axes_of = 0  # rows that the axes were made of
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to load the runs' rows."""
        self._follower.start()

    def close(self) -> None:
        """Stop following, and whatever is asked."""
        self._follower.close()
        self._questions.close()

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """By the names under which the page asks."""
        names = ("state", "charts", "samples", "rows", "sample", "history", "sql", "questions")
        return {name: getattr(self, name) for name in names}

    def state(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How far each run is loaded and got, once it isn't the version that was `seen` any more."""
        version = self._follower.wait(_whole(asked.get("seen", -1)), WAIT_SECONDS)
        runs = [run.as_json() for run in self._follower.runs]
        return {"version": version, "runs": runs, "classes": self._classes(), "reasons": LOOKS, "colours": RUNS}

    def charts(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The counts of every chart under `filters`, a run after the other, and the axes that they share."""
        filters = checked_filters(asked.get("filters", {}))
        snapshots = [run.rows.snapshot() for run in self._follower.runs]
        axes = self._current_axes(snapshots)
        runs = []
        for number, snapshot in enumerate(snapshots):
            counts = self._counter.counts(number, snapshot, axes, filters)
            runs.append(_charts_of(counts) | {"rows": snapshot.rows})
        labels = _labels_shown([run["label"] for run in runs])
        for run in runs:
            run["label"] = _of_labels(run["label"], labels)
        return {"axes": {name: axis.as_json() for name, axis in axes.items()}, "labels": labels, "runs": runs}

    def rows(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Selected samples of one run in an order, `count` from `start` on, each once."""
        run, filters = self._run(asked), checked_filters(asked.get("filters", {}))
        start, count = _whole(asked.get("start", 0)), min(_whole(asked.get("count", 12)), MOST_TILES)
        rows, more = first_rows(run.rows.snapshot(), filters, str(asked.get("order", "mixed")), max(start, 0), count)
        return {"rows": [self._named(row) for row in rows], "more": more}

    def samples(self, asked: Mapping[str, Any]) -> list[int | None]:
        """How many different samples `filters` select, by run; null where nobody can count them."""
        filters = checked_filters(asked.get("filters", {}))
        return [different(run.rows.snapshot(), filters) for run in self._follower.runs]

    def history(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Every look at one sample, by run."""
        shard, ordinal = str(asked.get("shard")), _whole(asked.get("ordinal"))
        found = [
            looks(run.rows.snapshot(), self._follower.shards.number(shard), ordinal) for run in self._follower.runs
        ]
        return {"runs": [[self._named(row) for row in rows] for rows in found]}

    def sample(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One sample of a run for people to look at."""
        run, shard, ordinal = self._run(asked), str(asked.get("shard")), _whole(asked.get("ordinal"))
        reader = self._samples[self._follower.runs.index(run)]
        return reader.look(shard, self._follower.shards.number(shard), ordinal, run.rows.snapshot())

    def sql(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a SELECT or a named question, its first rows."""
        commits = [run.link.digest if run.link else None for run in self._follower.runs]
        return self._questions.ask(str(asked.get("text", "")), commits)

    def questions(self, _: Mapping[str, Any]) -> list[dict[str, str]]:
        """The named questions."""
        return named_questions()

    def _run(self, asked: Mapping[str, Any]) -> Any:
        number = _whole(asked.get("run", 0))
        if not 0 <= number < len(self._follower.runs):
            raise UsageError(f"there is no run {number} on this page")
        return self._follower.runs[number]

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"shard": self._follower.shards.names[row["shard"]]}

    def _classes(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for run in self._follower.runs:
            names = {**run.folder.class_names, **names}
        return names

    def _current_axes(self, snapshots: Sequence[Any]) -> Axes:
        with self._lock:
            rows = sum(snapshot.rows for snapshot in snapshots)
            fresh = not self._axes or rows > GROWN * self._axes_of or rows < self._axes_of
            if fresh or any(s.last_step >= self._axes["step"].width * self._axes["step"].bins for s in snapshots):
                axes = axes_of(snapshots)
                # Steps alone went on: what is counted of the values stays counted.
                self._axes = axes if fresh else {**self._axes, "step": axes["step"]}
                self._axes_of = rows if fresh else self._axes_of
            return self._axes


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 53) < value < 1 << 53:
        raise UsageError(f"expected a whole number, got {str(value)[:40]!r}")
    return value


def _charts_of(counts: Mapping[str, Array]) -> dict[str, Any]:
    """JSON of the counts: by bin, for each reason that there is."""
    charts: dict[str, Any] = {name: _by_reason(counts[name]) for name in ("il", "loss", "score", "step", "over_steps")}
    charts["label"] = counts["label"]
    charts["reason"] = {REASONS[at]: int(n) for at, n in enumerate(counts["reason"]) if n}
    il, loss, reason = np.nonzero(counts["cell"][1:, 1:])
    n = counts["cell"][1:, 1:][il, loss, reason]
    charts["cell"] = {"il": il.tolist(), "loss": loss.tolist(), "reason": reason.tolist(), "n": n.tolist()}
    selected = counts["over_steps"].sum(0)
    charts |= {"selected": int(selected.sum()), "kept": int(selected[0])}
    return charts


def _by_reason(counts: Array) -> dict[str, list[int]]:
    return {REASONS[at]: counts[:, at].tolist() for at in np.flatnonzero(counts.any(0))}


def _labels_shown(counts: Sequence[Array]) -> dict[str, Any]:
    """The labels with the most rows of any run (-1: rows without one), and how many labels have rows."""
    every = np.zeros(max(map(len, counts), default=0), np.int64)
    for each in counts:
        every[: len(each)] += each.sum(1)
    there = np.flatnonzero(every)
    shown = there[np.argsort(-every[there], kind="stable")][:MOST_CLASSES]
    return {"shown": (np.sort(shown) - 1).tolist(), "of": len(there)}


def _of_labels(counts: Array, labels: Mapping[str, Any]) -> dict[str, list[int]]:
    at = np.array(labels["shown"], np.int64) + 1
    chosen = np.zeros((len(at), counts.shape[1]), np.int64)
    there = at < len(counts)
    chosen[there] = counts[at[there]]
    return _by_reason(chosen)
