"""What an IL model costs beside one run that selects by it, and from when that is little. Pure, as `predict`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rhostream.advisor.predict import ILCost, Measured, Setting

LITTLE = 0.1  # of a run


@dataclass(frozen=True, kw_only=True)
class ILShare:
    """Shares of one run of plain rho, in forwards of the target; and what brings them below a tenth.

    The run: as many steps as were asked for, else one pass over all samples, n_B + 3 n_b forwards each.
    """

    steps: int
    passes: float
    units: float  # of the run
    fit: float  # forward and backward of all networks
    check: float  # the looks at them
    score: float  # one forward of every sample
    quotient: float  # MACs(IL) / MACs(target) / (1 + 3 n_b / n_B): what scoring all costs of one pass
    runs: int  # that share it and pay a tenth each
    macs: float  # of a target whose run costs ten times as much as this IL model
    longer: float  # passes of such a run

    @property
    def whole(self) -> float:
        """All of it."""
        return self.fit + self.check + self.score


def il_share(m: Measured, s: Setting, il: ILCost) -> ILShare:
    """The bill of an IL model, its fit, its looks and its table, beside the run that pays it."""
    steps = s.steps or max(1, s.samples // s.buffer_size)
    per_step = s.buffer_size + 3.0 * s.batch_size
    run, ratio = steps * per_step, m.il_macs / m.macs
    fit, check, score = (ratio * samples / run for samples in (3 * il.trained, il.checked, il.scored))
    times = (fit + check + score) / LITTLE
    passes = steps * s.buffer_size / max(s.samples, 1)
    return ILShare(
        steps=steps,
        passes=passes,
        units=run,
        fit=fit,
        check=check,
        score=score,
        quotient=ratio * s.buffer_size / per_step,
        runs=max(1, math.ceil(times - 1e-9)),
        macs=m.macs * times,
        longer=passes * times,
    )
