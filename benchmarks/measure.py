"""Two ways of doing the same work, timed in turns: a figure here is always a ratio of neighbours, with its spread."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Side = Callable[[], float]
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figure:
    """One line of the table: the values of all pairs, and the bound that their median should keep."""

    benchmark: str
    case: str
    what: str
    values: tuple[float, ...]
    target: float | None = None
    at_least: bool = True  # whether the target is a lower bound
    unit: str = "x"

    @property
    def median(self) -> float:
        """Not a number without values."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def verdict(self) -> str:
        """ "ok", "MISSED" or "absent" (it could not be measured), nothing without a target."""
        if self.target is None:
            return ""
        if not self.values:
            return "absent"
        return "ok" if (self.median >= self.target) == self.at_least or self.median == self.target else "MISSED"


def interleave(sides: Sequence[Callable[[], Any]], pairs: int) -> list[list[Any]]:
    """Run the sides in turns (A B, B A, A B, ...); what each gave, pair by pair."""
    results: list[list[Any]] = [[] for _ in sides]
    for pair in range(pairs):
        order = range(len(sides)) if pair % 2 == 0 else reversed(range(len(sides)))
        for number in order:
            results[number].append(sides[number]())
    return results


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    """Pair by pair."""
    return tuple(a / b for a, b in zip(over, under, strict=True))


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """User and system time of this process and of everything below it, the living and the reaped."""
    stats: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        stats[int(entry.name)] = (int(fields[1]), sum(int(f) for f in fields[11:15]) / TICK)
    family, total = [os.getpid()], 0.0
    while family:
        parent = family.pop()
        family += [pid for pid, (above, _) in stats.items() if above == parent]
        total += stats[parent][1]
    # Its own time to the microsecond; /proc counts in hundredths.
    own = os.times()
    return total - (own.user + own.system) + time.process_time()


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| benchmark | case | figure | median | min - max | target | |", "|---|---|---|---|---|---|---|"]
    for f in figures:
        bound = "" if f.target is None else f"{'≥' if f.at_least else '≤'} {f.target:g}"
        low, middle, high = (short(v) for v in (min(f.values, default=f.median), f.median,
                                                max(f.values, default=f.median)))  # fmt: skip
        unit = "" if f.unit == "x" else f" {f.unit}"
        lines.append(f"| {f.benchmark} | {f.case} | {f.what} | {middle}{unit} | {low} - {high} | {bound} "
                     f"| {f.verdict} |")  # fmt: skip
    return "\n".join(lines)


def short(value: float) -> str:
    """A number as people read it, a dash when there is none."""
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
