"""The selector: one forward of a buffer with the current weights, then the n_b samples worth a gradient step.

It leaves the model as it found it: no gradients, dropout off, modes and random state restored, running statistics of
batch norm unchanged while the statistics of the buffer are used (paper, App. B).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.errors import NonFiniteError, UsageError
from rhostream.selection.losses import cross_entropy, is_correct
from rhostream.selection.rules import Rule, cap, find_rule, top

LossFunction = Callable[[Tensor, Tensor], Tensor]
NONFINITE_BUFFERS = 3


@contextlib.contextmanager
def scoring(model: nn.Module, batch_norm: str = "buffer") -> Iterator[None]:
    """How a forward scores: no_grad, eval mode, batch norm by `buffer` or by running (`eval`) statistics.

    On exit modes, buffers and the random state are what they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    if batch_norm == "buffer":
        for norm in norms:
            # In train mode without tracked statistics torch normalises by the batch and updates nothing.
            norm.training, norm.track_running_stats = True, False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for norm, was in zip(norms, tracked, strict=True):
            norm.track_running_stats = was
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Selection:
    """What was decided about one buffer; all (B,) arrays stand in the buffer's canonical order."""

    loss: npt.NDArray[np.float32]  # nats; NaN where there was no forward
    score: npt.NDArray[np.float32]  # what the rule ranked by; NaN where there was none
    correct: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.uint8]  # of `Reason`
    rows: npt.NDArray[np.int64]  # (n_kept,) the kept rows, ascending
    input: Tensor | None  # (n_kept, C, H, W) float32: the kept inputs, None when none was kept
    label: Tensor  # (n_kept,)
    scored: int = 0  # samples that went through the forward
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

    `chunk` splits the forward (memory); a model with batch norm is scored in one piece unless a chunk is given, since
    its statistics are those of one forward. `loss` maps (logits, label) to (B,) float32. `autocast` is a dtype for the
    forward; losses stay float32. Raises NonFiniteError after three buffers in a row without one finite score.
    """

    def __init__(self, model: nn.Module, rule: str = "rho", batch_size: int = 32, *,
                 loss: LossFunction = cross_entropy, chunk: int | None = None, batch_norm: str = "buffer",
                 autocast: torch.dtype | None = None, loss_cap: bool = False, seed: int = 0) -> None:
        if batch_norm not in ("buffer", "eval"):
            raise UsageError(f"batch_norm {batch_norm!r}: expected 'buffer' or 'eval'")
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: expected at least 1")
        self.model, self.rule, self.batch_size = model, find_rule(rule), batch_size
        self.loss, self.chunk, self.batch_norm = loss, chunk, batch_norm
        self.autocast, self.loss_cap, self.seed = autocast, loss_cap, seed
        self._nonfinite = 0

    def __call__(self, candidates: Candidates) -> Selection:
        """Select from one buffer; the kept inputs come back normalised, on the candidates' device."""
        rows = candidates.candidate_rows
        if self.rule.score is None:
            return self._without_forward(candidates, rows)
        x, label, il = _gather(candidates, rows)
        logits = self._forward(x)
        loss = self.loss(logits, label)
        score = self._score(self.rule, loss, il, logits)
        chance = self._by_chance(candidates, il)
        # One copy to the host for everything that the log and the choice need.
        table = torch.stack([loss.float(), score.float(), is_correct(logits, label).float()]).cpu()
        chosen = self._choose(table[1], chance)
        self._watch(table[1], chance)
        return self._selection(candidates, rows, table.numpy(), chosen, x, label)

    def _forward(self, x: Tensor) -> Tensor:
        context = torch.autocast(x.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with scoring(self.model, self.batch_norm), context:
            if self.chunk is None or len(x) <= self.chunk:
                return self.model(x).float()  # type: ignore[no-any-return]
            return torch.cat([self.model(part) for part in x.split(self.chunk)]).float()

    def _score(self, rule: Rule, loss: Tensor, il: Tensor, logits: Tensor) -> Tensor:
        assert rule.score is not None
        if self.loss_cap:
            loss, il = cap(loss, il, logits.shape[1])
        return rule.score(loss, il, logits)

    def _by_chance(self, candidates: Candidates, il: Tensor) -> Tensor:
        """Candidate rows (as a mask) without an il, which the policy `uniform` lets compete by chance."""
        if not self.rule.needs_il:
            return torch.zeros(len(il), dtype=torch.bool)
        return ~torch.isfinite(il.cpu())

    def _choose(self, score: Tensor, chance: Tensor) -> Tensor:
        """Positions among the candidates to keep, ascending: the top, and of the chance rows their fair share."""
        missing = torch.nonzero(chance).flatten()
        if not len(missing):
            return top(score, self.batch_size)
        share = round(self.batch_size * len(missing) / len(score))
        picked = missing[torch.linspace(0, len(missing) - 1, share).round().long()] if share else missing[:0]
        best = top(torch.where(chance, torch.nan, score), self.batch_size - len(picked))
        return torch.cat([best, picked]).sort().values

    def _watch(self, score: Tensor, chance: Tensor) -> None:
        dead = len(score) > 0 and not bool(torch.isfinite(score[~chance]).any()) and not bool(chance.all())
        self._nonfinite = self._nonfinite + 1 if dead else 0
        if self._nonfinite >= NONFINITE_BUFFERS:
            raise NonFiniteError(f"every score of {self._nonfinite} buffers in a row is NaN or infinite: the model has "
                                 "diverged or overflows; lower the learning rate, or use float32 or bfloat16")

    def _selection(self, candidates: Candidates, rows: npt.NDArray[np.int64], table: npt.NDArray[np.float32],
                   chosen: Tensor, x: Tensor, label: Tensor) -> Selection:
        n = len(candidates)
        loss, score = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
        correct, kept = np.zeros(n, bool), np.zeros(n, bool)
        reason = candidates.reason.copy()
        loss[rows], score[rows], correct[rows] = table[0], table[1], table[2] > 0
        finite = np.isfinite(table[0]) & (np.isfinite(table[1]) | ~np.isfinite(candidates.il.cpu().numpy()[rows]))
        reason[rows] = np.where(finite, Reason.below, Reason.nonfinite)
        # An infinite loss must not look like one that was never computed, nor reach the log as a number.
        loss[rows[~np.isfinite(table[0])]] = np.nan
        score[rows[~np.isfinite(table[1])]] = np.nan
        kept_rows = rows[chosen.numpy()]
        kept[kept_rows], reason[kept_rows] = True, Reason.kept
        index = chosen.to(x.device)
        return Selection(loss, score, correct, kept, reason, kept_rows,
                         x.index_select(0, index) if len(kept_rows) else None,
                         label.index_select(0, index), scored=len(rows))

    def _without_forward(self, candidates: Candidates, rows: npt.NDArray[np.int64]) -> Selection:
        """The rule `uniform`: a random n_b of the candidates, unless the stream has chosen them before decoding."""
        n = len(candidates)
        if len(rows) > self.batch_size:
            seed = np.random.SeedSequence([self.seed, candidates.pass_index, candidates.index])
            rows = np.sort(np.random.Generator(np.random.PCG64(seed)).choice(rows, self.batch_size, replace=False))
        kept, reason = np.zeros(n, bool), candidates.reason.copy()
        reason[reason == CANDIDATE] = Reason.below
        kept[rows], reason[rows] = True, Reason.kept
        x, label, _ = _gather(candidates, rows)
        nothing = np.full(n, np.nan, np.float32)
        return Selection(nothing, nothing, np.zeros(n, bool), kept, reason, rows, x if len(rows) else None, label)


def _gather(candidates: Candidates, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Input, label and il of the given rows; the whole buffer is not copied row by row when nothing was dropped."""
    assert candidates.image is not None, "a buffer without images can't be selected from"
    if len(rows) == len(candidates):
        return candidates.input, candidates.label, candidates.il
    index = torch.from_numpy(rows).to(candidates.image.device)
    x = candidates.normalize(candidates.image.index_select(0, index))
    return x, candidates.label.index_select(0, index), candidates.il.index_select(0, index)
