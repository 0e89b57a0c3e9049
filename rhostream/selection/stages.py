"""What a selector passes from one forward to the next, and the columns of a decision that come out at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import Candidates, Reason, array_in_words, to_device
from rhostream.errors import UsageError
from rhostream.samples.fields import Fields

Rows = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """What goes through a forward; all (m,) and, but for `chance`, on the device."""

    x: Tensor
    label: Tensor
    il: Tensor
    chance: Tensor  # bool, on the host: without an il, competes by chance
    live: Tensor | None = None  # the il of a model that learns along

    def take(self, position: Tensor) -> Stage:
        # Only where some row has no il does the host have to know which rows these are.
        chance = self.chance[position.cpu()] if self.chance.any() else self.chance[: len(position)]
        live = None if self.live is None else self.live[position]
        return Stage(self.x[position], self.label[position], self.il[position], chance, live)


class Reading:
    """Replaces cheap views by the full size; rows that can't be read are left out and remembered."""

    def __init__(self, candidates: Candidates, rows: Rows) -> None:
        self._candidates, self._rows = candidates, rows
        self.count, self.failed = 0, np.zeros(0, np.int64)

    def __call__(self, stage: Stage, position: Tensor) -> tuple[Stage, Tensor]:
        assert self._candidates.full is not None
        at = position.cpu()
        fields, ok = self._candidates.full(self._rows[at.numpy()])
        self.count += len(fields)
        if not ok.all():
            self.failed = at.numpy()[~ok]
            good = torch.from_numpy(np.flatnonzero(ok))
            fields, position = fields[good], position[to_device(good, position.device)]
            stage = stage.take(to_device(good, stage.x.device))
        x = self._candidates.prepare(fields.to(stage.x.device, non_blocking=True))
        return replace(stage, x=x), position


def take(candidates: Candidates, rows: Rows) -> tuple[Tensor, Tensor]:
    """Label and il of the given rows."""
    if len(rows) == len(candidates):
        return candidates.label, candidates.il
    index = to_device(torch.from_numpy(rows), candidates.label.device)
    return candidates.label.index_select(0, index), candidates.il.index_select(0, index)


@dataclass(frozen=True)
class ShadowScores:
    """What each shadow rule made of the rows that reached the target: rules in the order of the selector's."""

    rows: Rows  # (m,) of the buffer, ascending
    score: Float32  # (rules, m); NaN where a rule had nothing to rank by
    kept: npt.NDArray[np.bool_]  # (rules, m)


@dataclass(frozen=True, repr=False)
class Selection:
    """What was decided about one buffer; all (B,) arrays stand in the buffer's canonical order."""

    loss: Float32  # nats; NaN where there was no forward
    score: Float32  # the rule's; NaN where there was none
    correct: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.uint8]  # of `Reason`
    weight: Float32  # the factor of a kept sample's loss; 1 but for importance sampling
    rows: npt.NDArray[np.int64]  # the kept rows of this buffer, ascending; of several ranks not those of `input`
    input: Tensor | None  # (n, C, H, W) float32: what this rank trains on, at full size; None when no rank kept any
    label: Tensor  # (n,)
    factors: Tensor | None = None  # (n,) float32: the weights of the losses where they aren't all 1
    place: Rows | None = None  # (n,) rows of the inputs in the buffer of all ranks
    il_tokens: Tensor | None = None  # (n, T) float16 nats, of language where the stream was asked for them
    total: int = 0  # samples that all ranks together kept
    draws: int = 0  # what the sum of their losses is divided by: `total`, or the draws of importance sampling
    scored: int = 0  # forwards of a sample through the target: K for one that was scored by K dropout draws
    shortlisted: int = 0  # samples that went through the cheaper forward before it
    reread: int = 0  # samples that were decoded again at full size
    live_scored: int = 0  # samples that went through the live IL model
    live_trained: int = 0  # samples through its forward and backward, counted on the first rank
    il: Float32 | None = None  # (B,) of the live IL model, NaN where it made no forward
    shadow: ShadowScores | None = None
    lag: int = 0
    ranks: int = 1  # that the choice was made over
    decoded: Fields | None = None  # (n, ...) each, of a kind with several fields
    field: str = "pixels"  # the name of the field of a kind that has one
    reduced: str | None = None  # what reduces the gradients over them: "mean" or "sum"

    def __len__(self) -> int:
        """Samples that this rank trains on."""
        return len(self.label)

    def __repr__(self) -> str:
        inputs = "no inputs" if self.input is None else array_in_words(self.input)
        of = "" if self.ranks == 1 else f" ({self.total} over {self.ranks} ranks)"
        return f"<Selection: {len(self)} kept{of} of {len(self.kept)}, {self.scored} scored, {inputs}>"

    @property
    def inputs(self) -> Tensor | None:
        """What the model is called with, (n, ...): `input`, of a kind with one field."""
        return self.input

    @property
    def fields(self) -> dict[str, Tensor | None]:
        """The kept samples' fields by name, (n, ...) each, and `label`; of a kind with one field that is `input`."""
        fields: dict[str, Tensor | None] = {self.field: self.input}
        if self.decoded is not None:
            fields = dict(self.decoded.items())
        return fields | {"label": self.label}

    def mean(self, loss_b: Tensor) -> Tensor:
        """The scalar to call backward of: the mean of the losses (n,) that the model has of `input`.

        Importance weights are in it, and over several ranks what makes the reduced gradient that of the mean over all
        that was kept, however it is spread: the rank's share of it, times the ranks where gradients are averaged. A
        rank with no input gets a zero that hangs on its (empty) losses. Raises UsageError for losses of another shape,
        and where nobody knows what reduces the gradients.
        """
        if loss_b.shape != (len(self),):
            raise UsageError(
                f"mean got losses of shape {tuple(loss_b.shape)}, expected ({len(self)},), one for each "
                "kept sample: in torch's own losses, reduction='none'"
            )
        if self.ranks > 1 and self.reduced is None:
            raise UsageError(
                f"{self.ranks} ranks kept these samples, and nothing says how their gradients are "
                "reduced: give the selector the model wrapped in DistributedDataParallel, or say "
                'gradients="mean" or gradients="sum"'
            )
        weighed = loss_b if self.factors is None else loss_b * self.factors
        return weighed.sum() * (self.ranks if self.reduced == "mean" else 1) / max(self.draws, 1)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The (B,) columns that the selection log takes."""
        live = {} if self.il is None else {"il": self.il}
        lag = np.full(len(self.loss), self.lag, np.uint8)
        return {
            "loss": self.loss,
            "score": self.score,
            "correct": self.correct,
            "kept": self.kept,
            "reason": self.reason,
            "weight": self.weight,
            "lag": lag,
            **live,
        }


@dataclass(frozen=True)
class Reached:
    """What the host knows of the rows that reached the target, (m,) each, once their forward has come back."""

    at: Rows  # positions among the candidates
    loss: Float32
    score: Float32
    correct: npt.NDArray[np.bool_]
    live: Float32 | None = None


@dataclass(frozen=True)
class Taken:
    """The kept ones, as positions among the candidates, and what the log says of them and of those left out."""

    at: Rows
    weight: npt.NDArray[np.float64]
    failed: Rows = field(default_factory=lambda: np.zeros(0, np.int64))  # could not be read at full size
    duplicates: Rows = field(default_factory=lambda: np.zeros(0, np.int64))


def decided(candidates: Candidates, rows: Rows, reached: Reached, taken: Taken, left: Reason) -> dict[str, Any]:
    """The (B,) columns of a selection; `left` is the reason of a candidate that didn't reach the target."""
    n = len(candidates)
    loss, score = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    correct, kept, weight = np.zeros(n, bool), np.zeros(n, bool), np.ones(n, np.float32)
    reason = candidates.reason.copy()
    reason[rows] = left
    at = rows[reached.at]
    il = candidates.host.il.numpy()[at] if reached.live is None else reached.live
    finite_loss, finite_score = np.isfinite(reached.loss), np.isfinite(reached.score)
    correct[at] = reached.correct
    reason[at] = np.where(finite_loss & (finite_score | ~np.isfinite(il)), Reason.below, Reason.nonfinite)
    # An infinite loss must not look like one that was never computed, nor reach the log as a number.
    loss[at] = np.where(finite_loss, reached.loss, np.nan)
    score[at] = np.where(finite_score, reached.score, np.nan)
    reason[rows[taken.duplicates]] = Reason.duplicate
    reason[rows[taken.failed]] = Reason.unreadable
    kept_rows = rows[taken.at]
    kept[kept_rows], reason[kept_rows], weight[kept_rows] = True, Reason.kept, taken.weight
    columns: dict[str, Any] = {
        "loss": loss,
        "score": score,
        "correct": correct,
        "kept": kept,
        "reason": reason,
        "weight": weight,
        "rows": kept_rows,
    }
    if reached.live is not None:
        columns["il"] = np.full(n, np.nan, np.float32)
        columns["il"][at] = reached.live
    return columns
