"""Asked to stop: the first signal ends a job at its next safe place, a second Ctrl-C at once; no worker outlives it.

    with StopRequest("compute-il") as stop:
        for message in stop.while_waiting(messages):  # ends when asked to, even while nothing comes
            ...                                       # a signal in here waits until this is done
        stop.raise_if_asked("3 of 7 parts are there")

Everything on disk is whole at every moment, so a command that can't come to a safe place in time (a read that hangs, a
forward of minutes) just ends: `PATIENCE_SECONDS` after the signal, with the same exit code.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from rhostream import events
from rhostream.errors import Interrupted, UsageError, WorkerError

PATIENCE_SECONDS = 4.0  # a machine that is taken away gives little more
SIGNALS = (signal.SIGINT, signal.SIGTERM)
UNGUARDED = 79  # exit code of a worker that runs the user's script instead of what it was started for
RESUMES = "the same command resumes"
T = TypeVar("T")


class Stopped(KeyboardInterrupt):
    """A signal, as an exception: no `except Exception` takes it for a fault of the data."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StopRequest:
    """A context that remembers the first signal; outside the main thread it does nothing.

    `patient`: the job is given the time that it needs to come to a safe place (a step and its checkpoint). `again`:
    what the same command does next.
    """

    def __init__(self, job: str = "", *, patient: bool = False, again: str = RESUMES) -> None:
        self.signal: int | None = None
        self._again = again
        self._job, self._patient, self._waiting = job, patient, False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        global _current
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
            self._outer, _current = _current, self
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                _leave_at_once(number)
            return  # those who send SIGTERM send it again and again
        self.signal = number
        if not self._patient:
            _leave_later(number)
        if self._waiting:
            self._waiting = False
            raise Stopped(number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        global _current
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
        if self._before:
            _current = self._outer
        if self.signal is not None:
            _leave_later(self.signal)
        if isinstance(error, Stopped):
            raise self.error("") from None

    def while_waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items, until a signal comes: at once while the next one is waited for, else when it is asked for."""
        iterator = iter(items)
        try:
            while self.signal is None:
                self._waiting = threading.current_thread() is threading.main_thread()
                if self.signal is not None:
                    return
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._waiting = False
                yield item
        except Stopped:
            return

    def raise_if_asked(self, says: str = "") -> None:
        """Raise Interrupted when a signal came."""
        if self.signal is not None:
            raise self.error(says)

    def error(self, says: str | int) -> Interrupted:
        """The error to raise once everything is committed."""
        number = self.signal or signal.SIGINT
        where = f"after step {says}" if isinstance(says, int) else ""
        what = " ".join(filter(None, (self._job, "stopped", where, f"by {signal.Signals(number).name}")))
        error = Interrupted(what + (f": {says}" if says and not where else "") + f"; {self._again}")
        error.exit_code = 128 + number
        return error


_current: StopRequest | None = None
_owned = False  # the command line: nobody else lives in this process
_leaving = False


def stop_if_asked(says: str = "") -> None:
    """Raise Interrupted, which says how far it is, when the job that runs was asked to stop; for loops deep inside."""
    if _current is not None:
        _current.raise_if_asked(says)


def while_waiting(items: Iterable[T]) -> Iterator[T]:
    """`StopRequest.while_waiting` of the job that runs, then `stop_if_asked`."""
    yield from items if _current is None else _current.while_waiting(items)
    stop_if_asked()


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """For the command line: signals outside of a job are exceptions too, and the process ends when it was told to."""
    global _owned
    before = {number: signal.signal(number, _outside) for number in SIGNALS}
    _owned = True
    try:
        yield
    finally:
        if not _leaving:
            _owned = False
            for number, handler in before.items():
                signal.signal(number, handler)


def _outside(number: int, frame: FrameType | None) -> None:
    if _leaving and number == signal.SIGINT:
        _leave_at_once(number)
    elif not _leaving:
        _leave_later(number)
        raise Stopped(number)


def _leave_at_once(number: int) -> None:
    if not _owned:
        raise KeyboardInterrupt
    _end(number)


def _leave_later(number: int) -> None:
    """End this process in a while, if it is ours and still there."""
    global _leaving
    if _owned and not _leaving:
        _leaving = True
        threading.Thread(target=_watch, args=(number,), name="rhostream-leave", daemon=True).start()


def _watch(number: int) -> None:
    time.sleep(PATIENCE_SECONDS)
    _end(number)


def _end(number: int) -> None:
    with contextlib.suppress(OSError):
        said = f"stopped at once by {signal.Signals(number).name}; the same command resumes"
        if events.as_json:
            said = events.line("interrupted", said, exit_code=128 + number)
        os.write(2, f"{said}\n".encode())
        sys.stdout.flush()
    os._exit(128 + number)


# -- loader workers --------------------------------------------------------------------------------------------------


def settle_worker(worker: int) -> None:
    """First thing in a loader worker: Ctrl-C is its parent's business, and when the parent dies, so does it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # torch looks at the parent's process id, which says nothing to a worker of a fork server.
        threading.Thread(target=_die_with, args=(parent.sentinel,), name="rhostream-parent", daemon=True).start()


def _die_with(sentinel: int) -> None:
    from multiprocessing import connection

    connection.wait([sentinel])
    os._exit(1)


def deaf_fork_server() -> None:
    """Start the server that forks loader workers, if need be, so that they ignore Ctrl-C from their first moment."""
    from multiprocessing import forkserver  # readers start no workers

    if threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before or signal.default_int_handler)


def _end_all(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(0.5)
        if worker.is_alive():  # stopped, or in a system call that nothing but this ends
            worker.kill()


def end_if_unguarded() -> None:
    """End a process that is being started and runs the user's script once more, for want of a `__main__` guard.

    To be called before any work: that process would claim runs and write tables beside its parent, until Python
    refuses it children of its own.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)  # a fork server makes 1 of any exit by an exception


@contextlib.contextmanager
def working(loader: Iterable[T]) -> Iterator[Iterator[T]]:
    """Iterate a DataLoader with workers; left early, its workers end now and not when what they read has come.

    Raises WorkerError for a worker that died, UsageError where the user's script has no `__main__` guard.
    """
    end_if_unguarded()
    deaf_fork_server()
    before = set(multiprocessing.active_children())
    iterator = iter(loader)
    workers = set(multiprocessing.active_children()) - before
    try:
        yield iterator
    except BaseException as exc:
        died = tuple(worker.pid or 0 for worker in workers if worker.exitcode)  # before the others are ended
        _end_all(workers)
        if any(worker.exitcode == UNGUARDED for worker in workers):
            raise UsageError(
                "workers import the script that starts them, and this one begins its job again when it is imported: "
                'put what it runs under `if __name__ == "__main__":`, or take workers=0'
            ) from None
        if isinstance(exc, RuntimeError) and "DataLoader worker" in str(exc):
            error = WorkerError(
                f"a loader worker died ({str(exc).splitlines()[0]}); often the machine is out of memory: "
                "take fewer --workers; the same command resumes"
            )
            error.pids = died
            raise error from exc
        raise
