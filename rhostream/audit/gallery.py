"""Pictures of what was kept and skipped: decoded and encoded again by us, so no byte of a shard reaches a page.

Of a text its beginning is shown, which the page escapes, and of a pair the picture above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from rhostream import storage
from rhostream.audit.plots import uri
from rhostream.audit.runs import RunFolder
from rhostream.audit.views import Ledger
from rhostream.errors import RhostreamError
from rhostream.samples import registry
from rhostream.samples.kind import Kind
from rhostream.samples.registry import IMAGES
from rhostream.storage import Reader
from rhostream.tables import il as il_table
from rhostream.tables import parquet

PICTURES = 12
FAILURES = 3  # unreadable shards after which the rest isn't tried: each try of a store that is down takes seconds
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
class Picture:
    """A sample of a gallery; `image` is a data URI, None where it can't be shown, and `facts` what its part knows."""

    row: dict[str, Any]  # shard, ordinal, key, label, step, loss, il, score
    image: str | None = None  # all of the picture
    seen: str | None = None  # what the model saw of it, where that differs
    text: str | None = None  # the beginning of a sample that is text, or of a pair's caption
    facts: dict[str, Any] = field(default_factory=dict)  # predicted, true_label, is_noisy


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
    reader = _Pictures(ledger.runs[0], ledger.roots)
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


class _Pictures:
    """Reads images by the offsets of the parts; a part or shard that can't be had is tried once."""

    def __init__(self, run: RunFolder, roots: Mapping[str, str]) -> None:
        self._run, self._roots = run, roots
        self._parts: dict[str, tuple[pa.Table, dict[str, Any]] | None] = {}
        self._readers: dict[str, Reader | None] = {}
        self._kinds: dict[str, Kind] = {}
        self.reason = "the sample has no image that can be decoded"

    def fill(self, picture: Picture) -> None:
        shard, ordinal = picture.row["shard"], picture.row["ordinal"]
        part = self._part(shard)
        if part is None or not 0 <= ordinal < len(part[0]):
            return
        row = part[0].slice(ordinal, 1).to_pylist()[0]
        picture.facts = {k: row[k] for k in ("predicted", "true_label", "is_noisy") if k in row}
        content = str(part[1].get("content", IMAGES.name))
        kind = self._kind(content)
        if kind is None or not kind.preview_bytes:
            self.reason = f"samples of the kind {content} have no picture"
            return
        held = {
            name: next((m for m in row["members"] or () if m["ext"] in extensions), None)
            for name, extensions in kind.members.items()
        }
        if None in held.values() or (reader := self._reader(shard, int(part[1]["shard_size"]))) is None:
            return
        try:
            data = {n: reader.pread(min(m["size"], kind.preview_bytes), m["offset"]) for n, m in held.items() if m}
            seen = kind.preview(data, self._run.settings)
            picture.image, picture.seen = (
                None if png is None else uri(png, "image/png") for png in (seen.image, seen.seen)
            )
            picture.text = seen.text
        except (RhostreamError, OSError) as exc:
            self.reason = _said(exc)

    def _kind(self, content: str) -> Kind | None:
        """The kind of that name as the table has it, or by its name alone; None for a user's own."""
        if content not in registry.BUILT_IN:
            return None
        if content not in self._kinds:
            self._kinds[content] = registry.undecided(content)
            try:
                info = il_table.open_info(self._run.il_url or "")
                if info.content == content:
                    self._kinds[content] = info.kind_of_samples()
            except RhostreamError:
                pass  # the part, which is there, says enough
        return self._kinds[content]

    def _part(self, shard: str) -> tuple[pa.Table, dict[str, Any]] | None:
        if shard not in self._parts:
            self._parts[shard] = None
            if self._run.il_url and self._may_try(self._parts):
                try:
                    table, facts = parquet.read(il_table.part_url(self._run.il_url, shard))
                    self._parts[shard] = (table.sort_by("ordinal"), facts)
                except RhostreamError as exc:
                    self.reason = _said(exc)
        return self._parts[shard]

    def _reader(self, shard: str, size: int) -> Reader | None:
        if shard not in self._readers:
            self._readers[shard] = None
            if self._may_try(self._readers):
                try:
                    # No spool: a few ranges of a remote shard, not the whole of it for one picture.
                    reader = storage.open_reader(self._run.shard_url(shard, self._roots), spool_bytes=0)
                    if reader.size == size:
                        self._readers[shard] = reader
                    else:
                        self.reason = f"shard {shard} changed after it was indexed"
                        reader.close()
                except (RhostreamError, OSError) as exc:
                    self.reason = f"{_said(exc)}; say where the shards lie with --root NAME=URL"
        return self._readers[shard]

    def _may_try(self, tried: Mapping[str, object]) -> bool:
        """Whether another one is worth a try; the entry about to be tried is None already."""
        return sum(one is None for one in tried.values()) <= FAILURES

    def close(self) -> None:
        for reader in self._readers.values():
            if reader is not None:
                reader.close()


def _said(exc: Exception) -> str:
    return str(exc) if isinstance(exc, RhostreamError) else type(exc).__name__
