"""From what was measured to what to do: every way to choose with its price, and when each pays. Pure, as `predict`."""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.advisor import cores, predict
from rhostream.advisor.predict import RUNS, ILCost, Measured, Setting, Split, StepCost
from rhostream.runs.cost import break_even


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to choose: its step, in wall seconds, and how many times fewer steps it must need to pay, IL aside."""

    cost: StepCost
    seconds: float  # a step with the workers asked for
    best: Split  # and with the cores divided as well as can be
    bottleneck: str
    workers_needed: int | None  # to keep the model busy; None: more than there are cores
    pass_seconds: float
    against_uniform: float  # x fewer steps, in measured seconds
    against_everything: float
    forwards: float  # x fewer steps, in forwards, against either


@dataclass(frozen=True, kw_only=True)
class Payback:
    """How many times fewer steps plain rho must need, the IL included, when `runs` runs share it; None: never."""

    runs: int
    forwards: float | None
    against_uniform: float | None  # in measured seconds
    against_everything: float | None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the measured seconds mean for this setting."""

    uniform: Way
    everything: Way
    ways: tuple[Way, ...]  # plain rho first, then its levers
    il_seconds: float
    il_units: float  # forwards of the target
    payback: tuple[Payback, ...]
    break_even: float  # (n_B + 3 n_b) / (3 n_b)

    @property
    def rho(self) -> Way:
        """Selection without a lever."""
        return self.ways[0]


def advise(m: Measured, s: Setting, il: ILCost) -> Advice:
    """Price every way to choose and weigh it against uniform and everything."""
    base = predict.uniform(m, s), predict.everything(m, s)
    uniform_seconds, everything_seconds = (cores.wall(cost, m, s.workers) for cost in base)

    def way(cost: StepCost) -> Way:
        seconds = cores.wall(cost, m, s.workers)
        return Way(
            cost=cost, seconds=seconds, best=cores.best_split(cost, m),
            bottleneck=cores.bottleneck(cost, m, s.workers), workers_needed=cores.workers_needed(cost, m),
            pass_seconds=predict.pass_seconds(cost, s, seconds), against_uniform=seconds / uniform_seconds,
            against_everything=seconds / everything_seconds, forwards=cost.forwards / base[0].forwards,
        )  # fmt: skip

    once, units = il.seconds(m, s.workers), il.units(m)
    rho = way(predict.plain(m, s))
    payback = tuple(
        Payback(
            runs=runs,
            forwards=predict.saving_needed(rho.cost.forwards, base[0].forwards, units, runs, s.baseline_steps),
            against_uniform=predict.saving_needed(rho.seconds, uniform_seconds, once, runs, s.baseline_steps),
            against_everything=predict.saving_needed(rho.seconds, everything_seconds, once, runs, s.baseline_steps),
        )
        for runs in RUNS
    )  # fmt: skip
    return Advice(
        uniform=way(base[0]),
        everything=way(base[1]),
        il_seconds=once,
        il_units=units,
        payback=payback,
        ways=tuple(way(cost) for cost in predict.levers(m, s)),
        break_even=break_even(s.buffer_size, s.batch_size),
    )
