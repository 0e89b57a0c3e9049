"""The report: one static, script-free page that says what was kept and skipped, why, and whether selection paid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from rhostream import storage
from rhostream.audit import account, alts, plots, tabulate
from rhostream.audit.advice import next_steps
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
from rhostream.audit.details import details
from rhostream.audit.facts import RunFacts, gather_all
from rhostream.audit.gallery import PICTURES
from rhostream.audit.il_quality import il_quality, section
from rhostream.audit.il_test import ILTest, accuracy_of, il_on_test_set, of_runs
from rhostream.audit.looking import looks_in_words
from rhostream.audit.looks import Look, looks
from rhostream.audit.metrics import common_window
from rhostream.audit.pages import environment
from rhostream.audit.plots import Line
from rhostream.audit.runs import is_table, open_runs
from rhostream.audit.sidebyside import SETTINGS_HEAD, bill_rows, settings
from rhostream.audit.verdict import TONES, il_account, ordinal, verdict
from rhostream.audit.views import open_ledger
from rhostream.errors import UsageError
from rhostream.runs.doubts import doubts_in, of_balance
from rhostream.tables.il import OK, open_info
from rhostream.tables.names import checked_roots

DETAILED = 6  # settings of which a page has figures and pictures
FEWER = 6  # pictures a gallery where a page has several settings
Groups = dict[str, list[RunFacts]]
Found = dict[str, list[Comparison]]  # by kind of baseline


def write_report(run: str | Sequence[str], out_path: str, *, against: Sequence[str] = (), il_test: str | None = None,
                 roots: Mapping[str, str] | None = None) -> str:  # fmt: skip
    """Write the page for `run` (one folder, or several: seeds of one setting, or settings to compare) to `out_path`.

    `against` are the baselines: runs of rule `uniform`, with the same sizes and with buffer_size = batch_size (train
    on everything). A run is measured by those that differ from it in the rule alone; what the others differ in is said.
    `il_test` is an IL table of the test shards, made with the runs' IL model: its accuracy stands beside the target's.
    Pictures are of the first run of each setting; accuracies are means of `smoothing` evaluations where every run has
    as many, else single ones. Returns the path. Raises UsageError, MissingExtraError
    without the extra `report`, TableError for damaged files.
    """
    templates = environment()
    plots.require()
    mine, roots = [storage.resolve(r) for r in storage.listed(run, "run folders")], checked_roots(roots)
    folders = [*mine, *(storage.resolve(r) for r in storage.listed(against, "against"))]
    if not mine or any(is_table(folder) for folder in folders):
        raise UsageError("this report is about runs: give run folders; the page of a table is of that table alone")
    html = templates.get_template("report.html").render(_page(mine, folders, il_test, roots))
    path = storage.resolve(out_path)
    storage.replace(path, html.encode("utf-8", "backslashreplace"))
    return path


def _page(
    mine: Sequence[str], folders: Sequence[str], il_test: str | None, roots: Mapping[str, str] | None
) -> dict[str, Any]:
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
    tested = il_on_test_set(il_test, {one.name: one.folder for one in facts.values()}, roots) if il_test else None
    stand = {name: account.standings([r for r in runs if r in own], [*others, *own], window)
             for name, runs in selected.items()}  # fmt: skip
    said = {name: verdict(runs, found[name][UNIFORM], window, bool(refused(groups, name)),
                          everything=found[name][EVERYTHING], stand=stand[name])
            for name, runs in selected.items()}  # fmt: skip
    drawn_as, quality = looks(groups), _il(main, roots)
    # Of several settings the most promising one is what goes on.
    best = min(selected, key=lambda name: TONES.index(said[name].tone))
    return {
        "title": main.name, "more": len(own) - 1, "main": main, "window": window, "version": version("rhostream"),
        "url": storage.redact(main.folder.url), "urls": [storage.redact(url) for url in names.values()],
        "drawn": _drawn_as(facts.values(), window, asked),
        "samples": main.folder.plans[-1].samples if main.folder.plans else None, "shards": len(main.folder.shards),
        "verdicts": [{"of": name if len(selected) > 1 else "", "said": said[name],
                      "everything": against_everything(found[name][EVERYTHING], account.bill(runs)),
                      "filtered": against_filter(runs, found[name][FILTERED]),
                      "rows": bill_rows(runs, found[name], stand[name], window, of_runs(tested, runs))}
                     for name, runs in selected.items()],
        "settings": settings(groups, said, drawn_as, window, tested), "settings_head": SETTINGS_HEAD,
        "next": next_steps(selected[best], found[best], said[best], quality, of_runs(tested, selected[best])),
        "next_of": best if len(selected) > 1 else "",
        "warnings": _warnings(facts.values()) + not_compared(groups, selected),
        **_curves(groups, found, window, drawn_as, tested), "test_losses": tabulate.test_losses(facts.values()),
        "recalls": tabulate.recalls(facts.values()),
        "compared": tabulate.compared(found), "costs": tabulate.costs(groups, window),
        "seconds": tabulate.seconds(groups),
        "il_texts": [*((name if len(selected) > 1 else "",
                        il_account(runs, found[name], window, accuracy_of(tested, runs)))
                       for name, runs in selected.items()), *looks_in_words(own)],
        "reasons": tabulate.reasons(groups), "balance": tabulate.balance(groups), "noisy": tabulate.noisy(groups),
        "classes": tabulate.classes(main, groups), "sources": tabulate.sources([*facts.values()]),
        "runs": tabulate.runs(facts.values()), "il": section(quality) if quality else None,
        "details": [{"of": name, **details(runs[0], roots, PICTURES if len(selected) == 1 else FEWER)}
                    for name, runs in list(selected.items())[:DETAILED]],
        "undetailed": list(selected)[DETAILED:],
    }  # fmt: skip


def _il(main: RunFacts, roots: Mapping[str, str] | None) -> dict[str, Any] | None:
    """The figures of the main run's IL table; None where it has none, or can't be opened."""
    if main.no_table:
        return None
    with open_ledger(main.folder.url, roots=roots) as ledger:
        return il_quality(ledger) if open_info(ledger.table_url).kind == "il" else None


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
    who: dict[str, list[str]] = {}
    for one in facts:
        for doubt in (*doubts_in(one.folder.record), of_balance(one.balance) if not one.is_baseline else ""):
            who.setdefault(doubt, []).append(one.name)
    says += [f"{', '.join(names)}: {doubt}." for doubt, names in who.items() if doubt]
    for one in facts:
        tested = one.folder.record.get("test_set") or {}
        if bad := {status: n for status, n in sorted(tested.items()) if status != OK}:
            says.append(
                f"{one.name}: {sum(bad.values()):,} of {sum(tested.values()):,} test samples can't be used ("
                f"{', '.join(f'{status} {n:,}' for status, n in bad.items())}); its accuracy is of the others."
            )
    closed = list(dict.fromkeys(one.no_table for one in facts if one.no_table))
    return says + [f"Left out what only the IL table knows (pictures, wrong labels): {why}" for why in closed]


def _curves(
    groups: Groups, found: Mapping[str, Found], window: int, drawn_as: Mapping[str, Look], tested: ILTest | None
) -> dict[str, Any]:
    lines = [
        Line(name, curves, drawn_as[name].line, account.bill(runs) or 0.0)
        for name, runs in groups.items()
        if (curves := [run.curve for run in runs if run.curve.steps])
    ]
    goals = [c.target for kinds in found.values() for c in kinds[UNIFORM]]
    goal = sum(goals) / len(goals) if goals else None
    across = {"IL model on the test set": tested.accuracy} if tested else {}
    return {
        f"accuracy_{over}": {"image": plots.accuracy(lines, over, window, goal, across),
                             "alt": alts.of_accuracy(lines, over, window, {"uniform's best": goal, **across})}
        if lines else None
        for over in ("steps", "units")
    } | {"unbilled": [name for name, runs in groups.items() if account.bill(runs) is None]}  # fmt: skip


def _drawn_as(facts: Iterable[RunFacts], window: int, asked: int) -> str:
    """What the bold and the thin lines of the accuracy figures are, in words."""
    if window > 1:
        first = ordinal(window)
        return f"Bold: mean over seeds of {window} evaluations each, from the {first} on; thin: every run as it was."
    few = [f"{one.name} has {len(one.curve.steps)}" for one in facts if 0 < len(one.curve.steps) < asked]
    why = f" Nothing is averaged over evaluations, because that takes {asked} and {few[0]}." if few else ""
    return f"Bold: mean over seeds through the evaluations; thin: every run as it was.{why}"
