"""How large buffers and batches suit a number of samples, and how often these are gone through: one answer for all who
suggest a command.
"""

from __future__ import annotations

from dataclasses import dataclass

BUFFER, RATIO = 320, 10  # the paper's n_B, and n_B : n_b
STEPS, PASSES = 300, 20  # so many steps at least, but not more passes


@dataclass(frozen=True)
class Sizes:
    """n_B, n_b, and passes over the samples."""

    buffer_size: int
    batch_size: int
    passes: int
    steps: int


def sizes_for(samples: int) -> Sizes:
    """Sizes for so many samples: the paper's, or smaller buffers of which a pass has 20 at least."""
    n_B = BUFFER if samples >= 20 * BUFFER else max(40, samples // 200 * 10)
    passes = max(1, min(PASSES, -(-STEPS * n_B // max(samples, 1))))
    return Sizes(n_B, n_B // RATIO, passes, max(1, samples // n_B) * passes)
