"""Some samples of shards, examined and decoded as `compute-il` would: how many of which class, what is bad, and fields
for a cross-fit. Reading ends with the samples or the seconds that were asked for, and says what it saw.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rhostream.errors import RhostreamError
from rhostream.inert import one_line
from rhostream.randomness import generator
from rhostream.samples.fields import Fields
from rhostream.samples.kind import OK, Kind
from rhostream.signals import stop_if_asked
from rhostream.storage import redact
from rhostream.stream.label_from import LabelFrom
from rhostream.stream.scan import Chunk, ScanSettings, scan

SHARDS = 16  # looked into, at most
FIRST = 3  # examples of each status


@dataclass(kw_only=True)
class Sampled:
    """What was seen. `fields` (n, ...) and `label` (n,) are those of usable samples, `key` their shard and key."""

    fields: Fields
    label: Tensor
    key: list[tuple[str, str]]
    looked: int = 0  # samples
    whole: bool = True  # every sample of every shard was looked at
    shards: int = 0
    bytes: int = 0  # of shards, that these samples lie in
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)  # examples of each status that isn't ok
    labels: Counter[int] = field(default_factory=Counter)
    names: dict[int, str] = field(default_factory=dict)  # of labels
    extensions: Counter[str] = field(default_factory=Counter)  # members of all samples, by ending
    failed: dict[str, str] = field(default_factory=dict)  # shard -> why it can't be read

    @property
    def bad(self) -> int:
        """Samples that can't be used."""
        return self.statuses.total() - self.statuses[OK]


def sample(
    shards: Sequence[tuple[str, str]], kind: Kind, label: LabelFrom, wanted: int, seconds: float, seed: int,
    *, decodes: bool = True,
) -> Sampled:  # fmt: skip
    """At most `wanted` samples of at most 16 shards ((URL, name) pairs) drawn by `seed`, the first ones of each.

    A shard that can't be read is passed over and named. Without `decodes` samples are only examined.
    """
    rng = generator("init", seed)
    chosen = [shards[i] for i in rng.permutation(len(shards))[:SHARDS].tolist()]
    each = -(-wanted // max(1, len(chosen)))
    settings = ScanSettings(kind=kind, label=label, decodes=decodes, unlabelled=not kind.needs_label)
    specs = kind.fields() if decodes else {}
    parts: dict[str, list[Tensor]] = {name: [] for name in specs}
    labels, seen = list[Tensor](), Sampled(fields=Fields({}), label=torch.empty(0), key=[])
    started = time.monotonic()
    seen.whole = len(chosen) == len(shards)
    for url, name in chosen:
        room = min(each, wanted - len(seen.key))
        if room <= 0 or (seen.looked and time.monotonic() > started + seconds):
            seen.whole = False
            break
        try:
            _shard(seen, (url, name), settings, room, parts, labels, started + seconds)
        except RhostreamError as exc:
            if exc.exit_code == 2:
                raise
            seen.failed[redact(name)] = str(exc)
    seen.seconds = time.monotonic() - started
    seen.fields = Fields({name: torch.cat(rows) for name, rows in parts.items() if rows})
    seen.label = torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64)
    return seen


def _shard(
    seen: Sampled,
    shard: tuple[str, str],
    settings: ScanSettings,
    room: int,
    parts: dict[str, list[Tensor]],
    labels: list[Tensor],
    deadline: float,
) -> None:
    before, end = len(seen.key), 0
    for message in scan([shard], settings):
        stop_if_asked()
        if not isinstance(message, Chunk):
            if message.error is not None:
                raise message.error
            end = message.identity.size
            break
        _rows(seen, shard[1], message, parts, labels, room - (len(seen.key) - before))
        end = max([end, *(m["offset"] + m["size"] for row in message.rows.column("members").to_pylist() for m in row)])
        if len(seen.key) - before >= room or time.monotonic() > deadline:
            seen.whole = False
            break
    seen.shards, seen.bytes = seen.shards + 1, seen.bytes + end


def _rows(
    seen: Sampled, shard: str, chunk: Chunk, parts: dict[str, list[Tensor]], labels: list[Tensor], room: int
) -> None:
    """Count the rows of a chunk, and keep up to `room` of the usable ones."""
    seen.looked += len(chunk)
    seen.names.update(dict(chunk.class_names))
    seen.labels.update(label for label in chunk.label.tolist() if label >= 0)
    columns = chunk.rows.select(["key", "members", "status", "error"]).to_pydict()
    for key, members, status, error in zip(*columns.values(), strict=True):
        seen.statuses[status] += 1
        seen.extensions.update(member["ext"] for member in members)
        if status != OK and len(examples := seen.first.setdefault(status, [])) < FIRST:
            examples.append(one_line(f"{key} ({error})", 160))
    rows = np.flatnonzero(chunk.ok)[:room]
    at = torch.from_numpy(rows)
    for name, kept in parts.items():
        kept.append(chunk.fields[name][at].clone())
    labels.append(torch.from_numpy(chunk.label)[at].clone())
    seen.key += [(shard, columns["key"][row]) for row in rows.tolist()]
