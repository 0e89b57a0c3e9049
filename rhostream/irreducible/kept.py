"""More kept fields for a table that is there: a new table with the il of the old one, and nothing scored again.

    old part > is the shard still the one that was indexed? > its .json members by offset > the columns > a new part

Parts are made once and never again, so the fields go into a table of their own; the old one stays as it is. The new
table has the fingerprint of the old one, so a run that was begun with the old one goes on with the new one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, MismatchError, RhostreamError, UsageError
from rhostream.irreducible.accounts import Summary, store
from rhostream.irreducible.asked import named
from rhostream.irreducible.share import parse_index
from rhostream.samples.json_member import BadSample, parse_json
from rhostream.signals import StopRequest
from rhostream.storage import Reader, redact
from rhostream.stream import examine
from rhostream.stream.budget import Budget
from rhostream.stream.labels_named import LabelsNamed
from rhostream.tables import il, parquet
from rhostream.tables.classes import ClassNames
from rhostream.tables.il import PartFacts, TableInfo
from rhostream.tables.names import checked_roots
from rhostream.tables.vectors_writer import copy_vectors

LOG = logging.getLogger("rhostream")


def keep_fields(
    shards: Iterable[str],
    table: str,
    out: str,
    keep: Mapping[str, str],
    *,
    roots: Mapping[str, str] | None = None,
    index: str | None = None,
    max_bad_shards: float = 0.1,
    fail_fast: bool = False,
) -> Summary:
    """Write the table `out`: that of `table` (il or index) with the fields `keep` of the samples' json besides.

    `keep`: {field: bool | int | float | str}; a field that is kept already is read again. Every row and its il are
    copied by ordinal; of the shards only the json is read, of shards that have not changed. A json that can't be parsed
    gives null and is counted among `bad_fields`, as is a value that doesn't fit. `index` "I/N" as in `compute_il`. Run
    again, it makes only what is missing. A shard without a part, or that changed, is in `Summary.bad_shards`.

    Raises UsageError, MismatchError (an `out` of another making), BudgetError (too many bad shards), Interrupted.
    """
    began, table, out = time.monotonic(), storage.resolve(table), storage.resolve(out)
    own, machines = parse_index(index)
    there = il.open_info(table)
    if not keep or table == out:
        raise UsageError(
            "name the fields to keep with --keep FIELD:TYPE"
            if not keep
            else f"{redact(table)} stays as it is: write the table with more fields to another --out"
        )
    info = replace(there, keep={**there.keep, **il.checked_keep(keep)})
    listed = named(shards, il.roots_today(table, there, checked_roots(roots)))
    mine = {name for _, name in sorted(listed, key=lambda shard: shard[1])[own::machines]}
    listed = [shard for shard in listed if shard[1] in mine]
    storage.probe_writable(out)
    info = il.make_or_match(out, info)
    summary, budget = Summary(shards=len(listed)), Budget(shards=max_bad_shards)
    work = partial(_part, table=table, out=out, info=info, fields=dict(keep))
    threads = il.LOCAL_THREADS if storage.is_local(table) else il.REMOTE_THREADS
    with StopRequest("compute-il") as stop, ThreadPoolExecutor(threads) as pool:
        for (_, name), found in zip(listed, stop.while_waiting(pool.map(work, listed)), strict=False):
            if isinstance(found, RhostreamError):
                if fail_fast:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise found
                summary.bad_shards[name] = str(found)
                budget.check_shards(summary.bad_shards, len(listed))
                continue
            facts, made = found
            summary.add(facts)
            summary.made += made
            summary.present += not made
        if stop.signal:
            pool.shutdown(wait=False, cancel_futures=True)
        stop.raise_if_asked(f"{summary.made + summary.present:,} of {len(listed):,} parts are there")
    summary.seconds = time.monotonic() - began
    for name, why in sorted(summary.bad_shards.items()):
        LOG.error("no part for %s: %s", redact(name), why)
    summary.require_laws()
    store(out, "keep", index and f"{own}/{machines}", summary)
    LOG.info("keep: %s", summary.says())
    return summary


def _part(
    shard: tuple[str, str], *, table: str, out: str, info: TableInfo, fields: Mapping[str, str]
) -> tuple[PartFacts, bool] | RhostreamError:
    """The facts of a shard's new part and whether it was made now, or why there is none."""
    url, name = shard
    target = il.part_url(out, name)
    try:
        if storage.exists(target):
            facts = il.read_part_facts(target)
            if facts.fingerprint != info.fingerprint:
                raise MismatchError(
                    f"{redact(target)} has fingerprint {facts.fingerprint}, its table has "
                    f"{info.fingerprint}: `rhostream verify --repair` makes it again"
                )
            il.require_unchanged(url, name, facts)
            return facts, False
        rows, record = parquet.read(il.part_url(table, name))
        facts = il.facts_of(record, il.part_url(table, name))
        rows, facts = _with_fields(rows, facts, url, name, info, fields)
        data = il.encode_part(rows, facts)
        copy_vectors(table, out, facts)
        crash_point("keep: part encoded")
        try:
            storage.create(target, data)
        except AlreadyExistsError:  # another job's, of the same bytes
            return il.read_part_facts(target), False
        crash_point("keep: part committed")
        return facts, True
    except RhostreamError as exc:
        return exc


def _with_fields(
    rows: pa.Table, facts: PartFacts, url: str, name: str, info: TableInfo, fields: Mapping[str, str]
) -> tuple[pa.Table, PartFacts]:
    if facts.compression:
        raise MismatchError(
            f"shard {name} is gzip-compressed, so its json can't be read by offset: decompress it, or "
            "make the table anew"
        )
    rows = rows.sort_by("ordinal")
    with storage.open_reader(url) as reader:
        _require_same(reader, url, name, facts)
        found, broken = _json_of(rows, reader)
        if not reader.unchanged():
            raise MismatchError(f"shard {name} changed while it was read; run again")
    facts = _with_names(rows, facts, found, name, info)
    columns, bad = dict(zip(rows.column_names, rows.columns, strict=True)), dict(facts.bad_fields)
    for field, kind in fields.items():
        values, misfits = examine.fit_column([one.get(field) for one in found], kind)
        columns[field], bad[field] = pa.array(values, il.KEEP_TYPES[kind]), misfits + broken
    schema = info.schema
    bad = {field: count for field, count in bad.items() if count}
    return pa.table({f.name: columns[f.name] for f in schema}, schema=schema), replace(facts, bad_fields=bad)


def _with_names(
    rows: pa.Table, facts: PartFacts, found: list[dict[str, Any]], shard: str, info: TableInfo
) -> PartFacts:
    """The facts with the names of classes, which a table that was made before these were asked for lacks."""
    labels = [-1 if label is None else label for label in rows["label"].to_pylist()]
    known = ClassNames({**info.class_names, **facts.class_names})
    known.add(sorted(LabelsNamed().of_fields(labels, found)), f"shard {shard}")
    names = {label: name for label, name in sorted(known.names.items()) if label not in info.class_names}
    return replace(facts, class_names=names)


def _require_same(reader: Reader, url: str, name: str, facts: PartFacts) -> None:
    """Raise MismatchError unless the shard is the one that was indexed: unchanged, or a copy of the same bytes."""
    if storage.identity(url) == facts.shard_identity:
        return
    il.require_unchanged(url, name, facts)
    if not il.same_bytes(reader, name, facts):
        raise MismatchError(
            f"shard {name} isn't known to be the one that was indexed (no sha256 was recorded or can "
            f"be taken): {il.RESCORE}"
        )


def _json_of(rows: pa.Table, reader: Reader) -> tuple[list[dict[str, Any]], int]:
    """Each row's json fields, {} without a json, and how many can't be parsed. That of a repeated key isn't read."""
    found, broken = list[dict[str, Any]](), 0
    for members, status in zip(rows["members"].to_pylist(), rows["status"].to_pylist(), strict=True):
        member = next((m for m in members or () if m["ext"] == "json"), None)
        try:
            if member is None or status == "dup":
                found.append({})
                continue
            found.append(parse_json(examine.read_json(member["size"], member["offset"], reader)))
        except BadSample:
            found.append({})
            broken += status == il.OK  # the row of another says so itself
    return found, broken
