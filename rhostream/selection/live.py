"""A live IL model: it starts as the one that made the table, and learns along from what is kept, at 0.01 of the rate.

This is the selection function before its last approximation (paper, Eq. 3, Table 4 and Fig. 7): L[y | x; D_ho + D_t].
It costs n_B forwards more a step, and the paper found it faster early and worse late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rhostream.candidates import Candidates, Prepare, to_device
from rhostream.errors import UsageError
from rhostream.samples.fields import Fields, Input, Target, target_of
from rhostream.selection.forward import Forward
from rhostream.selection.gradient import take_step
from rhostream.selection.losses import LossFunction, cross_entropy, per_sample
from rhostream.selection.ranks import Ranks
from rhostream.selection.stages import fields_of

Folds = npt.NDArray[np.int8]


class LiveIL:
    """One network a fold: network i scores the samples of fold i and learns from the kept ones of all other folds.

    With a single network (a holdout) it scores and learns from all. Networks stay in eval mode, so that before the
    first step they give the table's il: running statistics of batch norm are those of the IL model's own training.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        normalize: Prepare,
        *,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        loss: LossFunction = cross_entropy,
        target: str | None = None,
    ) -> None:
        """`target`: as `Kind.target`, what the loss is called with."""
        self.networks = [network.eval() for network in networks]
        self.normalize, self.loss, self.target = normalize, loss, target
        self._forwards = [Forward(network, batch_norm="eval") for network in self.networks]
        self.optimizers = [
            torch.optim.AdamW(n.parameters(), lr=lr, weight_decay=weight_decay, fused=True) for n in self.networks
        ]

    @torch.no_grad()
    def __call__(self, fields: Fields, label: Tensor, fold: Folds | None) -> Tensor:
        """The il (n,) float32, nats, of decoded samples (n, ...); NaN for a fold that has no network.

        `fold` (n,) is on the host. Raises UsageError without folds where there are several networks.
        """
        il = torch.full((len(label),), torch.nan, device=fields.device)
        for number, forward in enumerate(self._forwards):
            rows = self._rows(fold, number, len(label), True)
            if len(rows):
                at = to_device(torch.from_numpy(rows), fields.device)
                x, target = self._pair(fields.index_select(0, at), label[at])
                il[at] = per_sample(self.loss, forward(x), target).float()
        return il

    def learn(self, fields: Fields, label: Tensor, fold: Folds | None, ranks: Ranks | None = None) -> int:
        """One step of each network on the kept samples that it may learn from; how many went through, over all ranks.

        Collective over several `ranks`; a loss that isn't finite leaves the weights alone.
        """
        ranks, learned = ranks or Ranks(), 0
        for number, (network, optimizer) in enumerate(zip(self.networks, self.optimizers, strict=True)):
            rows = self._rows(fold, number, len(label), False)
            total = int(ranks.sum([len(rows)])[0])
            if total:
                at = to_device(torch.from_numpy(rows), fields.device)
                take_step(
                    network,
                    optimizer,
                    *self._pair(fields.index_select(0, at), label[at]),
                    self.loss,
                    ranks=ranks,
                    total=total,
                    mode=False,
                )
            learned += total
        return learned

    def il_of(self, candidates: Candidates, rows: npt.NDArray[np.int64]) -> Tensor:
        """The il of some rows (n,) of a buffer, on its device."""
        return self(*_decoded(candidates, rows))

    def learn_from(self, candidates: Candidates, kept: npt.NDArray[np.int64], ranks: Ranks) -> int:
        """`learn` on the kept rows (n,) of a buffer; each step is counted on the first rank alone."""
        learned = self.learn(*_decoded(candidates, kept), ranks)
        return learned if ranks.first else 0

    def _pair(self, fields: Fields, label: Tensor) -> tuple[Input, Target]:
        """The model's input and the target, of decoded samples (n, ...)."""
        x = self.normalize(fields)
        return x, target_of(self.target, fields, label, x)

    def _rows(self, fold: Folds | None, number: int, n: int, own: bool) -> npt.NDArray[np.int64]:
        if len(self.networks) == 1:
            return np.arange(n)
        if fold is None:
            raise UsageError(
                f"an IL model of {len(self.networks)} folds scores each sample by its own, and these "
                "candidates carry no fold: stream them from the table of compute-il"
            )
        return np.flatnonzero((fold == number) == own)

    def state_dict(self) -> list[dict[str, Any]]:
        """Weights and optimizer of each network, for a checkpoint."""
        return [
            {"model": n.state_dict(), "optimizer": o.state_dict()}
            for n, o in zip(self.networks, self.optimizers, strict=True)
        ]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """The inverse of `state_dict`."""
        for network, optimizer, state in zip(self.networks, self.optimizers, states, strict=True):
            network.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])


def _decoded(candidates: Candidates, rows: npt.NDArray[np.int64]) -> tuple[Fields, Tensor, Folds | None]:
    """Fields (n, ...) and labels (n,) of some rows of a buffer on its device, and their folds (n,) on the host."""
    at = to_device(torch.from_numpy(rows), candidates.label.device)
    fold = None if candidates.fold is None else candidates.fold[rows]
    return fields_of(candidates).index_select(0, at), candidates.label.index_select(0, at), fold
