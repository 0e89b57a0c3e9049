"""Algorithm 1 of the paper, on tar shards: draw n_B, score, keep n_b, step; every decision is logged.

The run does lines 5 to 8 and the ledger (`runs/loop.py`); what a loop of one's own does, this one does too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rhostream.candidates import to_device
from rhostream.crashpoints import crash_point
from rhostream.randomness import torch_seed
from rhostream.runs.loop import Loop
from rhostream.selection.gradient import take_step
from rhostream.selection.losses import SmoothedCrossEntropy
from rhostream.selection.ranks import Ranks
from rhostream.selection.selector import Selection
from rhostream.selection.tokens import TokenShare
from rhostream.training.augment import KINDS
from rhostream.training.augment import augment as augmented
from rhostream.training.mixup import mixed
from rhostream.training.optimizers import Average, Schedule


@dataclass(kw_only=True)
class Trainer:
    """One attempt at a run, assembled: what the loop needs and nothing that it doesn't."""

    run: Loop
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    seed: int
    accumulate: int = 1  # forwards that an update's batch is split into
    update_size: int | None = None  # samples of an update at most; None for one update of all that was kept
    augment: str = "none"  # flips and shifts go by the step; what others make is in the batch already
    precision: torch.dtype | None = None  # of the gradient step, None for float32
    compile: bool = False
    clip: float | None = None  # the largest norm of a gradient
    average: Average | None = None  # of the weights, beside them
    mixup: float = 0.0  # alpha of the shares that kept inputs are mixed by, 0 for none
    label_smoothing: float = 0.0  # of the gradient step's loss alone
    tokens: TokenShare | None = None  # of language: which of a kept sequence's tokens the gradient goes through
    _forward: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._forward = torch.compile(self.model) if self.compile else self.model

    @property
    def ranks(self) -> Ranks:
        """Those that train."""
        scorers = self.run.selector.scorers
        return self.run.ranks if scorers is None else scorers.trainers

    def loop(self) -> None:
        """Algorithm 1. Raises Interrupted after committing when a signal asked to stop."""
        for kept in self.run:  # lines 5-8: the next n_B, scores with the current weights, the top n_b
            self.schedule.reach(self.run.steps)
            loss_b, mean, applied = self._step(kept)  # lines 9-10
            if self.average is not None:
                self.average.update(self.run.steps, torch.isfinite(mean))
            crash_point("train: optimizer stepped")
            self.run.step(loss_b, applied, mean=mean)

    def _step(self, kept: Selection) -> tuple[Tensor, Tensor, Tensor]:
        scorers = self.run.selector.scorers
        if scorers is None and self.update_size is not None:
            return self._updates(kept.parts(self.update_size))
        if scorers is None:
            loss_b, mean = self._update(kept)
        else:
            loss_b, mean = scorers.side_by_side(lambda: self._update(kept), self._look_ahead, self.run.steps)
        return loss_b, mean, torch.isfinite(mean)

    def _look_ahead(self) -> None:
        """Of a rank that scores: the next buffer, while others train on this one."""
        run, scorers = self.run, self.run.selector.scorers
        assert scorers is not None
        if run.last_step is None or run.steps + 1 < run.last_step:
            coming = run.stream.peek()
            if coming is not None:
                scorers.look_ahead(run.selector, coming.to(run.device), run.steps + 1)

    def _updates(self, parts: Sequence[Selection]) -> tuple[Tensor, Tensor, Tensor]:
        """An update of each part: the losses of the whole (n,), the mean over what was learned from, NaN where nothing
        was, and which samples were: (n,) bool, or a scalar where there is one part. One that fails hinders no other.
        """
        made = [self._update(part, number) for number, part in enumerate(parts)]
        if len(made) == 1:
            return *made[0], torch.isfinite(made[0][1])
        positions = torch.cat([part.position for part in parts if part.position is not None])
        losses = torch.cat([loss for loss, _ in made])
        fine = [torch.isfinite(mean) for _, mean in made]
        learned = torch.cat([one.expand(len(loss)) for one, (loss, _) in zip(fine, made, strict=True)])
        sums = [torch.where(one, mean, 0) * part.total for one, (_, mean), part in zip(fine, made, parts, strict=True)]
        mean = (
            torch.stack(sums).sum()
            / torch.stack([one * part.total for one, part in zip(fine, parts, strict=True)]).sum()
        )
        back = positions.argsort()
        return losses[back], mean, learned[back]

    def _update(self, kept: Selection, number: int = 0) -> tuple[Tensor, Tensor]:
        """One fresh forward and backward on the kept samples of all ranks, the step's update of that number.

        The losses of what this rank trains on, (n,), and the mean stay on the device: nothing waits for them, and a
        batch whose loss or gradient isn't finite changes no weight.
        """
        run, ranks = self.run, self.ranks
        x = kept.input
        if x is None:
            x = run.stream.stream.preprocess.example(0).to(run.device)
        if self.augment in KINDS[1:] and len(x):
            assert isinstance(x, Tensor)
            assert run.candidates is not None
            part = run.candidates.slice_of(run.ranks.rank, run.ranks.size)
            x = augmented(
                x,
                self.augment,
                torch_seed(self.seed, "augment", run.steps),
                rows=torch.from_numpy(kept.place),
                planned=part.planned,
            )
        target, loss = kept.target, run.selector.loss
        if self.tokens is not None and kept.il_tokens is not None:
            target, loss = to_device(kept.il_tokens, run.device), self.tokens
        if self.label_smoothing:
            loss = SmoothedCrossEntropy(self.label_smoothing)
        if self.mixup:
            assert isinstance(x, Tensor)
            draws = {"seed": self.seed, "step": run.steps, "rank": ranks.rank, "update": number}
            x, target, loss = mixed(x, target, loss, self.mixup, **draws)
        return take_step(
            self.model,
            self.optimizer,
            x,
            target,
            loss,
            forward=self._forward,
            accumulate=self.accumulate,
            autocast=self.precision,
            ranks=ranks,
            total=kept.draws,
            weight=kept.factors,
            clip=self.clip,
        )
