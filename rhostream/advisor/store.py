"""Whether results can be kept below a URL: written, and never overwritten by a second job; nothing is left behind."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rhostream import storage
from rhostream.errors import RhostreamError


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """What a probe found."""

    url: str  # without secrets
    writable: bool
    create_only: bool  # a second commit of the same name is refused
    why: str  # "" when it is usable

    @property
    def usable(self) -> bool:
        """Whether tables and runs may live there."""
        return self.writable and self.create_only

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "usable": self.usable}


def probe_store(url: str) -> StoreReport:
    """Commit a small object below `url`, try to commit it again, remove it.

    Raises UsageError for a URL that can never be a store (a shell command, an unknown scheme).
    """
    place = storage.resolve(url)
    shown = storage.redact(place)
    made = _missing_folders(place) if storage.is_local(place) else []
    try:
        storage.probe_writable(place)
    except RhostreamError as exc:
        overwrites = "create-only" in str(exc)
        return StoreReport(url=shown, writable=overwrites, create_only=False, why=str(exc))
    except Exception as exc:  # of whatever client library: a doctor reports, and its text may hold a secret
        return StoreReport(url=shown, writable=False, create_only=False,
                           why=f"{type(exc).__name__} from the store's client; check the credentials and the address")
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                os.rmdir(folder)
    return StoreReport(url=shown, writable=True, create_only=True, why="")


def render_store(report: StoreReport) -> str:
    """Yes or no, and why not."""
    def yes(there: bool) -> str:
        return "yes" if there else "no"

    lines = [f"Store {report.url}", f"  {'writable':12} {yes(report.writable)}",
             f"  {'create-only':12} {yes(report.create_only)}", f"  {'usable':12} {yes(report.usable)}"]
    return "\n".join(lines + ([f"  {report.why}"] if report.why else [])) + "\n"


def _missing_folders(path: str) -> list[Path]:
    """The folders that the probe will have to make, deepest first."""
    place, missing = Path(path), list[Path]()
    while not place.exists() and place != place.parent:
        missing.append(place)
        place = place.parent
    return missing
