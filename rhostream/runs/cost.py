"""The cost account: what a run spent, in forward units, multiply-adds and seconds, the IL model included.

One forward unit is one sample through one forward of the target; a backward costs two more. A selection step of
RHO-LOSS costs n_B + 3 n_b units against 3 n_b for a uniform one, so selection pays in arithmetic only when it needs
(n_B + 3 n_b) / (3 n_b) times fewer steps: the break-even.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any


def break_even(buffer_size: int, batch_size: int) -> float:
    """How many times fewer steps selection must need to pay for its forwards: (n_B + 3 n_b) / (3 n_b)."""
    return (buffer_size + 3 * batch_size) / (3 * batch_size)


@dataclass
class Cost:
    """Running totals of a run; `as_json` is what cost.json and checkpoints hold."""

    scored: int = 0  # samples through the target's scoring forward; one that is scored by K draws counts K times
    trained: int = 0  # samples through its forward and backward
    shortlisted: int = 0  # samples through the cheaper forward that makes a shortlist
    proxy_trained: int = 0  # samples through forward and backward of the proxy
    live_scored: int = 0  # samples through the IL model that learns along
    live_trained: int = 0  # samples through its forward and backward
    evaluated: int = 0  # test samples; reported, not charged
    decoded: int = 0  # by the loader, at the size of the view where there is one
    reread: int = 0  # decoded again, at full size or augmented
    macs: int = 0  # of one forward of one sample, target at full size
    scored_macs: int = 0  # the same at the size that is scored; 0: full size
    shortlist_macs: int = 0  # the same of what makes the shortlist
    live_macs: int = 0  # the same of the IL model that learns along
    seconds: dict[str, float] = field(default_factory=dict)  # wait, score, train, log, evaluate, checkpoint
    retried: dict[str, dict[str, int]] = field(default_factory=dict)  # store -> fault -> times it was tried again
    # the IL model's own account: fit_samples, scored_samples, macs, and checked_samples, which those of before lack
    il: dict[str, Any] = field(default_factory=dict)
    keep_list: dict[str, Any] = field(default_factory=dict)  # the same of what made the keep-list, where it says so

    @property
    def forward_units(self) -> float:
        """Selection and training, in samples forwarded by the target at full size."""
        cheap = (self.shortlisted + 3.0 * self.proxy_trained) * self._units(self.shortlist_macs)
        live = (self.live_scored + 3.0 * self.live_trained) * self._units(self.live_macs)
        return self.scored * self.look_units + 3.0 * self.trained + cheap + live

    @property
    def look_units(self) -> float:
        """What one sample's scoring costs, in its forwards at full size."""
        return self._units(self.scored_macs or self.macs)

    def _units(self, macs: int) -> float:
        return macs / self.macs if self.macs else 1.0

    @property
    def il_units(self) -> float:
        """The IL table's cost in units of the target's forward; 0 when nothing is known of it."""
        return self._spent_before(self.il)

    @property
    def keep_list_units(self) -> float:
        """The cost of the proxy that made the keep-list, in the same units; 0 when nothing is known of it."""
        return self._spent_before(self.keep_list)

    def _spent_before(self, account: dict[str, Any]) -> float:
        if not account or not self.macs:
            return 0.0
        forwards = int(account.get("checked_samples", 0)) + int(account.get("scored_samples", 0))
        spent = 3 * int(account.get("fit_samples", 0)) + forwards
        return spent * float(account.get("macs", 0)) / self.macs

    def planned_units(
        self,
        steps: int,
        buffer_size: int,
        batch_size: int,
        *,
        scores: bool = True,
        shortlist: float | None = None,
        proxy: bool = False,
    ) -> float:
        """What so many steps will cost in forward units, with the multiply-adds that are known here.

        `shortlist`: how many times n_b of each buffer reach the target's scores; None for all of it.
        """
        looked = steps * buffer_size if scores else 0
        listed = looked if shortlist is None else min(looked, round(steps * shortlist * batch_size))
        return replace(
            self,
            scored=listed,
            trained=steps * batch_size,
            shortlisted=0 if shortlist is None else looked,
            proxy_trained=steps * batch_size if proxy else 0,
            live_scored=looked if self.live_macs else 0,
            live_trained=steps * batch_size if self.live_macs else 0,
        ).forward_units

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "forward_units": self.forward_units,
            "il_units": self.il_units,
            "keep_list_units": self.keep_list_units,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Cost:
        return cls(**{k: v for k, v in record.items() if not k.endswith("_units")})
