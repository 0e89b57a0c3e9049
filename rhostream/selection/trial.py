"""Whether a run that went over to training on everything undid what looking had taught it: a trial, with a verdict.

    unlearned of a buffer   mean of min(loss, ln C) over the rows with il < ln 2, labels that the IL model holds
                            likelier than not (nats; C classes)
    agreed of a buffer      the share of rows with loss < ln 2, labels of D that the target holds likelier than not

Of the buffers since the switch the last `PROOF` of `TRIAL` are looked at, as those before it were. The run goes back to
looking if what the IL model is sure of was unlearned and no more labels of D agree, each told by `SURE` standard errors
of the difference to the `LOOKS` before it. An IL model that the target had passed fails the second, one that knows
better which labels are wrong doesn't: where half of a class has another's label, a target of everything finds both even
and agrees with no more of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

LOOKS = 16  # before the switch that a trial is measured against; with fewer there is none
TRIAL = 16  # buffers from the switch to the verdict
PROOF = 8  # of them, the last, that are looked at
SURE = 3.0  # standard errors
HELD = 64  # buffers for which a run looks after the first trial that failed; twice as many after each other one
EVEN = math.log(2)


class Trial:
    """The phases of one run, looking and training on everything, as told by `back` and `take`, in turn."""

    def __init__(self) -> None:
        self._whole = False
        self._seen: list[list[float]] = []  # (unlearned, agreed) of the newest looks of this phase
        self._before: list[list[float]] = []  # the same before the switch
        self._left = 0  # buffers to the verdict
        self._held = 0  # buffers for which everything is out of the question
        self._next = HELD

    def back(self) -> bool:
        """Whether the next buffer must not be kept whole, whatever a look is worth."""
        if self._held:
            self._held -= 1
            return True
        if not self._left:
            return False
        self._left -= 1
        if self._left or not self._failed():
            return False
        self._held, self._next = self._next - 1, 2 * self._next
        return True

    def take(self, whole: bool) -> None:
        """Whether that buffer is kept whole, as it was decided."""
        if whole != self._whole:
            self._left = TRIAL if whole and len(self._seen) == LOOKS else 0
            self._whole, self._before, self._seen = whole, self._seen, []

    @property
    def looks(self) -> bool:
        """Whether the buffer that is kept whole is looked at for the verdict."""
        return 0 < self._left <= PROOF

    def see(self, loss_m: npt.NDArray[Any], il_m: npt.NDArray[Any], classes: int) -> None:
        """Losses and il (m,) of a look at a buffer of all ranks, finite; of one without a sure il nothing is made."""
        sure = il_m < EVEN
        if sure.any():
            unlearned = np.minimum(loss_m[sure].astype(np.float64), math.log(classes)).mean()
            self._seen = [*self._seen, [float(unlearned), float((loss_m < EVEN).mean())]][-LOOKS:]

    def _failed(self) -> bool:
        before, after = np.array(self._before), np.array(self._seen[-PROOF:])
        if len(after) < PROOF:
            return False
        error = np.sqrt(before.var(0, ddof=1) / len(before) + after.var(0, ddof=1) / len(after))
        unlearned, agreed = after.mean(0) - before.mean(0) > SURE * error
        return bool(unlearned and not agreed)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"whole": self._whole, "seen": self._seen, "before": self._before, "left": self._left,
                "held": self._held, "next": self._next}  # fmt: skip

    def load_state_dict(self, state: Any) -> None:
        """The inverse of `state_dict`. Raises KeyError, TypeError or ValueError."""
        self._whole, self._left = bool(state["whole"]), int(state["left"])
        self._held, self._next = int(state["held"]), int(state["next"])
        self._seen, self._before = (
            [[float(unlearned), float(agreed)] for unlearned, agreed in state[name]] for name in ("seen", "before")
        )
