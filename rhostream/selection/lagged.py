"""The target a step ago, as the judge of a shortlist: what ranks that score while others train have at hand.

    weights before step t - 1 (> moved by the optimizer's next update, predicted) > a shortlist > fresh scores

Scores one step old choose again what the last step has just corrected, so alone they are harmful. Of a shortlist the
fresh scores choose; and the update that is missing can be predicted to first order from the running mean of gradients,
as pipelines of training do (Guan et al. 2019, "XPipe").
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rhostream.errors import UsageError
from rhostream.selection.forward import Forward
from rhostream.selection.ranks import Ranks, is_sharded

RECALL_EVERY = 50  # steps, of which one is scored both ways
Predict = Callable[[dict[str, Any], dict[str, Any], Tensor], Tensor]  # of (group, state, weights): weights after it


class Lagged:
    """A copy of the `model`, of the weights that it had when the selector was called last; it learns nothing itself.

    `optimizer`: the model's; its next update, predicted, is then in the copy's weights. Raises UsageError for a model
    that is sharded, and for an optimizer whose updates nobody here can predict (known: AdamW, Adam, SGD with momentum).
    """

    learns = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        batch_norm: str = "buffer",
        autocast: torch.dtype | None = None,
        chunk: int | None = None,
    ) -> None:
        if is_sharded(model):
            raise UsageError("a shortlist of the target a step ago needs a copy of it, and this model is sharded")
        self._of, self.model = model, copy.deepcopy(model).requires_grad_(False)
        self.forward = Forward(self.model, batch_norm=batch_norm, autocast=autocast, chunk=chunk)
        self.optimizer: torch.optim.Optimizer | None = None
        if optimizer is not None:
            self.predict_by(optimizer)

    def predict_by(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on the optimizer's next update is predicted. Raises UsageError for one that isn't known."""
        if type(optimizer) not in _KNOWN:
            known = ", ".join(known.__name__ for known in _KNOWN)
            raise UsageError(
                f"the next update of {type(optimizer).__name__} can't be predicted (known: {known}); take the "
                "shortlist stale:3, which is of the weights as they were"
            )
        if isinstance(optimizer, torch.optim.SGD) and not all(group["momentum"] for group in optimizer.param_groups):
            raise UsageError("SGD without momentum says nothing of its next update; take the shortlist stale:3")
        self.optimizer = optimizer

    @property
    def kind(self) -> str:
        """As a setting names it: "predicted" or "stale"."""
        return "stale" if self.optimizer is None else "predicted"

    @torch.no_grad()
    def learn(self, *_: Any) -> None:
        """Become what the model is now, with the update predicted that it is about to make."""
        for own, current in zip(self.model.state_dict().values(), self._of.state_dict().values(), strict=True):
            own.copy_(current)
        if self.optimizer is None:
            return
        copies = dict(zip(self._of.parameters(), self.model.parameters(), strict=True))
        predict = _KNOWN[type(self.optimizer)]
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if (state := self.optimizer.state.get(parameter)) and parameter in copies:
                    copies[parameter].copy_(predict(group, state, parameter))

    def state_dict(self) -> dict[str, Any]:
        """The weights, for a checkpoint: the next buffer's shortlist hangs on them."""
        return {"model": self.model.state_dict(), "optimizer": {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])


def recall_of(listed_m: Tensor, best_m: Tensor, ranks: Ranks) -> float:
    """The share of what fresh scores would keep that is on the shortlist, over the ranks; positions on each. It is for
    the ledger alone: the same recall went with a loss of 7 points and of none, by whether the model has batch norm."""
    both, best = ranks.sum([int(torch.isin(best_m, listed_m).sum()), len(best_m)])
    return both / max(best, 1)


def _adam(group: dict[str, Any], state: dict[str, Any], weights: Tensor, decoupled: bool = False) -> Tensor:
    step, (beta1, beta2) = float(state["step"]), group["betas"]
    mean, square = state["exp_avg"] / (1 - beta1**step), state["exp_avg_sq"] / (1 - beta2**step)
    lr, decay = float(group["lr"]), group["weight_decay"] if decoupled else 0.0
    moved: Tensor = weights * (1 - lr * decay) - lr * mean / (square.sqrt() + group["eps"])
    return moved


def _adamw(group: dict[str, Any], state: dict[str, Any], weights: Tensor) -> Tensor:
    return _adam(group, state, weights, decoupled=True)


def _sgd(group: dict[str, Any], state: dict[str, Any], weights: Tensor) -> Tensor:
    momentum = state.get("momentum_buffer")
    return weights if momentum is None else weights - float(group["lr"]) * momentum


_KNOWN: dict[type[torch.optim.Optimizer], Predict] = {
    torch.optim.AdamW: _adamw, torch.optim.Adam: _adam, torch.optim.SGD: _sgd,
}  # fmt: skip
