"""What a selector passes from one forward to the next, and the columns of a decision that come out at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import Candidates, Reason, to_device

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """What goes through a forward; all (m,) and, but for `chance`, on the device."""

    x: Tensor
    label: Tensor
    il: Tensor
    chance: Tensor  # bool, on the host: without an il, competes by chance

    def take(self, position: Tensor) -> Stage:
        # Only where some row has no il does the host have to know which rows these are.
        chance = self.chance[position.cpu()] if self.chance.any() else self.chance[: len(position)]
        return Stage(self.x[position], self.label[position], self.il[position], chance)


class Reading:
    """Replaces cheap views by the full size; rows that can't be read are left out and remembered."""

    def __init__(self, candidates: Candidates, rows: Rows) -> None:
        self._candidates, self._rows = candidates, rows
        self.count, self.failed = 0, np.zeros(0, np.int64)

    def __call__(self, stage: Stage, position: Tensor) -> tuple[Stage, Tensor]:
        assert self._candidates.full is not None
        at = position.cpu()
        image, ok = self._candidates.full(self._rows[at.numpy()])
        self.count += len(image)
        if not ok.all():
            self.failed = at.numpy()[~ok]
            good = torch.from_numpy(np.flatnonzero(ok))
            image, position = image[good], position[to_device(good, position.device)]
            stage = stage.take(to_device(good, stage.x.device))
        x = self._candidates.normalize(image.to(stage.x.device, non_blocking=True))
        return Stage(x, stage.label, stage.il, stage.chance), position


def take(candidates: Candidates, rows: Rows) -> tuple[Tensor, Tensor]:
    """Label and il of the given rows."""
    if len(rows) == len(candidates):
        return candidates.label, candidates.il
    index = to_device(torch.from_numpy(rows), candidates.label.device)
    return candidates.label.index_select(0, index), candidates.il.index_select(0, index)


def decided(candidates: Candidates, rows: Rows, table: npt.NDArray[np.float32], kept_at: Rows,
             failed: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_],
                                    npt.NDArray[np.bool_], npt.NDArray[np.uint8], Rows]:  # fmt: skip
    """The (B,) columns of a selection, from the (4, m) table of what reached the target: loss, score, correct, at."""
    n = len(candidates)
    loss, score = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    correct, kept = np.zeros(n, bool), np.zeros(n, bool)
    reason = candidates.reason.copy()
    reason[rows] = Reason.shortlist  # unless it reached the target
    reached = rows[table[3].astype(np.int64)]
    finite_loss, finite_score = np.isfinite(table[0]), np.isfinite(table[1])
    correct[reached] = table[2] > 0
    finite = finite_loss & (finite_score | ~np.isfinite(candidates.host.il.numpy()[reached]))
    reason[reached] = np.where(finite, Reason.below, Reason.nonfinite)
    # An infinite loss must not look like one that was never computed, nor reach the log as a number.
    loss[reached] = np.where(finite_loss, table[0], np.nan)
    score[reached] = np.where(finite_score, table[1], np.nan)
    reason[rows[failed]] = Reason.unreadable
    kept_rows = rows[kept_at]
    kept[kept_rows], reason[kept_rows] = True, Reason.kept
    return loss, score, correct, kept, reason, kept_rows
