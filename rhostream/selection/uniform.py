"""What the random numbers of a choice are functions of, and the one uniform choice, the same in a stream and a shadow.

Each planned row has a random number of its own, and the n smallest are taken: so a uniform choice depends neither on
the number of ranks nor on which rows are left out before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhostream.randomness import generator
from rhostream.selection.quota import ClassQuota, limited

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def uniform_rows(
    place: Ints,
    label: Ints,
    n: int,
    *,
    planned: int,
    seed: int,
    pass_index: int,
    index: int,
    quota: ClassQuota | None = None,
    admit: Callable[[Ints], Ints] | None = None,
) -> Ints:
    """Which of the eligible rows are kept by chance: positions (min(n, m),) int64 of `place`, ascending.

    `place` (m,) are rows of a buffer of `planned` rows (n_B over all ranks), `label` (m,) their classes, `index` the
    buffer's number in its pass. `admit` gives, of an order of positions, those that the choice is made of, ordered.
    """
    order = np.argsort(generator(seed, "uniform", pass_index, index).random(planned)[place], kind="stable")
    order = order if admit is None else admit(order)
    return np.sort(limited(order, label, n, None if quota is None or quota.kind == "reducr" else quota))


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What the random numbers of one buffer's choice are a function of."""

    seed: int
    step: int
    pass_index: int
    index: int  # of the buffer in its pass
    planned: int  # rows of the buffer over all ranks: n_B

    def by_step(self, purpose: str) -> np.random.Generator:
        """For a purpose that comes once a step."""
        return generator(self.seed, purpose, self.step)

    def uniform(
        self,
        row_m: Ints,
        label_m: Ints,
        n: int,
        quota: ClassQuota | None = None,
        admit: Callable[[Ints], Ints] | None = None,
    ) -> Ints:
        """Of these rows of the buffer those that are kept by chance, ascending; see `uniform_rows`."""
        return row_m[
            uniform_rows(
                row_m,
                label_m,
                n,
                planned=self.planned,
                seed=self.seed,
                pass_index=self.pass_index,
                index=self.index,
                quota=quota,
                admit=admit,
            )
        ]
