"""The cost account: what a run spent, in forward units, multiply-adds and seconds, the IL model included.

One forward unit is one sample through one forward of the target; a backward costs two more. A selection step of
RHO-LOSS costs n_B + 3 n_b units against 3 n_b for a uniform one, so selection pays in arithmetic only when it needs
(n_B + 3 n_b) / (3 n_b) times fewer steps: the break-even.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def break_even(buffer_size: int, batch_size: int) -> float:
    """How many times fewer steps selection must need to pay for its forwards: (n_B + 3 n_b) / (3 n_b)."""
    return (buffer_size + 3 * batch_size) / (3 * batch_size)


def macs_per_sample(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one sample's forward, counted on `example` (1, C, H, W); the model's modes are restored.

    Raises what the model raises on such an input.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example)
        return int(counter.get_total_flops() // 2)
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass
class Cost:
    """Running totals of a run; `as_json` is what cost.json and checkpoints hold."""

    scored: int = 0  # samples through the target's scoring forward
    trained: int = 0  # samples through its forward and backward
    shortlisted: int = 0  # samples through the cheaper forward that makes a shortlist
    proxy_trained: int = 0  # samples through forward and backward of the proxy
    evaluated: int = 0  # test samples; reported, not charged
    decoded: int = 0  # by the loader, at the size of the view where there is one
    reread: int = 0  # decoded again at full size
    macs: int = 0  # of one forward of one sample, target at full size
    scored_macs: int = 0  # the same at the size that is scored; 0: full size
    shortlist_macs: int = 0  # the same of what makes the shortlist
    seconds: dict[str, float] = field(default_factory=dict)  # wait, score, train, log, evaluate, checkpoint
    retried: dict[str, dict[str, int]] = field(default_factory=dict)  # store -> fault -> times it was tried again
    il: dict[str, Any] = field(default_factory=dict)  # fit_samples, scored_samples, macs: the IL model's own account

    @property
    def forward_units(self) -> float:
        """Selection and training, in samples forwarded by the target at full size."""
        cheap = (self.shortlisted + 3.0 * self.proxy_trained) * self._units(self.shortlist_macs)
        return self.scored * self._units(self.scored_macs or self.macs) + 3.0 * self.trained + cheap

    def _units(self, macs: int) -> float:
        return macs / self.macs if self.macs else 1.0

    @property
    def il_units(self) -> float:
        """The IL table's cost in units of the target's forward; 0 when nothing is known of it."""
        if not self.il or not self.macs:
            return 0.0
        spent = 3 * int(self.il.get("fit_samples", 0)) + int(self.il.get("scored_samples", 0))
        return spent * float(self.il.get("macs", 0)) / self.macs

    def add_seconds(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "forward_units": self.forward_units, "il_units": self.il_units}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Cost:
        return cls(**{k: v for k, v in record.items() if k not in ("forward_units", "il_units")})
