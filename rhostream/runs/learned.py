"""What a step learned from: its mean loss, and the samples of the updates that changed no weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rhostream.reasons import Reason
from rhostream.runs.step import Step
from rhostream.selection.ranks import Ranks
from rhostream.selection.selector import Selection

Losses = npt.NDArray[Any] | None  # (n,) of a rank's own samples, on the host


@dataclass(frozen=True)
class Learned:
    """Of a step whose losses have come to the host, over all ranks."""

    loss: float | None  # the mean over what was learned from; NaN where no step was made, None where nobody knows
    any: bool = True  # whether an update was made
    without: int = 0  # kept samples of updates that weren't, where others were
    broken: bool = False  # whether one whose loss isn't finite was learned from, as the loop says of each

    @classmethod
    def of(cls, step: Step, loss_b: Losses, ranks: Ranks) -> Learned:
        """Collective. An update of several is told by the samples that it had."""
        if not step.by_sample:
            return cls(_mean(step, loss_b, ranks), bool(step.applied))
        learned_b = _on_host(step)
        broken_b = np.zeros(len(learned_b), bool) if loss_b is None else learned_b & ~np.isfinite(loss_b)
        without, broken = (int(n) for n in ranks.sum([(~learned_b).sum(), broken_b.sum()]))
        some = without < step.selection.total
        loss = _mean(step, loss_b, ranks, learned_b, without) if without and some else _mean(step, loss_b, ranks)
        return cls(loss, some, without if some else 0, broken > 0)

    def mark(self, step: Step, loss_b: Losses, ranks: Ranks) -> None:
        """In the log's columns, the samples that weren't learned from are not kept. Collective."""
        selection, learned_b = step.selection, _on_host(step)
        start = step.candidates.slice_of(ranks.rank, ranks.size).first
        out = places(selection, ~learned_b, ranks)
        nonfinite = places(selection, None if loss_b is None else ~learned_b & ~np.isfinite(loss_b), ranks)
        for row in selection.rows.tolist():
            if row + start in out:
                selection.kept[row] = False
                selection.reason[row] = Reason.nonfinite if row + start in nonfinite else Reason.unapplied


def places(selection: Selection, which_b: npt.NDArray[np.bool_] | None, ranks: Ranks) -> set[int]:
    """Where these of the samples that each rank trained on lie in the buffer of all ranks. Collective.

    What a rank read may have been another's to train on.
    """
    assert selection.place is not None
    own = [] if which_b is None else selection.place[which_b].tolist()
    return {place for of_rank in ranks.gather_json(own) for place in of_rank}


def _on_host(step: Step) -> npt.NDArray[np.bool_]:
    assert isinstance(step.applied, Tensor)
    return step.applied.cpu().numpy()


def _mean(
    step: Step,
    loss_b: Losses,
    ranks: Ranks,
    learned_b: npt.NDArray[np.bool_] | None = None,
    without: int = 0,
) -> float | None:
    """The mean loss of what was kept, or of what of it was learned from; collective where the loop doesn't know it.

    NaN where no step was made of it, None where the loop says nothing of it.
    """
    if step.mean is not None and (loss_b is None or not math.isfinite(float(step.mean))):
        return float(step.mean)
    if loss_b is None:
        return None
    factors, total = step.selection.factors, step.selection.draws
    if learned_b is not None:
        total = total * (step.selection.total - without) / step.selection.total  # type: ignore[assignment]
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite mean is what is looked for
        if ranks.alone and factors is None:
            own = loss_b if learned_b is None else loss_b[learned_b]
            return float(own.mean(dtype=np.float32)) if len(own) else None
        if step.mean is not None:  # the very number that the optimizer's step hung on, or ranks could part
            return float(step.mean)
        weighed = loss_b if factors is None else loss_b * factors.float().cpu().numpy()
        if learned_b is not None:
            weighed = weighed[learned_b]
        return ranks.sum([float(weighed.sum(dtype=np.float64))])[0] / max(total, 1)
