"""Proving a run or a table, and saying how far it is: what `verify` and `status` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.compute as pc

from rhostream import checkpoint, storage
from rhostream.audit.runs import is_table, read_record
from rhostream.errors import RhostreamError, TableError, UsageError
from rhostream.tables import il as il_table
from rhostream.tables import parquet, selections


def verify(folder: str, *, repair: bool = False) -> dict[str, Any]:
    """Prove every committed file; {"kind", "files", "rows", "problems": [...], "duplicate_keys", "removed"}.

    `repair` removes damaged parts of a table, so that compute-il (or index) makes them again.
    """
    folder = storage.resolve(folder)
    return _verify_table(folder, repair) if is_table(folder) else _verify_run(folder)


def _verify_table(table: str, repair: bool) -> dict[str, Any]:
    info = il_table.open_info(table)
    problems: list[str] = []
    removed: list[str] = []
    keys: Counter[str] = Counter()
    rows = 0
    urls = storage.list_files(storage.join(table, "parts"), ".parquet")
    for url in urls:
        try:
            rows += _verify_part(url, table, info, keys)
        except TableError as exc:
            problems.append(str(exc))
            if repair:
                storage.delete(url)
                removed.append(url)
    repeated = sorted(key for key, count in keys.items() if count > 1)
    return {"kind": info.kind, "fingerprint": info.fingerprint, "files": len(urls), "rows": rows, "problems": problems,
            "duplicate_keys": len(repeated), "first_duplicate_keys": repeated[:5], "removed": removed}


def _verify_part(url: str, table: str, info: il_table.TableInfo, keys: Counter[str]) -> int:
    part = il_table.read_part(url)
    rows, _ = parquet.read(url)
    if not rows.schema.equals(info.schema):
        raise TableError(f"{url}: its columns are not those of its table")
    if part.facts.fingerprint != info.fingerprint:
        raise TableError(f"{url}: fingerprint {part.facts.fingerprint} != {info.fingerprint} of its table")
    if il_table.part_url(table, part.facts.shard) != url:
        raise TableError(f"{url} is the part of another shard ({part.facts.shard})")
    statuses = {v["values"]: v["counts"] for v in pc.value_counts(rows["status"]).to_pylist()}
    if statuses != {k: v for k, v in part.facts.statuses.items() if v}:
        raise TableError(f"{url}: statuses {statuses} != {part.facts.statuses} of its footer")
    keys.update(rows["key"].to_pylist())
    return int(rows.num_rows)


def _verify_run(run: str) -> dict[str, Any]:
    read_record(run)
    latest, problems = checkpoint.latest(run), []
    rows = files = 0
    if latest is not None:
        listed = [*latest.log, *latest.steps]
        files = len(listed)
        problems += [str(problem) for problem in selections.damages(run, listed) if problem is not None]
        try:
            checkpoint.load_tensors(run, latest)
        except RhostreamError as exc:
            problems.append(str(exc))
        rows = sum(s["rows"] for s in latest.log)
        if not problems and rows != sum(latest.counts.values()):
            problems.append(f"the log has {rows} rows, the checkpoint counted {sum(latest.counts.values())}")
    return {"kind": "run", "files": files, "rows": rows, "step": latest.step if latest else 0, "problems": problems}


def status_of(folder: str, shards: Iterable[str] = (), roots: Mapping[str, str] | None = None) -> dict[str, Any]:
    """How far a run or a table is, what is quarantined, and what to do next."""
    folder = storage.resolve(folder)
    if is_table(folder):
        return _table_status(folder, list(shards), roots)
    record, latest = read_record(folder), checkpoint.latest(folder)
    last = record["settings"].get("last_step")
    step = latest.step if latest else 0
    complete = bool(latest and latest.complete)
    return {"kind": "run", "rule": record["settings"].get("rule"), "step": step, "of": last, "complete": complete,
            "rows_by_reason": dict(latest.counts) if latest else {}, "attempts": checkpoint.newest_attempt(folder) + 1,
            "next": "nothing: the run is complete" if complete else "run the same train command to go on"}


def _table_status(table: str, shards: list[str], roots: Mapping[str, str] | None) -> dict[str, Any]:
    info = il_table.open_info(table)
    statuses: Counter[str] = Counter()
    urls = storage.list_files(storage.join(table, "parts"), ".parquet")
    damaged = []
    for url in urls:
        try:
            statuses.update(il_table.read_part_facts(url).statuses)
        except (TableError, UsageError) as exc:
            damaged.append(str(exc))
    known = {**info.roots, **(roots or {})}
    missing = [name for name in (il_table.shard_name(s, known) for s in (storage.expand(shards) if shards else []))
               if il_table.part_url(table, name) not in urls]
    todo = "run `rhostream verify --repair`, then the job again" if damaged else (
        "run the same compute-il (or index) command for the missing shards" if missing else "nothing")
    return {"kind": info.kind, "fingerprint": info.fingerprint, "parts": len(urls), "samples": sum(statuses.values()),
            "quarantined": {k: v for k, v in statuses.items() if k != il_table.OK}, "damaged": damaged,
            "missing": len(missing), "first_missing": missing[:5], "next": todo}
