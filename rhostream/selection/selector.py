"""The selector: one forward of a buffer with the current weights, then the n_b samples worth a gradient step.

    candidates > (shortlist: a proxy or a cheap view scores all, the best R * n_b go on) > fresh scores > the best n_b

It leaves the model as it found it (`forward`), and waits for the device once: when the losses and scores of a buffer
come to the host, where the choice is made and from where the log takes them. Over several ranks each scores its slice
of the buffer, scores are gathered, and every rank makes the choice of the whole buffer and takes its own rows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rhostream.candidates import CANDIDATE, Candidates, Reason, to_device
from rhostream.errors import NonFiniteError, UsageError
from rhostream.selection.forward import Forward, scoring
from rhostream.selection.proxy import Proxy
from rhostream.selection.ranks import Ranks, in_lockstep
from rhostream.selection.rules import cap, choose, find_rule, leading
from rhostream.selection.stages import Reading, Rows, Stage, decided, take
from rhostream.selection.tokens import correct_of, is_language, loss_of

__all__ = ["NONFINITE_BUFFERS", "Selection", "Selector", "scoring"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
NONFINITE_BUFFERS = 3


@dataclass(frozen=True)
class Selection:
    """What was decided about one buffer; all (B,) arrays stand in the buffer's canonical order."""

    loss: npt.NDArray[np.float32]  # nats; NaN where there was no forward
    score: npt.NDArray[np.float32]  # what the rule ranked by; NaN where there was none
    correct: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.uint8]  # of `Reason`
    rows: npt.NDArray[np.int64]  # (n_kept,) the kept rows, ascending
    input: Tensor | None  # (n_kept, C, H, W) float32: the kept inputs at full size, None when no rank kept any
    label: Tensor  # (n_kept,)
    total: int = 0  # samples that all ranks together kept
    scored: int = 0  # samples that went through the target's forward
    shortlisted: int = 0  # samples that went through the cheaper forward before it
    reread: int = 0  # samples that were decoded again at full size
    weight: float = 1.0
    lag: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The (B,) columns that the selection log takes."""
        n = len(self.loss)
        return {"loss": self.loss, "score": self.score, "correct": self.correct, "kept": self.kept,
                "reason": self.reason, "weight": np.full(n, self.weight, np.float32),
                "lag": np.full(n, self.lag, np.uint8)}


class Selector:
    """Keeps `batch_size` of each buffer by `rule`, with the model's weights as they are at the call.

    `loss` maps (logits, label) to (B,) float32; by default cross-entropy, or of language the mean over a sequence's
    tokens. `chunk`, `batch_norm`, `autocast`, `compile`: see `Forward`.
    `shortlist`: so many times n_b of the candidates reach the target, the best by the rule's score of `proxy`, which
    learns from what is kept, or, without one, of the target itself on the stream's cheap view.
    `group`: the process group over which buffers are split (`open_stream(rank=, ranks=)`) and `batch_size` counts; each
    call is then collective. Without one the choice is made among the candidates at hand.
    Raises NonFiniteError after three buffers in a row without one finite score, RankLostError.
    """

    def __init__(self, model: nn.Module, rule: str = "rho", batch_size: int = 32, *,
                 loss: LossFunction | None = None, chunk: int | None = None, batch_norm: str = "buffer",
                 autocast: torch.dtype | None = None, compile: bool = False, loss_cap: bool = False, seed: int = 0,
                 shortlist: float | None = None, proxy: Proxy | None = None,
                 group: dist.ProcessGroup | Ranks | None = None) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: expected at least 1")
        if shortlist is not None and not shortlist > 1:
            raise UsageError(f"shortlist {shortlist}: expected more than 1 (times the {batch_size} kept)")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # its forward talks to other ranks, and a rank without candidates makes none
        self.ranks = group if isinstance(group, Ranks) else Ranks(group)
        if chunk is not None and in_lockstep(model):
            raise UsageError(f"chunk {chunk}: forwards of this model (SyncBatchNorm or FSDP) wait for those of other "
                             "ranks, which would make another number of them; leave the chunk out")
        self.model, self.rule, self.batch_size = model, find_rule(rule), batch_size
        self.loss, self.loss_cap, self.seed = loss or loss_of(model), loss_cap, seed
        if loss_cap and is_language(model):
            raise UsageError("loss_cap clips at the loss of a guess among classes, which language has not")
        self.forward = Forward(model, chunk=chunk, batch_norm=batch_norm, autocast=autocast, compile=compile)
        self.proxy = proxy
        self.shortlist = None if shortlist is None else round(shortlist * batch_size)
        if proxy is not None and shortlist is None:
            raise UsageError("a proxy makes a shortlist: say how long, as a multiple of the batch size (shortlist=4)")
        if self.rule.score is None and self.shortlist is not None:
            raise UsageError(f"the rule {rule!r} makes no forward, so a shortlist has nothing to rank by")
        self._nonfinite = 0

    def __call__(self, candidates: Candidates) -> Selection:
        """Select from one buffer; the kept inputs come back normalised, on the candidates' device."""
        rows = candidates.candidate_rows
        if self.rule.score is None:
            return self._without_forward(candidates, rows)
        stage = Stage(candidates.inputs(rows), *take(candidates, rows), self._by_chance(candidates, rows))
        reading = Reading(candidates, rows)
        first, position = stage.x, None
        if self.shortlist is not None:
            position = self._shortlist(stage, candidates)
            stage = stage.take(position)
            if candidates.full is not None:
                stage, position = reading(stage, position)
        loss, score, correct = self._scores(self.forward, stage)
        # The one wait for the device: everything that the choice and the log need comes in one copy.
        at = torch.arange(len(score), device=score.device) if position is None else position
        table = torch.stack([loss.float(), score.float(), correct.float(), at.float()]).cpu()
        score_B, chance_B, start = self._of_all(table[1], stage.chance, len(candidates))
        self._watch(score_B, chance_B)
        of_all = choose(score_B, chance_B, self.batch_size)
        total, chosen = len(of_all), _own(of_all, start, len(score))
        kept, kept_at = stage.take(to_device(chosen, score.device)), table[3].long()[chosen]
        if candidates.full is not None and self.shortlist is None:
            kept, kept_at = reading(kept, kept_at)
            total = int(self.ranks.sum([len(kept_at)])[0])
        if self.proxy is not None and total:
            self.proxy.learn(first[to_device(kept_at, first.device)], kept.label, self.ranks, total)
        columns = decided(candidates, rows, table.numpy(), kept_at.numpy(), reading.failed)
        return Selection(*columns, kept.x if total else None, kept.label, total, scored=len(score),
                         shortlisted=0 if self.shortlist is None else len(rows), reread=reading.count)

    def _shortlist(self, stage: Stage, candidates: Candidates) -> Tensor:
        """Positions (m,) of the stage that go on to the target, on the device; nothing waits for it on one rank."""
        if self.proxy is None and candidates.full is None:
            raise UsageError("a shortlist without a proxy is made on the stream's cheap view, and this stream has "
                             "none: open_stream(view_size=...), or Selector(proxy=Proxy(small_model))")
        score = self._scores(self.proxy.forward if self.proxy else self.forward, stage)[1]
        assert self.shortlist is not None
        if self.ranks.alone:
            return choose(score, stage.chance, self.shortlist, leading)
        score_B, chance_B, start = self._of_all(score.cpu(), stage.chance, len(candidates))
        return to_device(_own(choose(score_B, chance_B, self.shortlist, leading), start, len(score)), score.device)

    def _of_all(self, score: Tensor, chance: Tensor, capacity: int) -> tuple[Tensor, Tensor, int]:
        """Scores and chance rows of the whole buffer, in canonical order, and the position where this rank's begin."""
        if self.ranks.alone:
            return score, chance, 0
        whole, start = self.ranks.concat(torch.stack([score.float(), chance.float()], 1), capacity)
        return whole[:, 0], whole[:, 1] > 0, start

    def _scores(self, forward: Forward, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, score and whether the prediction was right of the rows of a stage; all (m,) on the device."""
        assert self.rule.score is not None
        if not len(stage.x) and not in_lockstep(forward.model):
            nothing = stage.il.new_zeros(0)  # batch norm refuses a forward of nothing
            return nothing, nothing, nothing.bool()
        logits = forward(stage.x)
        loss = self.loss(logits, stage.label)
        pair = cap(loss, stage.il, logits.shape[1]) if self.loss_cap else (loss, stage.il)
        return loss, self.rule.score(*pair, logits), correct_of(self.loss)(logits, stage.label)

    def _by_chance(self, candidates: Candidates, rows: Rows) -> Tensor:
        """Candidate rows (as a mask on the host) without an il, which the policy `uniform` lets compete by chance."""
        if not self.rule.needs_il:
            return torch.zeros(len(rows), dtype=torch.bool)
        return ~torch.isfinite(candidates.host.il[torch.from_numpy(rows)])

    def _watch(self, score: Tensor, chance: Tensor) -> None:
        dead = len(score) > 0 and not bool(torch.isfinite(score[~chance]).any()) and not bool(chance.all())
        self._nonfinite = self._nonfinite + 1 if dead else 0
        if self._nonfinite >= NONFINITE_BUFFERS:
            raise NonFiniteError(f"every score of {self._nonfinite} buffers in a row is NaN or infinite: the model has "
                                 "diverged or overflows; lower the learning rate, or use float32 or bfloat16")

    def _without_forward(self, candidates: Candidates, rows: Rows) -> Selection:
        """The rule `uniform`: a random n_b of the candidates, unless the stream has chosen them before decoding."""
        n = len(candidates)
        counts = self.ranks.gather(torch.tensor([len(rows)])).flatten()
        if int(counts.sum()) > self.batch_size:
            seed = np.random.SeedSequence([self.seed, candidates.pass_index, candidates.index])
            drawn = np.random.Generator(np.random.PCG64(seed)).choice(int(counts.sum()), self.batch_size, replace=False)
            start = int(counts[: self.ranks.rank].sum())
            rows = rows[_own(torch.from_numpy(np.sort(drawn)), start, len(rows)).numpy()]
        stage = Stage(candidates.inputs(rows), *take(candidates, rows), torch.zeros(len(rows), dtype=torch.bool))
        reading, at = Reading(candidates, rows), torch.arange(len(rows))
        if candidates.full is not None:
            stage, at = reading(stage, at)
        kept, reason = np.zeros(n, bool), candidates.reason.copy()
        reason[reason == CANDIDATE] = Reason.below
        reason[rows[reading.failed]] = Reason.unreadable
        rows = rows[at.numpy()]
        kept[rows], reason[rows] = True, Reason.kept
        nothing = np.full(n, np.nan, np.float32)
        total = int(self.ranks.sum([len(rows)])[0])
        return Selection(nothing, nothing, np.zeros(n, bool), kept, reason, rows, stage.x if total else None,
                         stage.label, total, reread=reading.count)


def _own(chosen: Tensor, start: int, count: int) -> Tensor:
    """Of positions in the whole buffer those of the `count` rows from `start` on, as positions among these."""
    return chosen[(chosen >= start) & (chosen < start + count)] - start
