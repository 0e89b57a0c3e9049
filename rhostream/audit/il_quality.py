"""What an IL table is worth: its il by class, on wrong labels and right ones, and how sure of itself its model is.

Everything about the rows is asked of the table. It holds p(label) = exp(-il) and not how sure the model was of what it
predicted, so the reliability diagram is the one that `fit-il` made, on samples that the model didn't learn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from rhostream import foreign, storage
from rhostream.audit import alts, il_plots, plots
from rhostream.audit.pages import environment
from rhostream.audit.tabulate import UNKNOWN, number, percent
from rhostream.audit.views import Ledger, open_ledger
from rhostream.errors import TableError, UsageError
from rhostream.tables import il as il_table
from rhostream.tables.classes import named, no_class

BINS = 40
SHOWN_CLASSES = 40
FEW = 10  # samples of a class below which its accuracy is not called the worst
_NOISY = {"is_noisy": "is_noisy", "true_label": "label <> true_label"}  # kept field -> whether the label is wrong
_KINDS = {"is_noisy": "bool", "true_label": "int"}
_SUMMARY = """
    SELECT count(*) AS n, avg(il::DOUBLE) AS mean_il, avg((predicted = label)::INT) AS accuracy,
           quantile_cont(il::DOUBLE, [0.05, 0.5, 0.95, 0.995]) AS quantiles
    FROM il WHERE isfinite(il)
"""
_HELD = """
    SELECT in_holdout, count(*) AS n, avg(il::DOUBLE) AS mean_il, avg((predicted = label)::INT) AS accuracy
    FROM il WHERE isfinite(il) GROUP BY in_holdout ORDER BY in_holdout
"""
_BY_CLASS = """
    SELECT label AS class, count(*) AS n, avg(il::DOUBLE) AS mean_il, avg((predicted = label)::INT) AS accuracy
    FROM il WHERE isfinite(il) AND label IS NOT NULL GROUP BY label ORDER BY label
"""
_HISTOGRAM = """
    SELECT :noisy AS noisy, greatest(0, least(floor(il::DOUBLE / $top * $bins), $bins - 1))::INT AS bin, count(*) AS n
    FROM il WHERE isfinite(il) GROUP BY ALL
"""
_BY_NOISE = """
    SELECT :noisy AS noisy, count(*) AS n, avg(il::DOUBLE) AS mean_il, avg((predicted = label)::INT) AS accuracy
    FROM il WHERE isfinite(il) AND (:noisy) IS NOT NULL GROUP BY ALL
"""
# The chance that a wrong label has the higher il of two, ties counted half (Mann and Whitney's U, scaled).
_AUROC = """
    WITH counted AS (
        SELECT il, count(*) FILTER (WHERE :noisy) AS wrong, count(*) FILTER (WHERE NOT (:noisy)) AS good
        FROM il WHERE isfinite(il) AND (:noisy) IS NOT NULL GROUP BY il
    ), ranked AS (
        SELECT wrong, good, coalesce(sum(good) OVER (ORDER BY il ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
               AS below FROM counted
    )
    SELECT sum(wrong * (below + good / 2.0)) / nullif(sum(wrong) * sum(good), 0) AS auroc FROM ranked
"""


def il_quality(ledger: Ledger) -> dict[str, Any]:
    """The figures of the ledger's IL table: plain values, il in nats, shares of 1; of all rows that have an il.

    {"rows", "mean_il", "accuracy", "quantiles", "in_holdout", "rest", "classes", "class_names", "worst_class", "noise",
    "histogram", "model", "loss", "no_class"}; "no_class" says why there are no classes, "noise" is None unless
    `is_noisy` (bool) or `true_label` (int) was kept. Raises UsageError for an index.
    """
    info = il_table.open_info(ledger.table_url)
    if info.kind != "il":
        raise UsageError(f"{storage.redact(ledger.table_url)} is an index: it has no il to judge")
    (all_rows,) = ledger.sql(_SUMMARY).to_pylist()
    held = {bool(r.pop("in_holdout")): r for r in ledger.sql(_HELD).to_pylist()}
    classes = ledger.sql(_BY_CLASS).to_pylist()
    by = next((name for name in _NOISY if info.keep.get(name) == _KINDS[name]), None)
    counted = [c for c in classes if c["n"] >= FEW] or classes
    low, median, high, top = all_rows.pop("quantiles") or (None,) * 4
    return {
        "table": storage.redact(ledger.table_url), "fingerprint": info.fingerprint, "il_dtype": info.il_dtype,
        "rows": all_rows["n"], "mean_il": all_rows["mean_il"], "accuracy": all_rows["accuracy"],
        "quantiles": {"5 %": low, "50 %": median, "95 %": high},
        "in_holdout": held.get(True), "rest": held.get(False), "classes": classes,
        "class_names": {row["label"]: row["name"] for row in ledger.sql("SELECT * FROM classes").to_pylist()},
        "worst_class": min(counted, key=lambda c: (c["accuracy"], c["class"])) if counted else None,
        "noise": _noise(ledger, by) if by else None, "histogram": _histogram(ledger, by, top), "model": _model(info),
        "loss": str(info.ingredients.get("loss", "cross_entropy")), "no_class": no_class(info.target),
        "doubts": il_table.reference_doubts(info.reference),
    }  # fmt: skip


def _noise(ledger: Ledger, by: str) -> dict[str, Any] | None:
    groups = {bool(r.pop("noisy")): r for r in ledger.sql(_of(_BY_NOISE, by)).to_pylist()}
    if set(groups) != {True, False}:
        return None
    (found,) = ledger.sql(_of(_AUROC, by)).to_pylist()
    return {"by": by, "wrong": groups[True], "right": groups[False], "auroc": found["auroc"]}


def _histogram(ledger: Ledger, by: str | None, top: float | None) -> dict[str, Any]:
    top = max(top or 0.0, 1e-3)
    counts: dict[str, list[int]] = {}
    name = {True: "wrong labels", False: "right labels", None: "all" if by is None else "unknown"}
    query, values = _of(_HISTOGRAM, by), {"top": top, "bins": BINS}
    for row in ledger.sql(query, values).to_pylist():
        counts.setdefault(name[row["noisy"]], [0] * BINS)[row["bin"]] += row["n"]
    return {"edges": [round(top * edge / BINS, 6) for edge in range(BINS + 1)], "counts": counts}


def _of(query: str, by: str | None) -> str:
    """The query with our own expression for a wrong label in it."""
    return query.replace(":noisy", _NOISY[by] if by else "NULL::BOOLEAN")


def _model(info: il_table.TableInfo) -> dict[str, Any]:
    """What the table says of its IL model. Raises TableError when that can't be understood."""
    known = {name: info.model.get(name) for name in ("architecture", "accuracy", "val_loss", "folds", "mode")}
    quality = info.model.get("quality") or {}
    try:
        if quality or not isinstance(quality, dict):
            foreign.checked_quality(quality)
    except ValueError as exc:
        raise TableError(f"what the table says of its IL model can't be understood: {exc}") from exc
    # An older model may have divided its logits by a temperature.
    name = "reliability_tempered" if info.ingredients.get("temperature") else "reliability"
    return known | {"quality": quality, "reliability": quality.get(name)}


# -- the page --------------------------------------------------------------------------------------------------------


def section(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the template of the section needs: rows of text and figures."""
    noise, reliability = found["noise"], found["model"]["reliability"]
    unit = "" if found["no_class"] else ", nats"
    return {
        "no_class": found["no_class"], "rows": _rows(found), "says": _says(found), "url": found["table"],
        "histogram": {"alt": alts.of_histogram(found["histogram"]),
                      "image": il_plots.histogram(found["histogram"], unit)} if found["rows"] else None,
        "reliability": {"alt": alts.of_reliability(reliability), "image": il_plots.reliability(reliability)}
        if reliability else None,
        "classes": [[named(found["class_names"], c["class"]), number(c["n"]), f"{c['mean_il']:.3f}",
                     percent(c["accuracy"])]
                    for c in sorted(found["classes"], key=lambda c: (c["accuracy"], c["class"]))[:SHOWN_CLASSES]],
        "hidden": max(0, len(found["classes"]) - SHOWN_CLASSES), "noise": noise,
    }  # fmt: skip


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    quality, noise, rows = found["model"]["quality"], found["noise"], []

    def group(name: str, row: Mapping[str, Any] | None) -> None:
        if row:
            rows.append(
                [
                    name,
                    number(row["n"]),
                    UNKNOWN if row["mean_il"] is None else f"{row['mean_il']:.4f}",
                    percent(row["accuracy"]),
                ]
            )

    group("all rows with an il", {"n": found["rows"], **{k: found[k] for k in ("mean_il", "accuracy")}})
    if found["in_holdout"]:
        group("learned from (in_holdout)", found["in_holdout"])
        group("not learned from", found["rest"])
    if noise:
        group("right labels", noise["right"])
        group("wrong labels", noise["wrong"])
    if quality:
        group(
            "fit-il: samples it didn't learn from",
            {"n": quality["samples"], "mean_il": quality["loss"], "accuracy": quality["accuracy"]},
        )
        rows.append(["fit-il: samples it learned from", UNKNOWN, f"{quality['train_loss']:.4f}", UNKNOWN])
    return rows


def _says(found: Mapping[str, Any]) -> list[str]:
    quality, noise, says = found["model"]["quality"], found["noise"], []
    if found["no_class"]:
        says.append(f"{found['no_class']}; il is {found['loss']}.")
    says += [f"{doubt}." for doubt in found["doubts"]]
    if found["worst_class"] and found["accuracy"] is not None:
        worst = found["worst_class"]
        who = "reference" if found["doubts"] else "IL model"
        says.append(
            f"The {who} predicts the given label for {percent(found['accuracy'])} of the rows, for "
            f"{percent(worst['accuracy'])} of its worst class "
            f"({named(found['class_names'], worst['class'])})."
        )
    if noise and noise["auroc"] is not None:
        says.append(
            f"Of a wrong label and a right one, the wrong one has the higher il with a chance of "
            f"{noise['auroc']:.3f} (AUROC; 0.5 would be no help)."
        )
    if quality:
        if reliability := found["model"]["reliability"]:
            off = percent(reliability["ece"])
            says.append(f"Its confidence is off by {off} on average (expected calibration error, 15 bins).")
        says += [*quality["doubts"], *quality["empty_classes"]]
    return says


def write_il_report(table: str, out_path: str, *, roots: Mapping[str, str] | None = None) -> str:
    """Write the page of an IL table to `out_path` and return the path.

    Raises UsageError for an index, MissingExtraError without the extra `report`, TableError for damaged files.
    """
    templates = environment()
    plots.require()
    with open_ledger(table, roots=roots) as ledger:
        found = il_quality(ledger)
    html = templates.get_template("il_report.html").render(
        title=found["table"], found=found, il=section(found), version=version("rhostream")
    )
    path = storage.resolve(out_path)
    storage.replace(path, html.encode("utf-8", "backslashreplace"))
    return path
