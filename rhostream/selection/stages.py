"""From a buffer to a forward and back: rows are picked out for the forward, what it gave goes into (B,) columns.

All rows are those of the buffer (of this rank's slice of it); arrays named `_m` are of the rows that reached a stage,
in ascending order, and nothing but `Stage` holds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import CANDIDATE, Candidates, ReadFull, Reason, array_in_words, to_device
from rhostream.errors import UsageError
from rhostream.samples.fields import Fields, Input, Target
from rhostream.selection.shadow import ShadowScores
from rhostream.selection.updates import first_row, number_of_updates, samples_of

Rows = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """What goes through a forward: the m rows of a buffer that came so far, ascending; all on the device."""

    row_m: Tensor  # int64
    x_m: Input  # the model's input
    label_m: Tensor
    il_m: Tensor  # of the table, nats; NaN where there is none
    live_m: Tensor | None = None  # the il of a model that learns along
    field_m: Tensor | None = None  # (m, ...) the field that is the target, where one is
    labelled: bool = True  # whether the target is the label; else, without such a field, there is none
    fields_m: Fields | None = None  # what the input was made of, where it was read again: at full size, or augmented
    columns_m: Fields | None = None  # of the table, (m,) float32 each
    reference_m: Tensor | None = None  # (m, 2 D + 2) the vectors of the table's reference

    @property
    def target_m(self) -> Target:
        """What the loss is called with beside the model's output, (m, ...)."""
        return self.label_m if self.labelled else self.x_m if self.field_m is None else self.field_m

    @classmethod
    def of(cls, candidates: Candidates, rows: Rows, live_m: Tensor | None = None) -> Stage:
        """Those rows, with the inputs that the buffer has: all rows cost no copy."""
        x, label, il = candidates.inputs(rows), candidates.label, candidates.il
        target, labelled = candidates.target_field, candidates.target_field is None
        field = fields_of(candidates)[target] if target else None
        columns, reference = candidates.columns, candidates.reference
        if len(rows) == len(candidates):
            row_m = torch.arange(len(rows), device=label.device)
            return cls(row_m, x, label, il, live_m, field, labelled, None, columns, reference)
        row_m = to_device(torch.from_numpy(rows), label.device)
        label, il = label.index_select(0, row_m), il.index_select(0, row_m)
        field, reference = (None if v is None else v.index_select(0, row_m) for v in (field, reference))
        columns = None if columns is None else columns[row_m]
        return cls(row_m, x, label, il, live_m, field, labelled, None, columns, reference)

    def take(self, position: Tensor) -> Stage:
        """The rows at these positions of the stage, int64 on the device."""
        live_m = None if self.live_m is None else self.live_m[position]
        field_m = None if self.field_m is None else self.field_m[position]
        fields_m = None if self.fields_m is None else self.fields_m[position]
        row_m, x_m, label_m, il_m = (
            self.row_m[position],
            self.x_m[position],
            self.label_m[position],
            self.il_m[position],
        )
        columns_m = None if self.columns_m is None else self.columns_m[position]
        reference_m = None if self.reference_m is None else self.reference_m[position]
        return Stage(row_m, x_m, label_m, il_m, live_m, field_m, self.labelled, fields_m, columns_m, reference_m)

    def decoded_again(self, candidates: Candidates, read: ReadFull, rows: Rows) -> tuple[Stage, Rows]:
        """The stage with inputs as `read` decodes them, without rows that can't be; `rows` (m,) are its on the host."""
        stage, (fields, readable_m) = self, read(rows)
        if not readable_m.all():
            good = torch.from_numpy(np.flatnonzero(readable_m))
            fields, rows = fields[good], rows[readable_m]
            stage = self.take(to_device(good, self.x_m.device))
        fields = fields.to(self.x_m.device, non_blocking=True)
        field_m = fields[candidates.target_field] if candidates.target_field else None
        return replace(stage, x_m=candidates.prepare(fields), field_m=field_m, fields_m=fields), rows


def columns_of(stage: Stage, names: Sequence[str]) -> dict[str, Tensor]:
    """Those columns of the table, (m,) float32 each. Raises UsageError where the candidates don't carry one."""
    carried = () if stage.columns_m is None else stage.columns_m.names
    if missing := [name for name in names if name not in carried]:
        raise UsageError(
            f"a rule looks at the column {missing[0]!r} of the table, and these candidates carry "
            f"{', '.join(carried) or 'none'}: open_stream(columns={[*names]})"
        )
    return {} if stage.columns_m is None else {name: stage.columns_m[name] for name in names}


def fields_of(candidates: Candidates) -> Fields:
    """The samples (B, ...) as they were decoded. Raises UsageError where nothing is."""
    if candidates.fields is None:
        raise UsageError("these candidates carry nothing decoded, and this rule or option looks at it")
    return candidates.fields


def pack(columns: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, tuple[torch.dtype, torch.Size]]]:
    """Tensors of one device as one of bytes, uint8, and what `unpack` has to know of them.

    Each keeps its type: an integer that travels as a float is another one beyond 2^24.
    """
    wide_first = sorted(columns.items(), key=lambda item: -item[1].element_size())  # so that each lies aligned
    data = torch.cat([column.contiguous().reshape(-1).view(torch.uint8) for _, column in wide_first])
    return data, {name: (column.dtype, column.shape) for name, column in wide_first}


def unpack(data: Tensor, layout: Mapping[str, tuple[torch.dtype, torch.Size]]) -> dict[str, npt.NDArray[Any]]:
    """The columns that were packed, on the host; this is where the host waits for the device."""
    columns, start, host = {}, 0, data.cpu()
    for name, (dtype, shape) in layout.items():
        size = shape.numel() * dtype.itemsize
        columns[name] = host[start : start + size].view(dtype).view(shape).numpy()
        start += size
    return columns


def scatter(rows: Rows, values_m: npt.NDArray[Any], size: int) -> Float32:
    """(size, ...) float32: the values (m, ...) at their rows, NaN elsewhere."""
    values_B = np.full((size, *values_m.shape[1:]), np.nan, np.float32)
    values_B[rows] = values_m
    return values_B


class Columns:
    """What the log says of a buffer's rows, (B,) each, filled as the choice goes on; not a candidate, not touched."""

    def __init__(self, candidates: Candidates, left: Reason) -> None:
        """`left`: the reason of a candidate of which nothing more will be known."""
        size = len(candidates)
        self.loss, self.score = np.full(size, np.nan, np.float32), np.full(size, np.nan, np.float32)
        self.correct, self.kept = np.zeros(size, bool), np.zeros(size, bool)
        self.reason, self.weight = candidates.reason.copy(), np.ones(size, np.float32)
        self.reason[candidates.reason == CANDIDATE] = left
        self.rows = np.zeros(0, np.int64)
        self.il: Float32 | None = None

    def scored(self, rows: Rows, host: Mapping[str, npt.NDArray[Any]], il_B: Float32) -> None:
        """These rows reached the target, and their forward gave `loss`, `score`, `correct` and perhaps a live `il`."""
        loss, score, il = host["loss"], host["score"], host.get("il", il_B[rows])
        finite_loss, finite_score = np.isfinite(loss), np.isfinite(score)
        self.correct[rows] = host["correct"]
        self.reason[rows] = np.where(finite_loss & (finite_score | ~np.isfinite(il)), Reason.below, Reason.nonfinite)
        # An infinite loss must not look like one that was never computed, nor reach the log as a number.
        self.loss[rows], self.score[rows] = np.where(finite_loss, loss, np.nan), np.where(finite_score, score, np.nan)
        if "il" in host:
            self.il = np.full(len(il_B), np.nan, np.float32)
            self.il[rows] = il

    def keep(self, rows: Rows, weight: npt.NDArray[np.float64] | float = 1.0) -> None:
        """These rows are kept, with the factors of their losses."""
        self.rows = rows
        self.kept[rows], self.reason[rows], self.weight[rows] = True, Reason.kept, weight


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
    input: Input | None  # (n, C, H, W) float32: what this rank trains on, at full size; None when no rank kept any
    label: Tensor  # (n,)
    target: Target  # (n, ...) what the loss is called with beside the model's output: `label`, or what the kind says
    factors: Tensor | None = None  # (n,) float32: the weights of the losses where they aren't all 1
    place: Rows | None = None  # (n,) rows of the inputs in the buffer of all ranks
    il_tokens: Tensor | None = None  # (n, T) float16 nats, of language where the stream was asked for them
    total: int = 0  # samples that all ranks together kept
    draws: int = 0  # what the sum of their losses is divided by: `total`, or the draws of importance sampling
    scored: int = 0  # forwards of a sample through the target: K for one that was scored by K dropout draws
    shortlisted: int = 0  # samples that went through the cheaper forward before it
    reread: int = 0  # samples that were decoded again, at full size or augmented
    live_scored: int = 0  # samples that went through the live IL model
    live_trained: int = 0  # samples through its forward and backward, counted on the first rank
    il: Float32 | None = None  # (B,) of the live IL model, NaN where it made no forward
    shadow: ShadowScores | None = None
    ranks: int = 1  # that the choice was made over
    decoded: Fields | None = None  # (n, ...) each, of a kind with several fields
    field: str = "pixels"  # the name of the field of a kind that has one
    reduced: str | None = None  # what reduces the gradients over them: "mean" or "sum"
    share: tuple[float | None, tuple[float, ...]] = (
        None,
        (),
    )  # `--ratio auto`'s, and what each was worth
    recall: float | None = None  # of a shortlist of old scores, where it was looked at: of 1
    first: int = 0  # the number of `input`'s first row among those of all ranks
    most_updates: int | None = None  # more would leave batch norm a single row; None: as many as there are samples
    position: Tensor | None = None  # of one of `parts`: (n,) int64, its rows among those of the whole

    def __len__(self) -> int:
        """Samples that this rank trains on."""
        return len(self.label)

    def __repr__(self) -> str:
        inputs = "no inputs" if self.input is None else array_in_words(self.input)
        of = "" if self.ranks == 1 else f" ({self.total} over {self.ranks} ranks)"
        return f"<Selection: {len(self)} kept{of} of {len(self.kept)}, {self.scored} scored, {inputs}>"

    @property
    def inputs(self) -> Input | None:
        """What the model is called with, (n, ...): `input`, of a kind with one field."""
        return self.input

    @property
    def fields(self) -> dict[str, Tensor | None]:
        """The kept samples' fields by name, (n, ...) each, and `label`; of a kind with one field that is `input`."""
        if self.decoded is not None:
            return {**dict(self.decoded.items()), "label": self.label}
        assert not isinstance(self.input, Fields)  # which are decoded
        return {self.field: self.input, "label": self.label}

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

    def parts(self, size: int) -> list[Selection]:
        """What was kept as several batches, one for each of as many updates: at most `size` samples of all ranks each.

        Sample p of those kept, in the buffer's order, is in part p mod the number of parts: as many on every rank, and
        of equal size but for one sample. Each has its own `input`, `target`, `label`, `place`, `factors` and `mean`;
        `position` says which rows of this one they are, so that `losses[part.position] = loss_b` puts losses back for
        `run.step`. The (B,) columns stay the buffer's. Fewer and larger parts where batch norm would have to learn from
        one row. Raises UsageError for a size below 1.
        """
        number = number_of_updates(self.total, size, self.most_updates)
        return [self._part(update, number) for update in range(number)]

    def _part(self, update: int, number: int) -> Selection:
        n, device = len(self), self.label.device
        if number == 1:
            return replace(self, position=torch.arange(n, device=device))
        start = first_row(update, number, self.first)
        row, samples = torch.arange(min(start, n), n, number, device=device), samples_of(update, number, self.total)
        factors = None if self.factors is None else self.factors[row]
        if factors is not None and self.draws != self.total:  # a part's share of the draws goes by its samples
            factors = factors * (self.total / max(self.draws, 1))
        return replace(
            self, input=None if self.input is None else self.input[row], label=self.label[row],
            target=self.label[row] if self.target is self.label else self.target[row], factors=factors, position=row,
            place=None if self.place is None else self.place[start::number],
            il_tokens=None if self.il_tokens is None else self.il_tokens[start::number],
            decoded=None if self.decoded is None else self.decoded[row], total=samples, draws=samples,
        )  # fmt: skip

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The (B,) columns that the selection log takes."""
        live = {} if self.il is None else {"il": self.il}
        return {
            "loss": self.loss,
            "score": self.score,
            "correct": self.correct if self.scored else np.full(len(self.correct), -1, np.int8),  # nobody looked
            "kept": self.kept,
            "reason": self.reason,
            "weight": self.weight,
            **live,
        }
