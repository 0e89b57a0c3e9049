"""How reasons and runs look on the page: the report's colours, told apart by people with any colour vision."""

from __future__ import annotations

from typing import Any

from rhostream.audit.plots import BLUE, GREEN, ORANGE, PURPLE, RED
from rhostream.audit.tabulate import MEANINGS
from rhostream.audit.viewer.rows import REASONS

_COLOURS = {
    "kept": BLUE, "below": "#b4bcc5", "band": PURPLE, "shortlist": GREEN, "tail": "#dde2e7", "missing_il": "#56a4d9",
    "quarantined": ORANGE, "unreadable": "#8a4b20", "nonfinite": RED, "holdout": "#b0428f", "unlisted": "#4a5058",
    "duplicate": "#e09a00", "unapplied": "#009e73", "passed_over": "#9b6a9e", "denied": "#1c2126", "other": "#e39a5b",
}  # fmt: skip
LOOKS: list[dict[str, Any]] = [
    {"name": name, "number": number, "colour": _COLOURS[name], "says": MEANINGS.get(name, "")}
    for number, name in enumerate(REASONS)
]
RUNS = (BLUE, "#d55e00", "#009e73", "#b0428f")
