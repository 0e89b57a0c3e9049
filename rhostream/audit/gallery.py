"""Which samples the report shows of what was kept and skipped, and by which rule: kept early, noise, learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rhostream.audit.pictures import Picture, Pictures
from rhostream.audit.views import Ledger

PICTURES = 12
_CHOSEN = """
WITH looks AS (
    SELECT shard, ordinal, key, label, step, loss::DOUBLE AS loss, il::DOUBLE AS il, score::DOUBLE AS score
    FROM selections WHERE {where} ORDER BY {order}, shard, ordinal, step LIMIT 20000
), once AS (
    SELECT * FROM looks
    QUALIFY row_number() OVER (PARTITION BY shard, ordinal ORDER BY {order}, step) = 1
), turns AS (
    SELECT *, row_number() OVER (PARTITION BY label ORDER BY {order}, shard, ordinal) AS turn FROM once
)
SELECT * EXCLUDE (turn) FROM turns ORDER BY turn, {order}, shard, ordinal LIMIT $pictures
"""
# What the headings are decided by. A share of the table alone would call the worst of a clean table noise, a number of
# nats alone most of a table whose labels are hard: noise is both, and learnt is a label that is nearly certain. Nats of
# what isn't the loss of a class mean no chance: there noise and learnt are shares alone.
NOISE_SHARE = 0.1  # of the samples that were looked at, those with the highest il
NOISE_IL = math.log(2)  # nats: the IL model gives the label less than an even chance
LEARNT_LOSS = -math.log(0.9)  # nats: the model gives the label at least 90 %
_LIMITS = """
WITH samples_seen AS (SELECT any_value(il)::DOUBLE AS il FROM selections WHERE isfinite(il) GROUP BY shard, ordinal),
skipped AS (
    SELECT max(il) FILTER (isfinite(il))::DOUBLE AS highest_il,
        min(loss) FILTER (isfinite(loss) AND step >= (SELECT max(step) FROM selections) * 3 / 4)::DOUBLE AS lowest_loss,
        quantile_cont(loss, $share) FILTER (isfinite(loss) AND step >= (SELECT max(step) FROM selections) * 3 / 4)
            ::DOUBLE AS low_loss
    FROM selections WHERE reason = 'below'
), cut AS (
    SELECT greatest(quantile_cont(il, 1 - $share), $least) AS noise_il, quantile_cont(il, 1 - $share) AS top_il
    FROM samples_seen
)
SELECT cut.*, skipped.*, (SELECT avg((il > noise_il)::INT) FROM samples_seen) AS noise_share,
    (SELECT max(step) FROM selections) AS last_step
FROM cut, skipped
"""


@dataclass
class Gallery:
    """Pictures of one kind."""

    title: str
    says: str  # the rule, in numbers
    pictures: list[Picture]
    empty: str  # why there is no picture, where there is none


def galleries(ledger: Ledger, most: int = PICTURES) -> tuple[list[Gallery], str]:
    """The galleries of the ledger's only run (each class in its turn), and a note on what could not be shown."""
    classes = not ledger.runs[0].no_class
    least = NOISE_IL if classes else -math.inf
    (limits,) = ledger.sql(_LIMITS, {"share": NOISE_SHARE, "least": least}).to_pylist()
    found = []
    chosen = (_noise(limits), _learnt(limits)) if classes else (_hardest(limits), _easiest(limits))
    for gallery, where, order, limit in (_early(limits), *chosen):
        rows = ledger.sql(_CHOSEN.format(where=where, order=order), {"pictures": most, "limit": limit}).to_pylist()
        found.append(replace(gallery, pictures=[Picture(row) for row in rows]))
    pictures = [picture for gallery in found for picture in gallery.pictures]
    reader = Pictures(ledger.runs[0], ledger.roots)
    try:
        for picture in pictures:
            reader.fill(picture)
    finally:
        reader.close()
    missing = sum(picture.image is None and picture.text is None for picture in pictures)
    note = f"{missing} of {len(pictures)} pictures could not be read: {reader.reason}." if missing else ""
    return found, note


_NOT_SEEN = "None: no such sample was looked at."
_Chosen = tuple[Gallery, str, str, float]  # an empty gallery, the condition on looks with its $limit, their order


def _early(limits: Mapping[str, Any]) -> _Chosen:
    last = (limits["last_step"] or 0) // 10
    says = f"The highest scores among what was kept in the first tenth of the run, steps 0 to {last:,}."
    return Gallery("Kept early", says, [], _NOT_SEEN), "kept AND isfinite(score) AND step <= $limit", "score DESC", last


def _noise(limits: Mapping[str, Any]) -> _Chosen:
    cut, top, highest = (limits[name] for name in ("noise_il", "top_il", "highest_il"))
    where, order = "reason = 'below' AND isfinite(il) AND il > $limit", "il DESC"
    if cut is None or top is None:
        return Gallery("Skipped as noise", "", [], _NOT_SEEN), where, order, NOISE_IL
    rule = f"il above {cut:.2f} nats, the highest {100 * limits['noise_share']:.1f} % of the samples looked at"
    if top < NOISE_IL:  # a clean table: its highest tenth is no noise
        rule += f" (the highest {100 * NOISE_SHARE:.0f} % begin at {top:.2f}, where the label is still the likelier)"
    says = (f"Skipped with {rule}: the IL model gives these labels less than an even chance, so a high loss promises "
            "nothing. Wrong and ambiguous labels gather here.")  # fmt: skip
    empty = _NOT_SEEN if highest is None else f"None: the highest il of what was skipped is {highest:.2f} nats."
    return Gallery("Skipped as noise", says, [], empty), where, order, cut


def _learnt(limits: Mapping[str, Any]) -> _Chosen:
    last, lowest = limits["last_step"] or 0, limits["lowest_loss"]
    says = (f"Skipped in the last quarter of the run, from step {-(-last * 3 // 4):,} on, with a loss below "
            f"{LEARNT_LOSS:.2f} nats: the model gives the label more than 90 %, so nothing is left "
            "to learn.")  # fmt: skip
    empty = _NOT_SEEN if lowest is None else f"None: the lowest loss of what was skipped then is {lowest:.2f} nats."
    where = "reason = 'below' AND isfinite(loss) AND step >= (SELECT max(step) FROM selections) * 3 / 4"
    return Gallery("Skipped as learnt", says, [], empty), f"{where} AND loss < $limit", "loss", LEARNT_LOSS


def _hardest(limits: Mapping[str, Any]) -> _Chosen:
    cut, where = limits["top_il"], "reason = 'below' AND isfinite(il) AND il > $limit"
    if cut is None:
        return Gallery("Skipped as noise", "", [], _NOT_SEEN), where, "il DESC", 0.0
    says = (
        f"Skipped with il above {cut:.2f} nats, the highest {100 * limits['noise_share']:.1f} % of the samples looked "
        "at: what even the IL model finds hard, so a high loss promises nothing. Samples that are wrong gather here."
    )
    return Gallery("Skipped as noise", says, [], _NOT_SEEN), where, "il DESC", cut


def _easiest(limits: Mapping[str, Any]) -> _Chosen:
    last, low = limits["last_step"] or 0, limits["low_loss"]
    where = "reason = 'below' AND loss <= $limit AND step >= (SELECT max(step) FROM selections) * 3 / 4"
    if low is None:
        return Gallery("Skipped as learnt", "", [], _NOT_SEEN), where, "loss", 0.0
    says = (
        f"Skipped in the last quarter of the run, from step {-(-last * 3 // 4):,} on, with a loss of at most {low:.2f} "
        f"nats: the lowest {100 * NOISE_SHARE:.0f} % of what was skipped then."
    )
    return Gallery("Skipped as learnt", says, [], _NOT_SEEN), where, "loss", low
