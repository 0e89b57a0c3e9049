"""A part of an IL table: the rows of one shard in Parquet, its laws and its facts; also the shard's index.

A part's facts stand in its footer: which bytes it describes, and how many samples have which status.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhostream import foreign, storage
from rhostream.errors import TableError
from rhostream.inert import one_line
from rhostream.samples import registry
from rhostream.storage import Identity
from rhostream.tables import parquet
from rhostream.tables.classes import as_json
from rhostream.tables.il.info import IL_TYPES, OK, SCHEMA, VERSION, TableInfo

ENCODINGS = {
    "key": "DELTA_BYTE_ARRAY",
    "ordinal": "DELTA_BINARY_PACKED",
    "members.list.element.offset": "DELTA_BINARY_PACKED",
    "members.list.element.size": "DELTA_BINARY_PACKED",
    "il": "BYTE_STREAM_SPLIT",
}
DICTIONARY = ["members.list.element.ext", "label", "predicted", "status", "error"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PartFacts:
    """The footer of a part: what it is a part of, which bytes it describes, and its laws."""

    fingerprint: str
    kind: str
    shard: str
    shard_size: int
    shard_tag: str
    samples: int
    statuses: dict[str, int]
    members_seen: int
    members_used: int
    members_ignored: int
    bad_fields: dict[str, int] = field(default_factory=dict)  # kept fields that didn't fit their type, as null
    shard_sha256: str = ""  # tells a copy of the shard from another shard of the same size; "" for ranged reads
    il_rows: int = 0
    in_holdout: int = 0
    compression: str = ""  # "gzip": offsets are those of the inflated shard, which can't be read by offset
    content: str = "image"  # the name of the samples' kind
    class_names: dict[int, str] = field(default_factory=dict)  # of labels of this shard, beyond those of the table's
    apart: int = 0  # samples whose members don't lie next to each other, of which no one is usable
    vectors: str = ""  # of pairs, the seal of the shard's file in `vectors/`; "" where there is none
    version: int = VERSION

    def __repr__(self) -> str:
        return (
            f"<facts of a part of {one_line(self.shard)}: {self.samples:,} samples, {self.quarantined:,} quarantined>"
        )

    @property
    def quarantined(self) -> int:
        return self.samples - self.statuses.get(OK, 0)

    @property
    def shard_identity(self) -> Identity:
        return Identity(self.shard_size, self.shard_tag)


def encode_part(table: pa.Table, facts: PartFacts) -> bytes:
    """The bytes of a part, its laws checked first. Raises TableError when they don't hold (a bug, not bad data)."""
    broken = broken_laws(table, facts)
    if not np.array_equal(table["ordinal"], np.arange(table.num_rows)):
        broken.append("ordinals are 0..n-1")
    if broken:
        raise TableError(f"part of shard {facts.shard} breaks its laws: {'; '.join(broken)}; nothing was committed")
    record = as_json(asdict(facts))
    if not facts.vectors:
        del record["vectors"]  # parts of before there were any say nothing of it
    return parquet.encode(table, record, ENCODINGS, DICTIONARY)


def broken_laws(table: pa.Table, facts: PartFacts) -> list[str]:
    """The laws that the rows of a part and its footer break, in words; the rows' order is no law here."""
    statuses = {v["values"]: v["counts"] for v in pc.value_counts(table["status"]).to_pylist()}
    used = int(pc.sum(pc.list_value_length(table["members"])).as_py() or 0)
    has_il = pc.is_valid(table["il"])
    laws = {
        "samples seen = ok + quarantined": facts.samples == table.num_rows == sum(facts.statuses.values()),
        "statuses counted": statuses == {k: v for k, v in facts.statuses.items() if v},
        "members seen = used + ignored": facts.members_seen == used + facts.members_ignored,
        "members used counted": facts.members_used == used,
        "each ordinal once": np.array_equal(np.sort(table["ordinal"]), np.arange(table.num_rows)),
        "il counted": (pc.sum(has_il).as_py() or 0) == facts.il_rows,
        "float16 il is finite": table["il"].type != pa.float16() or not np.isinf(_float32(table["il"])).any(),
        "il is the mean of il_tokens": _is_mean(table),
        "il only where ok": not pc.any(pc.and_(has_il, pc.not_equal(table["status"], OK))).as_py(),
    }
    return [law for law, holds in laws.items() if not holds]


def _is_mean(table: pa.Table) -> bool:
    """Whether the il of rows with losses of tokens is the mean of these, as far as float16 can tell."""
    if "il_tokens" not in table.schema.names or table["il_tokens"].null_count == len(table):
        return True
    tokens = _flat(table["il_tokens"])
    lengths = pc.list_value_length(tokens).fill_null(0).to_numpy(zero_copy_only=False)
    flat, row = tokens.flatten(), np.repeat(np.arange(len(lengths)), lengths)
    counts = flat.is_valid().to_numpy(zero_copy_only=False)  # null: a token that doesn't count
    values, row = flat.to_numpy(zero_copy_only=False).astype(np.float64)[counts], row[counts]
    n = np.bincount(row, minlength=len(lengths))
    il = _flat(table["il"]).fill_null(np.nan).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(row, values, len(lengths)) / n
    # Of a token beyond 65,504 nats a float16 knows no more than that.
    told = (n > 0) & (np.bincount(row, values >= np.finfo(np.float16).max, len(lengths)) == 0)
    return bool(np.isclose(il[told], mean[told], rtol=2e-3, atol=1e-4).all() and np.isfinite(il[lengths > 0]).all())


def read_part_facts(url: str) -> PartFacts:
    """The footer alone. Raises NotFoundError, TableError."""
    return facts_of(parquet.read_facts(url), url)


def footer_beginning(info: TableInfo) -> bytes:
    """How the footers of parts with the table's columns begin; for `read_part_footer`."""
    return parquet.footer_beginning(info.schema, ENCODINGS, DICTIONARY)


def read_part_footer(url: str, beginning: bytes = b"") -> tuple[PartFacts, list[str] | None]:
    """The footer and the names of the part's columns, None where they are those of `beginning`.

    Raises NotFoundError, TableError.
    """
    record, names = parquet.read_footer(url, beginning)
    return facts_of(record, url), names


def facts_of(record: dict[str, Any], url: str) -> PartFacts:
    """The facts of a footer that is at hand. Raises TableError: a newer version, or one that can't be understood."""
    try:
        if int(record.get("version", 0)) > VERSION:
            raise TableError(
                f"{storage.redact(url)} was written by a newer rhostream (part version "
                f"{record['version']}, this one reads up to {VERSION}); upgrade rhostream"
            )
        facts = foreign.checked_facts(PartFacts(**record))
        registry.check_name(facts.content)
        return facts
    except (TypeError, ValueError, AttributeError) as exc:
        raise TableError(f"{storage.redact(url)}: the footer can't be understood: {exc}") from exc


@dataclass(frozen=True, repr=False)
class Part:
    """One part in memory, as the join needs it: arrays of (samples,), those of members (M, samples), indexed by ordinal
    and not to be written to.

    A stream holds one for each of its lanes, so integers stand in the narrowest signed type that holds them all, and
    flags that are all equal take no memory.
    """

    facts: PartFacts
    usable: npt.NDArray[np.bool_]  # status ok and all members there
    label: npt.NDArray[np.signedinteger[Any]]  # -1 where null
    il: npt.NDArray[np.float32]  # nats; NaN where null
    in_holdout: npt.NDArray[np.bool_]
    offset: npt.NDArray[np.signedinteger[Any]]  # (M, samples) of each member of a sample, bytes
    size: npt.NDArray[np.signedinteger[Any]]  # (M, samples)
    key: pa.StringArray
    fold: npt.NDArray[np.int8] | None = None  # -1 where null; only where it was asked for
    il_tokens: pa.ListArray | None = None  # of float16 nats; None unless asked for
    source: npt.NDArray[np.int16] | None = None  # codes of a kept field; None unless asked for
    columns: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # by name, NaN where null

    def __repr__(self) -> str:
        return (
            f"<part of {one_line(self.facts.shard)}: {len(self.usable):,} samples, {int(self.usable.sum()):,} usable>"
        )


def read_part(
    url: str,
    *,
    members: Sequence[Sequence[str]] | None = None,
    with_fold: bool = False,
    tokens: bool = False,
    field: str | None = None,
    codes: Callable[[Any], npt.NDArray[np.int16]] | None = None,
    numbers: Sequence[str] = (),
    data: bytes | None = None,
) -> Part:
    """Load a part, checksums verified; rows stored in another order are put in theirs by ordinal.

    `members`: the extensions of each member of a sample, those of the part's kind unless given; of a user's own kind
    only its table knows them. With `tokens` also the il of each token; with a kept `field` its values, as `codes`
    numbers a column of them. `numbers`: other columns of numbers (`TableInfo.numbers`), as float32. `data`: the
    bytes of the part, where they are at hand.
    """
    asked = [*(["fold"] if with_fold else []), *(["il_tokens"] if tokens else [])]
    columns = ["key", "ordinal", "members", "label", "il", "in_holdout", "status", *asked]
    data = storage.read_bytes(url) if data is None else data
    table, record = parquet.parse(data, url, [*columns, *dict.fromkeys([*([field] if field else []), *numbers])])
    facts = facts_of(record, url)
    table = table.combine_chunks()
    ordinal = table["ordinal"].to_numpy()
    if table.schema.names[: len(columns)] != columns or not all(
        f.type == SCHEMA.field(f.name).type or (f.name == "il" and f.type in IL_TYPES.values())
        for f in table.select(columns).schema
    ):
        raise TableError(f"{storage.redact(url)} has other columns than a part has: it is damaged or forged")
    if table.num_rows != facts.samples:
        raise TableError(f"{storage.redact(url)} has {table.num_rows} rows, its footer says {facts.samples}")
    if not np.array_equal(ordinal, np.arange(len(ordinal))):
        if not np.array_equal(np.sort(ordinal), np.arange(len(ordinal))):
            raise TableError(f"{storage.redact(url)}: ordinals are not 0..{len(ordinal) - 1}, each once")
        table = table.take(np.argsort(ordinal)).combine_chunks()
    members = registry.members_of(facts.content) if members is None else members
    held = _flat(table["members"])
    offset, size = np.zeros((2, len(members), len(held)), np.int64)
    for number, extensions in enumerate(members):
        offset[number], size[number] = _first_members(held, extensions)
    outside = (offset < 0) | (size < 0) | (size > facts.shard_size - offset)
    if outside.any() and not facts.compression:
        raise TableError(
            f"{storage.redact(url)} names bytes outside its shard of {facts.shard_size:,} bytes: it is "
            "damaged or forged"
        )
    ok = pc.equal(_flat(table["status"]), OK).to_numpy(zero_copy_only=False)
    return Part(
        facts=facts,
        usable=_flags(ok & (size > 0).all(0)),
        label=_narrow(_flat(table["label"]).fill_null(-1).to_numpy(zero_copy_only=False)),
        il=_float32(table["il"]),
        in_holdout=_flags(_flat(table["in_holdout"]).fill_null(False).to_numpy(zero_copy_only=False)),
        offset=_narrow(offset),
        size=_narrow(size),
        key=_apart(_flat(table["key"])),
        fold=_flat(table["fold"]).fill_null(-1).to_numpy(zero_copy_only=False).copy() if with_fold else None,
        il_tokens=_flat(table["il_tokens"]) if tokens else None,
        source=codes(_flat(table[field])) if field and codes else None,
        columns={name: _float32(table[name]) for name in numbers},
    )


def _flat(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _float32(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """As float32, NaN where null."""
    return _flat(column).cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False).astype(np.float32)  # type: ignore[no-any-return]


def _narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy in the narrowest signed type that holds every value."""
    bounds = (values.min(), values.max()) if values.size else (0, 0)
    kinds = (np.int8, np.int16, np.int32, np.int64)
    return values.astype(next(k for k in kinds if np.iinfo(k).min <= bounds[0] and bounds[1] <= np.iinfo(k).max))


def _apart(strings: pa.StringArray) -> pa.StringArray:
    """A copy outside Arrow's memory pool, where what stays would hold pages of what was only read."""
    _, ends, data = strings.buffers()
    if strings.offset or strings.null_count or data is None:
        return strings
    return pa.StringArray.from_buffers(len(strings), *(pa.py_buffer(b.to_pybytes()) for b in (ends, data)))


def _flags(values: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A copy that takes one byte when all are equal."""
    equal = len(values) > 0 and bool((values == values[0]).all())
    return np.broadcast_to(values[0].copy(), values.shape) if equal else values.copy()


def _first_members(members: Any, extensions: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offset and size of each row's first member of these extensions; size 0 where there is none."""
    rows = len(members)
    offset, size = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    lengths = pc.list_value_length(members).fill_null(0).to_numpy(zero_copy_only=False)
    flat = members.flatten()
    is_meant = pc.is_in(flat.field("ext"), pa.array(extensions)).to_numpy(zero_copy_only=False)
    meant = np.flatnonzero(is_meant)[::-1]  # the first one wins: it is written last
    row = np.repeat(np.arange(rows), lengths)[meant]
    offset[row] = flat.field("offset").to_numpy(zero_copy_only=False)[meant]
    size[row] = flat.field("size").to_numpy(zero_copy_only=False)[meant]
    return offset, size
