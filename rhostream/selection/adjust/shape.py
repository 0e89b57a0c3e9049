"""The one shape of an option that re-ranks: the scores of a buffer in, its scores out, both (B,) in canonical order.

    scores > (own) > clip > class weights > Gumbel noise > duplicates > class quota > the first n_b

A score is NaN for a row that isn't in; what an option leaves out becomes NaN. `Turn` is the order; an option's file has
a function `make(value)` that gives its `Adjust`, and its field in `selection/options.py` names the file.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.reasons import Reason
from rhostream.selection.uniform import Draws, Floats, Ints

Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]


class Turn(IntEnum):
    """When an option is applied, the lowest first."""

    own = 0  # a user's own, on the rule's scores
    tau = 1
    clip = 2
    class_weights = 3
    noise = 4
    duplicates = 5  # from here on rows are only left out
    sources = 6
    quota = 7


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """One buffer of all ranks once its forward has come back: (B,) arrays in canonical order, to be read only."""

    score_B: Floats  # the rule's; NaN where a row isn't in
    loss_B: Float32  # of the target, nats; NaN where it made no forward
    il_B: Float32  # nats; NaN where there is none, or no forward
    label_B: Ints  # 0 where the target is no class
    reached_B: Bools  # rows that went through the target's forward
    n: int  # how many are to be kept, n_b
    draws: Draws  # what random numbers are a function of
    shadow_SB: Floats  # scores of the S shadow rules
    source_B: Ints | None = None  # index into `source_names`, where the stream names sources
    source_names: tuple[str, ...] = ()
    view_mV: Float32 | None = None  # small grey views of the m rows that reached the forward, in their order
    tie_B: Floats | None = None  # who comes first of equal scores, the lowest; None: the lower row
    chosen_B: Bools | None = None  # by a joint rule
    last: bool = False  # whether nothing is applied after the option at hand

    @property
    def excess_B(self) -> Float32:
        """loss - il, nats; the loss where there is no il."""
        return np.where(np.isfinite(self.il_B), self.loss_B - self.il_B, self.loss_B)

    def order(self, score_B: Floats) -> Ints:
        """Rows that are in, the best first; of equal scores the lower `tie_B` or row."""
        rows = np.flatnonzero(~np.isnan(score_B))
        return rows[np.lexsort((rows if self.tie_B is None else self.tie_B[rows], -score_B[rows]))]

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that is a function of the run's seed, this word and the step: the same on every rank."""
        return self.draws.by_step(purpose)


class Adjust(abc.ABC):
    """An option that re-ranks. One that learns has a name for its state, `state_dict` and `load_state_dict`."""

    turn = Turn.own
    reason = Reason.below  # of the rows that it leaves out
    random_ties = False  # whether equal scores are ranked by chance
    needs_views = False  # whether it looks at `Buffer.view_mV`
    state_name: str | None = None  # under which a checkpoint has its state; None: it has none

    @abc.abstractmethod
    def __call__(self, score_B: Floats, buffer: Buffer) -> Floats:
        """The scores (B,) float64 to go on with: NaN for a row that is left out; the array that came isn't changed."""

    def pays(self, buffer_size: int, batch_size: int) -> bool:
        """Whether to score the next buffer at all; a step that doesn't is uniform, and some of its scores are seen."""
        return True

    def state_dict(self) -> Any:
        """What later calls hang on, as plain values."""
        raise NotImplementedError

    def load_state_dict(self, state: Any) -> None:
        """The inverse of `state_dict`. Raises MismatchError for what is none."""
        raise NotImplementedError
