"""The run folder: made once, claimed by each attempt, and moved on only by a checkpoint.

    run.json (settings, fingerprints, versions) | attempts/ | log/ | steps/ | checkpoints/ | cost.json
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import nn

from rhostream import checkpoint, storage
from rhostream.checkpoint import Checkpoint
from rhostream.cost import Cost
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, TableError
from rhostream.foreign import checked_run, read_object
from rhostream.selection.proxy import Proxy
from rhostream.tables.selections import LogWriter
from rhostream.tables.steps import StepsWriter

VERSION = 1


@dataclass
class Run:
    """An attempt at a run: its writers, the segments committed so far, and where it stands."""

    url: str
    pinned: dict[str, Any]  # what a resume must agree with
    attempt: int = -1
    step: int = 0
    cost: Cost = field(default_factory=Cost)
    counts: dict[str, int] = field(default_factory=dict)  # rows of the log by reason
    _committed: int = 0  # the step of the newest checkpoint
    _log: list[dict[str, Any]] = field(default_factory=list)
    _steps: list[dict[str, Any]] = field(default_factory=list)

    def open(self, record: Mapping[str, Any]) -> Checkpoint | None:
        """Make run.json or check that it is of the same making; returns the checkpoint to resume from.

        Raises MismatchError naming the fields that differ, NotWritableError.
        """
        url = storage.join(self.url, "run.json")
        body = {"version": VERSION, "fingerprints": self.pinned, **record}
        crash_point("run: before run.json")
        try:
            storage.create(url, json.dumps(body, indent=1, sort_keys=True, default=str).encode())
        except AlreadyExistsError:
            old = _read(url)
            same = json.loads(json.dumps(self.pinned, default=str))
            checkpoint.require_same(old.get("fingerprints", {}), same, f"run {storage.redact(self.url)}")
        found = checkpoint.latest(self.url)
        if found is not None:
            self.step, self.cost = found.step, Cost.from_json(found.cost)
            self._committed = found.step
            self.counts, self._log, self._steps = dict(found.counts), list(found.log), list(found.steps)
        return found

    def settle(self, found: Checkpoint, keep: int) -> None:
        """Do what a crash right after the newest checkpoint left undone."""
        if found.complete and not storage.exists(storage.join(self.url, "cost.json")):
            self._write_cost()
        checkpoint.retain(self.url, keep)

    def claim(self) -> None:
        """Become the newest attempt and open its writers."""
        note = {"host": platform.node(), "pid": os.getpid(), "from_step": self.step}
        self.attempt = checkpoint.claim_attempt(self.url, note)
        self.log = LogWriter(self.url, self.attempt)
        self.steps = StepsWriter(self.url, self.attempt)

    @property
    def uncommitted(self) -> bool:
        """Whether steps were taken that no checkpoint knows of."""
        return self.step > self._committed

    @property
    def recorded_threads(self) -> int | None:
        """The threads that the run was started with, None before its start."""
        url = storage.join(self.url, "run.json")
        threads = _read(url).get("threads") if storage.exists(url) else None
        return threads if isinstance(threads, int) else None

    def commit(self, model: nn.Module, optimizer: torch.optim.Optimizer, proxy: Proxy | None = None, *,
               pass_index: int, buffer: int, complete: bool, keep: int) -> None:
        """Segments first, then the checkpoint that lists them; cost.json when the run is complete."""
        self._log += self.log.flush()
        self._steps += self.steps.flush()
        checkpoint.save(
            self.url,
            Checkpoint(step=self.step, pass_index=pass_index, buffer=buffer, attempt=self.attempt, complete=complete,
                       fingerprints=self.pinned, log=self._log, steps=self._steps, cost=self.cost.as_json(),
                       counts=self.counts),
            model.state_dict(), optimizer.state_dict(), None if proxy is None else proxy.state_dict(),
        )
        self._committed = self.step
        if complete:
            crash_point("run: before cost.json")
            self._write_cost()
        crash_point("run: before retention")
        checkpoint.retain(self.url, keep)

    def _write_cost(self) -> None:
        account = {**self.cost.as_json(), "reasons": self.counts}
        storage.replace(storage.join(self.url, "cost.json"), json.dumps(account, indent=1).encode())


def _read(url: str) -> dict[str, Any]:
    try:
        return checked_run(read_object(storage.read_bytes(url)))
    except ValueError as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {name: metadata.version(name) for name in ("rhostream", "torch", "numpy", "pyarrow", "pillow")}
