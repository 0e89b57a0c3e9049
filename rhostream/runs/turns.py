"""Where a run turns on purpose: back to an older commit, past buffers that it skips, on to a longer list of shards.

    what is asked (`Asked`) > what is in force already > what this attempt changes (`look`) > the stream (`take_up`)

Each turn is a recorded change: the attempt's note has it and every later commit lists it, as it does changes of
settings. So the same command again finds its turn in force and goes on; where the attempt that turned died before its
first commit, the turn is made again, to the same effect. What the branch that was left did is in the ledger no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rhostream import storage
from rhostream.errors import MismatchError, UsageError
from rhostream.runs import retention
from rhostream.runs.attempts import newest_attempt, note_of
from rhostream.runs.link import Link, Place, told_link
from rhostream.runs.plans import SHARDS, RunPlan, plans_of
from rhostream.runs.record import recorded
from rhostream.selection.ranks import Ranks
from rhostream.stream.dataset import CandidateStream
from rhostream.stream.join import Denied
from rhostream.stream.passing import parse_stretch
from rhostream.stream.plan import buffers_in
from rhostream.tables.il import fingerprint

FROM_STEP, SKIP, DENY = "from_step", "skip_buffers", "deny"
NO_SETTINGS = (FROM_STEP, SKIP, DENY)  # changes of nothing that a run pins
_OPTIONS = {FROM_STEP: "--from-step", SKIP: "--skip-buffers", SHARDS: "--grow", DENY: "--deny"}
Change = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command asks for. Raises UsageError for what can't be."""

    from_step: int | None = None
    skip_buffers: str | None = None
    grow: bool = False

    def __post_init__(self) -> None:
        step = self.from_step
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
            raise UsageError(f"--from-step {step!r}: expected the step of a commit, a whole number")
        if self.skip_buffers is not None:
            first, end = parse_stretch(str(self.skip_buffers))
            object.__setattr__(self, "skip_buffers", f"{first}:{end}")


@dataclass(kw_only=True)
class Turn:
    """The commit that an attempt goes on from, and what it changes there."""

    asked: Asked
    point: Link | None  # None: the run's beginning
    back: bool  # the point isn't the state in force
    changing: list[Change]
    plans: list[RunPlan]  # the lists of shards of the branch, oldest first; [] before the run's beginning
    denied: tuple[str | None, int] | None = None  # digest and samples of the deny-list at the point; None: no run yet
    denying: bool = False  # whether one holds in the state in force

    @property
    def start(self) -> Place | None:
        """Where an attempt starts that goes back; None for the state in force."""
        return self.point.place if self.back and self.point is not None else None

    @property
    def changes(self) -> list[Change]:
        """What is in force at the point."""
        return list(self.point.changes) if self.point is not None else []

    @property
    def step(self) -> int:
        return self.point.step if self.point is not None else 0

    @property
    def grown(self) -> RunPlan | None:
        """The list of shards that this attempt goes on with, where it is another than before."""
        return self.plans[-1] if any(change["field"] == SHARDS for change in self.changing) else None

    @property
    def skipped(self) -> list[tuple[int, int]]:
        """The stretches of buffers that are skipped, in force or from now on."""
        return [parse_stretch(str(one["new"])) for one in [*self.changes, *self.changing] if one["field"] == SKIP]


def look(run: str, asked: Asked, ranks: Ranks, point: Callable[[], Link | None]) -> Turn:
    """What of `asked` is to be done, of a run that would go on from `point()`. Collective: rank 0 looks.

    Raises UsageError for a step that no kept state is of, naming those that are, and for buffers that were trained on.
    """
    told: dict[str, Any] | None = None
    refusal: UsageError | None = None
    if ranks.first:
        try:
            turn = _look(run, asked, point())
            told = {
                "point": turn.point and turn.point.plain(),
                "back": turn.back,
                "changing": turn.changing,
                "plans": [vars(plan) for plan in turn.plans],
                "denied": turn.denied,
                "denying": turn.denying,
            }
        except UsageError as exc:
            told, refusal = {"refusal": str(exc)}, exc
    told = ranks.from_first(told)
    assert told is not None
    if "refusal" in told:  # every rank's
        raise refusal or UsageError(told["refusal"])
    return Turn(
        asked=asked,
        point=told["point"] and told_link(told["point"]),
        back=told["back"],
        changing=told["changing"],
        plans=[RunPlan(**plan) for plan in told["plans"]],
        denied=told["denied"] and tuple(told["denied"]),
        denying=told["denying"],
    )


def _look(run: str, asked: Asked, link: Link | None) -> Turn:
    step, skip, changing, back = asked.from_step, asked.skip_buffers, list[Change](), False
    record = recorded(run)
    in_force = _denied(record, link.changes if link is not None else ())
    if step is not None and not _in_force(link, asked):
        if link is None:
            raise UsageError(f"--from-step {step}: {storage.redact(run)} has no commit to go back to: leave it out")
        changing.append({"field": FROM_STEP, "old": _left(run, link, step), "new": step, "step": step})
        link, back = retention.at_step(run, step), True
    changes, at = (list(link.changes), link.step) if link is not None else ([], 0)
    if skip is not None and not _has(changes, SKIP, skip):
        first = parse_stretch(skip)[0]
        if first < at:
            raise UsageError(
                f"--skip-buffers {skip}: the run goes on from step {at:,}, so buffer {first:,} was "
                f"trained on; go back with --from-step, to a commit of step {first:,} or before"
            )
        changing.append({"field": SKIP, "old": None, "new": skip, "step": at})
    return Turn(
        asked=asked,
        point=link,
        back=back,
        changing=changing,
        plans=plans_of(run, record, changes),
        denied=_denied(record, changes),
        denying=in_force is not None and in_force[0] is not None,
    )


def _denied(record: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> tuple[str | None, int] | None:
    """The deny-list that held after these changes: its digest and how many samples it named; None before a run."""
    if not record:
        return None
    settings = record.get("settings") or {}
    began = [{"field": DENY, "new": settings.get(DENY), "samples": settings.get("denied_samples", 0)}]
    last = [change for change in [*began, *changes] if change["field"] == DENY][-1]
    return last["new"], int(last["samples"])


def _in_force(link: Link | None, asked: Asked) -> bool:
    """Whether the branch went back to that step, and skips what is asked for beside it."""
    changes = link.changes if link is not None else []
    return _has(changes, FROM_STEP, asked.from_step) and (
        asked.skip_buffers is None or _has(changes, SKIP, asked.skip_buffers)
    )


def _has(changes: Sequence[Mapping[str, Any]], name: str, new: Any) -> bool:
    return any(change["field"] == name and change["new"] == new for change in changes)


def _left(run: str, link: Link, step: int) -> int:
    """The step that is left: the one that an attempt noted which went back to the same step and never committed."""
    newest = newest_attempt(run)
    if newest > link.attempt and link.step == step:
        for change in note_of(run, newest).get("changes") or ():
            if change.get("field") == FROM_STEP and change.get("new") == step:
                return int(change["old"])
    return link.step


def take_up(turn: Turn, stream: CandidateStream) -> None:
    """Let the stream go by the turn: its list of shards from the pass on that it holds from, and what is skipped.

    With `grow` a list with more shards than the branch goes by becomes a change of the turn. Raises MismatchError for
    one that lacks shards, UsageError where no pass ends.
    """
    _take_up_denied(turn, stream.join_settings.denied)
    if turn.asked.grow and turn.plans and turn.point is not None:
        _grow(turn, turn.plans[-1], turn.point, stream)
    plan = turn.plans[-1] if turn.plans else RunPlan(names=(), urls=())
    stream.begin(plan.first_pass, plan.first_step, turn.skipped)


def _take_up_denied(turn: Turn, given: Denied | None) -> None:
    """Make a deny-list that isn't the one of the turn's point a change. Raises UsageError where one that held is left
    out, or has become shorter."""
    if turn.denied is None:
        return
    (digest, samples), new = turn.denied, given and given.digest
    if given is None and turn.denying:
        raise UsageError(
            "this run has a deny-list in force, and none was given: give it again (--deny, in a loop of your own "
            "open_stream(deny=)), or lift it with --deny none"
        )
    if given is not None and new is not None and given.samples < samples:
        raise UsageError(
            f"the deny-list names {given.samples:,} samples of these shards, and the one that held before "
            f"{samples:,}: a list gets longer; one that was wrong is lifted with --deny none"
        )
    if new != digest:
        named = 0 if given is None else given.samples
        turn.changing.append({"field": DENY, "old": digest, "new": new, "step": turn.step, "samples": named})


def _grow(turn: Turn, plan: RunPlan, point: Link, stream: CandidateStream) -> None:
    table = stream.table
    counts = dict(zip(table.names, table.counts.tolist(), strict=True))
    if gone := [name for name in plan.names if name not in counts]:
        raise MismatchError(
            f"--grow: {len(gone):,} of the {len(plan.names):,} shards that the run goes by aren't on "
            f"the list, first {gone[0]}: a longer list has those of before and more"
        )
    if len(counts) == len(plan.names):
        return  # the very list: nothing to take up, or it is in force already
    own = [counts[name] for name in plan.names]
    if plan.fingerprint != fingerprint({"names": list(plan.names), "counts": own}):
        raise MismatchError(
            "--grow: the shards that the run goes by have another number of samples in the table now: "
            "only new shards can come to a run"
        )
    buffers = buffers_in(sum(own), stream.buffer_size, stream.lanes)
    if 0 < point.buffer < buffers:
        end = plan.first_step + (point.pass_index + 1 - plan.first_pass) * buffers
        raise UsageError(
            f"--grow: the run stands at step {point.step:,}, inside pass {point.pass_index}, and a longer "
            f"list is taken up where a pass ends: go on with the shards of before and --steps {end}, then "
            "--grow"
        )
    taken = replace(_plan_of(stream), first_pass=point.pass_index + (point.buffer > 0), first_step=point.step)
    turn.changing.append(
        {
            "field": SHARDS,
            "old": plan.fingerprint,
            "new": taken.fingerprint,
            "step": point.step,
            "pass": taken.first_pass,
        }
    )
    turn.plans.append(taken)


def _plan_of(stream: CandidateStream) -> RunPlan:
    table = stream.table
    return RunPlan(
        names=list(table.names),
        urls=[storage.redact(url) for url in table.shards],
        samples=int(table.counts.sum()),
        buffers_per_pass=stream.buffers_per_pass,
        fingerprint=fingerprint({"names": list(table.names), "counts": table.counts.tolist()}),
    )


def last_step(stream: CandidateStream, passes: int | None, steps: int | None) -> int | None:
    """Where a run ends, counted from its beginning: whichever comes first, None for never."""
    ends = [] if passes is None else [stream.numbering(passes, 0)]
    return min([*ends, *([] if steps is None else [steps])], default=None)


def require_steps(changing: Sequence[Mapping[str, Any]], run: str, step: int) -> None:
    """Raise UsageError for a change of a run that has no step left to take with it."""
    if changing:
        name = str(changing[0]["field"])
        raise UsageError(
            f"{_OPTIONS.get(name, f'--change {name}')}: {storage.redact(run)} is complete at step "
            f"{step:,}, so no step is left to take with it; give more --steps or --passes"
        )
