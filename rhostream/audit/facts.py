"""What a report needs to know of each run, asked from its ledger: plain values, ready to compare and to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rhostream.audit.alike import setting_of, tested_on
from rhostream.audit.looking import Looking, looking_of
from rhostream.audit.runs import RunFolder
from rhostream.audit.views import Ledger, open_ledger
from rhostream.config.train import TrainConfig
from rhostream.errors import RhostreamError
from rhostream.foreign import RESIZES
from rhostream.runs.doubts import EARLY
from rhostream.setting import CASCADE, defaults_of, settings_of
from rhostream.tables.steps import OF_PAIRS

POINTS = 4000  # of the scatter
SLICES = 25  # of a run over time


@dataclass(frozen=True)
class Curve:
    """The evaluations of a run, by the steps and the forward units that were spent when each was made."""

    steps: list[int] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    def units_at(self, steps: int | None) -> float | None:
        """Forward units spent when that many steps were taken (an evaluated number of steps)."""
        return self.units[self.steps.index(steps)] if steps in self.steps else None


def _words() -> tuple[dict[str, str], dict[str, str]]:
    """({field: the words before its value}, {switch: its words}), the stages before the rule first."""
    says, defaults = settings_of(TrainConfig), defaults_of(TrainConfig)
    words = {name: one.words or name.replace("_", " ") for name, one in says.items() if one.words is not None}
    words = dict(sorted(words.items(), key=lambda item: says[item[0]].heading != CASCADE))
    switches = {name for name in words if isinstance(defaults[name], bool)}
    return (
        {name: text for name, text in words.items() if name not in switches},
        {name: text for name, text in words.items() if name in switches},
    )


_STAGES, _SWITCHES = _words()


@dataclass(frozen=True)
class RunFacts:
    """One run, in the figures of a report. Shares are of 1; what isn't known is None or empty."""

    name: str
    folder: RunFolder
    row: dict[str, Any]  # of the view `runs`
    curve: Curve
    reasons: dict[str, int]  # samples by reason
    classes: dict[int, tuple[int, int]]  # label -> (planned, kept)
    class_accuracy: list[float | None]  # at the last evaluation, by label
    noisy: dict[bool, float]  # kept? -> share of wrong labels, where it is known
    balance: tuple[tuple[int, float | None, float | None], ...] = ()  # (steps, effective classes, those of chance)
    sources: tuple[dict[str, Any], ...] = ()  # of the view `sources`, the largest change of share first
    no_table: str = ""  # why the run's IL table can't be asked, "" where it can
    test_losses: tuple[tuple[int, float], ...] = ()  # (steps, mean loss) of each evaluation
    recalls: dict[str, float] = field(default_factory=dict)  # of pairs, at the last evaluation: steps.OF_PAIRS
    looking: Looking | None = None  # of --ratio auto

    @property
    def setting(self) -> dict[str, Any]:
        """Everything that was pinned but the seed, what was changed on purpose, and what it was tested on."""
        return setting_of(self.folder) | tested_on(self.folder)

    @property
    def rule(self) -> str:
        """The rule's name, "?" where run.json doesn't say."""
        return str(self.row["rule"] or "?")

    @property
    def stages(self) -> list[str]:
        """The stages of the cascade in front of the rule and the options on it, as they were set."""
        settings = self.folder.settings
        set_ = [f"{words} {settings[name]}" for name, words in _STAGES.items() if settings.get(name)]
        return set_ + [words for name, words in _SWITCHES.items() if settings.get(name)]

    @property
    def everything(self) -> bool:
        """Whether it trains on all that it reads."""
        return self.row["buffer_size"] is not None and self.row["buffer_size"] == self.row["batch_size"]

    @property
    def filtered(self) -> bool:
        """Whether a band of a column other than il drops samples before they are read."""
        return "=" in str(self.folder.settings.get("band") or "")

    @property
    def of_pairs(self) -> bool:
        """Whether its samples are pairs of image and caption."""
        return self.folder.settings.get("preprocess_task") == "pairs"

    @property
    def images(self) -> str:
        """What the model sees of an image: "64 px, RGB, squash"; "" of text, and where run.json doesn't say."""
        size, channels = (self.folder.settings.get(f"preprocess_{name}") for name in ("image_size", "channels"))
        if not isinstance(size, int):
            return ""
        return f"{size} px, {'grey' if channels == 1 else 'RGB'}, {resize_of(self.folder.settings)}"

    @property
    def is_baseline(self) -> bool:
        """Whether others may be measured by it: it chooses by chance, or nothing."""
        return self.rule == "uniform"

    @property
    def kind(self) -> str:
        """What the run is for a reader: its rule, or that it chooses nothing."""
        if self.everything:
            return f"train on all of {self.folder.settings['band']}" if self.filtered else "train on everything"
        return ", ".join([self.rule, *self.stages]) + (" with loss cap" if self.row["loss_cap"] else "")


def resize_of(settings: Mapping[str, Any]) -> str:
    """How a run makes squares of its images; runs of before they could say so take the centre."""
    resize = settings.get("preprocess_resize")
    return resize if resize in RESIZES else RESIZES[0]


def gather(ledger: Ledger, name: str) -> RunFacts:
    """The figures of the ledger's only run."""
    (row,) = ledger.sql("SELECT * FROM runs").to_pylist()
    curve = ledger.sql("SELECT step + 1 AS steps, forward_units AS units, test_accuracy::DOUBLE AS accuracy FROM steps "
                       "WHERE isfinite(test_accuracy) ORDER BY step").to_pydict()  # fmt: skip
    reasons = ledger.sql("SELECT reason, count(*) AS n FROM selections GROUP BY reason ORDER BY n DESC, reason")
    classes = ledger.sql("SELECT label, count(*) AS planned, count(*) FILTER (kept) AS kept FROM selections "
                         "WHERE label IS NOT NULL AND step IS NOT NULL GROUP BY label ORDER BY label")  # fmt: skip
    last = ledger.sql("SELECT class_accuracy FROM steps WHERE isfinite(test_accuracy) AND class_accuracy IS NOT NULL "
                      "ORDER BY step DESC LIMIT 1").to_pylist()  # fmt: skip
    losses = ledger.sql("SELECT step + 1 AS steps, test_loss::DOUBLE AS loss FROM steps WHERE isfinite(test_loss) "
                        "ORDER BY step").to_pylist()  # fmt: skip
    curve["units"] = [math.nan if u is None else u for u in curve["units"]]
    return RunFacts(
        name=name, folder=ledger.runs[0], row=row, curve=Curve(**curve),
        reasons={r["reason"]: r["n"] for r in reasons.to_pylist()},
        classes={r["label"]: (r["planned"], r["kept"]) for r in classes.to_pylist()},
        class_accuracy=last[0]["class_accuracy"] if last else [],
        noisy=_noisy(ledger) if keeps(ledger, "is_noisy") else {}, no_table=_no_table(ledger),
        balance=_balance(ledger), test_losses=tuple((r["steps"], r["loss"]) for r in losses),
        sources=_sources(ledger), recalls=_recalls(ledger), looking=looking_of(ledger),
    )  # fmt: skip


def _balance(ledger: Ledger) -> tuple[tuple[int, float | None, float | None], ...]:
    """Effective classes of the kept batches, and those of chance: means over the first `EARLY` steps, and over all."""
    question = (
        "SELECT count(*) AS n, avg(effective_classes)::DOUBLE AS kept, "
        "avg(effective_classes_uniform)::DOUBLE AS chance FROM (SELECT *, row_number() OVER (ORDER BY step) AS place "
        "FROM steps WHERE effective_classes IS NOT NULL) WHERE $most IS NULL OR place <= $most"
    )
    rows = [ledger.sql(question, {"most": most}).to_pylist()[0] for most in (EARLY, None)]
    return tuple((row["n"], row["kept"], row["chance"]) for row in rows)


def _recalls(ledger: Ledger) -> dict[str, float]:
    rows = ledger.sql("SELECT * FROM steps WHERE coalesce(image_to_text_1, zero_shot_accuracy) IS NOT NULL "
                      "ORDER BY step DESC LIMIT 1").to_pylist()  # fmt: skip
    return {name: rows[0][name] for name in OF_PAIRS if rows[0][name] is not None} if rows else {}


def _sources(ledger: Ledger) -> tuple[dict[str, Any], ...]:
    return tuple(
        ledger.sql(
            "SELECT * FROM sources ORDER BY abs(coalesce(share_kept, 0) - share_planned) DESC, planned DESC, source"
        ).to_pylist()
    )


def gather_all(folders: Mapping[str, str], roots: Mapping[str, str] | None) -> dict[str, RunFacts]:
    """The figures of several runs, given as name -> folder. Each has a ledger of its own: il tables may differ."""
    found = {}
    for name, url in folders.items():
        with open_ledger(url, roots=roots) as ledger:
            found[name] = gather(ledger, name)
    return found


def keeps(ledger: Ledger, name: str) -> bool:
    """Whether the samples of the run's table can be asked for that field; False too when the table can't be opened."""
    return not _no_table(ledger) and name in ledger.kept_fields()


def _no_table(ledger: Ledger) -> str:
    try:
        ledger.sql("SELECT count(*) FROM samples WHERE false")
    except RhostreamError as exc:
        return str(exc)
    return ""


def _noisy(ledger: Ledger) -> dict[bool, float]:
    rows = ledger.sql("SELECT kept, avg(is_noisy::INT) AS share FROM selections JOIN samples USING (shard, ordinal) "
                      "WHERE reason IN ('kept', 'below') AND is_noisy IS NOT NULL GROUP BY kept")  # fmt: skip
    return {bool(r["kept"]): r["share"] for r in rows.to_pylist()}


def scatter_points(ledger: Ledger) -> dict[str, list[Any]]:
    """About `POINTS` looks, the same ones every time: il, loss (nats), kept, noisy (None where it isn't known)."""
    finite = "isfinite(loss) AND isfinite(il)"
    (total,) = ledger.sql(f"SELECT count(*) AS n FROM selections WHERE {finite}")["n"].to_pylist()
    noisy, join = "NULL", ""
    if keeps(ledger, "is_noisy"):
        noisy, join = "samples.is_noisy", "LEFT JOIN samples USING (shard, ordinal)"
    points: dict[str, list[Any]] = ledger.sql(
        f"WITH taken AS (SELECT shard, ordinal, step, il, loss, kept FROM selections WHERE {finite} "
        f"AND hash(shard, ordinal, step) % $every = 0) "
        f"SELECT taken.il::DOUBLE AS il, loss::DOUBLE AS loss, kept, {noisy} AS noisy FROM taken {join} "
        "ORDER BY step, shard, ordinal",
        {"every": max(1, -(-int(total) // POINTS))},
    ).to_pydict()
    return points


def over_time(ledger: Ledger) -> dict[str, list[Any]]:
    """Shares in `SLICES` slices of the run: right already among kept and all, wrong labels among kept and skipped."""
    noisy, join = "NULL AS noisy_kept, NULL AS noisy_skipped", ""
    if keeps(ledger, "is_noisy"):
        noisy = ("avg(is_noisy::INT) FILTER (kept) AS noisy_kept, "
                 "avg(is_noisy::INT) FILTER (NOT kept) AS noisy_skipped")  # fmt: skip
        join = "LEFT JOIN samples USING (shard, ordinal)"
    slices: dict[str, list[Any]] = ledger.sql(
        "WITH looks AS (SELECT shard, ordinal, step, kept, correct, steps FROM selections "
        "CROSS JOIN (SELECT max(step) + 1 AS steps FROM selections) "
        "WHERE step IS NOT NULL AND reason IN ('kept', 'below')) "
        "SELECT max(step) + 1 AS step, avg(correct::INT) FILTER (kept) AS right_kept, "
        f"avg(correct::INT) AS right_all, {noisy} FROM looks {join} "
        f"GROUP BY step * {SLICES} // greatest(steps, {SLICES}) ORDER BY step"
    ).to_pydict()
    return slices


def balance_over_time(ledger: Ledger) -> dict[str, list[Any]]:
    """Effective classes of kept batches and of chance, means in `2 SLICES` slices of the run; empty where unknown."""
    slices: dict[str, list[Any]] = ledger.sql(
        "SELECT max(step) + 1 AS step, avg(effective_classes)::DOUBLE AS kept, "
        "avg(effective_classes_uniform)::DOUBLE AS chance FROM steps "
        "CROSS JOIN (SELECT max(step) + 1 AS steps FROM steps) WHERE effective_classes IS NOT NULL "
        "GROUP BY step * $slices // greatest(steps, $slices) ORDER BY step",
        {"slices": 2 * SLICES},
    ).to_pydict()
    return slices
