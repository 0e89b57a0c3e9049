"""How many are kept at a step, and whether by chance: a pure function of the step's number, known to every worker."""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps count from 0. On a uniform step a random n_b is kept and nothing is scored."""

    warm_up: int = 0  # so many uniform steps first
    stop_after: int | None = None  # uniform from this step on
    uniform_every: int | None = None  # one uniform step in so many, the last of them
    ratios: tuple[tuple[int, float], ...] = ()  # (step, share of the buffer): kept from that step on; n_b before it

    def __post_init__(self) -> None:
        if self.warm_up < 0:
            raise UsageError(f"--warm-up {self.warm_up}: expected a number of steps, 0 or more")
        if self.stop_after is not None and self.stop_after < 1:
            raise UsageError(f"--stop-after {self.stop_after}: expected a number of steps, at least 1")
        if self.uniform_every is not None and self.uniform_every < 2:
            raise UsageError(
                f"--uniform-every {self.uniform_every}: expected at least 2 (every step uniform is --rule uniform)"
            )
        if self.stop_after is not None and self.stop_after <= self.warm_up:
            raise UsageError(f"--warm-up {self.warm_up} and --stop-after {self.stop_after} leave no step to select in")

    def is_uniform(self, step: int) -> bool:
        """Whether the step keeps a random n_b whatever the rule."""
        late = self.stop_after is not None and step >= self.stop_after
        turn = self.uniform_every is not None and step % self.uniform_every == self.uniform_every - 1
        return step < self.warm_up or late or turn

    def kept(self, step: int, batch_size: int, buffer_size: int) -> int:
        """n_b of that step, at least 1."""
        share = next((share for start, share in reversed(self.ratios) if start <= step), None)
        return batch_size if share is None else max(1, round(share * buffer_size))

    def sizes(self, batch_size: int, buffer_size: int) -> list[int]:
        """Every n_b that occurs, in the order of the steps."""
        starts = {0, *(start for start, _ in self.ratios)}
        return list(dict.fromkeys(self.kept(step, batch_size, buffer_size) for step in sorted(starts)))

    def require_kept(self, buffer_size: int) -> None:
        """Raise UsageError for a share of the buffer that is nobody."""
        for _, share in self.ratios:
            if round(share * buffer_size) < 1:
                raise UsageError(
                    f"--ratio {share:g} of a buffer of {buffer_size} keeps nothing; give at least {1 / buffer_size:.3g}"
                )

    @property
    def has_uniform_steps(self) -> bool:
        return self.warm_up > 0 or self.stop_after is not None or self.uniform_every is not None


PLAIN = Schedule()  # n_b at every step, by the rule


def parse_ratios(text: str | float | None) -> tuple[tuple[int, float], ...]:
    """`0.1`, or `0:0.5,1000:0.1`: from step s on keep that share of the buffer. Raises UsageError."""
    if text is None:
        return ()
    ratios: list[tuple[int, float]] = []
    for entry in str(text).split(","):
        step, colon, share = entry.strip().rpartition(":")
        try:
            at, ratio = int(step) if colon else 0, float(share)
        except ValueError:
            raise UsageError(f"--ratio {text!r}: {entry.strip()!r} is no STEP:SHARE, such as 0:0.5,1000:0.1") from None
        if not 0 < ratio <= 1:
            raise UsageError(
                f"--ratio {text}: {share.strip()} of a buffer can't be kept; a share lies above 0 and is at most 1"
            )
        if at < 0 or (ratios and at <= ratios[-1][0]):
            raise UsageError(
                f"--ratio {text}: steps must rise from 0 on, and {at} comes after "
                f"{ratios[-1][0] if ratios else 'nothing'}"
            )
        ratios.append((at, ratio))
    return tuple(ratios)
