"""Buffers that are passed over on purpose, after a loss spike: not a byte of them is read.

A buffer that is passed over keeps its number and its rows: no later step is another one because of it, and the log has
every planned sample, with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import UsageError
from rhostream.stream.join import Joined
from rhostream.stream.plan import Numbering

_STRETCH = re.compile(r"\s*(\d{1,18}):(\d{1,18})\s*")


@dataclass(frozen=True)
class PassOver:
    """A prefilter of the stream: what would have been a candidate of these steps, (first, end) each, is passed over."""

    stretches: tuple[tuple[int, int], ...]
    numbering: Numbering

    draws_batch = True  # it decides about buffers, and the rows of a tail are none

    def __call__(self, joined: Joined, pass_index: int, index: int) -> None:
        step = self.numbering(pass_index, index)
        if any(first <= step < end for first, end in self.stretches):
            joined.reason[joined.reason == CANDIDATE] = Reason.passed_over


def parse_stretch(text: str) -> tuple[int, int]:
    """(A, B) of `A:B`, numbers of buffers counted from 0, A included and B not. Raises UsageError.

    >>> parse_stretch("120:160")
    (120, 160)
    """
    match = _STRETCH.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--skip-buffers {text[:80]!r}: expected A:B, numbers of buffers counted from 0, A included "
            "and B not, such as 120:160"
        )
    first, end = int(match[1]), int(match[2])
    if first >= end:
        raise UsageError(f"--skip-buffers {text.strip()}: no buffer lies from {first:,} up to {end:,}; A:B needs A < B")
    return first, end
