"""The report: one static, script-free page that says what was kept and skipped, why, and whether selection paid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from rhostream import storage
from rhostream.audit import plots, tabulate
from rhostream.audit.alike import says_change, shown
from rhostream.audit.baselines import against_everything, against_filter
from rhostream.audit.compare import (
    EVERYTHING,
    FILTERED,
    KINDS,
    UNIFORM,
    Comparison,
    comparisons,
    grouped,
    not_compared,
    refused,
)
from rhostream.audit.facts import RunFacts, balance_over_time, gather_all, over_time, scatter_points
from rhostream.audit.gallery import galleries
from rhostream.audit.il_quality import il_quality, section
from rhostream.audit.metrics import common_window
from rhostream.audit.pages import environment
from rhostream.audit.plots import BLUE, GREY, ORANGE, RED, Line
from rhostream.audit.runs import is_table, open_runs
from rhostream.audit.verdict import il_account, ordinal, verdict
from rhostream.audit.views import open_ledger
from rhostream.errors import UsageError
from rhostream.runs.doubts import doubts_in, of_balance
from rhostream.tables.il import OK, open_info
from rhostream.tables.names import checked_roots

LOG = logging.getLogger("rhostream")
Groups = dict[str, list[RunFacts]]
Found = dict[str, list[Comparison]]  # by kind of baseline


def write_report(run: str | Sequence[str], out_path: str, *, against: Sequence[str] = (),
                 roots: Mapping[str, str] | None = None) -> str:  # fmt: skip
    """Write the page for `run` (one folder, or several: seeds of one setting, or settings to compare) to `out_path`.

    `against` are the baselines: runs of rule `uniform`, with the same sizes and with buffer_size = batch_size (train
    on everything). A run is measured by those that differ from it in the rule alone; what the others differ in is said.
    Pictures and details are of the first run; accuracies are means of `smoothing` evaluations where every run has as
    many, else single ones. Returns the path. Raises UsageError, MissingExtraError
    without the extra `report`, TableError for damaged files.
    """
    templates = environment()
    plots.require()
    mine, roots = [storage.resolve(r) for r in storage.listed(run, "run folders")], checked_roots(roots)
    folders = [*mine, *(storage.resolve(r) for r in storage.listed(against, "against"))]
    if not mine or any(is_table(folder) for folder in folders):
        raise UsageError("this report is about runs: give run folders; the page of a table is of that table alone")
    html = templates.get_template("report.html").render(_page(mine, folders, roots))
    path = storage.resolve(out_path)
    storage.replace(path, html.encode("utf-8", "backslashreplace"))
    return path


def _page(mine: Sequence[str], folders: Sequence[str], roots: Mapping[str, str] | None) -> dict[str, Any]:
    names = {run.name: run.url for run in open_runs(folders)}
    facts = gather_all(names, roots)
    main, own = next(iter(facts.values())), [facts[name] for name, url in names.items() if url in mine]
    others = [one for one in facts.values() if one.folder.url not in mine]
    asked = int(main.folder.settings.get("smoothing") or 5)
    window = common_window((len(one.curve.steps) for one in facts.values()), asked)
    groups = grouped(facts.values())
    selected = {name: runs for name, runs in groups.items() if any(run in own for run in runs)}
    found = {name: {kind: comparisons([r for r in runs if r in own], [*others, *own], kind, window)
                    for kind in KINDS}
             for name, runs in selected.items()}  # fmt: skip
    return {
        "title": main.name, "more": len(own) - 1, "main": main, "window": window, "version": version("rhostream"),
        "url": storage.redact(main.folder.url), "urls": [storage.redact(url) for url in names.values()],
        "drawn": _drawn_as(facts.values(), window, asked),
        "samples": main.folder.plans[-1].samples if main.folder.plans else None, "shards": len(main.folder.shards),
        "verdicts": [_verdict(name, runs, found[name], window, len(selected) > 1, bool(refused(groups, name)))
                     for name, runs in selected.items()],
        "tiles": tabulate.tiles(groups, selected, found, window),
        "warnings": _warnings(facts.values()) + not_compared(groups, selected),
        **_curves(groups, found, window), "test_losses": tabulate.test_losses(facts.values()),
        "recalls": tabulate.recalls(facts.values()),
        "compared": tabulate.compared(found), "costs": tabulate.costs(groups, window),
        "seconds": tabulate.seconds(groups),
        "il_texts": [(name if len(selected) > 1 else "", il_account(runs, found[name], window))
                     for name, runs in selected.items()],
        "reasons": tabulate.reasons(groups), "balance": tabulate.balance(groups), "noisy": tabulate.noisy(groups),
        "classes": tabulate.classes(main, groups), "sources": tabulate.sources([*facts.values()]),
        "runs": tabulate.runs(facts.values()), **_detail(main, roots),
    }  # fmt: skip


def _verdict(
    name: str, runs: Sequence[RunFacts], found: Found, window: int, several: bool, apart: bool
) -> dict[str, Any]:
    one = verdict(runs, found[UNIFORM], window, apart)
    return {"of": name if several else "", "tone": one.tone, "title": one.title, "text": one.text,
            "everything": against_everything(found[EVERYTHING]),
            "filtered": against_filter(runs, found[FILTERED])}  # fmt: skip


def _warnings(facts: Iterable[RunFacts]) -> list[str]:
    facts = list(facts)
    unfinished = [f"{one.name} ({one.row['steps']:,} of {one.row['last_step'] or '?'} steps)"
                  for one in facts if not one.row["complete"]]  # fmt: skip
    says = [f"Not complete: {', '.join(unfinished)}. The page shows what was committed."] if unfinished else []
    says += [
        f"Accuracies of {one.name} are of the averaged weights, decay {shown(one.setting['ema'])}."
        for one in facts
        if one.setting.get("ema")
    ]
    says += [
        f"Accuracies of {one.name} are what {shown(one.setting['evaluate'])} gave."
        for one in facts
        if one.setting.get("evaluate")
    ]
    says += [
        f"Changed on purpose: {one.name}, {says_change(change)}."
        for one in facts
        if one.folder.checkpoint
        for change in one.folder.checkpoint.changes
    ]
    says += [
        f"{one.name}: {one.folder.checkpoint.doubt}."
        for one in facts
        if one.folder.checkpoint and one.folder.checkpoint.doubt
    ]
    for one in facts:
        doubts = [*doubts_in(one.folder.record), of_balance(one.balance) if not one.is_baseline else ""]
        says += [f"{one.name}: {doubt}." for doubt in doubts if doubt]
    for one in facts:
        tested = one.folder.record.get("test_set") or {}
        if bad := {status: n for status, n in sorted(tested.items()) if status != OK}:
            says.append(
                f"{one.name}: {sum(bad.values()):,} of {sum(tested.values()):,} test samples can't be used ("
                f"{', '.join(f'{status} {n:,}' for status, n in bad.items())}); its accuracy is of the others."
            )
    closed = list(dict.fromkeys(one.no_table for one in facts if one.no_table))
    return says + [f"Left out what only the IL table knows (pictures, wrong labels): {why}" for why in closed]


def _curves(groups: Groups, found: Mapping[str, Found], window: int) -> dict[str, str | None]:
    drawn = {name: [run.curve for run in runs if run.curve.steps] for name, runs in groups.items()}
    lines = [Line(name, curves, style) for style, (name, curves) in enumerate(drawn.items()) if curves]
    goals = [c.target for kinds in found.values() for c in kinds[UNIFORM]]
    goal = sum(goals) / len(goals) if goals else None
    return {f"accuracy_{over}": plots.accuracy(lines, over, window, goal) if lines else None
            for over in ("steps", "units")}  # fmt: skip


def _drawn_as(facts: Iterable[RunFacts], window: int, asked: int) -> str:
    """What the bold and the thin lines of the accuracy figures are, in words."""
    if window > 1:
        first = ordinal(window)
        return f"Bold: mean over seeds of {window} evaluations each, from the {first} on; thin: every run as it was."
    few = [f"{one.name} has {len(one.curve.steps)}" for one in facts if 0 < len(one.curve.steps) < asked]
    why = f" Nothing is averaged over evaluations, because that takes {asked} and {few[0]}." if few else ""
    return f"Bold: mean over seeds through the evaluations; thin: every run as it was.{why}"


def _detail(main: RunFacts, roots: Mapping[str, str] | None) -> dict[str, Any]:
    """What is drawn and shown of one run."""
    with open_ledger(main.folder.url, roots=roots) as ledger:
        points, slices, classes = scatter_points(ledger), over_time(ledger), balance_over_time(ledger)
        pictures, note = galleries(ledger)
        il = section(il_quality(ledger)) if not main.no_table and open_info(ledger.table_url).kind == "il" else None
    if note:
        LOG.warning("%s", note)
    right = {
        "of what is kept": (slices["right_kept"], BLUE, "-"),
        "of all candidates": (slices["right_all"], GREY, "--"),
    }
    wrong = {"among kept": (slices["noisy_kept"], RED, "-"), "among skipped": (slices["noisy_skipped"], ORANGE, "--")}
    known = any(v is not None for v in slices["noisy_skipped"])
    scored = any(v is not None for v in slices["right_all"])
    return {
        "scatter": plots.scatter(points, "" if main.folder.no_class else ", nats") if points["il"] else None,
        "right": plots.shares(slices["step"], right) if scored else None,
        "wrong": plots.shares(slices["step"], wrong) if known else None,
        "effective": plots.effective_classes(classes["step"], classes["kept"], classes["chance"])
        if classes["step"]
        else None,
        "galleries": [{"title": g.title, "says": g.says, "empty": g.empty,
                       "pictures": [_figure(main, p) for p in g.pictures]} for g in pictures],
        "gallery_note": note, "il": il,
        "pictures_seen": any(picture.seen for gallery in pictures for picture in gallery.pictures),
    }  # fmt: skip


def _figure(main: RunFacts, picture: Any) -> dict[str, Any]:
    row, facts = picture.row, picture.facts
    truth = facts.get("true_label")
    lines = [] if row["label"] is None else [f"label {tabulate.class_name(main, row['label'])}"]
    if truth is not None and truth != row["label"]:
        lines.append(f"truly {tabulate.class_name(main, truth)}")
    if facts.get("predicted") is not None and facts["predicted"] != row["label"]:
        lines.append(f"IL model: {tabulate.class_name(main, facts['predicted'])}")
    numbers = [f"{name} {row[name]:.2f}" for name in ("loss", "il") if row[name] is not None]
    when = f"step {row['step']:,}" + (f", score {row['score']:.2f}" if row["score"] is not None else "")
    wrong = facts.get("is_noisy") or (truth is not None and truth != row["label"])
    if wrong and truth in (None, row["label"]):
        lines.append("known to be wrong")
    return {"image": picture.image, "seen": picture.seen, "text": picture.text, "lines": lines,
            "numbers": ", ".join(numbers), "wrong": bool(wrong), "when": when, "key": row["key"]}  # fmt: skip
