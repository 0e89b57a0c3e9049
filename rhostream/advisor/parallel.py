"""What a step takes over several ranks: all score and train, or some score the next buffer while the others train.

    all        n_B s / G  +  t / G  +  gradients
    scorers    the longer of   n_B s / S + weights   and   R n_b s / (G - S) + t / (G - S) + gradients, + rows

s, t: measured seconds of a score and of a training step of n_b on one device; G ranks, of which S score; R: of the
shortlist. Between ranks a ring moves 8 bytes a parameter for gradients and 4 for one copy of the weights. Computed
from measured parts, not run: nothing overlaps but what the two halves of the second line say.
"""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.advisor.predict import Measured, Setting

SHORTLIST = 3  # R of --shortlist predicted:3


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Seconds of a step over so many ranks, and the best way to divide them."""

    ranks: int
    bandwidth: float  # bytes/s between ranks
    together: float  # all score and train
    scorers: int  # the number with which parallel selection is fastest
    apart: float  # with so many
    row_bytes: int  # that travel to the trainers, a step
    weight_bytes: int  # to the scorers, a step

    @property
    def pays(self) -> bool:
        """Whether scorers make a step shorter."""
        return self.apart < self.together


def parallel(m: Measured, s: Setting, ranks: int, bandwidth: float) -> Parallel | None:
    """Weigh both ways of dividing `ranks`, `bandwidth` bytes/s between them; None where there is one rank."""
    if ranks < 2:
        return None
    short = min(SHORTLIST * s.batch_size, s.buffer_size)
    rows, weights = short * m.row_bytes, 4 * m.parameters

    def gradients(training: int) -> float:
        return 8 * m.parameters / bandwidth if training > 1 else 0.0

    def apart(scorers: int) -> float:
        training = ranks - scorers
        scoring = s.buffer_size * m.score / scorers + weights / bandwidth
        return max(scoring, (short * m.score + m.train) / training + gradients(training)) + rows / bandwidth

    best = min(range(1, ranks), key=apart)
    return Parallel(
        ranks=ranks, bandwidth=bandwidth, together=(s.buffer_size * m.score + m.train) / ranks + gradients(ranks),
        scorers=best, apart=apart(best), row_bytes=rows, weight_bytes=weights,
    )  # fmt: skip
