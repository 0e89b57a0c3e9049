"""What a scan is asked for and what it says: settings, chunks of rows, and the accounts at the end of each shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream.errors import RhostreamError
from rhostream.samples.fields import Fields
from rhostream.samples.kind import FieldSpec, Kind
from rhostream.samples.registry import IMAGES
from rhostream.storage import Identity
from rhostream.stream.label_from import LabelFrom

CHUNK = 512
CHUNK_BYTES = 32 << 20
Mark = Callable[[str, str, str | None], int]


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """What to read of each sample; picklable, because it goes to the workers."""

    kind: Kind = IMAGES  # what samples are
    decodes: bool = True  # else samples are examined only, as they are where their fields aren't decided
    label: LabelFrom = field(default_factory=LabelFrom)  # where labels stand
    classes: int | None = None  # labels beyond it are label:range; negative ones always are
    keep: dict[str, str] = field(default_factory=dict)  # field of the json -> bool | int | float | str
    group_by: str | None = None
    mark: Mark | None = None  # (shard name, key, group or None) to a small integer that comes with the row
    # only rows that may be of a uniform sample of so many usable ones, of those whose mark isn't negative; see `lowest`
    quota: int | None = None
    seed: int = 0  # of that sample
    watch: str | None = None  # count the samples whose json has a value here (a cheap look, nothing more)
    allow_compressed: bool = False  # inflate gzip shards into the spool; see `inflate`
    wanted: Callable[[str], bool] | None = None  # asked of a shard's name right before it is opened
    unlabelled: bool = False  # a sample without a label has the label 0; always so of language
    accept_missing_eof: bool = False  # take an archive without an end marker for whole; see `tar`

    @property
    def needs_labels(self) -> bool:
        """Whether a sample without a label can't be used; language is its own."""
        return not self.unlabelled and self.kind.needs_label

    @property
    def fields(self) -> Mapping[str, FieldSpec]:
        """What is decoded of each sample."""
        return self.kind.fields() if self.decodes else {}

    @property
    def chunk(self) -> int:
        """Rows in a message: a function of a sample's bytes alone, so that results are too."""
        held = sum(spec.nbytes for spec in self.fields.values())
        return max(16, min(CHUNK, CHUNK_BYTES // max(held, 1)))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Up to `ScanSettings.chunk` rows of one shard, in the order of the shard.

    `rows` has the columns key, members, label (int32, null unless valid), status, error and the kept fields.
    """

    shard: int  # index into the list of shards
    ordinal: npt.NDArray[np.int32]  # (n,)
    label: npt.NDArray[np.int64]  # (n,) -1 where null
    ok: npt.NDArray[np.bool_]  # (n,) status is "ok"
    mark: npt.NDArray[np.int64]  # (n,) 0 without `ScanSettings.mark`
    rows: pa.RecordBatch
    class_names: tuple[tuple[int, str], ...] = ()  # (label, name) pairs that no chunk before it said
    number: npt.NDArray[np.float64] | None = None  # (n,) with `ScanSettings.quota`: the sample is the lowest ones
    slot: int = -1
    # (n, ...) each, valid until the next message; meaningless where not ok; none where nothing was decoded
    fields: Fields = field(default_factory=lambda: Fields({}))

    def __len__(self) -> int:
        return len(self.ordinal)


@dataclass(frozen=True, kw_only=True)
class End:
    """A shard is over: its accounts, or the error that ended it."""

    shard: int
    identity: Identity = field(default_factory=lambda: Identity(0, ""))
    sha256: str = ""  # of the shard's bytes
    samples_seen: int = 0
    members_seen: int = 0
    members_used: int = 0
    members_ignored: int = 0
    bad_fields: dict[str, int] = field(default_factory=dict)
    watched: int = 0
    labels: dict[int, int] = field(default_factory=dict)  # with `ScanSettings.quota`: of all samples, drawn or not
    class_names: tuple[tuple[int, str], ...] = ()  # (label, name) pairs of the shard
    several_images: int = 0  # samples that have more than one
    compression: str = ""  # "gzip": offsets are those of the inflated bytes
    notes: dict[str, str] = field(default_factory=dict)  # kind -> what is odd about the shard, in a sentence
    # what the shard's maker should have done, by its kind, in a sentence; see `advice`
    advice: dict[str, str] = field(default_factory=dict)
    apart: int = 0  # samples whose members lie apart
    retried: dict[str, dict[str, int]] = field(default_factory=dict)  # as `storage.retried`, of a worker's share
    skipped: bool = False  # not read, as `ScanSettings.wanted` said no
    error: RhostreamError | None = None
    again: bool = False  # its worker died, or one beside it: what it has given is dropped, it is read anew
