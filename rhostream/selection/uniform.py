"""The one uniform choice: a random n of a buffer's eligible rows, the same in a stream, a selector and a shadow.

Each planned row has a random number of its own, and the n smallest are taken: so the choice depends neither on the
number of ranks nor on which rows are left out before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhostream.randomness import generator
from rhostream.selection.quota import ClassQuota, limited

Ints = npt.NDArray[np.int64]


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
    rank: int | None = None,
) -> Ints:
    """Which of the eligible rows are kept by chance: positions (min(n, m),) int64 of `place`, ascending.

    `place` (m,) are rows of a buffer of `planned` rows (n_B over all ranks), `label` (m,) their classes, `index` the
    buffer's number in its pass. With a `rank` the buffer is that rank's own slice, and `planned` its rows.
    """
    words = (seed, "uniform", pass_index, index, *(() if rank is None else (rank,)))
    order = np.argsort(generator(*words).random(planned)[place], kind="stable")
    return np.sort(limited(order, label, n, None if quota is None or quota.kind == "reducr" else quota))
