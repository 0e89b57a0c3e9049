"""An IL table, proved: part by part, then all parts together, then against the shards where these are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rhostream import storage
from rhostream.audit.verify.catalogue import CATALOGUE, catalogue_findings
from rhostream.audit.verify.keys import Keys
from rhostream.audit.verify.parts import (
    CHANGED,
    CLASSES,
    MENDABLE,
    MISPLACED,
    MISSING,
    TWICE,
    UNREACHABLE,
    Finding,
    Proof,
    prove_all,
)
from rhostream.errors import MismatchError, RhostreamError, StaleShardError
from rhostream.tables import il, parquet
from rhostream.tables.classes import ClassNames
from rhostream.tables.names import checked_roots

FIRST = 5  # things listed of many


@dataclass
class TableProof:
    """What was found in a table."""

    table: str
    info: il.TableInfo
    files: int = 0
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duplicate_keys: int = 0
    first_duplicate_keys: list[dict[str, Any]] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)  # parts that are another part once more, under another name
    shards: list[str] | None = None  # names of the shards that were given

    @property
    def bad_catalogues(self) -> list[str]:
        """The URLs of catalogues that lie or are damaged."""
        return [f.part for f in self.findings if f.kind == CATALOGUE]

    @property
    def bad(self) -> list[Finding]:
        """What can be made again from its shard."""
        return [f for f in self.findings if f.kind in MENDABLE]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        problems = [f.says for f in self.findings]
        return {
            "kind": self.info.kind,
            "fingerprint": self.info.fingerprint,
            "files": self.files,
            "rows": self.rows,
            "problems": problems,
            "warnings": self.warnings,
            "duplicate_keys": self.duplicate_keys,
            "first_duplicate_keys": self.first_duplicate_keys,
            "bad": [{"shard": f.shard, "part": storage.redact(f.part), "why": f.kind} for f in self.bad],
            "next": self.next,
        }

    @property
    def next(self) -> str:
        """The command that mends it."""
        if not self.findings:
            return "nothing: all is well"
        shown, bad = storage.redact(self.table), len(self.bad)
        shards = "" if self.shards is None else " --shards URL... (the same)"
        if bad or self.copies:
            verb = "re-score" if any(f.kind == CHANGED for f in self.bad) else "make again"
            return f"{verb} {bad} shard{'s'[: bad != 1]}: rhostream verify {shown} --repair{shards}"
        if self.bad_catalogues:
            return f"write its catalogue again: rhostream verify {shown} --repair{shards}"
        if any(f.kind == "newer version" for f in self.findings):
            return "upgrade rhostream: pip install -U rhostream"
        return "see the problems: none of them can be mended from the shards"


def prove_table(table: str, shards: Iterable[str] = (), roots: Mapping[str, str] | None = None) -> TableProof:
    """Prove every part of a (resolved) table, and with `shards` that each has a part of today's bytes.

    In memory: 12 bytes a row up to 64 MiB, then on disk; the parts at hand. Raises UsageError when there is no table,
    TableError when `_table.json` can't be understood.
    """
    info = il.open_info(table)
    proof = TableProof(table, info)
    urls = il.part_urls(table)
    proof.files = len(urls)
    sound: dict[str, il.PartFacts] = {}
    classes = ClassNames(dict(info.class_names))
    missing_il, unsealed, twice = Counter[str](), 0, 0
    with Keys() as keys:
        for number, one in enumerate(prove_all(urls, table, info)):
            if isinstance(one, Finding):
                proof.findings.append(one)
                continue
            proof.rows += one.facts.samples
            sound[one.facts.shard] = one.facts
            try:
                classes.add(one.facts.class_names.items(), f"shard {one.facts.shard}")
            except MismatchError as exc:
                proof.findings.append(Finding(CLASSES, one.facts.shard, one.url, str(exc)))
            unsealed += not one.sealed
            twice += one.facts.statuses.get("dup", 0)
            missing_il.update(_missing(one))
            keys.add(number, one.keys)
        _duplicates(proof, keys, urls)
    _misplaced(proof, sound)
    lying, lacking = catalogue_findings(table, info, sound)
    proof.findings += lying
    proof.warnings += [lacking] if lacking else []
    proof.warnings += il.reference_doubts(info.reference) + il.bank_doubts(table, info)
    if missing_il["rows"]:
        proof.warnings.append(
            f"{missing_il['rows']:,} usable samples of {missing_il['parts']:,} parts have no il that can be used (null "
            f"{missing_il['null']:,}, NaN or infinite {missing_il['nonfinite']:,}): they count as missing, and "
            "--missing-il decides in a run"
        )
    if twice:
        proof.warnings.append(
            f"{twice:,} samples repeat a key of their own shard: the first counts, these are quarantined as dup"
        )
    if unsealed:
        proof.warnings.append(
            f"{unsealed:,} parts were written before parts were sealed: their pages are proved by "
            "checksums, Parquet's own metadata is not"
        )
    listed = storage.listed(shards)
    if listed:
        _against_shards(proof, storage.expand(listed), il.roots_today(table, info, checked_roots(roots)), sound)
    return proof


def _missing(one: Proof) -> dict[str, int]:
    null, nonfinite = one.missing_il
    return {"rows": null + nonfinite, "parts": int(null + nonfinite > 0), "null": null, "nonfinite": nonfinite}


# -- all parts together ----------------------------------------------------------------------------------------------


def _duplicates(proof: TableProof, keys: Keys, urls: list[str]) -> None:
    found = keys.found(FIRST)
    proof.duplicate_keys = found.across
    for one in found.first:
        shards, key = [], ""
        for number in one.numbers:
            own = _keys_of(urls[number])
            at = pc.index(pa.array(keys.hashes(own)), pa.scalar(one.hash, pa.uint64())).as_py()
            if at >= 0 and key in ("", own[at].as_py()):
                key = own[at].as_py()
                shards.append(il.shard_of_part(proof.table, urls[number]))
        if len(shards) > 1:
            proof.first_duplicate_keys.append({"key": key, "shards": shards, "in_shards": one.parts})
    if found.across:
        proof.warnings.append(
            f"{found.across:,} keys stand in several shards: a sample is named by its shard and its "
            "ordinal, so none is mistaken for another"
        )
    if found.alike:
        proof.warnings.append(
            f"{found.alike:,} keys differ from another only in case or in their Unicode form "
            "(NFC, NFD): they are different samples"
        )
    for number in found.within:
        counts = pc.value_counts(_keys_of(urls[number])).flatten()
        repeated = counts[0].filter(pc.greater(counts[1], 1)).to_pylist()
        if repeated:
            shard = il.shard_of_part(proof.table, urls[number])
            says = (
                f"{storage.redact(urls[number])}: {len(repeated):,} keys are twice in shard {shard} and not "
                f"quarantined as dup, first {repeated[0]!r}"
            )
            proof.findings.append(Finding(TWICE, shard, urls[number], says))


def _keys_of(url: str) -> pa.ChunkedArray:
    rows = parquet.read(url, ["key", "status"])[0]
    return rows.filter(pc.not_equal(rows["status"], "dup"))["key"]


def _misplaced(proof: TableProof, sound: Mapping[str, il.PartFacts]) -> None:
    """A part under a wrong name: no matter when it is the right one once more, else two parts claim one shard."""
    kept = []
    for finding in proof.findings:
        if finding.kind == MISPLACED and (right := sound.get(finding.shard)) is not None:
            proof.copies.append(finding.part)
            if il.read_part_facts(finding.part) == right:
                proof.warnings.append(
                    f"{finding.says}; that shard's own part says the same: this copy is ignored, "
                    "and --repair removes it"
                )
                continue
            says = f"{finding.says}: two parts claim that shard, and they differ; --repair removes this one"
            finding = Finding(MISPLACED, finding.shard, finding.part, says)
        kept.append(finding)
    proof.findings = kept


# -- against the shards ----------------------------------------------------------------------------------------------


def _against_shards(
    proof: TableProof, shards: list[str], roots: Mapping[str, str], sound: Mapping[str, il.PartFacts]
) -> None:
    names = il.named_shards(shards, roots)
    proof.shards = list(names)
    stale = [name for name in sound if name not in names]
    if stale:
        proof.warnings.append(
            f"{len(stale):,} parts are of shards that are not in the list, and are ignored: {_first(stale)}"
        )
    broken = {f.shard for f in proof.findings}
    missing = [name for name in names if name not in sound and name not in broken]
    compared = [name for name in names if name in sound]
    with ThreadPoolExecutor(il.LOCAL_THREADS if storage.is_local(shards[0]) else il.REMOTE_THREADS) as pool:
        there = list(pool.map(lambda name: storage.exists(names[name]), missing))
        found = list(pool.map(lambda name: _compare(names[name], name, sound[name]), compared))
    proof.findings += [
        Finding(
            MISSING,
            name,
            il.part_url(proof.table, name),
            f"shard {name} has no part"
            if known
            else f"no such shard, and no part of it: {storage.redact(names[name])}",
        )
        for name, known in zip(missing, there, strict=True)
    ]
    copies = [name for name, one in zip(compared, found, strict=True) if one == ""]
    unknown = [name for name, one in zip(compared, found, strict=True) if one == "?"]
    proof.findings += [
        Finding(one.kind, one.shard, il.part_url(proof.table, one.shard), one.says)
        for one in found
        if isinstance(one, Finding)
    ]
    if copies:
        proof.warnings.append(
            f"{len(copies):,} shards have a new time or ETag since they were indexed and the same "
            f"bytes (sha256): they are taken for copies: {_first(copies)}"
        )
    if unknown:
        proof.warnings.append(
            f"{len(unknown):,} shards have a new time or ETag since they were indexed and the same "
            f"size; no sha256 was recorded to compare: {_first(unknown)}"
        )


def _compare(url: str, name: str, facts: il.PartFacts) -> Finding | str | None:
    """None for the shard that was indexed, "" for a copy of it, "?" where that can't be told."""
    try:
        copy = il.require_same_shard(url, name, facts)
    except StaleShardError as exc:
        return Finding(CHANGED, name, "", str(exc))
    except RhostreamError as exc:
        return Finding(UNREACHABLE, name, "", f"shard {name} can't be compared with its part: {exc}")
    return "?" if copy is None else "" if copy else None


def _first(names: list[str]) -> str:
    return ", ".join(names[:FIRST]) + (f" and {len(names) - FIRST:,} more" if len(names) > FIRST else "")
