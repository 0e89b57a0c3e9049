"""Sets of icons as Iconify's package has them: which may be used, what their names say, and one drawn as a picture.

collections.json (licences) > json/<set>.json (names, SVG bodies) > words of the names > resvg draws
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rhostream.errors import MissingExtraError, UnknownNameError, UsageError
from shards.sample import Pixels
from shards.sources import find, folder_of, read_text

INSTRUCTIONS = (
    "unpack what `npm pack @iconify/json` gives, or take what `npm install @iconify/json` installed, and give that "
    "folder as --source"
)
BELOW = ("package", "node_modules/@iconify/json", "@iconify/json")
NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
OUTSIDE = re.compile(r"""<(?:image|script|foreignObject|text|style)\b|href=["'](?!#)|url\((?!["']?#)|[<&]!|<\?""")
"""What would make a drawing depend on other files or on the fonts of a machine."""
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Icon:
    """One icon: its set, its name there, the name in words, and the SVG inside its box (left, top, width, height)."""

    set: str
    name: str
    words: str
    body: str
    box: tuple[float, float, float, float]


def read_sets(source: Any, licences: Sequence[str], chosen: Sequence[str]) -> tuple[dict[str, Record], Path]:
    """The sets of a package with one of these licences (SPDX names), and where it is; `chosen`: of these, () for all.

    Raises UsageError for no such package, a licence or a set that it doesn't have, and a set of another licence.
    """
    folder = find(folder_of(source, "icons", INSTRUCTIONS), ["collections.json"], BELOW, INSTRUCTIONS)
    sets = _json(folder / "collections.json")
    of = {name: str(_within(_within(record, "license"), "spdx", "")) for name, record in sets.items()}
    for licence in licences:
        if licence not in of.values():
            raise UnknownNameError.of("licence of icons", licence, sorted(set(of.values())))
    for name in chosen:
        if name not in sets:
            raise UnknownNameError.of("set of icons", name, sorted(sets))
        if of[name] not in licences:
            raise UsageError(f"icons of {name} are {of[name]}, not {' or '.join(licences)}; say so with --licences")
    return {name: sets[name] for name in sorted(chosen or sets) if of[name] in licences}, folder


def read_icons(folder: Path, sets: Mapping[str, Record]) -> tuple[list[Icon], tuple[str, ...]]:
    """The icons of those sets, by set and name, and what to say of those that were left out.

    Of the icons of a set that say the same (sizes of one drawing) the first counts. Hidden ones (withdrawn), names
    that aren't words, and drawings that need other files or fonts are left out.
    """
    icons: list[Icon] = []
    left_out: Counter[str] = Counter()
    for prefix in sets:
        path = folder / "json" / f"{prefix}.json"
        record = _json(path)
        sizes = {word for kind in ("prefixes", "suffixes") for affix in _within(record, kind, {})
                 for word in affix.split("-") if word.isdigit()}  # fmt: skip
        said = set[str]()
        for name, icon in sorted(_within(record, "icons", {}).items()):
            words = " ".join(word for word in name.split("-") if word not in sizes)
            body = _within(icon, "body", None)
            if not isinstance(body, str):
                raise UsageError(f"{path}: icon {name[:60]!r} has no body; copy the package again")
            why = (
                "hidden" if icon.get("hidden")
                else "of another form" if not NAME.fullmatch(name) or not words or icon.keys() & {"rotate", "hFlip"}
                else "with text or other files inside" if OUTSIDE.search(body)
                else "saying what another one of the set says" if words in said
                else ""
            )  # fmt: skip
            if why:
                left_out[why] += 1
                continue
            said.add(words)
            box = [float({**record, **icon}.get(side, default)) for side, default in _SIDES.items()]
            icons.append(Icon(prefix, name, words, body, (box[0], box[1], box[2], box[3])))
    if not icons:
        raise UsageError(f"{folder} has no icons of these sets and licences; {INSTRUCTIONS}")
    said_of = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
    return icons, (f"icons left out: {said_of}",) if said_of else ()


_SIDES = {"left": 0, "top": 0, "width": 16, "height": 16}  # what a box is where nothing says otherwise


def require_resvg() -> Any:
    """The module that draws. Raises MissingExtraError."""
    try:
        import resvg_py
    except ImportError as exc:
        raise MissingExtraError.of("resvg-py", "icons") from exc
    return resvg_py


def draw(icon: Icon, size: int) -> Pixels:
    """(size, size, 3): the icon as large as fits, in black where it has no colours of its own, on white.

    Raises UsageError for what can't be drawn.
    """
    box = " ".join(f"{side:g}" for side in icon.box)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" '
        f'height="{size}" viewBox="{box}" color="black">{icon.body}</svg>'
    )
    try:
        png = require_resvg().svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True)
        return np.asarray(Image.open(io.BytesIO(bytes(png)), formats=["PNG"]).convert("RGB"))
    except (ValueError, OSError) as exc:
        raise UsageError(
            f"icon {icon.set}:{icon.name} can't be drawn ({exc}); name the other sets with --sets"
        ) from exc


def _json(path: Path) -> dict[str, Any]:
    text = read_text(path, INSTRUCTIONS)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{path} can't be read as JSON; copy the package again") from exc
    if not isinstance(record, dict):
        raise UsageError(f"{path} is not a JSON object; copy the package again")
    return record


def _within(record: Any, name: str, default: Any = None) -> Any:
    """A field of a stranger's object; the default where there is none, or no object."""
    value = record.get(name, default) if isinstance(record, dict) else default
    return default if default is not None and not isinstance(value, type(default)) else value
