"""What a worker sends of a buffer, and the candidates that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from rhostream.candidates import Candidates, Slice
from rhostream.errors import RhostreamError
from rhostream.samples.fields import Fields
from rhostream.samples.kind import Kind
from rhostream.stream.join import Joined
from rhostream.stream.sources import Sources

VECTORS = "vectors of the reference"  # what of a slot is no field of the samples; no field has such a name


@dataclass(frozen=True)
class Message:
    """A filled slot and the joined rows, or the error that stopped the worker."""

    pass_index: int
    index: int
    slot: int
    joined: Joined | None
    error: RhostreamError | None = None
    retried: dict[str, dict[str, int]] = field(default_factory=dict)  # as `storage.retried`, of a worker's share

    def candidates(
        self,
        slots: Mapping[str, Tensor] | None,
        kind: Kind,
        names: pa.StringArray,
        sources: Sources | None,
        part: Slice,
    ) -> Candidates:
        """The candidates of the slot, `part` of a buffer; without any fields, and no part of one, for None."""
        joined = self.joined
        assert joined is not None
        held = {name: array[self.slot] for name, array in (slots or {}).items()}
        reference = held.pop(VECTORS, None)
        columns = {name: torch.from_numpy(column) for name, column in joined.columns.items()}
        return Candidates(
            pass_index=self.pass_index,
            index=self.index,
            shard=joined.rows.shard,
            ordinal=joined.rows.ordinal,
            key=joined.key,
            label=torch.from_numpy(joined.label),
            il=torch.from_numpy(joined.il),
            reason=joined.reason,
            fields=Fields(held) if slots is not None else None,
            slice=None if slots is None else part,
            prepare=kind.inputs,
            target_field=kind.target,
            shard_names=names,
            fold=joined.fold,
            il_tokens=None if joined.il_tokens is None else torch.from_numpy(joined.il_tokens),
            source=joined.source,
            source_names=None if sources is None else sources.names,
            columns=Fields(columns) if columns else None,
            reference=reference,
        )
