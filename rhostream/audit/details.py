"""What a page shows of one run: its figures over time, and the samples that it kept and skipped, in pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rhostream.audit import alts, plots, tabulate
from rhostream.audit.facts import RunFacts, balance_over_time, over_time, scatter_points
from rhostream.audit.gallery import galleries
from rhostream.audit.pictures import Picture
from rhostream.audit.plots import BLUE, GREY, ORANGE, RED
from rhostream.audit.views import open_ledger
from rhostream.inert import shortened

LOG = logging.getLogger("rhostream")
Figure = dict[str, str] | None


def details(run: RunFacts, roots: Mapping[str, str] | None, pictures: int) -> dict[str, Any]:
    """What is drawn and shown of one run, with at most so many pictures a gallery."""
    with open_ledger(run.folder.url, roots=roots) as ledger:
        points, slices, classes = scatter_points(ledger), over_time(ledger), balance_over_time(ledger)
        shown, note = galleries(ledger, pictures)
    if note:
        LOG.warning("%s", note)
    step = slices["step"]
    right = {"of what is kept": slices["right_kept"], "of all candidates": slices["right_all"]}
    wrong = {"among kept": slices["noisy_kept"], "among skipped": slices["noisy_skipped"]}
    balance = {"kept": classes["kept"], "by chance": classes["chance"]}
    return {
        "run": run,
        "scatter": _figure(alts.of_scatter(points), plots.scatter(points, "" if run.folder.no_class else ", nats"))
        if points["il"] else None,
        "right": _shares("Share already right among kept and all", step, right, (BLUE, GREY)),
        "wrong": _shares("Share of wrong labels among kept and skipped", step, wrong, (RED, ORANGE)),
        "effective": _figure(
            alts.of_lines("Effective classes of the kept batches", classes["step"], balance, share=False),
            plots.effective_classes(classes["step"], classes["kept"], classes["chance"]))
        if classes["step"] else None,
        "galleries": [{"title": g.title, "says": g.says, "empty": g.empty,
                       "pictures": [_tile(run, p, g.title) for p in g.pictures]} for g in shown],
        "note": note, "seen": any(picture.seen for gallery in shown for picture in gallery.pictures),
    }  # fmt: skip


def _figure(alt: str, image: str) -> Figure:
    return {"alt": alt, "image": image}


def _shares(what: str, step: list[int], series: Mapping[str, list[Any]], colours: tuple[str, str]) -> Figure:
    if all(value is None for value in list(series.values())[1]):
        return None
    lines = {name: (values, colour, dash)
             for (name, values), colour, dash in zip(series.items(), colours, ("-", "--"), strict=True)}  # fmt: skip
    return _figure(alts.of_lines(what, step, series), plots.shares(step, lines))


def _tile(run: RunFacts, picture: Picture, title: str) -> dict[str, Any]:
    """A sample with its facts in words: label > predicted, loss and il, why it was kept or skipped."""
    row, facts = picture.row, picture.facts
    truth, predicted = facts.get("true_label"), facts.get("predicted")
    wrong = bool(facts.get("is_noisy") or (truth is not None and truth != row["label"]))
    lines = [] if row["label"] is None else [f"label {tabulate.class_name(run, row['label'])}"]
    if truth is not None and truth != row["label"]:
        lines.append(f"truly {tabulate.class_name(run, truth)}")
    elif wrong:
        lines.append("known to be wrong")
    if predicted is not None and row["label"] is not None:
        agrees = "the same" if predicted == row["label"] else tabulate.class_name(run, predicted)
        lines.append(f"IL model: {agrees}")
    numbers = [f"{name} {row[name]:.2f}" for name in ("loss", "il", "score") if row[name] is not None]
    return {"image": picture.image, "seen": picture.seen, "text": picture.text, "lines": lines, "wrong": wrong,
            "numbers": ", ".join(numbers), "why": f"{_why(title, row)}, step {row['step']:,}", "key": row["key"],
            "alt": ", ".join(lines) or shortened(str(row["key"]), 60), "tiny": plots.side_of(picture.image)
            < plots.side_of(None), "tiny_seen": plots.side_of(picture.seen) < plots.side_of(None)}  # fmt: skip


def _why(title: str, row: Mapping[str, Any]) -> str:
    if row["loss"] is None:
        return "not scored"
    if title == "Kept early":
        above = "" if row["il"] is None else f": {row['loss'] - row['il']:.2f} above what can't be learnt"
        return f"kept{above}"
    return "skipped: even the IL model finds it hard" if title == "Skipped as noise" else "skipped: known already"
