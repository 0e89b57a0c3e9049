"""`--ratio auto`: how much of a buffer is worth keeping, and whether looking at it pays, by the scores themselves.

    excess of a row   e = min(loss, ln C) - min(il, ln C)                 (nats; C classes; of others loss - il)
    gain of a share   G(n) = sum of max(e, 0) over the n best rows by the rule + 2 x sum of the n lowest min(e, 0)
       by il of others  G(n) = sum of e over the n best rows + sum of the n lowest 4 max(2 exp(-loss) - 1, 0) min(e, 0)
    its price         P(n) = looking x rows + 3 n, or 3 x rows where all of them are kept, which needs no look
    its worth         V(n) = sum of G(n) / sum of P(n), over the newest `WINDOW` buffers whose scores are known

The share with the largest worth is kept. What is kept is worth what can still be learned from it; the most negative
rows are the IL model's mistakes, of which as many and more are taken to lie among the largest, since those are what is
searched for: so an IL model that knows less than the target gives looking no worth, and scores that are all alike make
it cost more than it gives. Where every row is kept nothing is scored: the losses of the training forward say whether
looking would pay again.

An IL model of other samples than D's (a holdout, a reference) may be right where D's labels are wrong. A target that
has learned these labels finds them likelier than it does: such a row is no mistake but harm, and keeping it costs its
excess; a mistake is a row that the target is sure of, the more the further its chance lies above a half. Once the
target knows all that such an IL model does, looking is worth nothing, and training on everything may undo it again: a
`Trial` tells.

Every choice is a function of earlier buffers of all ranks, and `selections` and `steps` hold all that it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import MismatchError, UsageError
from rhostream.selection.trial import Trial
from rhostream.selection.uniform import Floats

STATE = "ratio"  # under which a checkpoint has its state
SHARES = (0.2, 1 / 3, 0.5)  # of a buffer, beside n_b and all of it
WINDOW = 16  # buffers
MARGIN = 0.05  # by which another share must be worth more
MISTAKES = 2.0  # how often the lowest rows count: with 1 a weak IL model cost a run 3 points, with 2 none did
SURE = 4.0  # the same for rows that the target is sure of, where the IL model learned from other samples than D's
UNHEARD = 10  # buffers without a score, of a loop that says no losses, until one is looked at
TRAINED = 3.0  # forward units of a sample that is trained on: a backward is two forwards
Values = npt.NDArray[Any]


def rungs(batch_size: int, buffer_size: int) -> list[int]:
    """How many rows can be kept, ascending: n_b, whole batches near `SHARES` of a buffer, and all. Raises UsageError.

    >>> rungs(32, 320)
    [32, 64, 96, 160, 320]
    """
    if batch_size >= buffer_size:
        raise UsageError(
            f"--ratio auto chooses between a batch, {batch_size}, and the whole buffer, {buffer_size}: take a larger "
            "--buffer-size"
        )
    batches = (max(1, round(share * buffer_size / batch_size)) for share in SHARES)
    return [*sorted({n * batch_size for n in (1, *batches) if n * batch_size < buffer_size}), buffer_size]


@dataclass(frozen=True)
class Turn:
    """What is done with a buffer: `n` rows are kept, by their scores where `scored`, else by chance."""

    n: int
    scored: bool
    measure: bool = False  # of the rows that are kept by chance some are scored, for a rule that asks


class Ratio:
    """The choice of one run, and what it is made of."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.looking = 1.0  # forward units of a look at one sample; less on a cheap view
        self.listens = True  # whether losses of the training forward are those that scores are made of
        self.classes: int | None = None  # C, of the model's output
        self.outside = False  # whether the il come from other samples than D's
        self._seen: list[list[float]] = []  # of each buffer: rows, and G of each rung
        self._n = 0  # that were to be kept of the newest buffer; 0 before the first
        self._unheard = 0  # buffers in a row that nothing was seen of
        self._waiting = False  # for the losses of the newest buffer
        self.trial = Trial()
        self.share: float | None = None  # of the newest buffer; None on a uniform step
        self.worth: tuple[float, ...] = ()  # V of each rung when it was chosen

    def turn(self, buffer_size: int) -> Turn:
        """Decide about the next buffer, of so many rows over all ranks. Raises UsageError for one of a batch."""
        steps = rungs(self.batch_size, buffer_size)
        if self._seen and len(self._seen[0]) != 1 + len(steps):
            self._seen = []  # of buffers of another size, in a loop of one's own
        self.worth = tuple(self._worth(steps))
        self._n = self._chosen(steps, self.trial.back())
        self.trial.take(self._n == buffer_size)
        look = self._n < buffer_size or self._unheard >= UNHEARD or self.trial.looks
        self._unheard, self._waiting, self.share = self._unheard + 1, not look, self._n / buffer_size
        return Turn(self._n, look)

    def uniform(self) -> None:
        """The next buffer is chosen from by chance, as a schedule says."""
        self._waiting, self.share, self.worth = False, None, ()

    @property
    def waits(self) -> bool:
        """Whether the losses of the newest buffer, of which every row was kept, are still to be seen."""
        return self._waiting and self.listens

    def see(self, score_B: Values, loss_B: Values, il_B: Values, buffer_size: int) -> None:
        """The scores of a buffer of all ranks, (B,); NaN where a row has none."""
        looked, self._waiting = not self._waiting, False
        rows = np.flatnonzero(np.isfinite(score_B) & np.isfinite(il_B))
        if not len(rows):
            return
        if looked and self.outside and self.classes is not None:
            self.trial.see(loss_B[rows], il_B[rows], self.classes)
        steps = rungs(self.batch_size, buffer_size)
        gains = gains_of(score_B[rows], loss_B[rows], il_B[rows], self.classes, steps, outside=self.outside)
        self._seen = [*self._seen, [float(len(rows)), *gains]][-WINDOW:]
        self._unheard = 0

    def _worth(self, steps: Sequence[int]) -> list[float]:
        if not self._seen:
            return []
        seen = np.array(self._seen)
        rows, gains = seen[:, :1], seen[:, 1:].sum(0)
        kept = np.minimum(rows, np.array(steps, float))
        prices = (TRAINED * kept + self.looking * rows * (np.array(steps) < steps[-1])).sum(0)
        return [float(gain / price) for gain, price in zip(gains, prices, strict=True)]

    def _chosen(self, steps: Sequence[int], back: bool) -> int:
        """The rung that is worth most, or that of before unless by `MARGIN`; all where no look is worth anything, and
        never all where a trial of that failed."""
        if not self.worth:
            return steps[0]
        both = dict(zip(steps, self.worth, strict=True))
        worth = {n: value for n, value in both.items() if (n < steps[-1] if back else value > 0 or n == steps[-1])}
        best = max(worth, key=lambda n: worth[n])
        held = worth.get(self._n)
        return self._n if held is not None and worth[best] <= held + MARGIN * abs(held) else best

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"seen": self._seen, "n": self._n, "unheard": self._unheard, "classes": self.classes,
                "trial": self.trial.state_dict()}  # fmt: skip

    def load_state_dict(self, state: Any) -> None:
        """The inverse of `state_dict`. Raises MismatchError."""
        try:
            self._seen = [[float(value) for value in one] for one in state["seen"]]
            self._n, self._unheard = int(state["n"]), int(state["unheard"])
            self.classes = None if state["classes"] is None else int(state["classes"])
            if "trial" in state:  # not in checkpoints of before there was one
                self.trial.load_state_dict(state["trial"])
        except (KeyError, TypeError, ValueError) as exc:
            raise MismatchError("the checkpoint holds no state of --ratio auto") from exc


def gains_of(
    score_m: Values,
    loss_m: Values,
    il_m: Values,
    classes: int | None,
    kept: Sequence[int],
    *,
    outside: bool = False,
) -> list[float]:
    """G of each number of rows that are kept, nats, of m rows with scores. Without classes a loss says no chance."""
    ceiling = math.inf if classes is None else math.log(classes)
    loss: Floats = loss_m.astype(np.float64)
    excess: Floats = np.minimum(loss, ceiling) - np.minimum(il_m.astype(np.float64), ceiling)
    best = excess[np.lexsort((np.arange(len(score_m)), -score_m.astype(np.float64)))]
    if outside and classes is not None:
        gained, weight = best, SURE * np.maximum(2 * np.exp(-loss) - 1, 0)
    else:
        gained, weight = np.maximum(best, 0), np.full_like(loss, MISTAKES)
    gained, mistaken = gained.cumsum(), np.sort(weight * np.minimum(excess, 0)).cumsum()
    return [float(gained[at] + mistaken[at]) for at in (min(n, len(best)) - 1 for n in kept)]
