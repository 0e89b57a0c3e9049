"""States of a network at several losses while it learns: IL models of rising quality from one fit.

"4"            four, at losses evenly between the first that is checked and the lowest
"1.5,1.0,0.7"  the first state whose mean loss on samples it doesn't learn from is that low, in nats, for each
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rhostream.errors import UsageError

FIRST_EPOCH = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # where a fit is looked at; quality rises fast there
EPOCH = (1 / 4, 1 / 2, 3 / 4, 1.0)
MOST = 64  # checkpoints
HELD = 4  # states in memory for each checkpoint that is wanted


@dataclass(frozen=True)
class Spec:
    """What was asked for: a number of checkpoints, or their losses in nats, falling."""

    count: int
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rung:
    """A state on the way."""

    loss: float  # mean over the check samples, nats
    accuracy: float
    epoch: float
    samples: int  # through forward and backward until then
    state: dict[str, Tensor]
    checked: int = 0  # through a forward alone until then, to look at the network


def parse_checkpoints(text: str | None) -> Spec | None:
    """`--checkpoints N|loss,loss,...`. Raises UsageError."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if len(words) == 1 and words[0].isdecimal():
        if not 1 <= int(words[0]) <= MOST:
            raise UsageError(f"--checkpoints {text}: expected 1 to {MOST}")
        return Spec(int(words[0]))
    try:
        losses = tuple(sorted({float(word) for word in words}, reverse=True))
    except ValueError:
        raise UsageError(
            f"--checkpoints {text!r}: expected a number of checkpoints (4), or losses in nats (1.5,1.0,0.7)"
        ) from None
    if len(losses) > MOST or not all(math.isfinite(loss) and loss > 0 for loss in losses):
        raise UsageError(f"--checkpoints {text}: expected at most {MOST} losses above 0")
    return Spec(len(losses), losses)


class Ladder:
    """The rungs of one network; a bounded number of states is held."""

    def __init__(self, spec: Spec) -> None:
        self._spec, self._pending = spec, list(spec.losses)
        self.rungs: list[Rung] = []  # of falling loss

    def restore(self, rungs: list[Rung]) -> None:
        """Go on from these rungs of an earlier process."""
        self.rungs = rungs
        self._pending = [loss for loss in self._spec.losses if not any(rung.loss <= loss for rung in rungs)]

    def checks(self, epoch: int, batches: int) -> set[int]:
        """After which batches of an epoch (from 1) to look."""
        return {max(1, math.ceil(batches * part)) for part in (FIRST_EPOCH if epoch == 0 else EPOCH)}

    def offer(self, loss: float, make: Callable[[], Rung]) -> None:
        """Take a state if it is wanted: one that reaches a loss that none before did, or is the best so far."""
        if not math.isfinite(loss) or (self.rungs and loss >= self.rungs[-1].loss):
            return
        if self._spec.losses:
            reached = [target for target in self._pending if loss <= target]
            if not reached:
                return
            self._pending = [target for target in self._pending if target not in reached]
        self.rungs.append(make())
        if not self._spec.losses and len(self.rungs) > HELD * self._spec.count + 2:
            # The one whose neighbours are nearest in loss is missed least.
            gaps = [self.rungs[i - 1].loss - self.rungs[i + 1].loss for i in range(1, len(self.rungs) - 1)]
            del self.rungs[1 + min(range(len(gaps)), key=gaps.__getitem__)]


def chosen(ladders: Sequence[Sequence[Rung]], spec: Spec) -> tuple[list[tuple[float, list[Rung]]], list[float]]:
    """(target, a rung of each network) for each checkpoint, of falling loss, and the targets that were not reached.

    All networks of a checkpoint have reached the same loss, so that folds are of like quality. Targets at which no
    network has another state than at the one before are left out.
    """
    if not all(ladders):
        return [], list(spec.losses)
    targets = list(spec.losses)
    if not targets:
        first, last = (max(rungs[at].loss for rungs in ladders) for at in (0, -1))
        steps = max(1, spec.count - 1)
        targets = [last + (first - last) * (steps - k) / steps for k in range(spec.count - 1)] + [last]
    found: list[tuple[float, list[Rung]]] = []
    missed = []
    for target in targets:
        if any(rungs[-1].loss > target for rungs in ladders):
            missed.append(target)
            continue
        own = [next(rung for rung in rungs if rung.loss <= target) for rungs in ladders]
        if not found or any(a is not b for a, b in zip(own, found[-1][1], strict=True)):
            found.append((target, own))
    return found, missed
