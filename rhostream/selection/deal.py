"""Kept rows are dealt out: whoever read them, each rank trains on n_b / R of them, the remainder by one to the first.

A choice over all ranks leaves the kept rows where they were read, so that one rank holds most of them and another one
or none: it waits, or batch norm dies. Dealt out, in the buffer's order and by one all-to-all, the gradient is the same
and every rank has as much to do. The rank that read a row logs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import Candidates, to_device
from rhostream.samples.fields import Fields, target_of
from rhostream.selection.ranks import Ranks
from rhostream.selection.uniform import Ints as Rows


@dataclass(frozen=True)
class Batch:
    """The kept rows that this rank trains on, (n, ...) each and, but for `place`, on the device."""

    x: Tensor  # at full size, normalised
    label: Tensor
    target: Tensor  # what the loss is called with beside the model's output
    weight: npt.NDArray[np.float32]  # factors of the losses
    place: Rows  # row in the buffer of all ranks
    seen: Tensor  # what a proxy looks at: `x`, or the cheap view where there is one
    il_tokens: Tensor | None = None  # (n, T) float16 nats, of language where the stream was asked for them
    decoded: Fields | None = None  # of a kind with several fields
    field: str = "pixels"  # the name of the first field


def shares(total: int, ranks: int, least: int = 1) -> list[int]:
    """Rows of each rank: as equal as can be, the larger shares first, and none below `least` but 0."""
    sharing = max(1, min(ranks, total // least))
    each, left = divmod(total, sharing)
    return [each + (rank < left) if rank < sharing else 0 for rank in range(ranks)]


def overlaps(held: Sequence[int], wanted: Sequence[int], rank: int) -> tuple[list[int], list[int]]:
    """How many rows go from this rank to each, and come from each, where the order of all rows stays as it is."""
    a, b = (np.concatenate([[0], np.cumsum(counts)]) for counts in (held, wanted))

    def shared(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> list[int]:
        low, high = np.maximum(one[rank], other[:-1]), np.minimum(one[rank + 1], other[1:])
        return [int(n) for n in np.maximum(high - low, 0)]

    return shared(a, b), shared(b, a)


def batch_of(
    candidates: Candidates,
    rows: Rows,
    x: Tensor,
    label: Tensor,
    weight: npt.NDArray[np.float32],
    ranks: Ranks,
    *,
    proxy: bool,
    least: int = 1,
) -> Batch:
    """This rank's share of what all kept, of which `rows` of its own slice; x (n, ...) is their input at full size.

    Collective over several ranks. `proxy`: whether one looks at the cheap view as well.
    """
    viewed = proxy and candidates.full is not None
    tokens = None if candidates.host.il_tokens is None else candidates.host.il_tokens[torch.from_numpy(rows)]
    part = candidates.slice_of(ranks.rank, ranks.size)
    names = () if candidates.fields is None else candidates.fields.names
    place, field, several = rows + part.first, next(iter(names), ""), len(names) > 1
    of, several = candidates.target_field, several or bool(candidates.target_field)
    decoded = candidates.fields_of(rows) if several else None
    if ranks.alone:
        small = candidates.inputs(rows) if viewed else x
        return Batch(x, label, target_of(of, decoded, label, x), weight, place, small, tokens, decoded, field)
    reader = np.full(len(rows), ranks.rank)
    kept = ranks.concat_columns({"place": place, "weight": weight, "reader": reader}, part.most)
    held = np.bincount(kept["reader"], minlength=ranks.size).tolist()
    wanted = shares(len(kept["place"]), ranks.size, least)
    if held != wanted:
        columns = {"label": label}
        # Pixels travel as the bytes that they were read as, a quarter of what is made of them.
        if candidates.full is not None:
            columns["x"] = x
        if candidates.full is None or viewed:
            columns |= {f"field {name}": array for name, array in candidates.fields_of(rows).items()}
        if tokens is not None:
            columns["tokens"] = to_device(tokens, label.device)
        dealt = _dealt(columns, ranks, *overlaps(held, wanted, ranks.rank))
        label, tokens = dealt["label"], dealt.get("tokens")
        fields = Fields(
            {name.removeprefix("field "): array for name, array in dealt.items() if name.startswith("field ")}
        )
        decoded, seen = fields if several else None, candidates.prepare(fields) if fields.names else None
        x = dealt["x"].contiguous(memory_format=_layout(x)) if candidates.full is not None or seen is None else seen
    else:
        seen = candidates.inputs(rows) if viewed else x
    start = sum(wanted[: ranks.rank])
    own = slice(start, start + wanted[ranks.rank])
    target, seen_or_x = target_of(of, decoded, label, x), x if seen is None else seen
    return Batch(x, label, target, kept["weight"][own], kept["place"][own], seen_or_x, tokens, decoded, field)


def _dealt(columns: Mapping[str, Tensor], ranks: Ranks, sent: list[int], received: list[int]) -> dict[str, Tensor]:
    """The columns (m, ...) by one exchange, their rows laid side by side as bytes."""
    parts = [
        column.reshape(len(column), math.prod(column.shape[1:])).contiguous().view(torch.uint8)
        for column in columns.values()
    ]
    arrived = ranks.exchange(torch.cat(parts, 1), sent, received)
    dealt = {}
    for (name, column), part in zip(columns.items(), arrived.split([p.shape[1] for p in parts], 1), strict=True):
        # A copy: of one row a slice counts as contiguous, with the stride of the row that it was cut from.
        own = part.clone(memory_format=torch.contiguous_format).view(column.dtype)
        dealt[name] = own.reshape(len(arrived), *column.shape[1:])
    return dealt


def _layout(x: Tensor) -> torch.memory_format:
    last = x.ndim == 4 and x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
