"""Asked to stop: the first SIGINT or SIGTERM lets the step end and commits, a second SIGINT stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from rhostream.errors import Interrupted


class StopRequest:
    """A context that remembers the first signal; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def error(self, step: int) -> Interrupted:
        """The error to raise once everything is committed."""
        number = self.signal or signal.SIGINT
        error = Interrupted(f"stopped after step {step} by {signal.Signals(number).name}; the same command resumes")
        error.exit_code = 128 + number
        return error
