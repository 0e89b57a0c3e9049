"""What flows from the stream to the selector: one buffer of planned samples, as arrays in canonical order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rhostream.errors import UsageError
from rhostream.reasons import Reason as Reason

CANDIDATE = 255  # not a reason yet: the row goes to the forward
# rows (n,) -> uint8 (n, H, W, C) at full size, and (n,) whether each could be read
ReadFull = Callable[[npt.NDArray[np.int64]], tuple[Tensor, npt.NDArray[np.bool_]]]


def array_in_words(tensor: Tensor) -> str:
    """Its shape, type and device, for a repr: `(320, 28, 28, 1) uint8 on cpu`."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


@dataclass(frozen=True, slots=True)
class Normalize:
    """How uint8 pixels become the model's input: (x / 255 - mean) / std for each channel."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) to float32 (B, C, H, W), on the device of `image`, channels-last in memory for C > 1."""
        mean, scale = _a_row(self.mean, self.std, image.shape[3], image.shape[2], image.device)
        # A whole row of pixels at a time: broadcasting over an innermost dimension of 3 costs forty times as much.
        rows = image.float().flatten(2).sub_(mean).mul_(scale)
        return rows.view(image.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Tokens:
    """How token ids become the model's input: as they are, in the type that embeddings are looked up by."""

    padding: int = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """int32 (B, T) to int64 (B, T), short rows filled up with `padding`, on the device of `tokens`."""
        return tokens.long()


Prepare = Normalize | Tokens  # decoded rows, as they lie in a slot, to the model's input


@functools.lru_cache(64)
def _a_row(means: tuple[float, ...], stds: tuple[float, ...], channels: int, width: int,
           device: torch.device) -> tuple[Tensor, Tensor]:  # fmt: skip
    """255 mean and 1 / (255 std) for each value of a row of pixels; kept, because making one on a GPU waits for it."""
    mean, scale = torch.tensor(means) * 255, 1 / (torch.tensor(stds) * 255)
    if len(means) != channels:
        mean, scale = mean[:1].expand(channels), scale[:1].expand(channels)
    return mean.repeat(width).to(device), scale.repeat(width).to(device)


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

    `image` is a view into a slot that the loader will reuse: it is valid until the next buffer is asked for. Rows
    whose `reason` is not `CANDIDATE` never reach the forward and their pixels mean nothing. Where the stream decodes a
    cheap view, `image` holds that view and `full` reads rows at full size. Where the samples are text, `image` holds
    their token ids, int32 (B, T).
    """

    pass_index: int
    index: int  # of the buffer in its pass
    shard: npt.NDArray[np.int32]  # (B,) index into `shard_names`
    ordinal: npt.NDArray[np.int32]  # (B,) position of the sample in its shard
    key: pa.StringArray  # (B,)
    label: Tensor  # (B,) int64
    il: Tensor  # (B,) float32, nats; NaN where there is none
    reason: npt.NDArray[np.uint8]  # (B,) CANDIDATE or a Reason
    image: Tensor | None  # (B, H, W, C) uint8, or (B, T) int32 token ids
    normalize: Prepare = Normalize()
    shard_names: pa.StringArray | None = None
    full: ReadFull | None = None  # None: `image` is the full size already
    fold: npt.NDArray[np.int8] | None = None  # (B,) which IL model scored it, on the host
    il_tokens: Tensor | None = None  # (B, T) float16 nats, NaN where there is no token; where the stream was asked
    slice: Slice | None = None  # which part of the buffer of all ranks it is; None: one of equal parts
    on_host: Candidates | None = field(default=None, repr=False)  # what it was before `to`, for decisions and the log

    def __len__(self) -> int:
        return len(self.ordinal)

    def __repr__(self) -> str:
        image = "no images" if self.image is None else array_in_words(self.image)
        where = f"pass {self.pass_index}, buffer {self.index}"
        return f"<Candidates {where}: {len(self)} samples, {len(self.candidate_rows)} to score, {image}>"

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
    def input(self) -> Tensor:
        """(B, C, H, W) float32: the normalised images, or int64 (B, T) of text; on the device of `image`."""
        if self.image is None:
            raise ValueError("this buffer carries no images")
        return self.normalize(self.image)

    @property
    def host(self) -> Candidates:
        """The same buffer in the host's memory, where it came from."""
        return self.on_host or self

    def inputs(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """(n, C, H, W) float32: the normalised images of the given rows, or (n, T); on the device of `image`.

        Rows are gathered as they lie (NHWC), so the result is channels-last in memory; all of them cost no copy.
        """
        if self.image is None:
            raise ValueError("this buffer carries no images")
        if len(rows) == len(self):
            return self.input
        return self.normalize(self.image.index_select(0, to_device(torch.from_numpy(rows), self.image.device)))

    def take(self, rows: npt.NDArray[np.int64]) -> Candidates:
        """The given rows, in that order; pixels are copied, so the result outlives the slot."""
        index = torch.from_numpy(rows)
        return replace(
            self,
            shard=self.shard[rows],
            ordinal=self.ordinal[rows],
            key=self.key.take(pa.array(rows)),
            label=self.label.index_select(0, index.to(self.label.device)),
            il=self.il.index_select(0, index.to(self.il.device)),
            reason=self.reason[rows],
            image=None if self.image is None else self.image.index_select(0, index.to(self.image.device)),
            full=None if self.full is None else _of_some(self.full, rows),
            fold=None if self.fold is None else self.fold[rows],
            il_tokens=None if self.il_tokens is None else self.il_tokens.index_select(0, index),
            slice=None,
            on_host=None if self.on_host is None else self.on_host.take(rows),
        )

    def to(self, device: torch.device | str) -> Candidates:
        """Tensors on `device`, copied without waiting where memory is pinned; the identities stay where they are."""
        device = torch.device(device)
        if self.label.device == device or (device.type == "cpu" and self.label.device.type == "cpu"):
            return self
        move: Callable[[Tensor], Tensor] = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        image = None if self.image is None else move(self.image)
        return replace(self, label=move(self.label), il=move(self.il), image=image, on_host=self.host)


def _of_some(full: ReadFull, taken: npt.NDArray[np.int64]) -> ReadFull:
    """`full` of a buffer, for the rows that `take` left of it."""
    return lambda rows: full(taken[rows])
