"""What `verify` and `status` found, in plain text: short, aligned, every hostile name on one line and inert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rhostream.audit.alike import says_change
from rhostream.inert import escape, shortened
from rhostream.samples.statuses import NEIGHBOURS
from rhostream.tables.steps import OF_PAIRS

LISTED = 20  # problems shown; all are in --json


def render_verify(found: Mapping[str, Any]) -> str:
    """The findings of `verify`."""
    what = {"run": "Run", "il-model": "IL model", "index": "Index"}.get(found["kind"], "IL table")
    counts = f"{found['files']:,} files" + (f", {found['rows']:,} rows" if found["rows"] else "")
    named = f", fingerprint {found['fingerprint']}" if found.get("fingerprint") else ""
    step = f", step {found['step']:,}" if "step" in found else ""
    lines = [f"{what}: {counts}{step}{named}"]
    lines += _some("problem", found["problems"]) + _some("warning", found["warnings"])
    lines += [
        f"  key {entry['key']!r} in {entry['in_shards']:,} shards: {', '.join(entry['shards'])}"
        for entry in found.get("first_duplicate_keys", ())
    ]
    lines += [f"repaired: {name}" for name in found.get("repaired", ())]
    lines += [f"not repaired: {name}: {why}" for name, why in found.get("not_repaired", {}).items()]
    lines.append("proved: nothing is wrong" if not found["problems"] else f"{len(found['problems']):,} problems")
    if found["problems"]:
        lines.append(f"next: {found['next']}")
    return "\n".join(map(escape, lines)) + "\n"


def render_status(found: Mapping[str, Any]) -> str:
    """How far it is."""
    render = {"run": _run, "il-model": _il_model, "unfinished-il-model": _fit}.get(found["kind"], _table)
    return "\n".join(map(escape, [*render(found), f"next: {found['next']}"])) + "\n"


def _some(word: str, says: Sequence[str]) -> list[str]:
    more = [f"{word}: and {len(says) - LISTED:,} more (see --json)"] if len(says) > LISTED else []
    return [f"{word}: {one}" for one in says[:LISTED]] + more


def _table(found: Mapping[str, Any]) -> Iterator[str]:
    kind = "Index" if found["kind"] == "index" else "IL table"
    yield f"{kind}, fingerprint {found['fingerprint']}"
    of = found["of"]
    if of:
        done = of - found["missing"]
        yield f"  parts        {done:,} of {of:,} shards ({done / of:.1%})"
    else:
        yield f"  parts        {found['parts']:,} (how many are missing is known with --shards)"
    if found["last_part_seconds_ago"] is not None:
        yield f"  last part    written {ago(found['last_part_seconds_ago'])} ago"
    yield f"  samples      {found['samples']:,}, of which {found['ok']:,} can be used"
    yield from _bad("quarantined", found["quarantined"], found["examples"])
    yield from (f"  doubtful     {says}" for says in found["doubts"])
    if found["apart"]:
        yield f"warning: members of {found['apart']:,} samples lie apart in their tars: {NEIGHBOURS}"
    if found["missing"]:
        yield f"  missing      {found['missing']:,} shards: {', '.join(found['first_missing'])}" + _more(
            found["missing"], found["first_missing"]
        )
    if found["stale"]:
        yield (
            f"warning: {found['stale']:,} parts are of shards that are not in the list: "
            + ", ".join(found["first_stale"])
            + _more(found["stale"], found["first_stale"])
        )
    yield from _some("damaged", found["damaged"])


def _run(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"Run, rule {found['rule']}, model {found['model']}"
    step, of = found["step"], found["of"]
    share = f" ({step / of:.1%})" if of else ""
    complete = ", complete" if found["complete"] else ""
    yield f"  steps        {step:,}" + (f" of {of:,}{share}" if of else "") + complete
    yield from _job(found["job"], step)
    if found["unconfirmed"]:
        yield f"  unconfirmed  {found['unconfirmed']}"
    yield from _evaluated(found["evaluation"])
    if ratio := found.get("ratio"):
        worth = ", ".join(f"{value:.4f}" for value in ratio["ratio_worth"] or ())
        yield f"  ratio auto   keeps {100 * ratio['ratio']:.0f} % of a buffer at step {ratio['step']:,}" + (
            f"; shares are worth {worth} nats a forward unit, the smallest first" if worth else ""
        )
    yield f"  attempts     {found['attempts']}"
    for change in found["changes"]:
        yield f"  changed      {says_change(change)} (attempt {change.get('attempt')})"
    rows = found["rows_by_reason"]
    if not rows:
        yield "  log          empty: no step is committed yet"
    for reason, count in sorted(rows.items(), key=lambda item: -item[1]):
        yield f"  {reason:12} {count:,} rows"
    yield from (f"  doubtful     {says}" for says in found["doubts"])
    if found["left_out_shards"]:
        yield f"  left out     {found['left_out_shards']:,} shards without a part"
    if tested := found["test_set"]:
        yield f"  test set     {tested.get('ok', 0):,} of {sum(tested.values()):,} samples can be used"
        yield from (f"  test set     {n:,} {status}" for status, n in sorted(tested.items()) if status != "ok")
    yield from _bad("unused", found["unused"], found["examples"])


def _job(job: Mapping[str, Any] | None, committed: int) -> Iterator[str]:
    """The newest attempt, where it is not known to have ended, or has left steps that nothing counts."""
    if job is None:
        return
    who = f"attempt {job['attempt']}" + (f" since {job['begun']}" if job["begun"] else "")
    age = "" if job["seconds_ago"] is None else f" {ago(job['seconds_ago'])} ago"
    step = job["step"]
    far = f"step {step:,} was reached{age}, {committed:,} are committed" if step else "no step is written yet"
    if job["running"]:
        yield f"  running      {who}, process {job['pid']} of this machine; {far}"
    elif job["running"] is None:
        where = f", process {job['pid']} on {job['host']}" if job["pid"] else ""
        yield f"  begun        {who}{where}: whether it still runs can't be seen from here; {far}"
    elif step > committed:
        yield f"  ended        {who}, at step {step:,} or later; what isn't committed is gone through again"


def _evaluated(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    figures = [
        f"{word} {found[name]:.4f}{unit}"
        for name, word, unit in (("test_accuracy", "accuracy", ""), ("test_loss", "loss", " nats"))
        if found[name] is not None
    ]
    figures += [f"{name} {found[name]:.4f}" for name in OF_PAIRS if found.get(name) is not None]
    samples = f" on {found['test_samples']:,} samples" if found["test_samples"] else ""
    yield f"  evaluated    {', '.join(figures) or 'class by class'}{samples}, after step {found['step']:,}"


def _il_model(found: Mapping[str, Any]) -> Iterator[str]:
    classes = "" if found["classes"] is None else f", {found['classes']} classes"
    yield f"IL model, {found['networks']} x {found['architecture']}{classes}"
    if found["accuracy"] is None:
        yield f"  loss         {found['val_loss']:.4f} ({escape(found['loss'])})"
    else:
        yield f"  accuracy     {found['accuracy']:.4f}, loss {found['val_loss']:.4f} nats"
    yield from (f"  doubtful     {says}" for says in found["doubts"])


def _fit(found: Mapping[str, Any]) -> Iterator[str]:
    yield "IL model, not finished"
    for fit in found["fits"]:
        for number in range(1, fit["models"] + 1):
            kept = fit["kept"].get(number)
            yield f"  model        {number} of {fit['models']}: " + (
                "no epoch is kept" if kept is None else f"{kept:,} of {fit['epochs']:,} epochs are kept"
            )
        if fit["seconds_ago"] is not None:
            yield f"  written      {ago(fit['seconds_ago'])} ago"


def ago(seconds: float) -> str:
    """A while, as one says it: "40 s", "12 min", "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bad(word: str, counts: Mapping[str, int], examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    if not counts:
        yield f"  {word:12} none"
    for status, count in sorted(counts.items(), key=lambda item: -item[1]):
        yield f"  {word:12} {count:,} {status}"
        for one in examples.get(status, ()):
            yield f"    {one['shard']} #{one['ordinal']} key {_short(one['key'])}: {one['error'] or 'no more is known'}"


def _short(key: str) -> str:
    return repr(shortened(key, 80))


def _more(count: int, first: Sequence[str]) -> str:
    return f" and {count - len(first):,} more" if count > len(first) else ""
