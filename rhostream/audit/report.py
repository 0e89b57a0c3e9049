"""The report: one static, script-free page that says what was kept and skipped, why, and whether selection paid."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any

from rhostream import checkpoint, storage
from rhostream.audit import plots
from rhostream.audit.gallery import thumbnails
from rhostream.audit.metrics import best, speedup, steps_to_reach
from rhostream.audit.views import Ledger, open_ledger
from rhostream.cost import break_even
from rhostream.errors import MissingExtraError, UsageError

PHASES = ("wait", "score", "train", "log")
PICTURES = 12
_PICTURES = """
WITH looks AS (SELECT shard::VARCHAR AS shard, ordinal, key, label, step, kept, loss, il, score FROM selections
               WHERE run = $run AND isfinite(loss) AND isfinite(il)),
     chosen AS (SELECT * FROM looks WHERE {where} ORDER BY {order}, shard, ordinal LIMIT {limit})
SELECT chosen.*, il.members, il.predicted{truth} FROM chosen JOIN il USING (shard, ordinal)
ORDER BY {order}, shard, ordinal
"""
GALLERIES = (
    ("Kept early", "The highest scores of the first tenth of the run.",
     "kept AND step <= (SELECT max(step) FROM looks) / 10", "score DESC"),
    ("Skipped as noisy", "High loss, and the IL model couldn't explain the label either: nothing to reduce.",
     "NOT kept AND loss > 1", "il DESC"),
    ("Skipped as learnt", "Low loss in the last quarter of the run: nothing left to learn.",
     "NOT kept AND step >= (SELECT max(step) FROM looks) * 3 / 4", "loss"),
)


def write_report(runs: str | Sequence[str], out: str, *, against: Sequence[str] = (),
                 roots: Mapping[str, str] | None = None) -> str:
    """Write the page for `runs` (seeds of one setting, say) to `out`, compared with the runs of `against`.

    Returns the path. Raises UsageError, MissingExtraError without the extra `report`, TableError for damaged files.
    """
    try:
        import jinja2
    except ImportError as exc:
        raise MissingExtraError.of("jinja2", "report") from exc
    mine = [runs] if isinstance(runs, str) else list(runs)
    with open_ledger([*mine, *against], roots=roots) as ledger:
        page = _content(ledger, [os.path.basename(storage.resolve(r)) for r in mine])
    template = (resources.files("rhostream.audit") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(template).render(page)
    path = storage.resolve(out)
    storage.replace(path, html.encode("utf-8", "backslashreplace"))
    return path


def _content(ledger: Ledger, mine: Sequence[str]) -> dict[str, Any]:
    rows = {row["run"]: row for row in ledger.sql("SELECT * FROM runs ORDER BY run").to_pylist()}
    if len(rows) != len(ledger.runs):
        raise UsageError("two runs have the same folder name; the page couldn't tell them apart")
    records = {os.path.basename(run): record for run, record in zip(ledger.runs, ledger.records, strict=True)}
    main = mine[0]
    settings = records[main]["settings"]
    window = int(settings.get("smoothing", 5))
    curves = {run: _curve(ledger, run) for run in rows}
    curves = {run: curve for run, curve in curves.items() if curve["steps"]}
    comparisons = _comparisons(rows, curves, mine, window)
    pictures, missing = _galleries(ledger, main, records[main])
    points, over_time, noisy = _noise(ledger, main)
    return {
        "title": f"rhostream: {main}" + (f" and {len(mine) - 1} more" if len(mine) > 1 else ""),
        "subtitle": f"rule {settings['rule']}, model {settings['model']}, {rows[main]['steps']:,} steps, "
                    f"{records[main].get('samples', 0):,} samples in {len(records[main]['shards']):,} shards",
        "verdicts": _verdicts(comparisons, rows, main), "n_B": settings["buffer_size"], "n_b": settings["batch_size"],
        "break_even": f"{break_even(settings['buffer_size'], settings['batch_size']):.2f}", "window": window,
        "curves": plots.accuracy_curves(_grouped(rows, curves), window) if curves else None,
        "comparisons": comparisons, "phases": PHASES, "costs": [_cost(ledger, run, row) for run, row in rows.items()],
        "il_text": _il_text(rows[main], comparisons), **_reasons(ledger),
        "scatter": plots.scatter(points, over_time) if points["il"] else None, "main": main, "noisy": noisy,
        "right": over_time["says"], **_classes(ledger, main, rows), "galleries": pictures,
        "notes": f"{missing} pictures could not be read from the shards; give --root NAME=URL if the data moved."
                 if missing else "", "version": version("rhostream"),
    }


def _curve(ledger: Ledger, run: str) -> dict[str, list[float]]:
    curve: dict[str, list[float]] = ledger.sql(
        "SELECT step + 1 AS steps, forward_units AS units, test_accuracy AS accuracy FROM steps "
        "WHERE run = $run AND test_accuracy IS NOT NULL ORDER BY step", {"run": run}
    ).to_pydict()
    return curve


def _kind(row: Mapping[str, Any]) -> str:
    if row["rule"] == "uniform":
        return "everything" if row["buffer_size"] == row["batch_size"] else "uniform"
    return f"{row['rule']} with loss_cap" if row["loss_cap"] else str(row["rule"])


def _grouped(rows: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for run, curve in curves.items():
        groups.setdefault(f"{_kind(rows[run])}, {rows[run]['model']}", []).append(curve)
    return groups


def _comparisons(rows: Mapping[str, Any], curves: Mapping[str, Any], mine: Sequence[str],
                 window: int) -> list[dict[str, Any]]:
    """Each run against the uniform one of its model and seed."""
    found = []
    for run in mine:
        for other in rows:
            twins = all(rows[run][k] == rows[other][k] for k in ("model", "seed", "buffer_size"))
            if _kind(rows[other]) != "uniform" or other == run or not twins or run not in curves or other not in curves:
                continue
            base, ours = ((curves[r]["steps"], curves[r]["accuracy"]) for r in (other, run))
            goal, gain = best(base[1], window), speedup(base, ours, window)
            even = break_even(rows[run]["buffer_size"], rows[run]["batch_size"])
            found.append({
                "run": run, "baseline": other, "target": f"{goal:.4f}", "gain": gain, "even": even,
                "baseline_steps": steps_to_reach(*base, goal, window),
                "steps": steps_to_reach(*ours, goal, window) or "not reached",
                "speedup": f"{gain:.2f}x" if gain else "not reached", "break_even": f"{even:.2f}x",
            })
    return found


def _verdicts(comparisons: Sequence[Mapping[str, Any]], rows: Mapping[str, Any], main: str) -> list[dict[str, Any]]:
    if not comparisons:
        return [{"good": True, "text": f"{main}: {rows[main]['steps']:,} steps, final test accuracy "
                                       f"{_percent(rows[main]['final_test_accuracy'])}. Nothing to compare it with."}]
    gains, even = [c["gain"] for c in comparisons], comparisons[0]["even"]
    reached = [g for g in gains if g is not None]
    if len(reached) < len(gains):
        text = (f"Selection did not pay: uniform's best was not reached in {len(gains) - len(reached)} of "
                f"{len(gains)} comparisons within the steps that were run.")
        return [{"good": False, "text": text}]
    mean = sum(reached) / len(reached)
    spread = f" ({min(reached):.2f} to {max(reached):.2f} over {len(reached)} runs)" if len(reached) > 1 else ""
    pays = mean > even
    says = "selection paid, before the cost of the IL model." if pays else "selection saved steps, but not arithmetic."
    text = f"Uniform's best was reached in {mean:.2f} times fewer steps{spread}. "
    text += f"The break-even in forwards is {even:.2f}: {says}"
    return [{"good": pays, "text": text}]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _cost(ledger: Ledger, run: str, row: Mapping[str, Any]) -> dict[str, Any]:
    folder = next(r for r in ledger.runs if os.path.basename(r) == run)
    latest = checkpoint.latest(folder)
    seconds = latest.cost.get("seconds", {}) if latest else {}
    macs = (row["forward_units"] or 0) * (row["macs"] or 0)
    return {"run": run, "steps": f"{row['steps']:,}", "accuracy": _percent(row["final_test_accuracy"]),
            "units": f"{row['forward_units'] or 0:,.0f}", "macs": f"{macs:.3g}",
            "il_units": f"{row['il_units'] or 0:,.0f}",
            "seconds": [f"{seconds.get(p, 0):.1f}" for p in PHASES]}


def _il_text(row: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]) -> str:
    if not row["il_units"]:
        return "This run used no irreducible loss."
    text = (f"The IL model's own accuracy is {_percent(row['il_accuracy'])} (on labels as they are, of samples that it "
            f"didn't learn from); the target's is {_percent(row['final_test_accuracy'])} on the test set. Fitting it "
            f"and scoring every sample cost {row['il_units']:,.0f} units, once, for every later run. ")
    own = [c for c in comparisons if c["run"] == row["run"] and c["gain"]]
    if own:
        units = row["batch_size"] * 3
        saved = own[0]["baseline_steps"] * units - own[0]["steps"] * (row["buffer_size"] + units)
        text += (f"To reach uniform's best, selection saved {saved:,.0f} units in this run, so the IL is paid after "
                 f"{-(-row['il_units'] // saved):.0f} runs." if saved > 0 else
                 "To reach uniform's best, selection spent more units than uniform, so the IL is never paid.")
    return text


def _reasons(ledger: Ledger) -> dict[str, Any]:
    rows = ledger.sql("SELECT run, reason::VARCHAR AS reason, count(*) AS n FROM selections GROUP BY ALL").to_pylist()
    runs = sorted({r["run"] for r in rows})
    total = {run: sum(r["n"] for r in rows if r["run"] == run) for run in runs}
    count = {(r["run"], r["reason"]): r["n"] for r in rows}
    names = sorted({r["reason"] for r in rows}, key=lambda name: (name != "kept", name))
    shares = [{"reason": n, "share": [_percent(count.get((run, n), 0) / total[run]) for run in runs]} for n in names]
    return {"reasons": shares, "reason_runs": runs}


def _noise(ledger: Ledger, main: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, str]]]:
    """Points of the scatter, what is kept over time, and the noisy share, where the table knows it."""
    points = ledger.sql("SELECT il, loss, kept::INT AS kept FROM (SELECT * FROM selections WHERE run = $run AND "
                        "isfinite(loss) AND isfinite(il)) USING SAMPLE reservoir(4000 ROWS) REPEATABLE (0)",
                        {"run": main}).to_pydict()
    known = "is_noisy" in ledger.kept_fields()
    join = "LEFT JOIN samples USING (shard, ordinal)" if known else ""
    extra = ", avg(is_noisy::INT) FILTER (kept) AS noisy_kept, avg(is_noisy::INT) FILTER (NOT kept) AS noisy_skipped"
    slices = ledger.sql(
        "SELECT step // greatest((SELECT max(step) + 1 FROM selections WHERE run = $run) // 25, 1) AS slice, "
        f"min(step) AS step, avg(correct::INT) FILTER (kept) AS correct {extra if known else ''} "
        f"FROM selections {join} WHERE run = $run AND isfinite(loss) GROUP BY slice ORDER BY slice",
        {"run": main},
    ).to_pydict()
    series = {"already correct, kept": slices["correct"]}
    if not known:
        says = "how much of what is kept was right already."
        return points, {"step": slices["step"], "series": series, "says": says}, []
    series |= {"wrong label, kept": slices["noisy_kept"], "wrong label, skipped": slices["noisy_skipped"]}
    rows = ledger.sql("SELECT run, avg(is_noisy::INT) FILTER (kept) AS k, avg(is_noisy::INT) FILTER (NOT kept) AS s "
                      "FROM selections JOIN samples USING (shard, ordinal) WHERE reason IN ('kept', 'below') "
                      "GROUP BY run ORDER BY run").to_pylist()
    noisy = [{"run": r["run"], "kept": _percent(r["k"]), "skipped": _percent(r["s"])} for r in rows]
    says = "shares of what is kept and skipped over time."
    return points, {"step": slices["step"], "series": series, "says": says}, noisy


def _classes(ledger: Ledger, main: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    kept = ledger.sql("SELECT label, count(*) AS planned, avg(kept::INT) AS rate FROM selections WHERE run = $run "
                      "AND label IS NOT NULL AND reason <> 'tail' GROUP BY label ORDER BY label",
                      {"run": main}).to_pylist()
    last = ledger.sql("SELECT run, class_accuracy FROM steps WHERE test_accuracy IS NOT NULL QUALIFY "
                      "row_number() OVER (PARTITION BY run ORDER BY step DESC) = 1 ORDER BY run").to_pylist()
    accuracy = {row["run"]: row["class_accuracy"] for row in last}
    worst = [f"{run} {_percent(min(a for a in values if a is not None))}" for run, values in accuracy.items()]
    table = [{"label": str(k["label"]), "planned": f"{k['planned']:,}", "rate": _percent(k["rate"]),
              "accuracy": [_percent(a[k["label"]] if k["label"] < len(a) else None) for a in accuracy.values()]}
             for k in kept[:200]]
    return {"classes": table, "class_runs": list(accuracy),
            "class_text": f"Worst class at the last evaluation: {', '.join(worst)}." if worst else ""}


def _galleries(ledger: Ledger, run: str, record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    truth = ", il.true_label" if "true_label" in ledger.kept_fields() else ""
    urls = dict(zip(record["shards"], record.get("shard_urls", record["shards"]), strict=True))
    groups, missing = [], 0
    for title, says, where, order in GALLERIES:
        query = _PICTURES.format(where=where, order=order, limit=PICTURES, truth=truth)
        rows = ledger.sql(query, {"run": run}).to_pylist()
        images, lost = thumbnails(rows, urls)
        missing += lost
        figures = [{"image": image, "key": json.dumps(row["key"], ensure_ascii=False)[1:-1][:80],
                    "caption": f"label {row['label']}" + (f", truly {row['true_label']}" if truth else "")
                    + f", il model says {row['predicted']}; loss {row['loss']:.2f}, il {row['il']:.2f}"}
                   for row, image in zip(rows, images, strict=True)]
        groups.append({"title": title, "says": says, "figures": figures})
    return groups, missing
