"""What a run may change on purpose while it goes on: which settings, what is in force, and how it is recorded.

run.json says how the run began and is never written again. A change is (field, old, new, step, attempt): the attempt
that makes it notes it when it is claimed, and every checkpoint from then on lists it, so that it counts exactly where
its steps do. The same command again finds its change in force and makes no second one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rhostream import storage
from rhostream.config.train import TrainConfig
from rhostream.errors import MismatchError, UnknownNameError, UntrustedCodeError, UsageError
from rhostream.runs.record import gone_from, recorded
from rhostream.runs.turns import Turn
from rhostream.selection.ranks import Ranks
from rhostream.setting import ASKED, RESOLVED, UNPINNED, defaults_of, kinds_of, settings_of
from rhostream.training.settings import Settings

_SAYS, _KINDS = settings_of(TrainConfig), kinds_of(TrainConfig)
# How a step is made and computed. What is read, in which order, and what is chosen by which rule stays the run's.
CHANGEABLE = tuple(name for name, says in _SAYS.items() if not says.fixed)
WHY_NOT = {name: says.fixed for name, says in _SAYS.items() if says.fixed and name not in ("run", "change")}
# What a run that doesn't state them began with.
_AT_DEFAULT = {
    name: value for name, value in defaults_of(TrainConfig).items() if name in CHANGEABLE and _SAYS[name].pin == ASKED
}
Change = dict[str, Any]


def parse_changes(given: Mapping[str, Any] | str | Iterable[str] | None) -> dict[str, Any]:
    """{field: value} of `{"lr": 5e-4}` or `["lr=5e-4"]`. Raises UsageError for what can't change, and says why."""
    if not isinstance(given, Mapping):
        texts = [given] if isinstance(given, str) else list(given or ())
        pairs = [text.partition("=") for text in texts]
        if bad := [
            text for text, (name, equals, value) in zip(texts, pairs, strict=True) if not (name and equals and value)
        ]:
            raise UsageError(f"--change {bad[0]!r}: expected NAME=VALUE, as lr=0.0005")
        given = {name: value for name, _, value in pairs}
    found = {}
    for written, value in given.items():
        name = written.strip().lstrip("-").replace("-", "_")
        if name in WHY_NOT:
            instead = "" if WHY_NOT[name] is UNPINNED else "; train with it in another --run"
            raise UsageError(f"--change {written}: {WHY_NOT[name]}{instead}. Can be changed: {', '.join(CHANGEABLE)}")
        if name not in CHANGEABLE:
            raise UnknownNameError.of("setting that can change", name, [*CHANGEABLE, *WHY_NOT])
        found[name] = _value(name, value)
    return found


_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


def _value(name: str, value: Any) -> Any:
    kinds = _KINDS[name]
    if "None" in kinds and str(value).lower() == "none":
        return None
    kind = next(_TYPES[kind] for kind in kinds if kind in _TYPES)
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(value, bool) or (kind is int and int(value) != float(value)):
            raise ValueError
        return kind(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")
        raise UsageError(f"--change {name}={str(value)[:80]}: expected {expected}") from None


_PINS = {"draws", "selection", *(pin for name, says in _SAYS.items() for pin in (says.pinned_as or (name,)))}


def _require_known(record: Mapping[str, Any], run: str) -> None:
    """Raise MismatchError for a run that was begun with a setting which there is no longer."""
    pinned = record.get("fingerprints") or {}
    if pinned.get("loop") == "own":  # of a loop of one's own, whose settings are the user's
        return
    unknown = sorted(name for name in pinned if name not in _PINS and not name.startswith("preprocess_"))
    if gone := gone_from(record) or (f"{unknown[0]} {pinned[unknown[0]]!r}" if unknown else ""):
        raise MismatchError(
            f"run {storage.redact(run)} was begun with {gone}, a setting that "
            "this version doesn't have: go on with the version that began it (run.json names it), or "
            "begin it again in another --run"
        )


def in_force(settings: Settings, run: str, ranks: Ranks, turn: Turn) -> tuple[Settings, list[Change], list[Change]]:
    """The settings with all that was changed: (settings, changes that are committed, changes to be made now).

    Both are of settings alone. Collective. A setting may be given as the run began with it or as it is in force.
    Raises UsageError, MismatchError.
    """
    wanted = parse_changes(settings.change)
    told: dict[str, Any] | None = None
    if ranks.first and (record := recorded(run)):
        _require_known(record, run)
        told = {
            "began": {
                **_AT_DEFAULT,
                **{k: v for k, v in (record.get("fingerprints") or {}).items() if k in CHANGEABLE},
            },
            "changes": [change for change in turn.changes if change["field"] in CHANGEABLE],
            "step": turn.step,
        }
    told = ranks.from_first(told)
    if told is None:
        if wanted:
            raise UsageError(
                f"--change {next(iter(wanted))}: there is no run in {storage.redact(run)} yet, so there "
                "is nothing to change: give the option itself"
            )
        return settings, [], []
    before, began = list[Change](told["changes"]), told["began"]
    now = {**began, **{change["field"]: change["new"] for change in before}}
    for name in {change["field"] for change in before} | {*wanted}:
        if name not in now:
            raise UsageError(f"--change {name}: this run has no such setting (rule {settings.rule})")
        given = getattr(settings, name)
        unset = given is None and _SAYS[name].pin == RESOLVED  # as it is in force
        if not unset and given not in (began[name], now[name], wanted.get(name, now[name])):
            raise MismatchError(
                f"run {storage.redact(run)} began with {name} {began[name]!r} and has {now[name]!r} "
                f"now, not {given!r}; --change {name}={given} changes it from here on, and records it"
            )
    new = [
        {"field": name, "old": now[name], "new": value, "step": told["step"]}
        for name, value in wanted.items()
        if value != now[name]
    ]
    changed = {name: {**now, **wanted}[name] for name in {c["field"] for c in [*before, *new]}}
    for name in changed:
        if _SAYS[name].imports:
            given = str(wanted.get(name, getattr(settings, name)))
            UntrustedCodeError.unless_named(str(changed[name]), given, storage.redact(run), f"--{name}")
    return (replace(settings, **changed) if changed else settings), before, new
