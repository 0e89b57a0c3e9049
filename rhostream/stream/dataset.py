"""The stream: plan > join > read > decode into reused shared slots, for any number of worker processes.

    table.open_table > CandidateStream (an IterableDataset of messages) > DataLoader > Candidates, one per buffer

A worker decodes straight into rows of a slot (an array a field; shared memory, allocated once) and sends
only the slot's number and a few small arrays. A DataLoader has at most `prefetch_factor` messages of a worker in flight
while the consumer holds one buffer and, on a GPU, the next one that is being copied: so `prefetch_factor + 3` slots a
worker are never overwritten too early.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rhostream import storage
from rhostream.candidates import CANDIDATE, Candidates, Reason, Slice
from rhostream.crashpoints import crash_point
from rhostream.errors import MismatchError, RhostreamError, UsageError
from rhostream.samples.fields import Fields
from rhostream.samples.kind import OK, Kind, View
from rhostream.signals import settle_worker, working
from rhostream.stream.augment import NONE, Transform, augment_of, drawing
from rhostream.stream.full import FullSize
from rhostream.stream.join import Join, Joined, JoinSettings, Prefilter, UniformChoice
from rhostream.stream.passing import PassOver
from rhostream.stream.plan import Numbering, Plan, choose_lanes
from rhostream.stream.slots import slots
from rhostream.tables import il

LOG = logging.getLogger("rhostream")
PREFETCH = 2
SLOTS = PREFETCH + 3  # of each worker
_SAYS = {
    "table": "the table's fingerprint",
    "seed": "seed",
    "buffer_size": "buffer_size",
    "shards": "the shards and their samples",
}  # of what a plan is a function of
AHEAD, AHEAD_SHARDS = 32, 16  # buffers that are looked ahead for shards to fetch, and how many are held meanwhile


@dataclass(frozen=True)
class Message:
    """What a worker sends: a filled slot and the joined rows, or the error that stopped it."""

    pass_index: int
    index: int
    slot: int
    joined: Joined | None
    error: RhostreamError | None = None
    retried: dict[str, dict[str, int]] = field(default_factory=dict)  # as `storage.retried`, of a worker's share


@dataclass
class Cursor:
    """Where the stream stands: (pass, buffers consumed of it). All the state there is."""

    pass_index: int = 0
    buffer: int = 0


class CandidateStream(IterableDataset[Message]):
    """Buffers of n_B planned samples, exactly once per pass, in an order that no worker count changes.

    `buffer_size` counts over all ranks. `carried_lanes` are those of a plan that began with other ranks, which goes on
    with them. `view`, when given, is how samples are decoded instead: a cheap look, from which the candidates'
    `full` goes on to full size. `prefilters` decide before a byte is read, in that order; of the tail of a pass too,
    but for one with a true attribute `draws_batch`. Iterate through `loader()`.
    """

    def __init__(
        self,
        table: il.Table,
        preprocess: Kind,
        *,
        buffer_size: int,
        seed: int = 0,
        passes: int | None = 1,
        lanes: int | None = None,
        decoder_name: str = "auto",
        join: JoinSettings | None = None,
        prefilters: Sequence[Prefilter] = (),
        view: View = None,
        rank: int = 0,
        ranks: int = 1,
        carried_lanes: int | None = None,
    ) -> None:
        self.table, self.preprocess, self.view, self.passes = table, preprocess.with_decoder(decoder_name), view, passes
        self.buffer_size, self.seed, self.rank, self.ranks = buffer_size, seed, rank, ranks
        self.lanes, self._asked_lanes = choose_lanes(buffer_size, ranks, lanes, carried=carried_lanes), lanes
        self.cursor = Cursor()
        self.first_pass = self.first_step = 0  # at which the list of shards was taken up
        members = tuple(preprocess.members.values())
        self.join_settings = replace(join or JoinSettings(), members=members)
        self.prefilters = tuple(prefilters)
        self._slots: dict[str, Tensor] | None = None
        self._carried = storage.Carried()
        self._remote = not all(storage.is_local(url) for url in table.shards)
        self._names = pa.array(table.names, pa.string())
        self._plans: dict[int, Plan] = {}
        self.plan(0)  # a buffer that can't be filled is an error now, not in a worker

    @property
    def buffers_per_pass(self) -> int:
        """Steps in one pass."""
        return self.plan(0).buffers

    @property
    def numbering(self) -> Numbering:
        """Which step of the run a buffer is, from the pass on at which the list of shards was taken up."""
        return Numbering(self.buffers_per_pass, self.first_pass, self.first_step)

    def begin(self, first_pass: int, first_step: int, passed_over: Sequence[tuple[int, int]] = ()) -> None:
        """Take up the list of shards at a pass of a run, whose first step has that number; the cursor moves there.

        `passed_over`: stretches (first, end) of steps whose buffers are skipped on purpose.
        """
        self.first_pass, self.first_step = first_pass, first_step
        if self.cursor.pass_index < first_pass:
            self.cursor = Cursor(first_pass, 0)
        numbering, skipped = self.numbering, list[Prefilter]()
        if passed_over:
            skipped = [PassOver(tuple(passed_over), numbering)]
        rest = [
            replace(p, numbering=numbering) if isinstance(p, UniformChoice) else p
            for p in self.prefilters
            if not isinstance(p, PassOver)
        ]
        # Behind what drops a row by itself, so that it keeps its reason, and before anything is drawn.
        drawn = next((n for n, p in enumerate(rest) if getattr(p, "draws_batch", False)), len(rest))
        self.prefilters = (*rest[:drawn], *skipped, *rest[drawn:])

    @functools.cached_property
    def _shards_identity(self) -> dict[str, str]:
        """The shards and their counts, whatever their order, and the order."""
        total, order = 0, hashlib.sha256()
        for name, count in zip(self.table.names, self.table.counts.tolist(), strict=True):
            raw = name.encode("utf-8", "surrogateescape") + b"\0"
            order.update(raw)
            total += int.from_bytes(hashlib.blake2b(raw + str(count).encode(), digest_size=16).digest(), "big")
        return {"shards": f"{total % (1 << 128):032x}", "order": order.hexdigest()[:32]}

    @property
    def identity(self) -> dict[str, Any]:
        """What the plan is a function of, as plain values: a cursor means nothing in another plan."""
        return {
            "version": 1,
            "table": self.table.info.fingerprint,
            "seed": self.seed,
            "buffer_size": self.buffer_size,
            "lanes": self.lanes,
            **self._shards_identity,
            "first_shard": self.table.names[0],
        }

    def require_own(self, identity: Mapping[str, Any]) -> None:
        """Raise MismatchError, naming what differs, for the identity of another plan; its lanes are taken over where
        none were asked for."""
        if int(identity.get("version", 0)) > 1:
            raise MismatchError(
                f"this cursor was written by a newer rhostream (version {identity['version']}); upgrade rhostream"
            )
        own = self.identity
        differ = [name for name in ("table", "seed", "buffer_size", "shards") if identity.get(name) != own[name]]
        if differ:
            detail = "; ".join(f"{_SAYS[name]}: was {identity.get(name)!r}, now {own[name]!r}" for name in differ)
            raise MismatchError(
                f"this cursor is of another plan ({detail}): open the stream as it was then, or begin without a cursor"
            )
        if identity.get("order") != own["order"]:
            raise MismatchError(
                "this cursor is of the same shards in another order, and the order of a pass is a "
                f"function of the list: give them as they were then, first {identity['first_shard']}, "
                "or name that order with open_stream(order=[names])"
            )
        lanes = int(identity["lanes"])
        if lanes != self.lanes and not self.carry(lanes):
            raise MismatchError(
                f"this cursor is of a plan of {lanes} lanes, and this stream was asked for "
                f"{self._asked_lanes}: leave lanes out, and it goes on with {lanes}"
            )

    def carry(self, lanes: int) -> bool:
        """Go on with the lanes of a plan that began with other ranks, unless others were asked for by name."""
        if self._asked_lanes is not None:
            return False
        self.lanes = choose_lanes(self.buffer_size, self.ranks, carried=lanes)
        self._plans = {}
        return True

    def plan(self, pass_index: int) -> Plan:
        """The plan of a pass."""
        if pass_index not in self._plans:
            self._plans = {
                pass_index: Plan(
                    self.table.names,
                    self.table.counts,
                    self.buffer_size,
                    self.lanes,
                    self.seed,
                    pass_index,
                    self.rank,
                    self.ranks,
                )
            }
        return self._plans[pass_index]

    def tail(self, pass_index: int) -> Candidates:
        """What of a pass fills no buffer, without images: `tail`, where nothing else would have kept a row out."""
        settings = self.join_settings
        # A row that is never asked for its il stops no run, whatever the policy.
        needs_il = settings.needs_il and settings.missing_il == "skip"
        join = Join(self.table, replace(settings, needs_il=needs_il, with_fold=False, tokens=0))
        joined, index = join(self.plan(pass_index).tail()), self.plan(pass_index).buffers
        for prefilter in self.prefilters:
            if not getattr(prefilter, "draws_batch", False):  # of a tail no batch is drawn
                prefilter(joined, pass_index, index)
        try:
            join.require_unchanged(set(joined.rows.shard.tolist()))  # a shard may have no other samples
        finally:
            join.close()
        joined.reason[joined.reason == CANDIDATE] = Reason.tail
        return self._candidates(Message(pass_index, index, -1, joined), None)

    @property
    def decoder_name(self) -> str:
        """Of what decodes, as it stands in the run's pins."""
        return self.preprocess.decoder

    def loader(self, workers: int = 0, context: str | None = None, device: torch.device | None = None) -> Loader:
        """An iterator over `Candidates` from the cursor on; see `Loader`."""
        return Loader(self, workers, context, device)

    # What runs in a worker (or inline, with 0 workers).

    def allocate(self, workers: int) -> None:
        """Make the shared slots; called by the loader before workers start."""
        self._slots = slots(
            max(workers, 1) * SLOTS,
            len(self.plan(0).own_rows),
            self.preprocess.fields(self.view),
            shared=workers > 0,
        )

    def __iter__(self) -> Iterator[Message]:
        assert self._slots is not None, "iterate through .loader()"
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        join = Join(self.table, self.join_settings, open_shards=2 * self.lanes + 2)
        fields, turn = {name: slots.numpy() for name, slots in self._slots.items()}, 0
        try:
            for number, (pass_index, index) in enumerate(self._remaining()):
                if number % workers != worker:
                    continue
                slot = worker * SLOTS + turn % SLOTS
                turn += 1
                if self._remote:
                    join.ahead(self.plan(pass_index).coming(index, AHEAD)[: self.lanes + AHEAD_SHARDS])
                held = {name: array[slot] for name, array in fields.items()}
                joined = self._fill(join, held, pass_index, index)
                yield Message(pass_index, index, slot, joined, retried=storage.take_retried() if info else {})
        except RhostreamError as exc:
            # An exception that crosses the process border by itself arrives as a wall of text.
            yield Message(0, 0, -1, None, exc, storage.take_retried() if info else {})
        finally:
            join.close()

    @property
    def end_of_passes(self) -> int | None:
        """The pass before which a loop from the cursor on ends: of `passes`, or the next multiple; None for never."""
        return None if self.passes is None else (self.cursor.pass_index // self.passes + 1) * self.passes

    def _remaining(self) -> Iterator[tuple[int, int]]:
        pass_index, start, end = self.cursor.pass_index, self.cursor.buffer, self.end_of_passes
        while end is None or pass_index < end:
            for index in range(start, self.plan(pass_index).buffers):
                yield pass_index, index
            pass_index, start = pass_index + 1, 0

    def _fill(self, join: Join, fields: Mapping[str, npt.NDArray[Any]], pass_index: int, index: int) -> Joined:
        """The joined rows of a buffer, those that are read decoded into `fields` (B, ...)."""
        joined = self._joined(join, pass_index, index)
        rows = joined.rows
        decode, view, arrays = self.preprocess.decode, self.view, tuple(fields.items())
        held = tuple(zip(self.preprocess.members, joined.size.tolist(), joined.offset.tolist(), strict=True))
        candidates = np.flatnonzero(joined.reason == CANDIDATE)
        # Rows stand lane by lane: neighbours share a shard, and its reader is looked up once per run.
        reader, opened, shards = None, -1, rows.shard.tolist()
        for row in candidates.tolist():
            shard = shards[row]
            if shard != opened or reader is None:
                reader, opened = join.reader(shard), shard
            members: dict[str, bytes] = {}
            out: dict[str, npt.NDArray[Any]] = {}
            for name, size, offset in held:
                members[name] = reader.pread(size[row], offset[row])
            for name, array in arrays:
                out[name] = array[row, ...]
            if decode(members, out, view) != OK:
                joined.reason[row] = Reason.unreadable
            crash_point("stream: image decoded")
        return joined

    def _joined(self, join: Join, pass_index: int, index: int) -> Joined:
        """This rank's rows after the prefilters; those that decide over the whole buffer are shown all of it."""
        whole = self.ranks > 1 and any(getattr(p, "whole_buffer", False) for p in self.prefilters)
        joined = join(self.plan(pass_index).buffer(index, whole))
        crash_point("stream: buffer joined")
        for prefilter in self.prefilters:
            prefilter(joined, pass_index, index)
        own = self.plan(pass_index).own_rows
        return joined.slice(own.start, own.stop) if whole else joined

    def _candidates(self, message: Message, slots: Mapping[str, Tensor] | None) -> Candidates:
        joined, plan = message.joined, self.plan(message.pass_index)
        assert joined is not None
        return Candidates(
            pass_index=message.pass_index,
            index=message.index,
            shard=joined.rows.shard,
            ordinal=joined.rows.ordinal,
            key=joined.key,
            label=torch.from_numpy(joined.label),
            il=torch.from_numpy(joined.il),
            reason=joined.reason,
            fields=None if slots is None else Fields({name: held[message.slot] for name, held in slots.items()}),
            slice=None if slots is None else Slice(plan.own_rows.start, self.buffer_size, plan.most_rows, self.ranks),
            prepare=self.preprocess.inputs,
            shard_names=self._names,
            fold=joined.fold,
            il_tokens=None if joined.il_tokens is None else torch.from_numpy(joined.il_tokens),
        )


class Loader:
    """Iterates a stream with worker processes, keeping the cursor: after k buffers, `state_dict()` resumes at k.

    A buffer counts from the moment it is handed out: saved in the body of the k-th, or after a `break` in it, the state
    goes on with the next one, and so does another loop over the same object.

    A loop ends after the stream's `passes`; the next one over the same object is the next pass (of as many), in its own
    order.

    With a `device` that is a GPU the next buffer is copied to it while the current one is worked on, from pinned slots;
    on another device it must be copied with `Candidates.to`.
    """

    def __init__(
        self, stream: CandidateStream, workers: int = 0, context: str | None = None, device: torch.device | None = None
    ) -> None:
        if workers < 0:
            raise UsageError(f"--workers {workers}: expected 0 or more")
        self.stream, self.workers, self.device = stream, workers, device or torch.device("cpu")
        self._context = context or ("forkserver" if workers else None)
        self._pending: Cursor | None = None
        self.augment_name, self.augment = NONE, augment_of(NONE, stream.preprocess, stream.seed)
        self._full: FullSize | None = None
        self._loops = 0

    def __repr__(self) -> str:
        cursor, of = self.stream.cursor, self.stream.buffers_per_pass
        where = f"pass {cursor.pass_index}, buffer {cursor.buffer} of {of}"
        return f"<stream of {self.stream.table!r}: {self.stream.buffer_size} a buffer, {where}, {self.workers} workers>"

    def augment_by(self, name: str) -> None:
        """Let what is kept of the buffers to come be augmented; see `open_stream`. Raises UsageError."""
        self.augment_name, self.augment = name, augment_of(name, self.stream.preprocess, self.stream.seed)

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
            assert self.stream._slots is not None
            buffers = ahead(buffers, _Copier(self.device, self.stream._slots))
        for candidates in buffers:
            if number != self._loops:  # the newer one fills other slots and moves the same cursor
                raise UsageError(
                    "a newer loop over the same stream was begun, so this one is over: a stream has one "
                    "cursor; open a second stream to go through the samples side by side"
                )
            self._pending = Cursor(candidates.pass_index, candidates.index + 1)
            yield candidates
            if number == self._loops:
                self.consumed()

    def _buffers(self, messages: Iterable[Message]) -> Iterator[Candidates]:
        stream = self.stream
        again = self.augment if isinstance(self.augment, Kind) else None
        if self._full is None and (stream.view is not None or again is not None):
            self._full = FullSize(stream.table, again or stream.preprocess, stream.lanes)
        for message in messages:
            storage.add_retried(message.retried)
            if message.error is not None:
                raise message.error
            candidates = stream._candidates(message, stream._slots)
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
                stream.lanes, stream._plans = lanes, {}
            raise MismatchError(
                f"this cursor is at buffer {cursor.buffer} of pass {cursor.pass_index}, and a pass of "
                f"this stream has {buffers}: it is of another plan"
            )
        if cursor.pass_index < stream.first_pass:  # the end of the pass behind which this list was taken up
            cursor = Cursor(stream.first_pass, 0)
        self.stream.cursor, self._pending, self._full = cursor, None, None


def ahead(buffers: Iterator[Candidates], copier: Copier) -> Iterator[Candidates]:
    """The same buffers on the device, each copied while the one before it is worked on."""
    moving = None
    for candidates in buffers:
        start = copier.start(candidates)
        if moving is not None:
            yield copier.finish(moving)
        moving = start
    if moving is not None:
        yield copier.finish(moving)


class Copier(Protocol):
    """Copies a buffer in two halves: `start` returns at once, `finish` makes sure that later work sees the copy."""

    def start(self, candidates: Candidates) -> Candidates: ...

    def finish(self, candidates: Candidates) -> Candidates: ...


class _Copier:
    """To a GPU, on a CUDA stream of its own."""

    def __init__(self, device: torch.device, slots: Mapping[str, Tensor]) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        # Shared memory can't be asked for pinned; it is pinned where it lies, or copies would wait.
        pinned = [torch.cuda.cudart().cudaHostRegister(a.data_ptr(), a.nbytes, 0) for a in slots.values()]
        if any(map(int, pinned)):
            LOG.warning("the loader's slots can't be pinned: copies to %s are slower", device)

    def start(self, candidates: Candidates) -> Candidates:
        with torch.cuda.stream(self._stream):
            return replace(candidates, label=candidates.label.pin_memory(), il=candidates.il.pin_memory(),
                           on_host=candidates).to(self._device)  # fmt: skip

    def finish(self, candidates: Candidates) -> Candidates:
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        arrays = [] if candidates.fields is None else [array for _, array in candidates.fields.items()]
        for tensor in (*arrays, candidates.label, candidates.il):
            tensor.record_stream(current)
        return candidates


def _as_is(message: Message) -> Message:
    return message
