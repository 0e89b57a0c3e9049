"""What flows from the stream to the selector: one buffer of planned samples, as arrays in canonical order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor


class Reason(IntEnum):
    """Why a planned sample was kept or skipped. Stored by name; the numbers live inside one process only."""

    kept = 0
    below = 1  # reached the rule, but not the top n_b (or was not drawn by `uniform`)
    band = 2  # its il is outside the band
    shortlist = 3  # a cheaper score left it out
    tail = 4  # the end of a pass that doesn't fill a buffer
    missing_il = 5
    quarantined = 6  # the table says it can't be used
    unreadable = 7  # the table says it can, but this decoder couldn't
    nonfinite = 8  # its loss or score is NaN or infinite
    holdout = 9  # the il model was trained on it


CANDIDATE = 255  # not a reason yet: the row goes to the forward


@dataclass(frozen=True, slots=True)
class Normalize:
    """How uint8 pixels become the model's input: (x / 255 - mean) / std for each channel."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) to float32 (B, C, H, W), on the device of `image`, channels-last in memory for C > 1."""
        mean = torch.tensor(self.mean, device=image.device) * 255
        scale = 1 / (torch.tensor(self.std, device=image.device) * 255)
        channels, width = image.shape[3], image.shape[2]
        if len(self.mean) != channels:
            mean, scale = mean[:1].expand(channels), scale[:1].expand(channels)
        # A whole row of pixels at a time: broadcasting over an innermost dimension of 3 costs forty times as much.
        rows = image.float().flatten(2).sub_(mean.repeat(width)).mul_(scale.repeat(width))
        return rows.view(image.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Candidates:
    """One buffer: n_B planned samples (or a slice of them), all arrays of the same length B.

    `image` is a view into a slot that the loader will reuse: it is valid until the next buffer is asked for. Rows
    whose `reason` is not `CANDIDATE` never reach the forward and their pixels mean nothing.
    """

    pass_index: int
    index: int  # of the buffer in its pass
    shard: npt.NDArray[np.int32]  # (B,) index into `shard_names`
    ordinal: npt.NDArray[np.int32]  # (B,) position of the sample in its shard
    key: pa.StringArray  # (B,)
    label: Tensor  # (B,) int64
    il: Tensor  # (B,) float32, nats; NaN where there is none
    reason: npt.NDArray[np.uint8]  # (B,) CANDIDATE or a Reason
    image: Tensor | None  # (B, H, W, C) uint8
    normalize: Normalize = Normalize()
    shard_names: pa.StringArray | None = None

    def __len__(self) -> int:
        return len(self.ordinal)

    @property
    def candidate_rows(self) -> npt.NDArray[np.int64]:
        """(n,) rows that go to the forward."""
        return np.flatnonzero(self.reason == CANDIDATE)

    @property
    def input(self) -> Tensor:
        """(B, C, H, W) float32: the normalised images, on the device of `image`."""
        if self.image is None:
            raise ValueError("this buffer carries no images")
        return self.normalize(self.image)

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
        )

    def to(self, device: torch.device | str) -> Candidates:
        """Tensors on `device`; the identities stay where they are."""
        move: Callable[[Tensor], Tensor] = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        image = None if self.image is None else move(self.image)
        return replace(self, label=move(self.label), il=move(self.il), image=image)
