"""Arms against their baselines, seed by seed: what was measured, with its interval, and what may be claimed of it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.reproduce.measure import SAYS, WINDOW, Curve
from jobs.reproduce.settings import Arm, Claim, Scale
from jobs.reproduce.statistics import Paired, bounds, censored_median, claim, interval, paired, ratios, shown
from rhostream.audit.metrics import best, steps_to_reach

POINTS = ("accuracy", "final", "worst", "kept", "IL model's")  # how metrics begin that are told in points, of a hundred
SPEEDUP = "times fewer steps"
IL_SHARE = "share of the run that its IL model costs"
Curves = Mapping[str, Mapping[int, Curve]]  # arm's label -> seed -> curve


@dataclass(frozen=True)
class Comparison:
    """One figure of an arm: every seed's value (None: not reached), the middle, its interval, against its baseline."""

    world: str
    arm: str
    baseline: str | None
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float | None, ...]
    middle: float | None  # a mean, or a censored median of steps and speed-ups
    difference: Paired | None = None  # to the baseline, of accuracies and shares
    claim: str = ""
    budget: int = 0  # steps within which a target had to be reached


def compare(scale: Scale, curves: Curves, shares: Sequence[str] = ()) -> list[Comparison]:
    """All comparisons that the curves allow; an arm or a seed that wasn't run is left out of them."""
    found: list[Comparison] = []
    for arm in scale.arms:
        mine = curves.get(arm.label, {})
        if not mine:
            continue
        others: list[tuple[Arm | None, Mapping[int, Curve]]] = [
            (other, curves[other.label]) for other in scale.baselines(arm) if curves.get(other.label)
        ]
        found += _targets(arm, mine, scale)
        found.append(_difference(arm, None, "forward units a step", {s: c.units[-1] / c.steps[-1]
                                                                     for s, c in mine.items()}, {}))  # fmt: skip
        for other, theirs in others or [(None, {})]:
            found += _accuracies(arm, other, mine, theirs, scale)
            if (
                other is not None and other.world.train == arm.world.train
            ):  # else no curve of the other's is at its cost
                found += [_speedup(arm, other, mine, theirs), _at_equal_cost(arm, other, mine, theirs)]
            found += [_difference(arm, other, SAYS[name], {s: c.shares[name] for s, c in mine.items()},
                                  {s: c.shares.get(name, math.nan) for s, c in theirs.items()}, judged=False)
                      for name in shares]  # fmt: skip
        for other in scale.equals(arm):
            found += [_at_equal_units(arm, other, mine, curves.get(other.label, {}), charged)
                      for charged in (False, True)]  # fmt: skip
        if [other.name for other, _ in others if other] == ["rho", "uniform"]:
            found += _of_rho(arm, mine, others[0][1], others[1][1])
    found += derived(found)
    return [one for one in found if one.values]  # nothing is known of a share that no run logged


GROWTH = "times the speed-up on clean labels"


def derived(found: Sequence[Comparison]) -> list[Comparison]:
    """What is made of other comparisons: how many times larger than on clean labels a speed-up is, seed by seed."""
    ups = {(one.world, one.arm): one for one in found if one.metric.startswith(SPEEDUP) and one.baseline == "uniform"}
    had = {(one.world, one.arm) for one in found if one.metric == GROWTH}
    made = []
    for (world, arm), one in ups.items():
        clean = ups.get(("clean", arm))
        if world == "clean" or clean is None or (world, arm) in had:
            continue
        of = dict(zip(clean.seeds, clean.values, strict=True))
        pairs = [(seed, up, of[seed]) for seed, up in zip(one.seeds, one.values, strict=True) if seed in of]
        each = ratios([up for _, up, _ in pairs], [base for _, _, base in pairs])
        made.append(Comparison(world, arm, f"clean: {arm}", GROWTH, tuple(seed for seed, _, _ in pairs), tuple(each),
                               censored_median(each, more_is_better=True), budget=one.budget))  # fmt: skip
    return made


def _accuracies(
    arm: Arm, other: Arm | None, mine: Mapping[int, Curve], theirs: Mapping[int, Curve], scale: Scale
) -> list[Comparison]:
    found = []
    for step in scale.after.get(arm.world.name, ()):
        found.append(_difference(arm, other, f"accuracy after {step} steps ({_of(arm.passes(step))})",
                                 {s: _at(c, step) for s, c in mine.items()},
                                 {s: _at(c, step) for s, c in theirs.items()}))  # fmt: skip
    final = f"final accuracy (mean of the last {WINDOW} evaluations)"
    found.append(_difference(arm, other, final, {s: c.final for s, c in mine.items()},
                             {s: c.final for s, c in theirs.items()}))  # fmt: skip
    found.append(_difference(arm, other, "worst class's accuracy at the end", {s: c.worst[-1] for s, c in mine.items()},
                             {s: c.worst[-1] for s, c in theirs.items()}))  # fmt: skip
    return found


def _of(passes: float) -> str:
    return f"{passes:.3g} pass{'' if passes == 1 else 'es'}"


def _at(curve: Curve, step: int) -> float:
    return curve.accuracy[curve.steps.index(step)] if step in curve.steps else math.nan


def _called(arm: Arm, other: Arm | None) -> str | None:
    """A baseline's name; of another world, with that world's."""
    return None if other is None else other.name if other.world.name == arm.world.name else other.label


def _difference(
    arm: Arm,
    other: Arm | None,
    metric: str,
    mine: Mapping[int, float],
    theirs: Mapping[int, float],
    judged: bool = True,
) -> Comparison:
    """A mean over all seeds, and the paired difference over those that both have."""
    seeds = sorted(seed for seed, value in mine.items() if math.isfinite(value))
    both = [seed for seed in seeds if math.isfinite(theirs.get(seed, math.nan))]
    pair = paired([mine[s] for s in both], [theirs[s] for s in both]) if both else None
    values = [mine[seed] for seed in seeds]
    return Comparison(arm.world.name, arm.name, _called(arm, other), metric, tuple(seeds), tuple(values),
                      interval(values)[0], pair, claim(pair) if pair and judged else "", arm.steps)  # fmt: skip


def _of_rho(
    arm: Arm, mine: Mapping[int, Curve], rho: Mapping[int, Curve], uniform: Mapping[int, Curve]
) -> list[Comparison]:
    """How much of rho's gain over uniform an arm keeps, at which share of rho's cost a step.

    The middle is a ratio of means: seeds where rho gains next to nothing would rule a mean of ratios.
    """
    seeds = sorted(mine.keys() & rho.keys() & uniform.keys())
    ours = [mine[s].final - uniform[s].final for s in seeds]
    gain = [rho[s].final - uniform[s].final for s in seeds]
    costs = [mine[s].units[-1] / mine[s].steps[-1] / (rho[s].units[-1] / rho[s].steps[-1]) for s in seeds]
    bills = [mine[s].il_units / mine[s].units[-1] for s in seeds]
    told: Mapping[str, tuple[list[float | None], float | None]] = {
        "share of rho's gain over uniform": (ratios(ours, gain) if all(gain) else [],
                                             sum(ours) / sum(gain) if sum(gain) > 0 else None),
        "share of rho's cost a step": (list(costs), interval(costs)[0]),
        IL_SHARE: (list(bills), interval(bills)[0]),
    }  # fmt: skip
    return [
        Comparison(arm.world.name, arm.name, None, metric, tuple(seeds), tuple(values), middle, budget=arm.steps)
        for metric, (values, middle) in told.items()
    ]


def _targets(arm: Arm, mine: Mapping[int, Curve], scale: Scale) -> list[Comparison]:
    seeds = sorted(mine)
    found = []
    for target in scale.targets.get(arm.world.name, ()):
        steps = [steps_to_reach(mine[s].steps, mine[s].accuracy, target, WINDOW) for s in seeds]
        found.append(Comparison(arm.world.name, arm.name, None, f"steps to {100 * target:g} %", tuple(seeds),
                                tuple(steps), censored_median(steps), budget=arm.steps))  # fmt: skip
    return found


def _speedup(arm: Arm, other: Arm, mine: Mapping[int, Curve], theirs: Mapping[int, Curve]) -> Comparison:
    """Steps in which the baseline reaches its own best, over the arm's to that accuracy (paper, Fig. 2)."""
    seeds = sorted(mine.keys() & theirs.keys())
    goals = [best(theirs[s].accuracy, WINDOW) for s in seeds]
    own = [steps_to_reach(theirs[s].steps, theirs[s].accuracy, g, WINDOW) for s, g in zip(seeds, goals, strict=True)]
    ours = [steps_to_reach(mine[s].steps, mine[s].accuracy, g, WINDOW) for s, g in zip(seeds, goals, strict=True)]
    ups = ratios(own, ours)
    return Comparison(arm.world.name, arm.name, _called(arm, other),
                      f"times fewer steps to the best of the baseline's {other.steps}", tuple(seeds), tuple(ups),
                      censored_median(ups, more_is_better=True), budget=arm.steps)  # fmt: skip


def _at_equal_cost(arm: Arm, other: Arm, mine: Mapping[int, Curve], theirs: Mapping[int, Curve]) -> Comparison:
    """Accuracies where both have spent the same forward units: the most that both spent, the nearest below it."""
    ours, baseline = {}, {}
    for seed in sorted(mine.keys() & theirs.keys()):
        spent = min(mine[seed].units[-1], theirs[seed].units[-1])
        ours[seed], baseline[seed] = (_spent(curve[seed], spent) for curve in (mine, theirs))
    return _difference(arm, other, "accuracy at equal forward units (IL not charged)", ours, baseline)


EQUAL = {False: "accuracy at equal units, IL not charged", True: "accuracy at equal units, IL charged"}


def _at_equal_units(
    arm: Arm, other: Arm, mine: Mapping[int, Curve], theirs: Mapping[int, Curve], charged: bool
) -> Comparison:
    """The arm at its end, against a baseline that has spent as much: as the arm alone, or as the arm and its IL model.

    The mean of the arm's last `WINDOW` evaluations beside that of the baseline where it had spent as much as at each of
    them: means of the two's own last evaluations would be of longer and shorter stretches of a curve that rises. A seed
    whose baseline ends before that is left out: it would not have spent as much.
    """
    ours, baseline = {}, {}
    for seed in sorted(mine.keys() & theirs.keys()):
        il = mine[seed].il_units - theirs[seed].il_units if charged else 0.0
        spent = [units + il for units in mine[seed].units[-WINDOW:]]
        ours[seed], baseline[seed] = mine[seed].final, _beside(theirs[seed], spent)
        if not math.isfinite(baseline[seed]):
            del ours[seed]
    return _difference(arm, other, EQUAL[charged], ours, baseline)


def _beside(curve: Curve, spent: Sequence[float]) -> float:
    """The mean accuracy where a run had spent so much, ascending units; NaN where it has not spent the last of them.

    Between two evaluations it is taken to rise evenly; before the first it has that one's.
    """
    per_step = curve.units[-1] / curve.steps[-1]
    if curve.units[-1] + per_step <= spent[-1]:
        return math.nan
    return float(np.interp(spent, curve.units, curve.accuracy).mean())


def _spent(curve: Curve, units: float) -> float:
    inside = [accuracy for accuracy, spent in zip(curve.accuracy, curve.units, strict=True) if spent <= units + 1e-6]
    return inside[-1] if inside else math.nan


def verdict(claim: Claim, found: Sequence[Comparison]) -> tuple[Comparison | None, str]:
    """The comparison that a claim is about, and: same direction, other direction, undecided (why), or not measured."""
    mine = [one for one in found if one.world == claim.world and one.arm == claim.arm
            and one.metric.startswith(claim.metric) and one.baseline in (None, claim.baseline)]  # fmt: skip
    if not mine:
        return None, "not measured"
    one = mine[0]
    if one.metric.startswith(("times", "share of")):
        return one, _by_interval(one, claim)
    if one.metric.startswith(("steps", "forward")):
        if one.middle is None:
            return one, "other direction: none" if not claim.less else "same direction: none"
        return one, "same direction" if (one.middle < claim.beyond) == claim.less else "other direction"
    if one.difference is None:
        return one, "not measured"
    if one.claim.startswith("no claim") or (one.claim.startswith("undecided") and not claim.beyond):
        return one, one.claim
    low, high = one.difference.low - claim.beyond, one.difference.high - claim.beyond
    if low <= 0 <= high and low < high:
        return one, f"undecided: the interval holds {100 * claim.beyond:g} points"
    return one, "same direction" if (high <= 0 if claim.less else low > 0) else "other direction"


def _by_interval(one: Comparison, claim: Claim) -> str:
    """Of speed-ups and shares: by the interval of the seeds, never by a middle alone.

    Speed-ups are ratios, so their interval is that of the logarithms. A target that was not reached is short of every
    bound; where some seeds reached it and some did not, nothing is decided.
    """
    known, seeds = [value for value in one.values if value is not None], len(one.values)
    if not known:
        return "same direction: none" if claim.less else "other direction: none"
    if len(known) < seeds:
        return f"undecided: not reached by {seeds - len(known)} of {seeds} seeds"
    if seeds < 2:
        return "no claim: 1 seed"
    low, high = bounds(known, logarithmic=one.metric.startswith("times"))
    if low <= claim.beyond <= high and low < high:
        return f"undecided: the interval ({low:.2f} to {high:.2f}) holds {claim.beyond:g}"
    return "same direction" if (high <= claim.beyond if claim.less else low > claim.beyond) else "other direction"


def in_words(told: Sequence[tuple[Hashable, str]]) -> str:
    """How many claims point the same way: each once, whatever the number of settings that it was tried in.

    `told`: (claim, verdict) of every setting. A claim points the same way when all of its settings do.
    """
    of: dict[Hashable, list[bool]] = {}
    for says, words in told:
        of.setdefault(says, []).append(words.startswith("same"))
    said = f"{sum(all(each) for each in of.values())} of {len(of)} in the same direction"
    if len(told) == len(of):
        return said
    return f"{said} in every setting ({sum(map(sum, of.values()))} of {len(told)} settings)"


def line(one: Comparison) -> str:
    """A comparison as one line of text: the middle, every seed, the paired interval, the claim."""
    each = " ".join(shown(value, _form(one, value)) for value in one.values)
    words = f"{one.arm:24} {one.metric}: {shown(one.middle, _form(one, one.middle))} [{each}]"
    if one.difference is not None:
        d = one.difference
        scale = 100 if one.metric.startswith(POINTS) else 1
        words += f"; against {one.baseline} {scale * d.mean:+.2f}"
        words += f" ({scale * d.low:+.2f} to {scale * d.high:+.2f})" if math.isfinite(d.low) else ""
    return words + (f"; {one.claim}" if one.claim else "")


def _form(one: Comparison, value: float | None) -> str:
    if one.metric.startswith(("steps", "forward")):
        return ".0f"
    return ".2f" if one.metric.startswith("times") else ".4f"
