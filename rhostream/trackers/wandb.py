"""Weights & Biases: one run of the project, whose id says which training it is; online, or by WANDB_MODE=offline.

Online wandb knows how far its run is. Offline each attempt leaves a folder of its own for `wandb sync`, and how far
they are together stands beside them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import wandb

from rhostream.trackers.names import PROJECT


class Tracker:
    """See `child.Tracker`."""

    def __init__(self, about: dict[str, Any]) -> None:
        local = "://" not in about["folder"]
        settings = wandb.Settings(console="off", silent=True, x_stats_pid=os.getppid(), disable_code=True)
        self._run = wandb.init(
            project=about["target"] or os.environ.get("WANDB_PROJECT") or PROJECT,
            id=about["id"],
            name=about["name"],
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or (about["folder"] if local else None),
            settings=settings,
        )
        self._run.config.update(about["config"], allow_val_change=True)
        offline = self._run.settings.mode == "offline"
        self.where = str(self._run.url or Path(self._run.dir).parent)
        self._marker = Path(self._run.dir).parents[1] / f"rhostream-{about['id']}.json" if offline else None
        self.first = self._run.step
        if self._marker is not None and self._marker.exists():
            self.first = int(json.loads(self._marker.read_text())["next"])

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        if self._marker is not None:  # first: a step that is lost is better than one that is there twice
            self._marker.write_text(json.dumps({"next": rows[-1][0] + 1}))
        for step, numbers in rows:
            self._run.log(numbers, step=step)

    def end(self, complete: bool, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary)
        self._run.finish(exit_code=0 if complete else 1)
