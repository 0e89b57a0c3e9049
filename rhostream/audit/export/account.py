"""What an export made, what it left out and what it couldn't read, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rhostream.inert import escape, one_line

FIRST = 3  # of what couldn't be read, those that are named


@dataclass
class Unread:
    """Samples that couldn't be had: each counted, the first ones named with the reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, why: object, count: int = 1) -> None:
        """Count samples, `why` in a sentence that names the first of them."""
        self.count += count
        if len(self.first) < FIRST and (words := one_line(str(why), 600)) not in self.first:
            self.first.append(words)

    def merge(self, other: Unread) -> None:
        """Count those of another one too."""
        for why in other.first:
            self.add(why, 0)
        self.count += other.count


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` made."""

    out: str
    form: str
    rows: int  # of the selection that are in it
    samples: int | None  # None: rows of the log, of which several may be of one sample
    bytes: int
    shards: int | None = None
    there: int = 0  # of these, those that were there already
    renamed: int = 0  # samples whose key was taken in their new shard
    left_out: str = ""  # what wasn't exported on purpose, a sentence
    unread: int = 0  # samples that couldn't be read
    first_unread: list[str] = field(default_factory=list)
    next: str = ""  # a command that makes use of it

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))

    def text(self) -> str:
        """One screen for people."""
        lines = [("out", self.out), ("form", self.form), ("rows", f"{self.rows:,}")]
        if self.samples is not None:
            lines.append(("samples", f"{self.samples:,}"))
        if self.shards is not None:
            again = f" ({self.there:,} of them were there already)" if self.there else ""
            lines.append(("shards", f"{self.shards:,}{again}"))
        if self.renamed:
            lines.append(("renamed", f"{self.renamed:,} samples, whose key another one of their new shard has"))
        lines.append(("bytes", f"{self.bytes:,}"))
        lines += [("left out", self.left_out)] if self.left_out else []
        if self.unread:
            lines.append(("unread", f"{self.unread:,} samples; {'; '.join(self.first_unread)}"))
        lines += [("next", self.next)] if self.next else []
        return "\n".join(escape(f"{name:<8}  {value}") for name, value in lines)
