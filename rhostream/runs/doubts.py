"""What makes it doubtful that selection pays in a run: said before any work, and of what the batches were, after it.

Sentences only, one a doubt, none where all is sound; nothing is refused for them. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rhostream.errors import RhostreamError
from rhostream.runs import checkpoint
from rhostream.runs.record import recorded
from rhostream.selection.ratio import rungs
from rhostream.stream.plan import buffers_in, choose_lanes
from rhostream.tables import steps

if TYPE_CHECKING:
    from rhostream.stream.dataset import CandidateStream

FEW_STEPS = 100  # of a run: rho needs 150 to 400 to reach what uniform reaches in 1,500 (docs/results.md)
FEW_A_PASS = 10  # buffers: D is so small that a plain loop over all of it costs less than choosing
LONG_TAIL = 0.05  # of a pass
EARLY = 40  # steps in which a model learns its classes at all, and a batch of one class costs the most
AUTO_BUFFER = 5  # batches: of more a look decides so many updates that the later ones go by stale scores
FEW_CLASSES = 0.7  # of what chance gives; see docs/results/balance.md


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a run before its first step; sizes over all ranks."""

    samples: int  # planned in a pass
    buffer_size: int
    batch_size: int
    lanes: int
    buffers: int  # a pass
    last_step: int | None
    scores: bool  # whether the rule looks at samples, or draws
    il_units: float = 0.0  # forward units of the IL model and its table; 0 where nothing is known
    run_units: float = 0.0  # the same of the run that is about to start
    auto: bool = False  # whether `--ratio auto` chooses how much is kept
    cheap: str = ""  # what chooses before full scores, as `cheap_choice` says it

    @classmethod
    def of(cls, stream: CandidateStream, batch_size: int, last_step: int | None, **more: Any) -> Plan:
        """Of a stream and what a rule keeps of its buffers."""
        return cls(
            samples=int(stream.table.counts.sum()),
            buffer_size=stream.buffer_size,
            batch_size=batch_size,
            lanes=stream.lanes,
            buffers=stream.buffers_per_pass,
            last_step=last_step,
            **more,
        )

    def doubts(self) -> list[str]:
        """What is to be said of it."""
        return [says for says in (self._few(), self._tail(), self._il(), self._auto(), self._cheap()) if says]

    def _few(self) -> str:
        steps = self.last_step
        if not self.scores or not (self.buffers < FEW_A_PASS or (steps is not None and steps < FEW_STEPS)):
            return ""
        run = "" if steps is None else f"{steps:,} step{'s'[: steps != 1]} in all, "
        return (
            f"{run}{self.buffers:,} a pass, where training on everything makes {self.samples // self.batch_size:,} of "
            f"the same samples: selection shows after some hundred steps (here: {FEW_STEPS} or more, {FEW_A_PASS} or "
            "more a pass); take more --steps, or a smaller --buffer-size, and compare with a run on everything"
        )

    def _tail(self) -> str:
        tail = self.samples - self.buffers * self.buffer_size
        if tail <= LONG_TAIL * self.samples:
            return ""
        return (
            f"{tail:,} of {self.samples:,} samples ({tail / self.samples:.1%}) don't fill a buffer of "
            f"{self.buffer_size:,} and are left out of each pass (reason tail; others in each pass)"
            + (f"; with --buffer-size {near:,} it is less than {LONG_TAIL:.0%}" if (near := self._near()) else "")
        )

    def _near(self) -> int | None:
        """The largest smaller buffer, down to twice a batch, whose tail is short."""
        for size in range(self.buffer_size - 1, 2 * self.batch_size - 1, -1):
            if size % 8 == 0 and self.samples - buffers_in(self.samples, size, choose_lanes(size)) * size <= (
                LONG_TAIL * self.samples
            ):
                return size
        return None

    def _il(self) -> str:
        if not self.run_units or self.il_units <= self.run_units:
            return ""
        return (
            f"the IL model and its table cost {self.il_units / self.run_units:.1f} times this run "
            f"({self.il_units:,.0f} forward units against {self.run_units:,.0f}): selection pays only where "
            "several runs share the table, or with a smaller IL model (fit-il --model, --fit-samples)"
        )

    def _auto(self) -> str:
        most = AUTO_BUFFER * self.batch_size
        if not self.auto or self.buffer_size <= most:
            return ""
        now, then = (rungs(self.batch_size, size)[-2] // self.batch_size for size in (self.buffer_size, most))
        return (
            f"--ratio auto learns in up to {now} updates of {self.batch_size} from one look at {self.buffer_size:,} "
            f"samples, the later ones by stale scores: take a --buffer-size of about {most:,}, of which it decides "
            f"{then}"
        )

    def _cheap(self) -> str:
        if not self.cheap:
            return ""
        return (
            f"{self.cheap}, and how much of what full scores keep it finds isn't measured: when some steps are "
            "committed, `rhostream doctor --scoring --run RUN` says"
        )


def cheap_choice(stream: CandidateStream, proxy: str | bool | None, shortlist: float | None) -> str:
    """What a run chooses by before, or instead of, full scores; "" where nothing is."""
    view = "" if stream.view is None else f"a view of {stream.view} pixels"
    if shortlist is not None and (proxy or view):  # of the target itself, a step ago, the ledger has the recall
        return f"{proxy or view} makes the shortlist"
    return f"{view} is what is scored" if view else ""


def of_balance(means: Sequence[tuple[int, float | None, float | None]]) -> str:
    """What is to be said of kept batches, one sentence or ""; `means`: (steps, effective classes, those of chance).

    The first that is far below what chance gives is told. Chance moves one batch of 32 by some per cent and a mean of
    `EARLY` by one or two; runs that selection sped up fourfold kept 75 to 80 % of it (docs/results/balance.md).
    """
    for count, kept, chance in means:
        if count >= EARLY and kept is not None and chance is not None and kept < FEW_CLASSES * chance:
            return (
                f"kept batches held {kept:.2f} effective classes in the mean of {count:,} steps, where chance gives "
                f"{chance:.2f}: selection takes few classes at a time; --class-quota balanced prevents that "
                "(rhostream sql RUN @effective_classes shows it over time)"
            )
    return ""


def doubts_in(record: Mapping[str, Any]) -> list[str]:
    """What was said before the first step of a run, as its run.json has it; [] for a run of before."""
    return list(record.get("doubts") or ())


def doubts_of(run: str, after: str | None = None) -> list[str]:
    """All that makes it doubtful whether selection pays in a run: what was said at its start, and of its batches.

    `after`: what `after_work` said of it, where that was asked already.
    """
    return [*doubts_in(recorded(run)), *filter(None, [after_work(run) if after is None else after])]


def after_work(run: str) -> str:
    """What is to be said of the batches that the steps in force kept; "" where nothing is, or can't be read."""
    early, every = _Means(), _Means()  # sums only: a run may have millions of steps
    try:
        latest = checkpoint.latest(run)
        for _, kept, chance in [] if latest is None else steps.balances(run, latest.steps):
            every.add(kept, chance)
            if every.count <= EARLY:
                early.add(kept, chance)
    except RhostreamError:
        return ""  # `verify` says so
    return of_balance([early.means, every.means])


@dataclass
class _Means:
    """Sums of effective classes over steps."""

    count: int = 0
    kept: float = 0.0
    chance: float = 0.0

    def add(self, kept: float, chance: float) -> None:
        self.count, self.kept, self.chance = self.count + 1, self.kept + kept, self.chance + chance

    @property
    def means(self) -> tuple[int, float | None, float | None]:
        return (self.count, self.kept / self.count, self.chance / self.count) if self.count else (0, None, None)
