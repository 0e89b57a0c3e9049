"""What flows from the stream to the selector: one buffer of planned samples, as arrays in canonical order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rhostream.errors import UsageError
from rhostream.reasons import Reason as Reason
from rhostream.samples.fields import Fields, Input, Target, shape_in_words, target_of
from rhostream.samples.registry import IMAGES

CANDIDATE = 255  # not a reason yet: the row goes to the forward
# rows (n,) -> their fields at full size, and (n,) whether each could be read
ReadFull = Callable[[npt.NDArray[np.int64]], tuple[Fields, npt.NDArray[np.bool_]]]

Prepare = Callable[[Fields], Input]  # decoded rows, as they lie in a slot, to the model's input


class Transform(Protocol):
    """How kept inputs are changed on the device before they are learned from, by a seed for each."""

    def seeds(self, candidates: Candidates, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) of the rows."""
        ...

    def __call__(self, x: Input, seed_b: Tensor) -> Tensor:
        """(n, ...) and (n,) to (n, ...)."""
        ...


def array_in_words(tensor: Input) -> str:
    """Its shape, type and device, for a repr: `(320, 28, 28, 1) uint8 on cpu`."""
    if isinstance(tensor, Fields):
        return f"{shape_in_words(tensor)} on {tensor.device}"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on the device, without waiting for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Slice(NamedTuple):
    """A rank's rows of a buffer, where ranks may have slices that differ by a lane."""

    first: int  # of its rows, in the buffer
    planned: int  # n_B, of all ranks
    most: int  # rows of the largest slice of any rank
    ranks: int  # that the stream was opened for


@dataclass(frozen=True, repr=False)
class Candidates:
    """One buffer: n_B planned samples (or a slice of them), all arrays of the same length B.

    `fields` are views into a slot that the loader will reuse: they are valid until the next buffer is asked for. Rows
    whose `reason` is not `CANDIDATE` never reach the forward and their fields mean nothing. Where the stream decodes a
    cheap view, `fields` hold that view and `full` reads rows at full size.
    """

    pass_index: int
    index: int  # of the buffer in its pass
    shard: npt.NDArray[np.int32]  # (B,) index into `shard_names`
    ordinal: npt.NDArray[np.int32]  # (B,) position of the sample in its shard
    key: pa.StringArray  # (B,)
    label: Tensor  # (B,) int64; -1 where the target is no class
    il: Tensor  # (B,) float32, nats; NaN where there is none
    reason: npt.NDArray[np.uint8]  # (B,) CANDIDATE or a Reason
    fields: Fields | None  # (B, ...) each: pixels (B, H, W, C) uint8, or tokens (B, T) int32; None: nothing is decoded
    prepare: Prepare = IMAGES.inputs
    shard_names: pa.StringArray | None = None
    full: ReadFull | None = None  # None: `fields` are the full size already
    again: ReadFull | None = None  # the kept rows as they are decoded to learn from; None: as they were scored
    transform: Transform | None = None  # of the kept inputs
    fold: npt.NDArray[np.int8] | None = None  # (B,) which IL model scored it, on the host
    il_tokens: Tensor | None = None  # (B, T) float16 nats, NaN where there is no token; where the stream was asked
    target_field: str | None = None  # as `Kind.target`: the field that is the target; None: the label is
    source: npt.NDArray[np.int16] | None = (
        None  # (B,) index into `source_names`, on the host; where the stream was asked
    )
    source_names: tuple[str, ...] | None = None
    columns: Fields | None = None  # (B,) float32 each, of the table, NaN where there is none; where asked for
    reference: Tensor | None = (
        None  # (B, 2 D + 2) float32 of the table's reference: `contrastive.Pairs`; where asked for
    )
    slice: Slice | None = None  # which part of the buffer of all ranks it is; None: one of equal parts
    on_host: Candidates | None = field(default=None, repr=False)  # what it was before `to`, for decisions and the log

    def __len__(self) -> int:
        return len(self.ordinal)

    def __repr__(self) -> str:
        fields = [array_in_words(array) for _, array in self.fields.items()] if self.fields is not None else []
        where = f"pass {self.pass_index}, buffer {self.index}"
        return (
            f"<Candidates {where}: {len(self)} samples, {len(self.candidate_rows)} to score, "
            f"{', '.join(fields) or 'no images'}>"
        )

    def slice_of(self, rank: int, ranks: int) -> Slice:
        """Which part of the buffer it is where `ranks` select together; alone, a slice is the whole buffer.

        Raises UsageError for a stream that was opened for another number of ranks.
        """
        if ranks == 1 or self.slice is None:
            return Slice(rank * len(self), ranks * len(self), len(self), ranks)
        if self.slice.ranks != ranks:
            raise UsageError(
                f"the stream was opened for {self.slice.ranks} of the {ranks} ranks that select together: "
                "each rank opens its slice, with open_stream(rank=, ranks=)"
            )
        return self.slice

    @property
    def candidate_rows(self) -> npt.NDArray[np.int64]:
        """(n,) rows that go to the forward."""
        return np.flatnonzero(self.reason == CANDIDATE)

    @property
    def image(self) -> Tensor | None:
        """The field of a kind that has one: pixels (B, H, W, C) uint8, or tokens (B, T) int32."""
        return None if self.fields is None else self.fields.only

    @property
    def input(self) -> Input:
        """What the model is called with: (B, C, H, W) float32 normalised images, or (B, T) int64 tokens."""
        return self.prepare(self._decoded())

    @property
    def target(self) -> Target:
        """What the loss is called with beside the model's output, (B, ...): the label, or what the kind says it is."""
        return target_of(
            self.target_field, self.fields, self.label, self.input if self.target_field == "" else self.label
        )

    def _decoded(self) -> Fields:
        if self.fields is None:
            raise ValueError("this buffer carries no decoded samples")
        return self.fields

    @property
    def host(self) -> Candidates:
        """The same buffer in the host's memory, where it came from."""
        return self.on_host or self

    def inputs(self, rows: npt.NDArray[np.int64]) -> Input:
        """What the model is called with for the given rows, (n, ...), on the device of `fields`.

        Rows are gathered as they lie (NHWC), so images are channels-last in memory; all of them cost no copy.
        """
        if len(rows) == len(self):
            return self.input
        return self.prepare(self.fields_of(rows))

    def fields_of(self, rows: npt.NDArray[np.int64]) -> Fields:
        """The fields of the given rows, copied, on their device."""
        fields = self._decoded()
        return fields.index_select(0, to_device(torch.from_numpy(rows), fields.device))

    def take(self, rows: npt.NDArray[np.int64]) -> Candidates:
        """The given rows, in that order; fields are copied, so the result outlives the slot."""
        index = torch.from_numpy(rows)
        return replace(
            self,
            shard=self.shard[rows],
            ordinal=self.ordinal[rows],
            key=self.key.take(pa.array(rows)),
            label=self.label.index_select(0, index.to(self.label.device)),
            il=self.il.index_select(0, index.to(self.il.device)),
            reason=self.reason[rows],
            fields=None if self.fields is None else self.fields_of(rows),
            full=None if self.full is None else _of_some(self.full, rows),
            again=None if self.again is None else _of_some(self.again, rows),
            fold=None if self.fold is None else self.fold[rows],
            il_tokens=None if self.il_tokens is None else self.il_tokens.index_select(0, index),
            source=None if self.source is None else self.source[rows],
            columns=None if self.columns is None else self.columns[index.to(self.il.device)],
            reference=None if self.reference is None else self.reference[index.to(self.il.device)],
            slice=None,
            on_host=None if self.on_host is None else self.on_host.take(rows),
        )

    def to(self, device: torch.device | str) -> Candidates:
        """Tensors on `device`, copied without waiting where memory is pinned; the identities stay where they are."""
        device = torch.device(device)
        if self.label.device == device or (device.type == "cpu" and self.label.device.type == "cpu"):
            return self
        move: Callable[[Tensor], Tensor] = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        fields = None if self.fields is None else self.fields.to(device, non_blocking=True)
        columns = None if self.columns is None else self.columns.to(device, non_blocking=True)
        reference = None if self.reference is None else move(self.reference)
        return replace(self, label=move(self.label), il=move(self.il), fields=fields, columns=columns,
                       reference=reference, on_host=self.host)  # fmt: skip


def _of_some(full: ReadFull, taken: npt.NDArray[np.int64]) -> ReadFull:
    """`full` of a buffer, for the rows that `take` left of it."""
    return lambda rows: full(taken[rows])
