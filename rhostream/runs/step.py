"""A step as a value: what was looked at and kept, its losses on their way to the host, its numbers over ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.errors import UsageError
from rhostream.selection.balance import Balance, class_rows
from rhostream.selection.ranks import Ranks
from rhostream.selection.selector import Selection


@dataclass(frozen=True)
class Evaluation:
    """One look at the test set: means over its usable samples."""

    loss: float | None  # nats
    accuracy: float | None  # of language: the share of a sequence's tokens that were the likeliest; of pairs below
    class_accuracy: list[float | None] | None  # None for a class without test samples
    samples: int | None
    of_pairs: dict[str, float] | None = None  # as `tables.steps` names them; `accuracy` is the mean recall at 1

    def in_words(self) -> str:
        """For people: `accuracy 87.1 %, loss 0.402, of 10,000 test samples`."""
        accuracy = "" if self.accuracy is None else f"accuracy {100 * self.accuracy:.1f} %"
        if self.of_pairs:
            accuracy = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.of_pairs.items())
        loss = "" if self.loss is None else f"test loss {self.loss:.3f}"
        return ", ".join(filter(None, (accuracy, loss))) or "evaluated"

    def columns(self) -> dict[str, Any]:
        """As the steps table names them."""
        return {
            "test_loss": self.loss,
            "test_accuracy": self.accuracy,
            "class_accuracy": self.class_accuracy,
            "test_samples": self.samples,
            **(self.of_pairs or {}),
        }


@dataclass(frozen=True)
class Totals:
    """A step's numbers over all ranks, the same on each of them."""

    candidates: int
    kept: int
    reached: int  # samples with a loss of the target
    loss: float  # sum over these, nats
    correct: int
    scored: int
    shortlisted: int
    reread: int
    live_scored: int
    live_trained: int
    signal: int  # the largest signal that a rank was asked to stop by, 0 for none
    due: bool  # whether a rank's clock says that it is time for a commit
    score_kept: float | None  # mean over the kept samples that have one
    il_kept: float | None  # the same, nats
    balance: Balance  # the classes of what was kept


@dataclass
class Step:
    """A step that was taken and isn't logged yet: its losses are still on the device."""

    number: int
    candidates: Candidates  # on the host
    selection: Selection
    loss_b: Tensor | None  # (n_kept,) of this rank, None when no rank kept any and where the loop has none
    mean: Tensor | None  # over all ranks, where the loop knows it
    applied: bool | Tensor  # whether the optimizer took the step, or (n_kept,) which samples it learned from
    learning_rate: float | None
    totals: Totals | None = None  # these once the step is over
    seconds: dict[str, float] = field(default_factory=dict)
    units: float = 0.0  # forward units so far
    evaluation: Evaluation | None = None

    @property
    def by_sample(self) -> bool:
        """Whether it is said of each sample whether it was learned from: the step made several updates."""
        return isinstance(self.applied, Tensor) and self.applied.ndim == 1


def checked_applied(applied: bool | Tensor, n: int, alone: bool) -> bool | Tensor:
    """A scalar, or (n,) bool. Raises UsageError for another shape."""
    if not isinstance(applied, Tensor) or applied.ndim == 0:
        return applied
    if applied.numel() == 1 and applied.ndim <= 1 and alone and n != 1:
        return applied.reshape(())
    if tuple(applied.shape) != (n,):
        raise UsageError(
            f"run.step got `applied` of shape {tuple(applied.shape)}, expected a scalar, or ({n},): one for each kept "
            "sample"
        )
    return applied.bool()


def totals_of(candidates: Candidates, selection: Selection, signal: int, due: bool, ranks: Ranks) -> Totals:
    """Add a step up over the ranks. Collective."""
    reached = selection.loss[~np.isnan(selection.loss)]
    told = ranks.gather(torch.tensor([
        np.count_nonzero(candidates.host.reason == CANDIDATE), len(selection), len(reached),
        reached.sum(dtype=np.float64), np.count_nonzero(selection.correct), selection.scored, selection.shortlisted,
        selection.reread, selection.live_scored, selection.live_trained, due, *_of_kept(candidates, selection), signal,
    ], dtype=torch.float64))  # fmt: skip
    loss = float(told[:, 3].sum())
    sums = told.sum(0).nan_to_num().tolist()
    of_all, kept, count, _, correct, scored, short, reread, live, learned, asked = map(int, sums[:11])
    scores, with_score, ils, with_il = sums[11:15]
    return Totals(
        of_all, kept, count, loss, correct, scored, short, reread, live, learned, int(told[:, -1].max()), asked > 0,
        scores / with_score if with_score else None, ils / with_il if with_il else None,
        _balance(candidates, selection, ranks),
    )  # fmt: skip


def _of_kept(candidates: Candidates, selection: Selection) -> list[float]:
    """Of this rank's kept rows: the sum of their scores and how many have one, the same of their il."""
    il = candidates.host.il.numpy() if selection.il is None else selection.il
    found: list[float] = []
    for values in (selection.score[selection.rows], il[selection.rows]):
        finite = values[np.isfinite(values)]
        found += [float(finite.sum(dtype=np.float64)), len(finite)]
    return found


def _balance(candidates: Candidates, selection: Selection, ranks: Ranks) -> Balance:
    """The classes of what all ranks kept, against what their rules could choose from. Collective."""
    host = candidates.host
    rows = class_rows(host.label)
    # `below` before the choice: `uniform` has chosen in the stream, before anything was decoded.
    offered = (host.reason == CANDIDATE) | (host.reason == Reason.below)
    offered &= selection.reason != Reason.missing_il
    if ranks.alone:
        return Balance.of(host.label.numpy()[rows], selection.kept[rows], offered[rows])
    label = host.label.double() if host.label.ndim == 1 else torch.zeros(len(rows), dtype=torch.float64)
    own = torch.stack([label, torch.from_numpy(selection.kept).double(), torch.from_numpy(offered).double()], 1)
    told = ranks.concat(own[torch.from_numpy(rows)], candidates.slice_of(ranks.rank, ranks.size).most)[0].numpy()
    return Balance.of(told[:, 0].astype(np.int64), told[:, 1] > 0, told[:, 2] > 0)
