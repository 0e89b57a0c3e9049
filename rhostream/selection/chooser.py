"""A rule's choice with its options, and the little state that some of them keep from step to step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import NonFiniteError
from rhostream.selection.adjust.shape import Buffer
from rhostream.selection.choice import Choice, largest, once_each, sampled
from rhostream.selection.options import Options
from rhostream.selection.ranks import Ranks
from rhostream.selection.ratio import STATE, Ratio, Turn
from rhostream.selection.rules import Rule

NONFINITE_BUFFERS = 3


class Chooser:
    """Chooses n_b of a buffer of all ranks; every rank that knows the same chooses the same."""

    def __init__(self, rule: Rule, options: Options, batch_size: int) -> None:
        self.rule, self.options, self.batch_size = rule, options, batch_size
        self.ratio = Ratio(batch_size) if options.auto else None
        self.schedule, self.quota, self.shadows = options.kept_schedule, options.quota, options.shadows
        self.adjusts, self.sources = options.adjusts, options.source_quota

    @property
    def needs_views(self) -> bool:
        """Whether an option compares pictures."""
        return any(adjust.needs_views for adjust in self.adjusts)

    def turn(self, step: int, buffer_size: int) -> Turn:
        """How many are kept of a buffer of so many rows over all ranks, and whether by their scores."""
        n, uniform = self.schedule.kept(step, self.batch_size, buffer_size), self.schedule.is_uniform(step)
        if self.rule.score is None or uniform:
            if self.ratio is not None:
                self.ratio.uniform()
            return Turn(n, False)
        if self.ratio is not None:
            return self.ratio.turn(buffer_size)
        pays = self.pays(buffer_size, n)
        return Turn(n, pays, measure=not pays)

    def learn_classes(self, classes: int | None, ranks: Ranks) -> None:
        """How many the output of a forward had, for `--ratio auto`; a rank without a row has seen none. Collective."""
        if self.ratio is not None:
            self.ratio.classes = max(ranks.gather_json(classes or 0)) or None

    @property
    def share(self) -> tuple[float | None, tuple[float, ...]]:
        """Of the newest buffer the share that `--ratio auto` kept, and what each was worth: None and () without it."""
        return (None, ()) if self.ratio is None else (self.ratio.share, self.ratio.worth)

    def __call__(self, buffer: Buffer) -> Choice:
        """The choice of `buffer.n` rows; what is random in it is a function of `buffer.draws`."""
        if self.ratio is not None:
            self.ratio.see(buffer.score_B, buffer.loss_B, buffer.il_B, buffer.draws.planned)
        if self.rule.sampled:
            self.see(buffer)
            return sampled(buffer)
        if buffer.chosen_B is not None:
            return once_each(np.flatnonzero(buffer.chosen_B), len(buffer.chosen_B))
        return largest(buffer, self.adjusts)

    def pays(self, buffer_size: int, batch_size: int) -> bool:
        """Whether to score at all at this step; always, but with `tau`."""
        return all(adjust.pays(buffer_size, batch_size) for adjust in self.adjusts)

    def see(self, buffer: Buffer) -> None:
        """Scores that don't rank: of a uniform step, or of a rule that draws by them."""
        for adjust in self.adjusts:
            adjust(buffer.score_B, buffer)

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        own = {} if self.ratio is None else {STATE: self.ratio.state_dict()}
        return {**{a.state_name: a.state_dict() for a in self.adjusts if a.state_name is not None}, **own}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Raises MismatchError."""
        for adjust in self.adjusts:
            if adjust.state_name is not None:
                adjust.load_state_dict(state.get(adjust.state_name))
        if self.ratio is not None and (STATE in state or state.get("calls")):
            self.ratio.load_state_dict(state.get(STATE))


class Watch:
    """Counts buffers in a row without one finite score. Raises NonFiniteError at the third."""

    def __init__(self) -> None:
        self._dead = 0

    def __call__(self, score_m: npt.NDArray[np.floating[Any]]) -> None:
        """The scores (m,) of those that reached the target, of all ranks."""
        dead = len(score_m) > 0 and not np.isfinite(score_m).any()
        self._dead = self._dead + 1 if dead else 0
        if self._dead >= NONFINITE_BUFFERS:
            raise NonFiniteError(
                f"every score of {self._dead} buffers in a row is NaN or infinite: the model has "
                "diverged or overflows; lower the learning rate, or use float32 or bfloat16"
            )
