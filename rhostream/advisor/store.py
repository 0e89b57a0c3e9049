"""Whether results can be kept below a URL, and whether a second commit is refused; nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import warnings
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
    why: str  # what is wrong; "" when nothing is

    @property
    def usable(self) -> bool:
        """Whether tables and runs may live there. Create-only isn't needed where one job at a time writes."""
        return self.writable

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says it
            create_only = storage.probe_writable(place)
    except RhostreamError as exc:
        return StoreReport(url=shown, writable=False, create_only=False, why=str(exc))
    except Exception as exc:  # of whatever client library: a doctor reports, and its text may hold a secret
        return StoreReport(
            url=shown,
            writable=False,
            create_only=False,
            why=f"{type(exc).__name__} from the store's client; check the credentials and the address",
        )
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                os.rmdir(folder)
    why = "" if create_only else "the store ignores create-only writes: let one job at a time write there"
    return StoreReport(url=shown, writable=True, create_only=create_only, why=why)


def render_store(report: StoreReport) -> str:
    """Yes or no, and why not."""

    def yes(there: bool) -> str:
        return "yes" if there else "no"

    lines = [
        f"Store {report.url}",
        f"  {'writable':12} {yes(report.writable)}",
        f"  {'create-only':12} {yes(report.create_only)}",
        f"  {'usable':12} {yes(report.usable)}",
    ]
    return "\n".join(lines + ([f"  {report.why}"] if report.why else [])) + "\n"


def _missing_folders(path: str) -> list[Path]:
    """The folders that the probe will have to make, deepest first."""
    place, missing = Path(path), list[Path]()
    while not place.exists() and place != place.parent:
        missing.append(place)
        place = place.parent
    return missing
