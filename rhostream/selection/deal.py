"""Kept rows are dealt out: whoever read them, each rank trains on n_b / R of them, the remainder by one to the first.

A choice over all ranks leaves the kept rows where they were read, so that one rank holds most of them and another one
or none: it waits, or batch norm dies. Dealt out, in the buffer's order and by one all-to-all, the gradient is the same
and every rank has as much to do. The rank that read a row logs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import Candidates, to_device
from rhostream.samples.fields import Fields, Input, Target, target_of
from rhostream.selection.ranks import Ranks
from rhostream.selection.uniform import Ints as Rows


@dataclass(frozen=True)
class Batch:
    """The kept rows that this rank trains on, (n, ...) each and, but for `place`, on the device."""

    x: Input  # at full size, normalised
    label: Tensor
    target: Target  # what the loss is called with beside the model's output
    weight: npt.NDArray[np.float32]  # factors of the losses
    place: Rows  # row in the buffer of all ranks
    seen: Input  # what a proxy looks at: `x`, or where that was decoded again, what was scored
    seen_target: Target  # what its loss is called with
    il_tokens: Tensor | None = None  # (n, T) float16 nats, of language where the stream was asked for them
    decoded: Fields | None = None  # of a kind with several fields
    field: str = "pixels"  # the name of the first field
    seed: Rows | None = None  # of each row, for a transform of the inputs
    rows_of_rank: tuple[int, ...] = ()  # how many each rank trains on, in their order


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
    x: Input,
    label: Tensor,
    weight: npt.NDArray[np.float32],
    ranks: Ranks,
    *,
    again: Fields | None = None,
    proxy: bool,
    least: int = 1,
    share: Callable[[int, int], list[int]] | None = None,
) -> Batch:
    """This rank's share of what all kept, of which `rows` of its own slice; x (n, ...) is their input at full size.

    Collective over several ranks. `again`: what x was made of, where that isn't what the stream decoded. `proxy`:
    whether one looks at that as well. `share`: of (rows, least) how many each rank gets; by default all get alike.
    """
    viewed = proxy and again is not None
    tokens = None if candidates.host.il_tokens is None else candidates.host.il_tokens[torch.from_numpy(rows)]
    part = candidates.slice_of(ranks.rank, ranks.size)
    names = () if candidates.fields is None else candidates.fields.names
    place, field, several = rows + part.first, next(iter(names), ""), len(names) > 1
    of, several = candidates.target_field, several or bool(candidates.target_field)
    fields = candidates.fields_of(rows) if several or viewed else None  # as they were scored
    decoded = (fields if again is None else again) if several else None
    own_seed = None if candidates.transform is None else candidates.transform.seeds(candidates, rows)
    if ranks.alone:
        seen = candidates.inputs(rows) if viewed else x
        target = target_of(of, decoded, label, x)
        seen_target = target_of(of, fields, label, seen) if viewed else target
        held_by = (len(rows),)
        return Batch(x, label, target, weight, place, seen, seen_target, tokens, decoded, field, own_seed, held_by)
    reader, seed_column = np.full(len(rows), ranks.rank), {} if own_seed is None else {"seed": own_seed}
    kept = ranks.concat_columns({"place": place, "weight": weight, "reader": reader, **seed_column}, part.most)
    held = np.bincount(kept["reader"], minlength=ranks.size).tolist()
    total = len(kept["place"])
    wanted = shares(total, ranks.size, least) if share is None else share(total, least)
    if held != wanted:
        # Pixels travel as the bytes that they were read as, a quarter of what is made of them.
        columns = {"label": label, **prefixed("field ", candidates.fields_of(rows) if again is None else again)}
        if viewed:
            assert fields is not None
            columns |= prefixed("seen ", fields)
        if tokens is not None:
            columns["tokens"] = to_device(tokens, label.device)
        dealt = exchanged(columns, ranks, *overlaps(held, wanted, ranks.rank))
        label, tokens, own_fields = dealt["label"], dealt.get("tokens"), fields_in("field ", dealt)
        decoded, x = own_fields if several else None, candidates.prepare(own_fields)
        fields = fields_in("seen ", dealt) if viewed else own_fields
        seen = candidates.prepare(fields) if viewed else x
    else:
        seen = candidates.inputs(rows) if viewed else x
    start = sum(wanted[: ranks.rank])
    own = slice(start, start + wanted[ranks.rank])
    weight, place, seed = kept["weight"][own], kept["place"][own], kept["seed"][own] if "seed" in kept else None
    target = target_of(of, decoded, label, x)
    seen_target = target_of(of, fields, label, seen) if viewed else target
    return Batch(x, label, target, weight, place, seen, seen_target, tokens, decoded, field, seed, tuple(wanted))


def prefixed(prefix: str, fields: Fields) -> dict[str, Tensor]:
    """The fields as columns that travel beside others."""
    return {prefix + name: array for name, array in fields.items()}


def fields_in(prefix: str, columns: Mapping[str, Tensor]) -> Fields:
    """The inverse of `prefixed`, of columns that came."""
    return Fields({name.removeprefix(prefix): array for name, array in columns.items() if name.startswith(prefix)})


def exchanged(columns: Mapping[str, Tensor], ranks: Ranks, sent: list[int], received: list[int]) -> dict[str, Tensor]:
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
