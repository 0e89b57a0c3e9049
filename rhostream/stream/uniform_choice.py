"""The uniform choice as a prefilter: what is kept by chance is decided in the stream, and nothing else is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from rhostream.candidates import CANDIDATE, Reason
from rhostream.selection.quota import ClassQuota
from rhostream.selection.schedule import PLAIN, Schedule
from rhostream.selection.source_quota import SourceQuota
from rhostream.selection.uniform import uniform_rows
from rhostream.stream.join import Joined
from rhostream.stream.plan import Numbering

FROM_THE_START = Numbering(0)


@dataclass(frozen=True)
class UniformChoice:
    """The rule `uniform`, decided before decode: a random n_b of the usable rows, the others are `below`.

    With a `schedule` it decides the uniform steps of another rule, or the n_b of each step, and `numbering` says which
    it is.
    """

    batch_size: int
    seed: int
    schedule: Schedule = PLAIN
    quota: ClassQuota | None = None
    always: bool = True  # every step is uniform, whatever the schedule
    numbering: Numbering = FROM_THE_START
    sources: SourceQuota | None = None
    source_names: tuple[str, ...] = ()

    draws_batch = True  # no decision about a row alone
    whole_buffer = True  # over several ranks n_b is that of all

    def __call__(self, joined: Joined, pass_index: int, index: int) -> None:
        step = self.numbering(pass_index, index)
        if not (self.always or self.schedule.is_uniform(step)):
            return
        n = self.schedule.kept(step, self.batch_size, len(joined.reason))
        usable, admit = np.flatnonzero(joined.reason == CANDIDATE), None
        if self.sources is not None and joined.source is not None:
            source = joined.source[usable].astype(np.int64)
            admit = partial(self.sources.admit, source=source, names=self.source_names, n=n)
        kept = uniform_rows(
            usable,
            joined.label[usable],
            n,
            planned=len(joined.reason),
            seed=self.seed,
            pass_index=pass_index,
            index=index,
            quota=self.quota,
            admit=admit,
        )
        joined.reason[np.setdiff1d(usable, usable[kept])] = Reason.below
