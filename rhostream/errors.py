"""Every way rhostream refuses to go on, as one tree.

    RhostreamError                    1   something is wrong that we did not foresee
    |-- UsageError                    2   wrong before any work: settings, names, places
    |   |-- UnknownNameError          2   a rule, model, option or column nobody knows
    |   |-- UntrustedCodeError        2   a file names code that the command line doesn't
    |   |-- MissingExtraError         2   an optional dependency is not installed
    |   |-- MismatchError             2   two artifacts that do not belong together
    |   |   `-- StaleShardError       3   a shard isn't the one that was indexed
    |   |-- NotWritableError          2   the place for the result can't be written
    |   `-- MissingPartError          2   shards without a part in the table
    |-- StorageError                  3   bytes could not be had
    |   |-- NotFoundError             3   no such object
    |   |-- AccessError               3   the store refused our credentials
    |   `-- AlreadyExistsError        3   a create-only commit lost the race
    |-- ShardError                    3   a shard's bytes break the rules
    |   `-- ChangedError              3   it changed while it was read
    |-- TableError                    3   a part, segment or checkpoint can't be trusted
    |-- BudgetError                   3   more bad samples or shards than was allowed
    |-- QualityError                  3   an IL model that is worse than was asked for
    |-- NonFiniteError                3   the loss of whole buffers is NaN or infinite
    |-- RankLostError                 3   another rank of the run is gone or stuck
    |-- SupersededError               3   a newer attempt of the same run took over
    |-- WorkerError                   1   a loader worker died
    `-- Interrupted             130/143   asked to stop; the same command resumes

The number is the exit code of the command line. A message says what, where (shard, key, offset), what we got and
expected, and what to do. All errors carry their message as their only argument, so they cross process borders.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import traceback
from collections.abc import Iterable, Iterator


class RhostreamError(Exception):
    """The root: catch this to catch everything rhostream raises on purpose."""

    exit_code = 1


class UsageError(RhostreamError):
    """Wrong before any work was done."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name nobody knows."""

    @classmethod
    def of(cls, what: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """The error for `name`, with the nearest known name and the whole list."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return cls(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")


class UntrustedCodeError(UsageError):
    """A file names code outside rhostream, and nobody on the command line did."""

    @classmethod
    def unless_named(cls, name: str, given: str | None, where: str, option: str) -> None:
        """Raise unless `name`, read from the file `where`, is built in or is what the user gave with `option`.

        A file must not choose what is imported: whoever gives away a model, a table or a run would run code here.
        """
        if ":" in name and name != given:
            raise cls(
                f"{where} names {name!r}, which is code outside rhostream, and a file doesn't decide what is "
                f"run: if you trust that code, say so with {option} {name}"
            )


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, package: str, extra: str) -> MissingExtraError:
        """The error for a missing `package`, with the pip line that brings it."""
        return cls(f"{package} is not installed: pip install 'rhostream[{extra}]'")


class MismatchError(UsageError):
    """Two artifacts that do not belong together; the message names field, old and new."""


class StaleShardError(MismatchError):
    """A shard has other bytes than when its part was made; `rhostream verify TABLE --repair` makes the part again."""

    exit_code = 3


class NotWritableError(UsageError):
    """The place for the result can't be written."""


class MissingPartError(UsageError):
    """Shards were asked for that have no part in the table."""


class StorageError(RhostreamError):
    """Bytes could not be had."""

    exit_code = 3


class NotFoundError(StorageError):
    """No object of that name."""


class AccessError(StorageError):
    """The store refused our credentials."""


class AlreadyExistsError(StorageError):
    """A create-only commit found the name taken."""


class ShardError(RhostreamError):
    """A shard's bytes break the rules of tar, or changed after they were indexed."""

    exit_code = 3


class ChangedError(ShardError):
    """A shard changed while it was read; once it rests, the same command reads it."""


class TableError(RhostreamError):
    """A part, a log segment or a checkpoint can't be trusted."""

    exit_code = 3


class BudgetError(RhostreamError):
    """More bad samples or shards than was allowed: something systematic."""

    exit_code = 3


class QualityError(RhostreamError):
    """An IL model is worse than was asked for, or than guessing."""

    exit_code = 3


class NonFiniteError(RhostreamError):
    """Whole buffers have a NaN or infinite loss."""

    exit_code = 3


class RankLostError(RhostreamError):
    """Another rank of the same run died, stopped or did nothing for too long."""

    exit_code = 3


class SupersededError(RhostreamError):
    """A newer attempt of the same run has claimed the folder."""

    exit_code = 3


class WorkerError(RhostreamError):
    """A process that reads and decodes died; the same command resumes."""

    pids: tuple[int, ...] = ()  # of those that died by themselves


class Interrupted(RhostreamError):
    """Asked to stop by a signal, at a point from which the same command resumes."""

    exit_code = 130


_NOT_THEIRS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, f"{os.sep}site-packages{os.sep}", "<frozen ")
# Of a machine or of other ranks, whatever code was running; told by name, for torch is not to be imported here.
_NOT_THE_USERS = {"MemoryError", "OutOfMemoryError", "AcceleratorError", "DistError"}


@contextlib.contextmanager
def users_code(what: str) -> Iterator[None]:
    """What code that the user named raises becomes a UsageError: `what`, the error's own text and where it was raised.

    Our own errors, a full memory (who scores in chunks takes smaller ones) and what other ranks do pass as they are.
    """
    try:
        yield
    except RhostreamError:
        raise
    except Exception as exc:
        kind = type(exc)
        if _NOT_THE_USERS & {base.__name__ for base in kind.__mro__}:
            raise
        frames = traceback.extract_tb(exc.__traceback__)
        theirs = [f for f in frames if not any(name in f.filename for name in _NOT_THEIRS)]
        at = (theirs or frames)[-1]
        text = " ".join(str(exc).split())[:300]
        raise UsageError(
            f"{what} raised {kind.__name__}{': ' if text else ''}{text} ({os.path.basename(at.filename)}, "
            f"line {at.lineno}, in {at.name})"
        ) from exc
