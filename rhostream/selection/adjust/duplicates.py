"""`deduplicate`: of near-duplicates in a buffer only the best is kept, told by the correlation of small grey views."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rhostream.reasons import Reason
from rhostream.selection.adjust.shape import Adjust, Buffer, Float32, Turn
from rhostream.selection.uniform import Floats, Ints

SIDE = 8  # pixels: of 32x32 photographs twice as many find three times as few copies that are shifted by one pixel


class Duplicates(Adjust):
    turn = Turn.duplicates
    reason = Reason.duplicate
    needs_views = True

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold  # a correlation

    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        assert buffer.view_mV is not None
        order = buffer.order(score_B)
        view = buffer.view_mV[np.cumsum(buffer.reached_B)[order] - 1]
        left_out = order[copies(view, self.threshold, buffer.n if buffer.last else None)]
        score_B = score_B.copy()
        score_B[left_out] = np.nan
        return score_B


def copies(view_mV: Float32, threshold: float, enough: int | None = None) -> Ints:
    """Which of the views correlate with that of a better one, which comes before it, by the threshold or more.

    Once `enough` stay, what remains is only held against these.
    """
    out, stay = np.zeros(len(view_mV), bool), 0
    for number in range(len(view_mV)):  # the better ones come first: who is left out leaves nobody out
        if out[number]:
            continue
        if stay == enough:
            break
        stay += 1
        out[number + 1 :] |= view_mV[number + 1 :] @ view_mV[number] >= threshold - 1e-5
    return np.flatnonzero(out)


def grey_views(image: Tensor) -> Tensor:
    """uint8 (m, H, W, C) to (m, V) float32, each of mean 0 and norm 1, so that a product is a correlation.

    A picture of one colour has no view to compare (all zeros): it is nobody's duplicate.
    """
    grey = image.float().mean(3)[:, None]
    side = min(SIDE, *image.shape[1:3])
    view = functional.adaptive_avg_pool2d(grey, side).flatten(1)
    view = view - view.mean(1, keepdim=True)
    norm = view.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-3 * side, view / norm.clamp(min=1e-12), torch.zeros_like(view))


def make(value: float) -> Duplicates:
    """Of a correlation above 0, at most 1."""
    return Duplicates(value)
