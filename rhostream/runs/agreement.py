"""A run's first record, or the proof that who comes back to it asks for the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rhostream import storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, MismatchError
from rhostream.runs import chain, checkpoint
from rhostream.runs.plans import plans_of
from rhostream.runs.record import class_names, recorded, write_record
from rhostream.runs.turns import NO_SETTINGS
from rhostream.samples.geometry import CROP
from rhostream.tables.classes import require_same_classes


def make_or_agree(
    url: str,
    pinned: Mapping[str, Any],
    record: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]],
    changing: Sequence[Mapping[str, Any]],
    changeable: Iterable[str],
    changed_draws: Callable[[], list[str]],
) -> bool:
    """Write run.json and say True, or compare it with what is `pinned` now, given its `changes` in
    force and those that are being made (`changing`).

    `changeable`: pins that may differ on purpose; `changed_draws`: what goes otherwise than in a run of before draws
    had an edition. Raises MismatchError naming the fields that differ, NotWritableError.
    """
    crash_point("run: before run.json")
    try:
        write_record(url, {"fingerprints": pinned, **record})
        return True
    except AlreadyExistsError:
        before = recorded(url)
    # A run that was started before ranks could differ chose among the whole buffer, and one of before there were other
    # geometries saw the centre of its images.
    old = {
        "selection": "global",
        **({"preprocess_resize": CROP} if "preprocess_resize" in pinned else {}),
        **before.get("fingerprints", {}),
        **{change["field"]: change["new"] for change in [*changes, *changing] if change["field"] not in NO_SETTINGS},
    }
    if "draws" not in old and "draws" in pinned:
        if changed := changed_draws():
            raise MismatchError(
                f"run {storage.redact(url)} was begun by an older version, which went otherwise "
                f"about {', '.join(changed)}: it can't go on as it would have; begin it again in "
                "another --run"
            )
        old["draws"] = pinned["draws"]
    same = json.loads(json.dumps(pinned, default=str))
    try:
        checkpoint.require_same(old, same, f"run {storage.redact(url)}")
    except MismatchError as exc:
        _note_shards(exc, plans_of(url, before, changes)[-1].names, record["shards"])
        if free := [name for name in changeable if old.get(name) != same.get(name)]:
            exc.add_note(
                f"on purpose, from the newest checkpoint on: the old settings and --change "
                f"{' '.join(f'{name}={same.get(name)}' for name in free)}"
            )
        if chain.head(url) is None:
            exc.add_note("nothing of that run was committed: unless it is running, its folder can be deleted")
        raise
    require_same_classes(class_names(record), class_names(before), "the table", f"run {storage.redact(url)}")
    return False


def _note_shards(error: MismatchError, old: Sequence[str], new: Sequence[str]) -> None:
    """The fingerprint of a list doesn't say what changed in it."""
    gone, come = sorted({*old} - {*new}), sorted({*new} - {*old})
    for what, names in (("no longer given", gone), ("new", come)):
        if names:
            error.add_note(f"shards {what}: {len(names)}, first {names[0]}")
    if come and not gone and old:
        error.add_note("at the end of a pass a run may go on with a longer list, on purpose: --grow")
