"""Parallel selection: the last ranks read and score the next buffer while the first ones train on this one.

    scorers   read n_B > old scores (of predicted weights) > shortlist        the next buffer, while the others train
    trainers                                    > dealt out > fresh scores > n_b kept > gradient step > weights

Scores that overlap with a step are one step old, so they make the shortlist alone (selection/lagged.py). Each step
carries the shortlisted rows to the trainers and one copy of the weights to the scorers. The rank that read a row logs
it. What is kept is what one process with the same shortlist keeps; scorers that stay behind are left out, and said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rhostream.candidates import CANDIDATE, Candidates, Slice
from rhostream.errors import UsageError
from rhostream.reasons import Reason
from rhostream.selection.choice import leading
from rhostream.selection.deal import exchanged, fields_in, overlaps, prefixed, shares
from rhostream.selection.lagged import RECALL_EVERY, Lagged
from rhostream.selection.ranks import Ranks
from rhostream.selection.scores import bounds_of
from rhostream.selection.stages import Columns, Rows, Selection, Stage, scatter
from rhostream.selection.whole import best_rows, leave_out_without_il, own_rows, slice_of

if TYPE_CHECKING:
    from rhostream.selection.selector import Selector

LOG = logging.getLogger("rhostream")
BEHIND = 2.0  # times as long as the trainers: a scorer that takes it step after step is behind
PATIENCE = 100  # such steps in a row, after which the run goes on without old scores


@dataclass(kw_only=True)
class Scorers:
    """Who trains and who scores, and what a step moves between them.

    `count`: of `ranks` the last so many score. `trainers`: the ranks that train, seen from one of them; of a scorer it
    is a process alone, which tells nobody anything. `lagged`: what scorers score with. Every method is collective.
    """

    ranks: Ranks
    count: int
    lagged: Lagged
    trainers: Ranks = field(init=False)
    without_since: int | None = None  # the step from which on scorers only read
    moved: dict[str, int] = field(default_factory=lambda: {"rows": 0, "row bytes": 0, "weight bytes": 0})
    _behind: int = 0
    _ahead: tuple[tuple[int, int], Tensor] | None = None  # of (pass, buffer): scores of its rows
    _finish: Callable[[], None] | None = None  # of weights that are on their way

    def __post_init__(self) -> None:
        if not 0 < self.count < self.ranks.size:
            raise UsageError(
                f"scorers {self.count}: expected at least 1, and of {self.ranks.size} ranks at least one that trains"
            )
        self.trainers = self.ranks.part(range(self.training)) or Ranks()
        self._told = self.ranks.part([0, *range(self.training, self.ranks.size)])

    @property
    def training(self) -> int:
        """Ranks that train."""
        return self.ranks.size - self.count

    @property
    def scores(self) -> bool:
        """Whether this rank does not train."""
        return self.ranks.rank >= self.training

    def shares(self, total: int, least: int) -> list[int]:
        """Rows of each rank, of which only trainers get any."""
        return [*shares(total, self.training, least), *[0] * self.count]

    # -- a buffer ------------------------------------------------------------------------------------------------------

    def look_ahead(self, selector: Selector, candidates: Candidates, step: int) -> None:
        """Score the buffer of `step` by old weights, before anybody asks for it. Of a scorer alone."""
        if self.without_since is None:
            if selector.rule.needs_il:
                candidates = leave_out_without_il(candidates)
            scores = self._old_scores(selector, candidates, candidates.candidate_rows, step)
            self._ahead = (candidates.pass_index, candidates.index), scores

    def select(
        self, selector: Selector, candidates: Candidates, rows: Rows, n: int, step: int, length: int
    ) -> Selection:
        """What `Selector` decides of the buffer, of which this rank read `rows`: `length` go to the trainers."""
        ahead, self._ahead = self._ahead, None
        known = ahead is not None and ahead[0] == (candidates.pass_index, candidates.index)
        if self.without_since is not None or not len(rows):
            score_m = torch.zeros(len(rows))
        else:
            score_m = ahead[1] if known and ahead is not None else self._old_scores(selector, candidates, rows, step)
        size, part = len(candidates), slice_of(candidates, self.ranks)
        own = {
            "score": scatter(rows, score_m.cpu().numpy(), size),
            "in": candidates.reason == CANDIDATE,
            "reader": np.full(size, self.ranks.rank, np.int32),
        }
        whole = self.ranks.concat_columns(own, part.most)
        all_in = np.flatnonzero(whole["in"])
        listed = all_in if self.without_since is not None else best_rows(whole["score"], whole["in"], length)
        dealt = self._dealt(candidates, listed, whole["reader"], selector.least_rows)
        chosen = selector.by_score(dealt, dealt.candidate_rows, n, step, listed=True)
        chosen = self._for_readers(chosen, dealt, candidates, listed)
        if self.without_since is not None:
            return chosen
        chosen = replace(chosen, shortlisted=len(rows))
        if step % RECALL_EVERY:
            return chosen
        every = self._dealt(candidates, all_in, whole["reader"], selector.least_rows)
        recall = self._recall(selector, every, all_in, listed, n, step)
        return replace(chosen, recall=recall, scored=chosen.scored + len(every))

    def _old_scores(self, selector: Selector, candidates: Candidates, rows: Rows, step: int) -> Tensor:
        stage, bounds = Stage.of(candidates, rows), bounds_of(candidates, rows)
        return selector.scores(self.lagged.forward, stage, bounds, step)["score"]

    def _dealt(self, candidates: Candidates, listed: Rows, reader: Rows, least: int) -> Candidates:
        """These rows of the whole buffer as a buffer of their own, in their order; each trainer has a slice of it."""
        rank, mine = self.ranks.rank, own_rows(listed, slice_of(candidates, self.ranks), len(candidates))
        held = np.bincount(reader[listed], minlength=self.ranks.size).tolist()
        wanted, row = self.shares(len(listed), least), torch.from_numpy(mine)
        device = candidates.label.device
        columns = {
            "label": candidates.label.index_select(0, row.to(device)),
            "il": candidates.il.index_select(0, row.to(device)),
            "shard": torch.from_numpy(candidates.shard[mine]).to(device),
            "ordinal": torch.from_numpy(candidates.ordinal[mine]).to(device),
            **prefixed("field ", candidates.fields_of(mine)),
        }
        came = exchanged(columns, self.ranks, *overlaps(held, wanted, rank))
        size = sum(array[:1].nbytes for array in came.values()) or sum(a[:1].nbytes for a in columns.values())
        self.moved["rows"] += len(mine)
        self.moved["row bytes"] += len(mine) * size
        count = wanted[rank]
        dealt = replace(
            candidates,
            shard=came["shard"].cpu().numpy(), ordinal=came["ordinal"].cpu().numpy(),
            key=pa.nulls(count, pa.string()), label=came["label"], il=came["il"],
            reason=np.full(count, CANDIDATE, np.uint8), fields=fields_in("field ", came), fold=None, on_host=None,
            slice=Slice(sum(wanted[:rank]), len(listed), max(wanted), self.ranks.size),
        )  # fmt: skip
        if device.type == "cpu":
            return dealt
        return replace(dealt, on_host=replace(dealt, label=dealt.label.cpu(), il=dealt.il.cpu()))

    def _recall(self, selector: Selector, every: Candidates, all_in: Rows, listed: Rows, n: int, step: int) -> float:
        """The share of what fresh scores of all rows would keep that is listed, for the ledger alone."""
        stage, bounds = Stage.of(every, every.candidate_rows), bounds_of(every, every.candidate_rows)
        score_m = selector.scores(selector.forward, stage, bounds, step)["score"]
        whole = self.ranks.concat_columns({"score": score_m.cpu().numpy()}, slice_of(every, self.ranks).most)["score"]
        best = all_in[leading(torch.from_numpy(whole), n).numpy()]
        return float(np.isin(best, listed).sum()) / max(len(best), 1)

    def _for_readers(self, chosen: Selection, dealt: Candidates, candidates: Candidates, listed: Rows) -> Selection:
        """The same selection, its columns those of the rows that this rank read."""
        names = ("loss", "score", "correct", "kept", "reason", "weight")
        part = slice_of(dealt, self.ranks)
        whole = self.ranks.concat_columns({name: getattr(chosen, name) for name in names}, part.most)
        mine = slice_of(candidates, self.ranks)
        of_list = np.flatnonzero((listed >= mine.first) & (listed < mine.first + len(candidates)))
        rows = listed[of_list] - mine.first
        log = Columns(candidates, Reason.shortlist)
        for name in names:
            getattr(log, name)[rows] = whole[name][of_list]
        log.rows = rows[whole["kept"][of_list]]
        assert chosen.place is not None
        return replace(chosen, **vars(log), place=listed[chosen.place])

    # -- a step --------------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """The weights that the scorers are to score the next buffer with are on their way to them."""
        if self._finish is not None:
            self._finish()
        if not self.scores:
            self.lagged.learn()
        if self.without_since is not None or self._told is None:
            self._finish = None
            return
        weights = list(self.lagged.model.state_dict().values())
        self._finish = self._told.send_from_first(weights)
        self.moved["weight bytes"] += sum(tensor.nbytes for tensor in weights)
        if self.scores:
            self._finish()
            self._finish = None

    def side_by_side(
        self, train: Callable[[], tuple[Tensor, Tensor]], look: Callable[[], None], step: int
    ) -> tuple[Tensor, Tensor]:
        """Train, or meanwhile look ahead: the own losses (n,), and the mean of all, alike on every rank."""
        began = time.perf_counter()
        if self.scores:
            look()
            loss_b, mean = torch.zeros(0), torch.tensor(torch.nan)
        else:
            loss_b, mean = train()
        told = self.ranks.gather(torch.tensor([float(mean), time.perf_counter() - began], dtype=torch.float64))
        self._judge(told[:, 1].tolist(), step)
        return loss_b, told[0, 0].float().to(loss_b.device)

    def _judge(self, seconds: list[float], step: int) -> None:
        """Leave out scorers that are behind step after step; every rank judges by the same numbers."""
        training, scoring = max(seconds[: self.training]), max(seconds[self.training :])
        self._behind = self._behind + 1 if scoring > BEHIND * training else 0
        if self._behind < PATIENCE or self.without_since is not None:
            return
        self.without_since = step + 1
        if self.ranks.first:
            LOG.warning(
                "warning: for %d steps the scorers took more than %g times as long as training (%.3f s against %.3f s "
                "in step %d): from step %d on the trainers score whole buffers by themselves, and scorers only read; "
                "give the run more scorers, or none",
                PATIENCE, BEHIND, scoring, training, step, step + 1,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """What later choices hang on, as plain values."""
        return {} if self.without_since is None else {"without_scorers_since": self.without_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        since = state.get("without_scorers_since")
        self.without_since = None if since is None else int(since)
