"""How each setting looks on a page: colour, dash and marker, the same in every figure, legend and table.

Uniform choice, training on everything, rho and a cascade look the same on every page, and never alike: their colours
are told apart by people with any colour vision, and in grey by lightness; dashes and markers differ, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhostream.audit.facts import RunFacts
from rhostream.audit.plots import BLUE, DASHES, uri


@dataclass(frozen=True)
class Look:
    """How the lines of a setting are drawn."""

    colour: str
    dash: str  # of DASHES
    marker: str  # as matplotlib names it

    @property
    def line(self) -> dict[str, Any]:
        """For matplotlib."""
        return {"color": self.colour, "linestyle": DASHES[self.dash], "marker": self.marker}

    @property
    def swatch(self) -> str:
        """A line of that look as a picture, for tables: a data URI of an SVG."""
        dash = DASHES[self.dash]
        gaps = "" if isinstance(dash, str) else f' stroke-dasharray="{" ".join(f"{2 * part:g}" for part in dash[1])}"'
        line = f'<path d="M0 6H40" stroke="{self.colour}" stroke-width="3"{gaps}/>'
        shape = _SHAPES[self.marker].format(self.colour)
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="12">{line}{shape}</svg>'
        return uri(svg.encode(), "image/svg+xml")


RHO, UNIFORM, EVERYTHING = Look(BLUE, "solid", "o"), Look("#848c95", "dashed", "s"), Look("#1c2126", "dotdash", "D")
CASCADE = Look("#bd5000", "dotted", "^")
# In the order in which a page's other settings get them.
OTHERS = (Look("#00805f", "long", "v"), Look("#b0428f", "dotdotdash", "P"), Look("#8f6200", "short", "X"))
_SHAPES = {
    "o": '<circle cx="20" cy="6" r="4.5" fill="{}"/>', "s": '<path d="M16 2h8v8h-8z" fill="{}"/>',
    "D": '<path d="M20 1l5 5-5 5-5-5z" fill="{}"/>', "^": '<path d="M20 1l5 10h-10z" fill="{}"/>',
    "v": '<path d="M20 11l5-10h-10z" fill="{}"/>', "P": '<path d="M18 1h4v10h-4zM15 4h10v4h-10z" fill="{}"/>',
    "X": '<path d="M15 3l2-2 8 8-2 2zM23 1l2 2-8 8-2-2z" fill="{}"/>',
}  # fmt: skip

_USUAL = (RHO, UNIFORM, EVERYTHING, CASCADE)
_OWN = (*_USUAL, *OTHERS)
# All that there are: each colour with a dash of its own, then every colour with each other dash.
LOOKS = (*_OWN, *(
    Look(_OWN[at].colour, _OWN[(at + turn) % len(_OWN)].dash, _OWN[(at + turn) % len(_OWN)].marker)
    for turn in range(1, len(_OWN)) for at in range(len(_OWN))
))  # fmt: skip


def looks(groups: Mapping[str, Sequence[RunFacts]]) -> dict[str, Look]:
    """The look of each group of a page: that of its setting, and the next free one where another has it."""
    given: dict[str, Look] = {}
    for name, runs in groups.items():
        usual = _usual(runs[0])
        if usual is not None and usual not in given.values():
            given[name] = usual
    free = [look for look in LOOKS if look not in (*_USUAL, *given.values())]
    for name in groups:
        if name not in given:
            given[name] = free.pop(0)
    return {name: given[name] for name in groups}


def _usual(run: RunFacts) -> Look | None:
    if run.everything:
        return None if run.filtered else EVERYTHING
    plain = not run.stages and not run.row["loss_cap"]
    if run.rule == "uniform":
        return UNIFORM if plain else None
    if run.rule != "rho":
        return None
    return RHO if plain else CASCADE
