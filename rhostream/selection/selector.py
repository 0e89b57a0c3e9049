"""The selector: one forward of a buffer with the current weights, then the n_b samples worth a gradient step.

    candidates > (shortlist: a proxy or a cheap view scores all, the best R * n_b go on) > fresh scores > the best n_b

It leaves the model as it found it (`forward`), and waits for the device once: when the losses and scores of a buffer
come to the host, where the choice is made and from where the log takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rhostream.candidates import CANDIDATE, Candidates, Reason, to_device
from rhostream.errors import NonFiniteError, UsageError
from rhostream.selection.forward import Forward, scoring
from rhostream.selection.losses import cross_entropy, is_correct
from rhostream.selection.proxy import Proxy
from rhostream.selection.rules import cap, find_rule, leading, top

__all__ = ["NONFINITE_BUFFERS", "Selection", "Selector", "scoring"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
NONFINITE_BUFFERS = 3
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """What was decided about one buffer; all (B,) arrays stand in the buffer's canonical order."""

    loss: npt.NDArray[np.float32]  # nats; NaN where there was no forward
    score: npt.NDArray[np.float32]  # what the rule ranked by; NaN where there was none
    correct: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.uint8]  # of `Reason`
    rows: npt.NDArray[np.int64]  # (n_kept,) the kept rows, ascending
    input: Tensor | None  # (n_kept, C, H, W) float32: the kept inputs at full size, None when none was kept
    label: Tensor  # (n_kept,)
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

    `loss` maps (logits, label) to (B,) float32. `chunk`, `batch_norm`, `autocast`, `compile`: see `Forward`.
    `shortlist`: so many times n_b of the candidates reach the target, the best by the rule's score of `proxy`, which
    learns from what is kept, or, without one, of the target itself on the stream's cheap view.
    Raises NonFiniteError after three buffers in a row without one finite score.
    """

    def __init__(self, model: nn.Module, rule: str = "rho", batch_size: int = 32, *,
                 loss: LossFunction = cross_entropy, chunk: int | None = None, batch_norm: str = "buffer",
                 autocast: torch.dtype | None = None, compile: bool = False, loss_cap: bool = False, seed: int = 0,
                 shortlist: float | None = None, proxy: Proxy | None = None) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: expected at least 1")
        if shortlist is not None and not shortlist > 1:
            raise UsageError(f"shortlist {shortlist}: expected more than 1 (times the {batch_size} kept)")
        self.model, self.rule, self.batch_size = model, find_rule(rule), batch_size
        self.loss, self.loss_cap, self.seed = loss, loss_cap, seed
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
        stage = _Stage(candidates.inputs(rows), *_take(candidates, rows), self._by_chance(candidates, rows))
        reading = _Reading(candidates, rows)
        first, position = stage.x, None
        if self.shortlist is not None:
            position = self._choose(self._scores(self.proxy.forward if self.proxy else self.forward, stage)[1],
                                    stage.chance, self.shortlist, leading)
            stage = stage.take(position)
            if candidates.full is not None:
                stage, position = reading(stage, position)
        loss, score, correct = self._scores(self.forward, stage)
        # The one wait for the device: everything that the choice and the log need comes in one copy.
        at = torch.arange(len(score), device=score.device) if position is None else position
        table = torch.stack([loss.float(), score.float(), correct.float(), at.float()]).cpu()
        chosen = self._choose(table[1], stage.chance, self.batch_size, top)
        self._watch(table[1], stage.chance)
        kept, kept_at = stage.take(to_device(chosen, score.device)), table[3].long()[chosen]
        if candidates.full is not None and self.shortlist is None:
            kept, kept_at = reading(kept, kept_at)
        if self.proxy is not None and len(kept_at):
            self.proxy.learn(first[to_device(kept_at, first.device)], kept.label)
        decided = _decided(candidates, rows, table.numpy(), kept_at.numpy(), reading.failed)
        return Selection(*decided, kept.x if len(kept_at) else None, kept.label, scored=len(score),
                         shortlisted=0 if self.shortlist is None else len(rows), reread=reading.count)

    def _scores(self, forward: Forward, stage: _Stage) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, score and whether the prediction was right of the rows of a stage; all (m,) on the device."""
        assert self.rule.score is not None
        logits = forward(stage.x)
        loss = self.loss(logits, stage.label)
        pair = cap(loss, stage.il, logits.shape[1]) if self.loss_cap else (loss, stage.il)
        return loss, self.rule.score(*pair, logits), is_correct(logits, stage.label)

    def _by_chance(self, candidates: Candidates, rows: Rows) -> Tensor:
        """Candidate rows (as a mask on the host) without an il, which the policy `uniform` lets compete by chance."""
        if not self.rule.needs_il:
            return torch.zeros(len(rows), dtype=torch.bool)
        return ~torch.isfinite(candidates.host.il[torch.from_numpy(rows)])

    def _choose(self, score: Tensor, chance: Tensor, n: int, best: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Positions to keep, ascending, on the device of `score`: the best, and of the chance rows their fair share."""
        missing = torch.nonzero(chance).flatten()
        if not len(missing):
            return best(score, n)
        share = min(len(missing), round(n * len(missing) / len(score)))
        picked = missing[torch.linspace(0, len(missing) - 1, share).round().long()] if share else missing[:0]
        others = torch.nonzero(~chance).flatten().to(score.device)
        chosen = others[best(score[others], n - len(picked))]
        return torch.cat([chosen, picked.to(score.device)]).sort().values

    def _watch(self, score: Tensor, chance: Tensor) -> None:
        dead = len(score) > 0 and not bool(torch.isfinite(score[~chance]).any()) and not bool(chance.all())
        self._nonfinite = self._nonfinite + 1 if dead else 0
        if self._nonfinite >= NONFINITE_BUFFERS:
            raise NonFiniteError(f"every score of {self._nonfinite} buffers in a row is NaN or infinite: the model has "
                                 "diverged or overflows; lower the learning rate, or use float32 or bfloat16")

    def _without_forward(self, candidates: Candidates, rows: Rows) -> Selection:
        """The rule `uniform`: a random n_b of the candidates, unless the stream has chosen them before decoding."""
        n = len(candidates)
        if len(rows) > self.batch_size:
            seed = np.random.SeedSequence([self.seed, candidates.pass_index, candidates.index])
            rows = np.sort(np.random.Generator(np.random.PCG64(seed)).choice(rows, self.batch_size, replace=False))
        stage = _Stage(candidates.inputs(rows), *_take(candidates, rows), torch.zeros(len(rows), dtype=torch.bool))
        reading, at = _Reading(candidates, rows), torch.arange(len(rows))
        if candidates.full is not None:
            stage, at = reading(stage, at)
        kept, reason = np.zeros(n, bool), candidates.reason.copy()
        reason[reason == CANDIDATE] = Reason.below
        reason[rows[reading.failed]] = Reason.unreadable
        rows = rows[at.numpy()]
        kept[rows], reason[rows] = True, Reason.kept
        nothing = np.full(n, np.nan, np.float32)
        return Selection(nothing, nothing, np.zeros(n, bool), kept, reason, rows, stage.x if len(rows) else None,
                         stage.label, reread=reading.count)


@dataclass(frozen=True)
class _Stage:
    """What goes through a forward; all (m,) and, but for `chance`, on the device."""

    x: Tensor
    label: Tensor
    il: Tensor
    chance: Tensor  # bool, on the host: without an il, competes by chance

    def take(self, position: Tensor) -> _Stage:
        # Only where some row has no il does the host have to know which rows these are.
        chance = self.chance[position.cpu()] if self.chance.any() else self.chance[: len(position)]
        return _Stage(self.x[position], self.label[position], self.il[position], chance)


class _Reading:
    """Replaces cheap views by the full size; rows that can't be read are left out and remembered."""

    def __init__(self, candidates: Candidates, rows: Rows) -> None:
        self._candidates, self._rows = candidates, rows
        self.count, self.failed = 0, np.zeros(0, np.int64)

    def __call__(self, stage: _Stage, position: Tensor) -> tuple[_Stage, Tensor]:
        assert self._candidates.full is not None
        at = position.cpu()
        image, ok = self._candidates.full(self._rows[at.numpy()])
        self.count += len(image)
        if not ok.all():
            self.failed = at.numpy()[~ok]
            good = torch.from_numpy(np.flatnonzero(ok))
            image, position = image[good], position[to_device(good, position.device)]
            stage = stage.take(to_device(good, stage.x.device))
        x = self._candidates.normalize(image.to(stage.x.device, non_blocking=True))
        return _Stage(x, stage.label, stage.il, stage.chance), position


def _take(candidates: Candidates, rows: Rows) -> tuple[Tensor, Tensor]:
    """Label and il of the given rows."""
    if len(rows) == len(candidates):
        return candidates.label, candidates.il
    index = to_device(torch.from_numpy(rows), candidates.label.device)
    return candidates.label.index_select(0, index), candidates.il.index_select(0, index)


def _decided(candidates: Candidates, rows: Rows, table: npt.NDArray[np.float32], kept_at: Rows,
             failed: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_],
                                    npt.NDArray[np.bool_], npt.NDArray[np.uint8], Rows]:  # fmt: skip
    """The (B,) columns of a selection, from the (4, m) table of what reached the target: loss, score, correct, at."""
    n = len(candidates)
    loss, score = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    correct, kept = np.zeros(n, bool), np.zeros(n, bool)
    reason = candidates.reason.copy()
    reason[rows] = Reason.shortlist  # unless it reached the target
    reached = rows[table[3].astype(np.int64)]
    finite_loss, finite_score = np.isfinite(table[0]), np.isfinite(table[1])
    correct[reached] = table[2] > 0
    finite = finite_loss & (finite_score | ~np.isfinite(candidates.host.il.numpy()[reached]))
    reason[reached] = np.where(finite, Reason.below, Reason.nonfinite)
    # An infinite loss must not look like one that was never computed, nor reach the log as a number.
    loss[reached] = np.where(finite_loss, table[0], np.nan)
    score[reached] = np.where(finite_score, table[1], np.nan)
    reason[rows[failed]] = Reason.unreadable
    kept_rows = rows[kept_at]
    kept[kept_rows], reason[kept_rows] = True, Reason.kept
    return loss, score, correct, kept, reason, kept_rows
