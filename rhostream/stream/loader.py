"""The loader: worker processes that fill a stream's buffers, and the cursor behind the buffers that were handed out.

CandidateStream > DataLoader (messages of its workers) > copied ahead where there is a GPU > Candidates
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader

from rhostream import storage
from rhostream.candidates import Candidates
from rhostream.errors import MismatchError, UsageError
from rhostream.samples.kind import Kind
from rhostream.signals import settle_worker, working
from rhostream.stream.augment import NONE, Transform, augment_of, drawing
from rhostream.stream.copying import GPUCopier, ahead
from rhostream.stream.cursor import Cursor
from rhostream.stream.dataset import PREFETCH, CandidateStream
from rhostream.stream.full import FullSize
from rhostream.stream.message import Message


class Loader:
    """Iterates a stream with worker processes, keeping the cursor: after k buffers, `state_dict()` resumes at k.

    A buffer counts from the moment it is handed out: saved in the body of the k-th, or after a `break` in it, the state
    goes on with the next one, and so does another loop over the same object.

    A loop ends after the stream's `passes`; the next one over the same object is the next pass (of as many), in its own
    order.

    With a `device` that is a GPU the next buffer is copied to it while the current one is worked on, from pinned slots;
    on another device it must be copied with `Candidates.to`. `augment`: see `open_stream`.
    """

    def __init__(
        self,
        stream: CandidateStream,
        workers: int = 0,
        context: str | None = None,
        device: torch.device | None = None,
        augment: str = NONE,
    ) -> None:
        if workers < 0:
            raise UsageError(f"--workers {workers}: expected 0 or more")
        self.stream, self.workers, self.device = stream, workers, device or torch.device("cpu")
        self._context = context or ("forkserver" if workers else None)
        self._pending: Cursor | None = None
        self.augment_name, self.augment = augment, augment_of(augment, stream.preprocess, stream.seed)
        self._full: FullSize | None = None
        self._loops = 0
        self._source: Iterator[Candidates] | None = None  # of the loop that goes on
        self._next: Candidates | None = None  # which somebody peeked at

    def __repr__(self) -> str:
        cursor, of = self.stream.cursor, self.stream.buffers_per_pass
        where = f"pass {cursor.pass_index}, buffer {cursor.buffer} of {of}"
        return f"<stream of {self.stream.table!r}: {self.stream.buffer_size} a buffer, {where}, {self.workers} workers>"

    @property
    def class_names(self) -> dict[int, str]:
        """{label: name} as far as the shards and the IL model say it; compare those of a test set of your own."""
        return dict(self.stream.table.class_names)

    @property
    def preprocess(self) -> Kind:
        """The kind of the samples, which makes a model's input of one: a test set of your own takes the same."""
        return self.stream.preprocess

    def __len__(self) -> int:
        """Buffers from the cursor to the end of the passes."""
        end, cursor = self.stream.end_of_passes, self._position
        if end is None:
            raise TypeError("an endless stream has no length")
        return (end - cursor.pass_index) * self.stream.buffers_per_pass - cursor.buffer

    def __getitem__(self, number: Any) -> NoReturn:
        raise UsageError(
            "a stream gives buffers, in its own order and for its own rank: iterate it or give it to a Run, not as a "
            "dataset to a DataLoader, a sampler or a trainer"
        )

    def __iter__(self) -> Iterator[Candidates]:
        self.consumed()  # of a loop that was left by `break`
        end, self._loops = self.stream.end_of_passes, self._loops + 1
        number = self._loops
        yield from self._loop(number)
        if end is not None and number == self._loops:
            self.stream.cursor = Cursor(end, 0)  # the passes are over: the next loop is the next pass

    def _loop(self, number: int) -> Iterator[Candidates]:
        self.stream.allocate(self.workers)
        options: dict[str, Any] = {"batch_size": None, "collate_fn": _as_is, "num_workers": self.workers}
        if self.workers:
            options |= {
                "prefetch_factor": PREFETCH,
                "multiprocessing_context": self._context,
                "worker_init_fn": settle_worker,
            }
        loader = DataLoader(self.stream, **options)
        if not self.workers:
            yield from self._moved(loader, number)
            return
        with working(loader) as messages:
            yield from self._moved(messages, number)

    def _moved(self, messages: Iterable[Message], number: int) -> Iterator[Candidates]:
        """Buffers on the device, the cursor behind them."""
        buffers = self._buffers(messages)
        if self.device.type == "cuda":
            assert self.stream.slots is not None
            buffers = ahead(buffers, GPUCopier(self.device, self.stream.slots))
        self._source, self._next = buffers, None
        while (candidates := next(buffers, None) if self._next is None else self._next) is not None:
            if number != self._loops:  # the newer one fills other slots and moves the same cursor
                raise UsageError(
                    "a newer loop over the same stream was begun, so this one is over: a stream has one "
                    "cursor; open a second stream to go through the samples side by side"
                )
            self._next, self._pending = None, Cursor(candidates.pass_index, candidates.index + 1)
            yield candidates
            if number == self._loops:
                self.consumed()

    def peek(self) -> Candidates | None:
        """The buffer behind the one that was handed out last, None at the end; the cursor stays where it is. The slot
        of the one that was handed out may be filled again."""
        if self._next is None and self._source is not None:
            self._next = next(self._source, None)
        return self._next

    def _buffers(self, messages: Iterable[Message]) -> Iterator[Candidates]:
        stream = self.stream
        again = self.augment if isinstance(self.augment, Kind) else None
        if self._full is None and (stream.view is not None or again is not None):
            self._full = FullSize(stream.table, again or stream.preprocess, stream.lanes)
        for message in messages:
            storage.add_retried(message.retried)
            if message.error is not None:
                raise message.error
            candidates = stream.candidates_of(message, stream.slots)
            if self._full is not None and message.joined is not None:
                read, draws = partial(self._full, message.joined), drawing(stream.seed, message.pass_index)
                candidates = replace(
                    candidates,
                    full=None if stream.view is None else read,
                    again=None if again is None else partial(read, draws=draws),
                )
            if isinstance(self.augment, Transform):
                candidates = replace(candidates, transform=self.augment)
            yield candidates

    @property
    def _position(self) -> Cursor:
        return self._pending or self.stream.cursor

    def consumed(self) -> None:
        """Let go of the buffer that was handed out last: it is done with. No state needs this call."""
        if self._pending is not None:
            self.stream.cursor, self._pending = self._pending, None

    def state_dict(self) -> dict[str, Any]:
        """Where the stream goes on, behind every buffer that was handed out, and the plan that it is of.

        Plain values: {"pass": p, "buffer": b, "plan": {...}}.
        """
        return self._state_at(self._position)

    def consumed_state_dict(self) -> dict[str, Any]:
        """A `state_dict()` that counts a buffer once it was `consumed()` or followed by another: what a run commits.

        A run may have drawn a buffer that its loop never saw, because a signal came first.
        """
        return self._state_at(self.stream.cursor)

    def give_back(self) -> None:
        """Hand out again, in the next loop, a buffer that was drawn and isn't consumed."""
        self._pending = None

    def _state_at(self, cursor: Cursor) -> dict[str, Any]:
        return {"pass": cursor.pass_index, "buffer": cursor.buffer, "plan": self.stream.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a cursor, with any number of workers, and of ranks up to its lanes, which the stream keeps.

        A cursor that names no plan, as older ones don't, is taken as it is. Raises MismatchError for one of another
        table, list of shards, seed, buffer size or lanes, naming what differs, and for what is no cursor.
        """
        stream, lanes = self.stream, self.stream.lanes
        try:
            cursor, plan = Cursor(int(state["pass"]), int(state["buffer"])), state.get("plan")
            if plan is not None:
                self.stream.require_own(plan)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise MismatchError(
                "this is no cursor of a stream: expected what state_dict() gave, {'pass': p, "
                f"'buffer': b, 'plan': ...}} ({type(exc).__name__}: {exc})"
            ) from exc
        buffers = stream.buffers_per_pass
        if cursor.pass_index < 0 or not 0 <= cursor.buffer <= buffers:
            if lanes != stream.lanes:  # a cursor that is refused changes nothing
                stream.set_lanes(lanes)
            raise MismatchError(
                f"this cursor is at buffer {cursor.buffer} of pass {cursor.pass_index}, and a pass of "
                f"this stream has {buffers}: it is of another plan"
            )
        if cursor.pass_index < stream.first_pass:  # the end of the pass behind which this list was taken up
            cursor = Cursor(stream.first_pass, 0)
        self.stream.cursor, self._pending, self._full = cursor, None, None


def _as_is(message: Message) -> Message:
    return message
