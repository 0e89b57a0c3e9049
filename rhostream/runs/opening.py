"""How a run comes to its first batch: what was asked of it, the commit that it goes on from, its lanes, its claim."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rhostream import storage
from rhostream.errors import MismatchError, UsageError
from rhostream.runs import state as states
from rhostream.runs import turns
from rhostream.runs.attempt import Attempt
from rhostream.runs.chain import head
from rhostream.runs.doubts import doubts_in
from rhostream.runs.link import Link, Place, place_of
from rhostream.runs.record import recorded
from rhostream.runs.saving import Saver
from rhostream.selection.selector import Selector
from rhostream.stream.loader import Loader

LOG = logging.getLogger("rhostream")
STATE_VERSION = 1


@dataclass(kw_only=True)
class Opening:
    """Opens a run and claims it, each once: at the first draw, or by a state that is loaded, never by constructing."""

    attempt: Attempt
    record: Mapping[str, Any]  # what run.json is to say
    stream: Loader
    selector: Selector
    saver: Saver
    objects: Mapping[str, Any]  # what a commit restores; {}: a run without a loaded state is begun anew
    last_step: int | None  # buffers after which the run ends, None for never
    changeable: Iterable[str] = ()  # pins that a resume may change on purpose
    note: Mapping[str, Any]  # what the attempt says of itself beside
    start: Place | None = None  # the commit to go on from, where it isn't the newest
    asked: turns.Asked | None = None  # the turn that isn't taken up yet
    ends: tuple[int | None, int | None] = (None, None)  # passes and steps that were asked for
    opened: bool = False
    claimed: bool = False

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end."""
        return self.last_step is not None and self.attempt.step >= self.last_step

    def open(self) -> Link | None:
        """Make run.json, or check it and restore everything from the newest commit; returns that. Nothing is claimed.

        Raises MismatchError naming what differs, TableError for a commit that can't be read.
        """
        self._keep_lanes()
        self._take_up(lambda: head(self.attempt.url) if self.objects else None)
        point = self.attempt.open(self.record, self.changeable, start=self.start, fresh=not self.objects)
        if point is not None:
            self.attempt.settle(point, self.saver.keep)
            self.saver.restore(point)
        self.opened = True
        return point

    def begin(self) -> None:
        """Open and claim. Raises UsageError for a stream that somebody moved, and what `open` raises."""
        if not self.opened:
            if self.attempt.ranks.first:
                storage.probe_writable(self.attempt.url)
            cursor = self.stream.state_dict()
            if self.open() is None and (cursor["pass"], cursor["buffer"]) != (0, 0):
                raise UsageError(
                    f"a run begins at the stream's beginning, and this stream is at buffer "
                    f"{cursor['buffer']} of pass {cursor['pass']}: a run moves the cursor itself, so give "
                    "it a stream that nobody has moved"
                )
        if self.attempt.ranks.first and not self.attempt.step:
            for says in doubts_in(self.record):
                LOG.warning("warning: %s", says)
        if self.complete:
            turns.require_steps(self.attempt.changing, self.attempt.url, self.attempt.step)
        elif not self.claimed:
            self.claim()
        self.claimed = True

    def claim(self) -> None:
        """Become the newest attempt. Collective."""
        self.attempt.claim({**self.note, "last_step": self.last_step})

    def hand_out(self, *, complete: bool = False) -> dict[str, Any]:
        """A commit whose tensors another trainer keeps, as what belongs into its checkpoint. Collective."""
        link = self.saver.hand_out(complete=complete or self.complete)
        return {
            "version": STATE_VERSION,
            "link": asdict(link.place),
            "step": self.attempt.step,
            "cursor": self.stream.consumed_state_dict(),
            "selector": {"calls": self.attempt.step, **self.selector.state_dict()},
            "models": dict(states.own_models(self.selector)),
        }

    def take_back(self, state: Mapping[str, Any]) -> None:
        """Go on from what `hand_out` gave; see `Run.load_state_dict`."""
        if self.opened:
            raise UsageError("load_state_dict comes before the first batch of a run")
        try:
            version, place, cursor = int(state["version"]), place_of(state["link"]), state["cursor"]
            selector, models = dict(state["selector"]), dict(state["models"])
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise MismatchError(
                f"this is no state of a run: expected what run.state_dict() gave ({type(exc).__name__}: {exc})"
            ) from exc
        if version > STATE_VERSION:
            raise MismatchError(
                f"this state of a run was written by a newer rhostream (version {version}); upgrade rhostream"
            )
        self._keep_lanes()
        self._take_up(lambda: self.attempt.at(place))
        self.attempt.open(self.record, self.changeable, start=place)
        # The plan of a cursor is that of before the run grew; what a run pins says more.
        self.stream.load_state_dict(cursor if self.attempt.grown is None else {**cursor, "plan": None})
        try:
            self.selector.load_state_dict(selector)
            states.load_own_models(self.selector, models)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            raise MismatchError(
                f"the state of step {self.attempt.step} doesn't fit this run's selector: "
                f"{' '.join(str(exc).split())[:300]}"
            ) from exc
        self.claim()
        self.opened = self.claimed = True

    def _keep_lanes(self) -> None:
        """A run keeps the lanes that it began with, whatever the number of ranks now."""
        pinned, stream, ranks = self.attempt.pinned, self.stream.stream, self.attempt.ranks
        if pinned.get("loop") != "own":
            return
        known = recorded(self.attempt.url).get("fingerprints", {}) if ranks.first else {}
        same = known.get("buffer_size") == stream.buffer_size  # else the pins say more
        lanes = ranks.from_first(known.get("lanes") if same else None)
        if isinstance(lanes, int) and lanes != stream.lanes and stream.carry(lanes):
            pinned["lanes"] = lanes

    def _take_up(self, point: Callable[[], Link | None]) -> None:
        """Once: let stream and attempt go by what was asked for and by what is in force at the commit of `point`."""
        if self.asked is None:
            return
        turn = turns.look(self.attempt.url, self.asked, self.attempt.ranks, point)
        turns.take_up(turn, self.stream.stream)
        self.attempt.changes, self.attempt.changing, self.attempt.grown = turn.changes, turn.changing, turn.grown
        self.start, self.asked = turn.start, None
        self.last_step = turns.last_step(self.stream.stream, *self.ends)
