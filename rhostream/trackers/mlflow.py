"""MLflow: one run of the experiment, found again by its tag; the store is that of MLFLOW_TRACKING_URI.

The client's methods alone: `mlflow.start_run` would hold state of the process, and ask git.
"""

from __future__ import annotations

import re
import time
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from rhostream.trackers.names import PROJECT

ID = "rhostream.id"
STEP = "step"  # a metric: its newest value says how far the run is
METRICS, PARAMS = 1000, 100  # that a server takes at once


class Tracker:
    """See `child.Tracker`."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._client = MlflowClient()
        name = about["target"] or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        known = self._client.search_runs([number], f"tags.`{ID}` = '{about['id']}'", max_results=1)
        if known:
            self._run, self.first = known[0].info.run_id, int(known[0].data.metrics.get(STEP, -1)) + 1
            self._client.update_run(self._run, status="RUNNING")
        else:
            made = self._client.create_run(number, tags={ID: about["id"]}, run_name=about["name"])
            self._run, self.first = made.info.run_id, 0
            params = [Param(_name(key), str(value)) for key, value in about["config"].items()]
            for at in range(0, len(params), PARAMS):
                self._client.log_batch(self._run, params=params[at : at + PARAMS])
        store = re.sub(r"//[^/@]*@", "//", self._client.tracking_uri).partition("?")[0]  # without a password
        self.where = f"run {self._run} of experiment {name} at {store}"

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        now = int(1000 * time.time())
        metrics = [
            Metric(_name(name), float(value), now, step)
            for step, numbers in rows for name, value in [*numbers.items(), (STEP, step)]
        ]  # fmt: skip
        for at in range(0, len(metrics), METRICS):
            self._client.log_batch(self._run, metrics=metrics[at : at + METRICS])

    def end(self, complete: bool, summary: dict[str, Any]) -> None:
        tags = [RunTag(_name(name), str(value)) for name, value in summary.items()]
        for at in range(0, len(tags), PARAMS):
            self._client.log_batch(self._run, tags=tags[at : at + PARAMS])
        self._client.set_terminated(self._run, "FINISHED" if complete else "KILLED")


def _name(name: str) -> str:
    """A name as MLflow takes it: letters, digits and some signs."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)
