"""One part, proved: every byte, its footer, its laws, and whether it stands where it should."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhostream import storage
from rhostream.errors import RhostreamError, TableError
from rhostream.tables import il, parquet
from rhostream.tables.vectors import prove_vectors

# What is wrong with a part or a shard; all but the last five are made again from the shard by `--repair`.
DAMAGED, STRANGER, CHANGED, MISSING = "damaged", "another fingerprint", "shard changed", "no part"
NEWER, MISPLACED, UNREACHABLE, TWICE = "newer version", "misplaced", "unreachable", "key twice"
CLASSES = "classes numbered otherwise"
# What a footer that somebody made up can make the checks raise.
_FORGED = (
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
    OverflowError,
    MemoryError,
    RecursionError,
    pa.ArrowException,
)
MENDABLE = (DAMAGED, STRANGER, CHANGED, MISSING)


@dataclass(frozen=True)
class Finding:
    """Something wrong: of what kind, with which shard's part, and the sentence that says so."""

    kind: str
    shard: str
    part: str  # URL
    says: str


@dataclass(frozen=True)
class Proof:
    """A part that holds: its footer, and what the checks over all parts need of it."""

    url: str
    facts: il.PartFacts
    sealed: bool
    keys: pa.StringArray  # without those quarantined as duplicates
    missing_il: tuple[int, int]  # usable rows whose il is null, or isn't finite


def prove_all(urls: Sequence[str], table: str, info: il.TableInfo) -> Iterator[Proof | Finding]:
    """Each part in turn; a few are read ahead."""
    threads = il.LOCAL_THREADS if storage.is_local(table) else il.REMOTE_THREADS
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Proof | Finding]] = deque()
        for url in urls:
            ahead.append(pool.submit(prove, url, table, info))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def prove(url: str, table: str, info: il.TableInfo) -> Proof | Finding:
    """Read a part and hold it against its own footer and the table it stands in."""
    shard = il.shard_of_part(table, url)
    try:
        data = storage.read_bytes(url)
        rows, record = parquet.parse(data, url)
        if int(record.get("version", 0)) > il.VERSION:
            return Finding(
                NEWER,
                shard,
                url,
                f"{storage.redact(url)} was written by a newer rhostream (part version "
                f"{record['version']}, this one reads up to {il.VERSION})",
            )
        return _held(url, table, info, rows, il.facts_of(record, url), parquet.is_sealed(data))
    except TableError as exc:
        return Finding(DAMAGED, shard, url, str(exc))
    except _FORGED as exc:
        return Finding(
            DAMAGED,
            shard,
            url,
            f"{storage.redact(url)} can't be understood ({type(exc).__name__}): it is damaged or forged",
        )
    except RhostreamError as exc:
        return Finding(UNREACHABLE, shard, url, str(exc))


def _held(
    url: str, table: str, info: il.TableInfo, rows: pa.Table, facts: il.PartFacts, sealed: bool
) -> Proof | Finding:
    shard, shown = il.shard_of_part(table, url), storage.redact(url)
    if facts.fingerprint != info.fingerprint or facts.kind != info.kind:
        return Finding(
            STRANGER,
            shard,
            url,
            f"{shown} is of another making: fingerprint {facts.fingerprint} "
            f"({facts.kind}) != {info.fingerprint} ({info.kind}) of its table",
        )
    if not _same_columns(rows.schema, info.schema):
        return Finding(DAMAGED, shard, url, f"{shown}: its columns are not those of its table")
    if url != il.part_url(table, facts.shard):
        return Finding(MISPLACED, facts.shard, url, f"{shown} is the part of another shard ({facts.shard})")
    rows = rows.combine_chunks()
    if broken := il.broken_laws(rows, facts) + il.broken_terms(rows, info):
        return Finding(DAMAGED, shard, url, f"{shown} breaks its laws: {'; '.join(broken)}")
    if facts.vectors:
        prove_vectors(table, facts, _flat(rows["il"]).is_valid().take(pc.sort_indices(rows["ordinal"])).to_numpy(False))
    keys, missing = _flat(rows["key"]), (0, 0)
    if facts.statuses.get("dup"):
        keys = keys.filter(pc.not_equal(_flat(rows["status"]), "dup"))
    if info.kind == "il":
        values = _flat(rows["il"])
        usable = facts.statuses.get(il.OK, 0)
        finite = int(np.isfinite(values.cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False)).sum())
        missing = usable - facts.il_rows, facts.il_rows - finite
    return Proof(url, facts, sealed, keys, missing)


def _same_columns(there: pa.Schema, expected: pa.Schema) -> bool:
    """Whether both have the same columns of the same types; in which order is no part of what a table is."""
    names = sorted(expected.names)
    return sorted(there.names) == names and all(there.field(name).equals(expected.field(name)) for name in names)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
