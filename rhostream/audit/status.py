"""How far a table, a run or an IL model is, what of it can't be used and why, and what to do next."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from rhostream import storage
from rhostream.audit.live import evaluation_of, fit_status, job_of, last_part, ratio_of, run_next
from rhostream.audit.missing import missing_parts
from rhostream.audit.runs import is_table, read_record
from rhostream.config.train import TrainConfig
from rhostream.errors import RhostreamError, StorageError, TableError, UsageError
from rhostream.il_model.info import is_il_model, require_info
from rhostream.runs import checkpoint
from rhostream.runs.doubts import doubts_in
from rhostream.runs.link import Link
from rhostream.runs.plans import plans_of, settings_now
from rhostream.runs.record import gone_from
from rhostream.setting import as_now, option_name, settings_of
from rhostream.tables import il as il_table
from rhostream.tables import parquet
from rhostream.tables.names import checked_roots
from rhostream.tables.unfinished import unfinished_in

FIRST = 3  # examples of each status, or reason
_UNUSED = ("quarantined", "unreadable", "nonfinite", "missing_il")  # reasons that are nobody's choice
_NAME = re.compile(r"[a-z][a-z_]*\Z")
_SAYS = settings_of(TrainConfig)
# Of runs whose run.json has no `arguments`: the options among their settings, which hold a fingerprint of these two.
_OPTIONS = tuple(name for name, says in _SAYS.items() if says.command_line and name not in ("shards", "il"))


def status_of(folder: str, shards: Iterable[str] = (), roots: Mapping[str, str] | None = None) -> dict[str, Any]:
    """How far it is, what is quarantined, and what to do next; nothing but footers and a few examples is read.

    Raises UsageError for a folder that is no table, no run and no IL model.
    """
    folder = storage.resolve(folder)
    if is_table(folder):
        return _table_status(folder, storage.listed(shards), checked_roots(roots))
    if is_il_model(folder):
        return _model_status(folder)
    if unfinished := unfinished_in(folder):
        return fit_status(folder, unfinished)
    return _run_status(folder)


# -- a table ---------------------------------------------------------------------------------------------------------


def _table_status(table: str, shards: list[str], roots: Mapping[str, str] | None) -> dict[str, Any]:
    info = il_table.open_info(table)
    urls, apart, damaged = il_table.part_urls(table), 0, list[str]()
    footers = il_table.facts_of_parts(table, urls, il_table.find_catalogue(table, info), _footer)
    statuses: Counter[str] = Counter()
    first: dict[str, list[str]] = {}  # status -> parts that have it
    for url, facts in zip(urls, footers, strict=True):
        if isinstance(facts, str):
            damaged.append(facts)
            continue
        statuses.update(facts.statuses)
        apart += facts.apart
        for status in facts.statuses:
            if status != il_table.OK and len(first.setdefault(status, [])) < FIRST:
                first[status].append(url)
    known = il_table.roots_today(table, info, roots)
    wanted = il_table.named_shards(storage.expand(shards) if shards else [], known)
    there = set(urls)
    missing = missing_parts(table, wanted, there)
    parts = {il_table.part_url(table, name) for name in wanted}
    stale = [il_table.shard_of_part(table, url) for url in urls if url not in parts] if wanted else []
    return {
        "kind": info.kind, "fingerprint": info.fingerprint, "parts": len(urls), "of": len(wanted) or None,
        "samples": sum(statuses.values()), "ok": statuses[il_table.OK],
        "quarantined": {k: v for k, v in sorted(statuses.items()) if k != il_table.OK},
        "doubts": il_table.reference_doubts(info.reference),
        "apart": apart,
        "examples": _examples(table, first), "damaged": damaged, "missing": len(missing),
        "last_part_seconds_ago": last_part(table, urls),
        "first_missing": missing[:5], "missing_shards": missing, "stale": len(stale), "first_stale": stale[:5],
        "next": _table_next(table, info, [wanted[name] for name in missing], shards, len(damaged)),
    }  # fmt: skip


def _footer(url: str) -> il_table.PartFacts | str:
    try:
        return il_table.read_part_facts(url)
    except (TableError, UsageError, StorageError) as exc:
        return str(exc)


def _examples(table: str, first: Mapping[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """Of each status the first few samples: shard, ordinal, key and what is wrong with them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for status, urls in first.items():
        for url in urls:
            try:
                rows = parquet.read(url, ["key", "ordinal", "status", "error"])[0]
            except RhostreamError:
                continue
            own = rows.filter(pc.equal(rows["status"], status)).slice(0, FIRST - len(found.get(status, [])))
            shard = il_table.shard_of_part(table, url)
            found.setdefault(status, []).extend({"shard": shard, "ordinal": r["ordinal"], "key": r["key"],
                                                 "error": r["error"]} for r in own.to_pylist())  # fmt: skip
            if len(found[status]) >= FIRST:
                break
    return found


def _table_next(
    table: str, info: il_table.TableInfo, missing: Sequence[str], asked: Sequence[str], damaged: int
) -> str:
    shown = shlex.quote(storage.redact(table))
    if damaged:
        return f"rhostream verify {shown} --repair"
    if not missing:
        return "nothing"
    model = f" --il-model {shlex.quote(info.places.get('il_model', 'DIR'))}" if info.kind == "il" else ""
    if reference := info.reference:
        model = f" --reference {shlex.quote(reference['name'])}"
        model += "" if reference["proved"] else f" --reference-id {shlex.quote(reference['identity'])}"
    keep = " --keep " + shlex.quote(",".join(f"{k}:{v}" for k, v in info.keep.items())) if info.keep else ""
    roots = "".join(
        " --root " + shlex.quote(f"{name}={storage.redact(root)}")
        for name, root in info.roots.items()
        if "/" not in name
    )  # else a folder's whole path: the table knows where it went
    verb = "compute-il" if info.kind == "il" else "index"
    named = shortened(missing)
    if named.endswith(" more)"):  # the whole list as it was asked about: what is there is left out
        named = shortened(asked, len(asked))
    return f"rhostream {verb} --shards {named}{model} --out {shown}{keep}{roots}"


# -- a run -----------------------------------------------------------------------------------------------------------


def _run_status(run: str) -> dict[str, Any]:
    record, latest = read_record(run), checkpoint.head(run)
    record = _as_it_goes_on(run, record, latest)
    settings = record.get("settings") or {}
    complete = bool(latest and latest.complete)
    job = None if complete else job_of(run, latest)
    counts = dict(latest.counts) if latest else {}
    return {
        "kind": "run", "rule": settings.get("rule"), "model": settings.get("model"),
        "step": latest.step if latest else 0, "of": settings.get("last_step"),
        "pass": latest.pass_index if latest else 0, "complete": complete,
        "rows_by_reason": counts, "unused": {k: counts[k] for k in _UNUSED if counts.get(k)},
        "examples": _run_examples(run, record, latest), "attempts": checkpoint.newest_attempt(run) + 1,
        "left_out_shards": record.get("left_out_shards") or 0, "changes": list(latest.changes) if latest else [],
        "test_set": record.get("test_set") or {}, "doubts": doubts_in(record),
        "unconfirmed": latest.doubt if latest else "", "evaluation": evaluation_of(run, latest),
        "ratio": ratio_of(run, latest, settings), "job": job,
        "next": "nothing: the run is complete" if complete else run_next(job, _go_on(run, record, latest)),
    }  # fmt: skip


def _as_it_goes_on(run: str, record: dict[str, Any], latest: Link | None) -> dict[str, Any]:
    """run.json with the list of shards and the end that the newest attempt gave the run."""
    plans = plans_of(run, record, latest.changes if latest else ())
    settings = record.get("settings") or {}
    asked = settings_now(run, latest, settings)
    asked = asked if isinstance(asked, dict) else {}
    if not plans or asked is settings or "last_step" not in asked:  # one of an older version may not say it
        return record
    ends = {name: asked.get(name) for name in ("passes", "steps")}
    given, grown = record.get("arguments"), {"shards": list(plans[-1].urls)} if len(plans) > 1 else {}
    if isinstance(given, dict):
        given = {
            **{name: value for name, value in given.items() if name not in ends},
            **grown,
            **{name: value for name, value in ends.items() if value is not None},
        }
    return {
        **record,
        "arguments": given,
        "shard_urls": plans[-1].urls,
        "settings": {**settings, **ends, "last_step": asked["last_step"]},
    }


def _run_examples(run: str, record: Mapping[str, Any], latest: Link | None) -> dict[str, list[dict[str, Any]]]:
    """Of each reason that is nobody's choice the last few rows of the log, with the error that the IL table has."""
    found: dict[str, list[dict[str, Any]]] = {}
    if latest is None or not latest.log or not any(latest.counts.get(reason) for reason in _UNUSED):
        return found
    try:
        rows = parquet.read(storage.join(run, latest.log[-1]["path"]), ["step", "shard", "ordinal", "key", "reason"])[0]
    except RhostreamError:
        return found  # `verify` says so
    reasons = rows["reason"].cast("string")
    for reason in _UNUSED:
        own = rows.filter(pc.equal(reasons, reason)).slice(0, FIRST).to_pylist()
        if own:
            found[reason] = [{"shard": r["shard"], "ordinal": r["ordinal"], "key": r["key"], "step": r["step"],
                              "error": _error_of(record, r["shard"], r["ordinal"])} for r in own]  # fmt: skip
    return found


def _error_of(record: Mapping[str, Any], shard: str, ordinal: int) -> str | None:
    try:
        table = storage.resolve(record["il"])
        rows = parquet.read(il_table.part_url(table, shard), ["ordinal", "status", "error"])[0]
        row = rows.filter(pc.equal(rows["ordinal"], ordinal)).to_pylist()[0]
    except (RhostreamError, KeyError, IndexError, TypeError):
        return None
    return None if row["status"] == il_table.OK else f"{row['status']}: {row['error']}"


def _go_on(run: str, record: Mapping[str, Any], latest: Link | None) -> str:
    """What to do for the run to go on: a loop of one's own has no command."""
    if (record.get("fingerprints") or {}).get("loop") != "own":
        if gone := gone_from(record):
            return f"begin it again in another --run: it was begun with {gone}, which this version doesn't have"
        return _train(run, record)
    if latest is None:
        return "start the script of this loop again: nothing is committed yet"
    with_state = " with the checkpoint that holds this run's state" if latest.handed_out else ""
    return f"start the script of this loop again{with_state}: it goes on from step {latest.step:,}"


def _train(run: str, record: Mapping[str, Any]) -> str:
    """The command that goes on: the one that began the run, made of run.json; what it leaves out is said."""
    given, rest = record.get("arguments"), ""
    if not isinstance(given, dict):  # an older version's run.json: what it pinned, and not how it was called
        settings = record.get("settings") or {}
        given = {name: settings[name] for name in _OPTIONS if settings.get(name) is not None}
        given |= {"shards": record.get("shard_urls") or ["URL..."], "roots": record.get("roots") or {}}
        rest = " (and --test-shards, --device and what else run.json of that version doesn't say)"
    elif given.get("make_model"):
        rest = " (in Python, with the same make_model: rhostream.train(...))"
    shards = [str(url) for url in _listed(given.get("shards"))]
    ranks = record.get("ranks")
    launcher = f"torchrun --nproc-per-node {ranks} --no-python -- " if isinstance(ranks, int) and ranks > 1 else ""
    parts = [f"{launcher}rhostream train --shards", shortened(shards, len(shards)),
             f"--il {shlex.quote(storage.redact(str(record.get('il'))))}",
             f"--run {shlex.quote(storage.redact(run))}"]  # fmt: skip
    for name, value in (as_now(str(name), value) for name, value in given.items()):
        if name not in ("shards", "make_model") and _NAME.match(name):
            parts += _option(option_name(name, _SAYS.get(name)), value)
    return " ".join(parts) + rest


def _option(name: str, value: Any) -> list[str]:
    """An option as one types it: a switch, `NAME=URL` of a dict, several values of a list."""
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    if isinstance(value, dict):
        return [f"{name} {shlex.quote(f'{key}={one}')}" for key, one in value.items()]
    texts = [str(one) for one in _listed(value)]
    # A value that begins with a dash would be taken for an option.
    if len(texts) == 1 and texts[0].startswith("-"):
        return [f"{name}={shlex.quote(texts[0])}"]
    return [f"{name} {shortened(texts, len(texts)) if len(texts) > 1 else shlex.quote(texts[0])}"] if texts else []


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


# -- an IL model -----------------------------------------------------------------------------------------------------


def _model_status(folder: str) -> dict[str, Any]:
    info = require_info(folder)
    return {
        "kind": "il-model", "doubts": list(info.quality.get("doubts") or ()), "architecture": info.architecture,
        "classes": info.classes, "networks": len(info.folds), "accuracy": info.accuracy, "val_loss": info.val_loss,
        "loss": info.loss,
        "next": f"rhostream compute-il --shards URL... --il-model {shlex.quote(storage.redact(folder))} --out URL",
    }  # fmt: skip


# -- words -----------------------------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)\Z", re.DOTALL)


def shortened(urls: Sequence[str], most: int = 8) -> str:
    """URLs as one would type them: a brace range where their last number counts up, else one by one, at most `most`."""
    urls = [storage.redact(url) for url in urls]
    split = [match.groups() for url in urls if (match := _NUMBERED.match(url))]
    if len(urls) > 2 and len(split) == len(urls) and len({(a, len(n), z) for a, n, z in split}) == 1:
        numbers = [int(n) for _, n, _ in split]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            before, first, after = split[0]
            return shlex.quote(f"{before}{{{first}..{split[-1][1]}}}{after}")  # rhostream expands it, not the shell
    return " ".join(map(shlex.quote, urls[:most])) + (f" ... ({len(urls) - most:,} more)" if len(urls) > most else "")
