"""What is seen of a run while it goes on, on its first rank: a line of progress, and the trackers that were asked for.

Nothing in here decides anything: without it the run has the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rhostream import storage
from rhostream.errors import RhostreamError
from rhostream.progress import Progress
from rhostream.runs.attempt import Attempt
from rhostream.runs.attempts import note_of
from rhostream.runs.doubts import doubts_of
from rhostream.runs.step import Evaluation
from rhostream.runs.turns import FROM_STEP
from rhostream.trackers import Tracking
from rhostream.trackers.names import AskedTracker

_PAGE_BYTES = 4096


class Watch:
    """Who looks on at the steps of an attempt; `track` and `every` are those of `Run`."""

    def __init__(
        self, attempt: Attempt, job: str, record: Mapping[str, Any], track: tuple[AskedTracker, ...], every: int
    ) -> None:
        self._attempt, self._job, self._record, self._track, self._every = attempt, job, record, track, every
        self._progress: Progress | None = None
        self._tracking: Tracking | None = None
        self._numbers: Mapping[str, Any] = {}  # of the last step that was entered

    @contextlib.contextmanager
    def looking(self, last_step: int | None) -> Iterator[None]:
        """Around the steps of one loop; `last_step`: where the run ends, None where that isn't known."""
        attempt, first = self._attempt, self._attempt.ranks.first
        with contextlib.ExitStack() as stack:
            if first and last_step is not None:
                self._progress = stack.enter_context(Progress(self._job, last_step, "step", done=attempt.step))
            if first and self._track:
                tracking = Tracking(self._track, self._every, _about(attempt, self._record))
                self._tracking = stack.enter_context(tracking)
            try:
                yield
            finally:
                if self._tracking is not None:
                    self._tracking.summary |= {"steps": attempt.step, "cost": attempt.cost.as_json()}
        self._progress = self._tracking = None

    def entered(self, numbers: dict[str, Any]) -> None:
        """The numbers of a step are known, one step late."""
        self._numbers = numbers
        if self._tracking is not None:
            self._tracking.step(numbers)

    def stepped(self, evaluation: Evaluation | None, device: torch.device) -> None:
        """One more step is done; `device`: whose memory is shown."""
        if self._progress is None:
            return
        share, loss = (self._numbers.get(name) for name in ("kept_share", "loss_kept"))
        self._progress.advance(1, kept_share=share, loss=loss, memory_bytes=_memory(device))
        if evaluation is not None:
            told = {"accuracy": evaluation.accuracy, "test_loss": evaluation.loss, "samples": evaluation.samples}
            self._progress.note(evaluation.in_words(), "evaluation", **told)

    def complete(self, doubt: str) -> None:
        """The run has come to its end, with what is to be said of its batches."""
        if self._tracking is not None:
            doubts = doubts_of(self._attempt.url, doubt)
            self._tracking.complete = True
            self._tracking.summary |= {
                "rows": dict(sorted(self._attempt.counts.items())),
                "verdict": "; ".join(doubts) or "nothing speaks against selection here; compare it: rhostream report",
            }


def _about(attempt: Attempt, record: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers are told at the beginning, as `Tracking` says it.

    A run is known by the note of its first attempt, wherever its folder is moved to; one that went back on purpose is
    another from there on, for what a tracker has of the steps behind that can't be taken back.
    """
    began: dict[str, Any] = {"run": storage.redact(attempt.url)}
    with contextlib.suppress(RhostreamError):  # of before there were notes
        began = note_of(attempt.url, 0)
    back = [change["attempt"] for change in attempt.changes if change.get("field") == FROM_STEP]
    words = json.dumps([began, back], sort_keys=True)
    name = attempt.url.rstrip("/").rpartition("/")[2]
    return {
        "id": hashlib.sha256(words.encode()).hexdigest()[:16],
        "name": name + (f"-attempt-{back[-1]}" if back else ""),
        "folder": attempt.url,
        "step": attempt.step,
        "config": record.get("config") or record.get("settings") or {},
    }


def _memory(device: torch.device) -> int | None:
    """Bytes that torch holds of the device; of a CPU those that this process has, None where that isn't shown."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
    return None
