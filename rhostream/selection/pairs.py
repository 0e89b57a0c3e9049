"""The losses of pairs of image and caption: the loss of a pair exists only given a batch, so each knows its others.

As the loss that is learned from, a pair's others are the batch of all ranks. As the loss that is scored, they are the
candidates of the buffer: the expected loss in a batch of n_b of them, a function of the buffer and not of its chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rhostream.errors import UsageError
from rhostream.selection.contrastive import CONTRASTIVE, Pairs, batch_loss_n, marginal_loss_B
from rhostream.selection.ranks import Ranks

Loss = TypeVar("Loss", bound=Callable[[Tensor, Any], Tensor])


@dataclass(frozen=True)
class Contrastive:
    """`siglip` or `clip`, of rows of `models.pairs.TwoTowers` (n, 2 D + 2)."""

    name: str
    batch_size: int = 0  # n of the loss that is scored
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def __name__(self) -> str:
        return self.name

    def over(self, ranks: Ranks, batch_size: int) -> Contrastive:
        """The loss of a batch that `ranks` have together."""
        return replace(self, ranks=ranks, batch_size=batch_size)

    def __call__(self, output: Tensor, target: object = None) -> Tensor:
        """What each pair adds to the loss of its batch: (n, 2 D + 2) to (n,), whose mean over all is the batch's loss.

        Collective over the ranks. The gradient of a rank's sum is that of the sum over all ranks with respect to this
        rank's vectors, so that gradients that are added up over the ranks are those of one process.
        """
        if self.ranks.alone:
            return batch_loss_n(output, self.name)
        first, whole = self._whole(output)
        rows = batch_loss_n(whole, self.name)
        own, total = rows[first : first + len(output)].detach(), rows.sum()
        return own + (total - total.detach()) / max(len(output), 1)

    def in_buffer(self, output: Tensor) -> Tensor:
        """The expected loss (m,) of each candidate (m, 2 D + 2) in a batch of `batch_size` of the candidates of all
        ranks; NaN for a row whose vectors aren't finite. Collective."""
        buffer = self.among(output)
        return buffer.loss_B[buffer.own]

    def among(self, output: Tensor, beside: Tensor | None = None) -> InBuffer:
        """The candidates of all ranks together, of which `output` (m, 2 D + 2) are ours; `beside` (m, k) float32 is
        what else travels with each. Collective, one gather."""
        first, whole = self._whole(output if beside is None else torch.cat([output, beside], 1))
        if not len(output):  # a rank without rows takes part, and has nothing to decide of
            return InBuffer(output.new_zeros(0), Pairs.of(output.new_zeros(0, 4)), output.new_zeros(0, 0), slice(0))
        width, own = output.shape[1], slice(first, first + len(output))
        learner = Pairs.of(whole[:, :width])
        return InBuffer(marginal_loss_B(learner, self.batch_size, self.name), learner, whole[:, width:], own)

    def _whole(self, output: Tensor) -> tuple[int, Tensor]:
        """The rows of all ranks in their order, ours with their gradient, and where ours begin."""
        if self.ranks.alone:
            return 0, output
        sizes = self.ranks.gather(torch.tensor([len(output), output.shape[1] if len(output) else 0])).long()
        if not int(sizes[:, 0].max()):
            return 0, output
        own = output.detach()
        if not len(own):  # a rank without rows doesn't know how wide they are
            own = own.new_zeros(0, int(sizes[:, 1].max()))
        rows, first = self.ranks.concat(own.cpu(), int(sizes[:, 0].max()))
        rows = rows.to(output.device)
        if not len(output):
            return first, rows
        return first, torch.cat([rows[:first], output, rows[first + len(output) :]])


@dataclass(frozen=True)
class InBuffer:
    """The candidates of a buffer that went through the model, B of all ranks in their order."""

    loss_B: Tensor  # the expected loss of each in a batch of n_b of them; NaN where its vectors aren't finite
    learner: Pairs
    beside_Bk: Tensor  # what travelled with each
    own: slice  # the rows of this rank


LOSSES_OF_PAIRS = {name: Contrastive(name) for name in CONTRASTIVE}


def in_batches(loss: Loss, ranks: Ranks, batch_size: int, *, shortlist: bool, live: bool, auto: bool = False) -> Loss:
    """The loss, of batches of `batch_size` that the ranks have together where it is one of pairs.

    Raises UsageError for what looks at one sample alone.
    """
    if not isinstance(loss, Contrastive):
        return loss
    if shortlist or live or auto:
        what = "--ratio auto" if auto else "a shortlist" if shortlist else "an IL model that learns along"
        raise UsageError(f"{what} is for losses of one sample alone, which {loss.name} of a pair is not")
    return loss.over(ranks, batch_size)  # type: ignore[return-value]


def require_whole_batch(loss: object, accumulate: int, update_size: int | None, shortlist: str | None) -> None:
    """Raise UsageError for a batch that is split, or scored in stages, where the loss of a pair depends on the rest."""
    if isinstance(loss, Contrastive) and shortlist is not None:
        raise UsageError(
            f"--shortlist {shortlist} is for losses of one sample alone, which {loss.name} of a pair is not"
        )
    splits = {"--accumulate": accumulate if accumulate > 1 else None, "--update-size": update_size}
    for option, value in splits.items():
        if isinstance(loss, Contrastive) and value is not None:
            raise UsageError(
                f"{option} {value} splits a batch, and the loss {loss.name} of a pair depends on all of it"
            )
