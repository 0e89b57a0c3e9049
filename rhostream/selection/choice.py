"""Which of a buffer are kept: pure decisions of the host over the candidates of the whole buffer, on every rank alike.

    scores > clip > class weights > Gumbel noise > order > no duplicates > class quota > the first n_b
    scores > n_b draws with replacement, each weighed by 1 / (n_B prob)          (importance sampling)

Every random number is a function of the seed and the step or the buffer, and of the row's place in the buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.randomness import generator
from rhostream.selection.quota import ClassQuota, limited
from rhostream.selection.uniform import uniform_rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What the random numbers of one buffer's choice are a function of."""

    seed: int
    step: int
    pass_index: int
    index: int  # of the buffer in its pass
    planned: int  # rows of the buffer over all ranks: n_B
    rank: int | None = None  # where each rank chooses among its own slice, whose rows `planned` are then

    def by_step(self, purpose: str) -> np.random.Generator:
        """For a purpose that comes once a step."""
        return generator(self.seed, purpose, self.step, *self._alone)

    def among_missing(self, stage: str) -> np.random.Generator:
        """For the rows without an il, in one of the stages of a choice."""
        return generator(self.seed, "missing il", stage, self.pass_index, self.index, *self._alone)

    def uniform(self, place: Ints, label: Ints, n: int, quota: ClassQuota | None = None) -> Ints:
        """Which of the rows at these places are kept by chance; see `uniform_rows`."""
        return uniform_rows(
            place,
            label,
            n,
            planned=self.planned,
            seed=self.seed,
            pass_index=self.pass_index,
            index=self.index,
            quota=quota,
            rank=self.rank,
        )

    @property
    def _alone(self) -> tuple[int, ...]:
        """Ranks that choose alone draw apart: with the same noise their errors would add up instead of cancelling."""
        return () if self.rank is None else (self.rank,)


# -- the largest -----------------------------------------------------------------------------------------------------


def top(score_B: Tensor, n: int) -> Tensor:
    """Rows of the n largest finite scores, ties to the lower row, in ascending row order: (min(n, finite),) int64.

    `topk` and descending `argsort` put NaN first and break ties in any order; this does neither.
    """
    return leading(score_B, min(n, int(torch.isfinite(score_B).sum())))


def leading(score_B: Tensor, n: int) -> Tensor:
    """Like `top`, but always n rows (all, where there are fewer), those that are not finite last: (n,) int64.

    It asks the device for nothing, so a shortlist costs no wait; whoever comes after looks at finiteness again.
    """
    ranked = torch.where(torch.isfinite(score_B), score_B, -torch.inf).argsort(descending=True, stable=True)
    return ranked[:n].sort().values


def choose(
    score_B: Tensor, chance_B: Tensor, n: int, rng: np.random.Generator, best: Callable[[Tensor, int], Tensor] = top
) -> Tensor:
    """Rows to keep, ascending, on the device of `score_B`: the `best`, and of the chance rows their fair share.

    `chance_B` (bool, on the host) marks rows without an il, which compete by chance.
    """
    missing = torch.nonzero(chance_B).flatten()
    if not len(missing):
        return best(score_B, n)
    picked = torch.from_numpy(by_chance(missing.numpy(), len(score_B), n, rng))
    others = torch.nonzero(~chance_B).flatten().to(score_B.device)
    chosen = others[best(score_B[others], n - len(picked))]
    return torch.cat([chosen, picked.to(score_B.device)]).sort().values


def by_chance(missing: Ints, total: int, n: int, rng: np.random.Generator) -> Ints:
    """A random n / total of the rows without an il, ascending, so that each is kept as often as a row by chance is.

    A share that isn't whole is rounded up as often as its fraction says: rows that are rare would else never be kept.
    """
    if not len(missing):
        return missing
    share = min(len(missing), int(n * len(missing) / total + rng.random()))
    return np.sort(rng.permutation(missing)[:share])


# -- with options ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """What is known of the m candidates of the whole buffer that reached the rule, in canonical order, on the host."""

    score: Floats  # as the rule gave it
    chance: npt.NDArray[np.bool_]  # without an il: competes by chance
    place: Ints  # row in the buffer
    label: Ints
    excess: Floats  # loss - il, nats; the loss where there is no il
    view: npt.NDArray[np.float32] | None = None  # (m, V) small grey views, for duplicates
    shadows: Floats = field(default_factory=lambda: np.zeros((0, 0)))  # (rules, m)


def columns_of(loss: Tensor, score: Tensor, il: Tensor, chance: Tensor, place: Tensor, label: Tensor) -> Tensor:
    """(5, m) float32 of host tensors (m,), as ranks tell each other and `whole_of` takes them apart."""
    excess = torch.where(torch.isfinite(il), loss - il, loss)
    known = label if label.ndim == 1 else torch.zeros(len(score))  # a sequence has no class
    return torch.stack([score, chance.float(), place.float(), known.float(), excess])


def whole_of(rows: npt.NDArray[np.float32], shadows: int) -> Whole:
    """Rows (m, 5 + shadows + V) of all ranks: `columns_of`, the shadows' scores, the grey views if any."""
    score, chance, place, label, excess = rows[:, :5].T
    views = rows[:, 5 + shadows :]
    return Whole(
        score.astype(np.float64),
        chance > 0,
        place.astype(np.int64),
        label.astype(np.int64),
        excess.astype(np.float64),
        views if views.shape[1] else None,
        rows[:, 5 : 5 + shadows].T.astype(np.float64),
    )


@dataclass(frozen=True)
class Choice:
    """The kept positions among the m, ascending, how often each was drawn and what each draw weighs."""

    kept: Ints
    times: Ints
    weight: Floats  # times / (n_B prob), the factor of the sample's loss; 1 where nothing is sampled
    duplicates: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # positions left out as copies

    @property
    def draws(self) -> int:
        """What the sum of the weighted losses is divided by."""
        return int(self.times.sum())


def the_best(kept: Ints, duplicates: Ints | None = None) -> Choice:
    """A choice in which every sample counts once."""
    ones = np.ones(len(kept), np.int64)
    return Choice(
        np.sort(kept), ones, ones.astype(np.float64), np.zeros(0, np.int64) if duplicates is None else duplicates
    )


def largest(
    whole: Whole,
    score: Floats,
    n: int,
    rng: np.random.Generator,
    *,
    quota: ClassQuota | None = None,
    duplicate: float | None = None,
    ties: Floats | None = None,
) -> Choice:
    """The n best by `score`, equal ones by `ties` or to the lower row, within the quota, without near-duplicates.

    `rng` draws among the rows that compete by chance, and nothing where there are none.
    """
    missing = np.flatnonzero(whole.chance)
    picked = by_chance(missing, len(score), n, rng)
    usable = np.flatnonzero(np.isfinite(score) & ~whole.chance)
    keys = (usable, -score[usable]) if ties is None else (ties[usable], -score[usable])
    order, copies = usable[np.lexsort(keys)], np.zeros(0, np.int64)
    if duplicate is not None and whole.view is not None:
        order, copies = without_duplicates(order, whole.view, duplicate, None if quota else n - len(picked))
    order = np.concatenate([picked, order])
    return the_best(limited(order, whole.label, n, quota), copies)


def without_duplicates(
    order: Ints, view: npt.NDArray[np.float32], threshold: float, enough: int | None = None
) -> tuple[Ints, Ints]:
    """`order` without those whose view correlates with that of a better one by the threshold or more; and those.

    Once `enough` are found, what remains is only held against these.
    """
    left, found, seen = np.zeros(len(order), bool), 0, view[order]
    for at in range(len(order)):  # the better ones come first: who is left out leaves nobody out
        if left[at]:
            continue
        if found == enough:
            break
        found += 1
        left[at + 1 :] |= seen[at + 1 :] @ seen[at] >= threshold - 1e-5
    return order[~left], order[left]


# -- importance sampling ---------------------------------------------------------------------------------------------


def by_importance(score: Floats, n: int, rng: np.random.Generator) -> Choice:
    """n draws with replacement, in proportion to the score; the weight of a draw is 1 / (m prob).

    Over the draws the mean of weight x loss is, in expectation, the mean loss of all m candidates with a finite score.
    """
    usable = np.flatnonzero(np.isfinite(score))
    if not len(usable):
        return the_best(usable)
    probability = probabilities(score[usable])
    times = rng.multinomial(n, probability)
    drawn = np.flatnonzero(times)
    return Choice(usable[drawn], times[drawn], times[drawn] / (len(usable) * probability[drawn]))


def probabilities(score: Floats) -> Floats:
    """Scores of 0 and more as probabilities; all alike where every score is 0."""
    positive = np.maximum(score, 0.0)
    total = positive.sum()
    return positive / total if total > 0 else np.full(len(score), 1 / len(score))


def tau_of(score: Floats) -> float:
    """How much importance sampling shortens the variance, as a factor on the batch (Katharopoulos & Fleuret, Eq. 26).

    (1 - |p - u|^2 / |p|^2)^(-1/2) with p the probabilities and u = 1/m: sqrt(m sum p^2), 1 for equal scores.
    """
    finite = score[np.isfinite(score)]
    return float(np.sqrt(len(finite) * (probabilities(finite) ** 2).sum())) if len(finite) else 1.0


class Tau:
    """The smoothed tau of a run: 0 at its start, so that it begins uniform (their Algorithm 1)."""

    SMOOTHING = 0.9

    def __init__(self) -> None:
        self.value = 0.0

    def pays(self, buffer_size: int, batch_size: int) -> bool:
        """Whether n_B forwards for the choice are fewer than the variance that they save is worth."""
        return self.value > (buffer_size + 3 * batch_size) / (3 * batch_size)

    def see(self, score: Floats) -> None:
        """Take in the gradient norms of one step."""
        self.value = self.SMOOTHING * self.value + (1 - self.SMOOTHING) * tau_of(score)
