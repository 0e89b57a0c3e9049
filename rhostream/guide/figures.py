"""From what networks say of samples that they didn't learn from to figures with intervals and an advice; pure.

    log_p (N, C) and label (N,) > accuracy, share that was learned, hard samples, labels that look wrong > advice

Everything is of the labels as they are. Intervals are of 95 %, by a bootstrap over the samples; that another draw of
samples to learn from would give other networks isn't in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhostream.randomness import generator

RESAMPLES = 1000
SURE = 0.2  # of the samples, those that the networks are surest of
HARD = np.log(2)  # nats: the label is given a probability below a half
SOME_NOISE = 0.03  # from here on labels that look wrong are worth setting aside
FEW_HARD = 0.10  # up to here there is little that il could set aside
ENOUGH = 2000  # samples from which figures are firm enough to advise without a warning
EACH = 20  # samples a class
RHO, UNIFORM, BOTH = "rho", "uniform", "both"
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """`38 % (34 to 42)`."""
        return f"{100 * self.value:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of N samples, each judged by networks that didn't learn from it."""

    samples: int
    classes: int
    accuracy: Interval
    largest_class: float  # the share of the most frequent label: the accuracy of a guess
    learned: Interval  # 1 - mean il / entropy of the labels: the share of the loss that could be taken away
    hard: Interval  # share of samples whose label is given less than a half: the most that il can set aside
    wrong: Interval  # of the fifth that the networks are surest of, the share whose label is another
    sure: int  # how many samples that fifth has
    rising: bool  # the less sure half of the fifth has clearly more: part of it is difficulty, so `wrong` is at most
    learnable: bool  # better than a guess, beyond chance


def figures(log_p: Floats, label: Ints, seed: int = 0) -> Figures:
    """What (N, C) log-probabilities in nats and (N,) labels say."""
    n, classes = log_p.shape
    il = -log_p[np.arange(n), label]
    named = log_p.argmax(1)
    right = named == label
    share = np.bincount(label, minlength=classes) / n
    order = np.argsort(-log_p.max(1), kind="stable")
    sure = order[: max(2, round(SURE * n))]
    wrong = ~right[sure]
    rng = generator("init figures", seed)
    draws = rng.integers(n, size=(RESAMPLES, n))
    guess = -np.log(np.maximum(share, 1e-12))[label]  # nats, of naming the shares of the labels
    learned = 1 - il[draws].mean(1) / np.maximum(guess[draws].mean(1), 1e-12)
    gained = right[draws].mean(1) - (label[draws] == share.argmax()).mean(1)
    # 1 in 200 each by chance: a sample of labels that mean nothing must not be called learnable.
    learnable = bool(np.quantile(learned, 0.005) > 0 or np.quantile(gained, 0.005) > 0)
    halves = wrong[: len(wrong) // 2], wrong[len(wrong) // 2 :]
    return Figures(
        samples=n,
        classes=classes,
        accuracy=_interval(right.mean(), right[draws].mean(1)),
        largest_class=float(share.max()),
        learned=_interval(1 - il.mean() / max(guess.mean(), 1e-12), learned),
        hard=_interval((il > HARD).mean(), (il > HARD)[draws].mean(1)),
        wrong=wilson(int(wrong.sum()), len(wrong)),
        sure=len(sure),
        rising=_clearly_more(halves[1], halves[0]),
        learnable=learnable,
    )


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def wilson(count: int, of: int) -> Interval:
    """A share and its interval (Wilson 1927), which is right at 0 too, where a bootstrap has none."""
    z, share = 1.96, count / of
    centre, spread = share + z**2 / (2 * of), z * (share * (1 - share) / of + z**2 / (4 * of**2)) ** 0.5
    return Interval(share, max(0.0, (centre - spread) / (1 + z**2 / of)), min(1.0, (centre + spread) / (1 + z**2 / of)))


def _clearly_more(more: npt.NDArray[np.bool_], less: npt.NDArray[np.bool_]) -> bool:
    """Whether the first share is larger than the second, beyond chance (one in forty)."""
    both = np.concatenate([more, less]).mean()
    error = (both * (1 - both) * (1 / len(more) + 1 / len(less))) ** 0.5
    return bool(more.mean() - less.mean() > 1.96 * error)


def advice(of: Figures) -> tuple[str, str]:
    """("rho", "uniform" or "both", why in a sentence)."""
    if not of.learnable:
        return UNIFORM, (
            "nothing can be learned from this sample by a small model: labels that mean nothing look like this, and so "
            "does a task beyond the model; no il would separate anything"
        )
    noisy = of.wrong.low >= SOME_NOISE
    if noisy and not of.rising:
        return RHO, (
            f"about {of.wrong.percent()} of the labels look wrong, and the rest can be learned: il would set them aside"
        )
    if of.hard.high <= FEW_HARD:
        return UNIFORM, (
            f"{100 - 100 * of.hard.value:.0f} % of the samples are learned already and few labels look wrong: il would "
            "be near 0 nearly everywhere, so there is little to gain"
        )
    return BOTH, (
        f"{of.hard.percent()} of the samples are hard for a small model, and whether they are wrong, rare or just "
        "difficult can't be told from this sample: only the two runs can tell"
    )


def warnings(of: Figures) -> list[str]:
    """What makes the figures less than they look."""
    notes = []
    if of.samples < ENOUGH:
        notes.append(f"{of.samples:,} samples were judged; below {ENOUGH:,} the intervals are wide and the advice weak")
    if of.samples < EACH * of.classes:
        notes.append(f"{of.samples / of.classes:.0f} samples a class are few: more is learned from all of them")
    return notes
