"""`verify --repair`: what the wing after found bad, made again by the offline wing, and only then put in its place.

    prove > find the shards and the IL model > compute into a scratch table > prove that > replace part by part > prove

Nothing of the table is touched before its replacement is whole and proved, so a crash leaves it no worse. The wings
never import each other: this room stands above both.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rhostream import storage
from rhostream.audit.runs import is_table
from rhostream.audit.verify.il_model import prove_il_model
from rhostream.audit.verify.parts import Finding, Proof, prove
from rhostream.audit.verify.run import prove_run, repair_run
from rhostream.audit.verify.table import TableProof, prove_table
from rhostream.errors import RhostreamError, UsageError
from rhostream.il_model.info import is_il_model, read_info
from rhostream.tables import il
from rhostream.tables.names import checked_roots
from rhostream.tables.vectors import vectors_url


def repair(
    folder: str,
    *,
    shards: Iterable[str] = (),
    roots: Mapping[str, str] | None = None,
    il_model: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Make again what `verify` finds bad in a table, or set a run's damaged newest checkpoint aside; then verify.

    `il_model` and `shards` are looked for where they lay when the table was made, unless they are given; `options` are
    those of `compute_il` (or `index`) about how to read: workers, max_bad_fraction, device, model and loss (the names
    of the IL model's code), reference and reference_id (those that made the table), allow_compressed,
    accept_missing_eof. Returns what `verify` finds afterwards, with "repaired" (names) and "not_repaired"
    ({name: why}). Raises UsageError, and its kin MismatchError for another IL model, before anything is changed.
    """
    folder, listed, roots = storage.resolve(folder), storage.listed(shards), checked_roots(roots)
    if is_table(folder):
        proof = prove_table(folder, listed, roots)
        done, failed = _repair_table(proof, listed, roots, il_model, options)
        found = prove_table(folder, listed, roots).as_json() if done else proof.as_json()
        return {**found, "repaired": done, "not_repaired": failed}
    if is_il_model(folder):
        return {**prove_il_model(folder), "repaired": [], "not_repaired": {}}
    of_run = prove_run(folder)
    aside = repair_run(of_run)
    found = prove_run(folder).as_json() if aside else of_run.as_json()
    return {**found, "repaired": aside, "not_repaired": {}}


def _repair_table(
    proof: TableProof, shards: list[str], roots: Mapping[str, str], il_model: str | None, options: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    done, failed = list[str](), dict[str, str]()
    bad = {finding.shard: finding for finding in proof.bad}
    if bad:
        urls, failed = _find_shards(proof, bad, shards, roots)
        if not urls:
            return done, failed
        model = _find_model(proof, il_model, options, len(bad)) if proof.info.kind == "il" else None
        scratch = tempfile.mkdtemp(prefix="rhostream-repair-")
        try:
            known = il.roots_today(proof.table, proof.info, roots)
            # Of the same version and content, so that its parts have the columns of the table's.
            il.make_or_match(scratch, replace(proof.info, roots=known))
            if proof.info.reference:  # whose bank no draw of today need give again
                for name in map(il.bank_file, proof.info.bank.get("sha256", ())):
                    storage.create(storage.join(scratch, name), storage.read_bytes(storage.join(proof.table, name)))
            failed |= _compute(proof.info, urls, model, scratch, {"roots": known, **options})
            for name in urls:
                if name in failed:
                    continue
                new = il.part_url(scratch, name)
                one = prove(new, scratch, il.open_info(scratch))
                if not isinstance(one, Proof) or one.facts.fingerprint != proof.info.fingerprint:
                    failed[name] = one.says if isinstance(one, Finding) else "the new part is of another making"
                    continue
                if one.facts.vectors:
                    of_new = Path(vectors_url(scratch, name)).read_bytes()
                    storage.replace(vectors_url(proof.table, name), of_new)
                storage.replace(il.part_url(proof.table, name), Path(new).read_bytes())
                done.append(name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    for url in proof.copies:
        storage.delete(url)
        done.append(storage.redact(url))
    if (old := il.catalogues(proof.table)) and (done or proof.bad_catalogues):
        for url in proof.bad_catalogues:
            storage.delete(url)
        if written := il.write_catalogue(proof.table, proof.info):  # None: one of the very list is there already
            done.append(storage.redact(written))
            for url in set(old) - {written}:
                storage.delete(url)
    return done, failed


def _find_shards(
    proof: TableProof, bad: Mapping[str, Finding], shards: list[str], roots: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Where each bad part's shard lies today, and why not. Raises UsageError naming those that have to be found.

    With a list of shards a part of none of these may be of a shard that is gone for good: it is left as it is.
    """
    known = il.roots_today(proof.table, proof.info, roots)
    given = il.named_shards(storage.expand(shards) if shards else [], known)
    urls = {name: given.get(name) or il.shard_url(name, proof.info, roots) for name in bad}
    with ThreadPoolExecutor(il.REMOTE_THREADS) as pool:
        there = dict(zip(urls, pool.map(_there, urls.values()), strict=True))
    lost = [name for name, is_there in there.items() if not is_there]
    gone = {
        name: f"its shard is neither in the list nor where it was; if it is gone for good, delete "
        f"{storage.redact(bad[name].part)}"
        for name in lost
        if given and name not in given
    }
    if lost := [name for name in lost if name not in gone]:
        raise UsageError(
            f"{len(lost)} of {len(bad)} shards whose parts are bad are not where they were, first "
            f"{', '.join(lost[:5])}: say where they lie with --shards URL..."
            f"{' and --root NAME=URL' if known else ''}; nothing was changed"
        )
    return {name: url for name, url in urls.items() if name not in gone}, gone


def _there(url: str) -> bool:
    try:
        return storage.exists(url)
    except RhostreamError:
        return False


def _find_model(proof: TableProof, il_model: str | None, options: Mapping[str, Any], bad: int) -> str | None:
    """The IL model, proved to be the one that made the table; None of a table of a reference, which is named again and
    proved when it is loaded. Raises UsageError, MismatchError."""
    if reference := proof.info.reference:
        if options.get("reference") is None or il_model is not None:
            raise UsageError(
                f"{bad} parts are bad, and their il are of a reference: pass --reference {reference['name']} "
                f"{'' if reference['proved'] else '--reference-id TEXT '}if you trust that code; nothing was changed"
            )
        return None
    place = il_model or proof.info.places.get("il_model", "")
    place = storage.resolve(place) if place else ""
    info = read_info(place) if place else None
    if info is None:
        was = f" (it lay at {storage.redact(place)})" if place else ""
        raise UsageError(
            f"{bad} parts are bad, and the IL model that can make them again isn't there{was}: pass "
            f"--il-model DIR, that of fingerprint {proof.info.fingerprint}; nothing was changed"
        )
    made = info.ingredients(proof.info.il_dtype)
    if proof.info.vectors is not None:
        made["vectors"] = proof.info.vectors
    il.require_same_making(proof.info, made, storage.redact(proof.table))
    return place


def _compute(
    info: il.TableInfo, urls: Mapping[str, str], il_model: str | None, scratch: str, options: Mapping[str, Any]
) -> dict[str, str]:
    """The parts of these shards, in a table of their own. Returns the shards that can't be read, and why."""
    from rhostream.config.call import config_with
    from rhostream.config.offline import ComputeILConfig
    from rhostream.irreducible import index
    from rhostream.irreducible.compute import scored_into

    if info.kind == "index":
        if refused := {"model", "device", "loss", "reference", "reference_id"} & options.keys():
            raise UsageError(
                f"--{min(refused).replace('_', '-')}: this table is an index, which no model made; nothing was changed"
            )
        return index(urls.values(), scratch, keep=info.keep, **options).bad_shards
    asked = {"shards": urls.values(), "il_model": il_model, "out": scratch, "keep": info.keep, "vectors": info.vectors,
             **options}  # fmt: skip
    return scored_into(config_with(ComputeILConfig, None, asked), info.il_dtype).bad_shards
