"""trackio: one run of the project, in its local database (TRACKIO_DIR) or wherever its own variables say."""

from __future__ import annotations

import json
from typing import Any

import trackio

from rhostream.trackers.names import PROJECT


class Tracker:
    """See `child.Tracker`."""

    def __init__(self, about: dict[str, Any]) -> None:
        project, name = about["target"] or PROJECT, f"{about['name']}-{about['id'][:8]}"
        self._run = trackio.init(
            project=project, name=name, resume="allow", config=about["config"], embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self.first = int(self._run._next_step)  # of its run so far; it says so nowhere else
        self.where = f"run {name} of project {project}: trackio show --project {project}"

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        for step, numbers in rows:
            self._run.log(dict(numbers), step=step)

    def end(self, complete: bool, summary: dict[str, Any]) -> None:
        if complete:  # it has no summary of a run
            trackio.alert("the run is complete", json.dumps(summary, indent=1), trackio.AlertLevel.INFO)
        self._run.finish()
