"""The stream: plan > join > read > decode into reused shared slots, for any number of worker processes.

    table.open_table > CandidateStream (an IterableDataset of messages) > Loader > Candidates, one per buffer

Here is what a buffer holds, and all that runs in a worker; `loader.Loader` starts the workers and keeps the cursor.
A worker decodes straight into rows of a slot (an array a field; shared memory, allocated once) and sends its number and
small arrays. Of a worker at most `prefetch_factor` messages are in flight while the consumer holds one buffer and, on a
GPU, the next one that is being copied: `prefetch_factor + 3` slots are never overwritten too early.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from rhostream import storage
from rhostream.candidates import CANDIDATE, Candidates, Reason, Slice
from rhostream.crashpoints import crash_point
from rhostream.errors import MismatchError, RhostreamError
from rhostream.samples.kind import OK, FieldSpec, Kind, View
from rhostream.stream.cursor import Cursor, digests_of, identity_of, require_same_plan
from rhostream.stream.join import Join, Joined, JoinSettings, Prefilter
from rhostream.stream.message import VECTORS, Message
from rhostream.stream.passing import PassOver
from rhostream.stream.plan import Numbering, Plan, choose_lanes
from rhostream.stream.slots import slots
from rhostream.stream.uniform_choice import UniformChoice
from rhostream.stream.vectors import Vectors
from rhostream.tables import il

PREFETCH = 2
SLOTS = PREFETCH + 3  # of each worker
# Buffers that are looked ahead for shards to fetch, and how many are held meanwhile: twice the eight that keep up with
# a shard in a tenth of a second at 100 ms a request (`benchmarks/remote.py`).
AHEAD, AHEAD_SHARDS = 32, 16


class CandidateStream(IterableDataset[Message]):
    """Buffers of n_B planned samples, exactly once per pass, in an order that no worker count changes.

    `buffer_size` counts over all ranks. `carried_lanes` are those of a plan that began with other ranks, which goes on
    with them. `view`, when given, is how samples are decoded instead: a cheap look, from which the candidates'
    `full` goes on to full size. `prefilters` decide before a byte is read, in that order; of the tail of a pass too,
    but for one with a true attribute `draws_batch`. Iterate through a `Loader`.
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
        readers: int | None = None,
        carried_lanes: int | None = None,
    ) -> None:
        self.table, self.preprocess, self.view, self.passes = table, preprocess.with_decoder(decoder_name), view, passes
        self.buffer_size, self.seed, self.rank, self.ranks = buffer_size, seed, rank, ranks
        self._readers = readers or ranks  # the last ranks; the others' slices are empty
        self.lanes, self._asked_lanes = choose_lanes(buffer_size, self._readers, lanes, carried=carried_lanes), lanes
        self.cursor = Cursor()
        self.first_pass = self.first_step = 0  # at which the list of shards was taken up
        members = tuple(preprocess.members.values())
        self.join_settings = replace(join or JoinSettings(), members=members, labelled=preprocess.target is None)
        self.prefilters = tuple(prefilters)
        self.slots: dict[str, Tensor] | None = None
        self._carried = storage.Carried()
        self._remote = not all(storage.is_local(url) for url in [table.url, *table.shards])
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

    @property
    def identity(self) -> dict[str, Any]:
        """What the plan is a function of, as plain values: a cursor means nothing in another plan."""
        return identity_of(self.table, self._digests, self.seed, self.buffer_size, self.lanes)

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        return digests_of(self.table)

    def require_own(self, identity: Mapping[str, Any]) -> None:
        """Raise MismatchError, naming what differs, for the identity of another plan; its lanes are taken over where
        none were asked for."""
        require_same_plan(self.identity, identity)
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
        self.set_lanes(choose_lanes(self.buffer_size, self._readers, carried=lanes))
        return True

    def set_lanes(self, lanes: int) -> None:
        """Plan with that many lanes from here on."""
        self.lanes, self._plans = lanes, {}

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
                    self.rank - (self.ranks - self._readers),
                    self._readers,
                )
            }
        return self._plans[pass_index]

    def tail(self, pass_index: int) -> Candidates:
        """What of a pass fills no buffer, without images: `tail`, where nothing else would have kept a row out."""
        settings = self.join_settings
        # A row that is never asked for its il stops no run, whatever the policy.
        needs_il = settings.needs_il and settings.missing_il == "skip"
        join = Join(self.table, replace(settings, needs_il=needs_il, with_fold=False, tokens=0, columns=()))
        joined, index = join(self.plan(pass_index).tail()), self.plan(pass_index).buffers
        for prefilter in self.prefilters:
            if not getattr(prefilter, "draws_batch", False):  # of a tail no batch is drawn
                prefilter(joined, pass_index, index)
        try:
            join.require_unchanged(set(joined.rows.shard.tolist()))  # a shard may have no other samples
        finally:
            join.close()
        joined.reason[joined.reason == CANDIDATE] = Reason.tail
        return self.candidates_of(Message(pass_index, index, -1, joined), None)

    @property
    def decoder_name(self) -> str:
        """Of what decodes, as it stands in the run's pins."""
        return self.preprocess.decoder

    # What runs in a worker (or inline, with 0 workers).

    def allocate(self, workers: int) -> None:
        """Make the shared slots; called by the loader before workers start."""
        width = self.join_settings.vectors
        beside = {VECTORS: FieldSpec((2 * width + 2,), "float32")} if width else {}
        self.slots = slots(
            max(workers, 1) * SLOTS,
            len(self.plan(0).own_rows),
            {**self.preprocess.fields(self.view), **beside},
            shared=workers > 0,
        )

    def __iter__(self) -> Iterator[Message]:
        assert self.slots is not None, "iterate through a Loader"
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        join = Join(self.table, self.join_settings, open_shards=2 * self.lanes + 2)
        beside = Vectors(self.table, self.join_settings.vectors, join.most_readers)
        fields, turn = {name: slots.numpy() for name, slots in self.slots.items()}, 0
        try:
            for number, (pass_index, index) in enumerate(self._remaining()):
                if number % workers != worker:
                    continue
                slot = worker * SLOTS + turn % SLOTS
                turn += 1
                if self._remote:
                    join.ahead(self.plan(pass_index).coming(index, AHEAD)[: self.lanes + AHEAD_SHARDS])
                held = {name: array[slot] for name, array in fields.items()}
                vectors = held.pop(VECTORS, None)
                joined = self._fill(join, held, pass_index, index)
                if vectors is not None:
                    beside.fill(joined, vectors)
                yield Message(pass_index, index, slot, joined, retried=storage.take_retried() if info else {})
        except RhostreamError as exc:
            # An exception that crosses the process border by itself arrives as a wall of text.
            yield Message(0, 0, -1, None, exc, storage.take_retried() if info else {})
        finally:
            join.close()
            beside.close()

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

    def candidates_of(self, message: Message, slots: Mapping[str, Tensor] | None) -> Candidates:
        """The candidates that a worker sent, their fields those of its slot; without any for None."""
        plan, sources = self.plan(message.pass_index), self.join_settings.sources
        part = Slice(plan.own_rows.start, self.buffer_size, plan.most_rows, self.ranks)
        return message.candidates(slots, self.preprocess, self._names, sources, part)
