"""Whether this version, and the files at hand, can do what an arm asks for; what can't be is said in one sentence."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import itertools
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import rhostream
from jobs.reproduce.settings import Arm, Shards
from rhostream.errors import UsageError
from rhostream.models import NAMES
from rhostream.selection.options import Options
from rhostream.selection.rules import RULES


def missing(arm: Arm, sources: Mapping[str, str]) -> str | None:
    """Why the arm can't be run here, None when it can. `sources`: name of a data set -> folder of its files."""
    world, il = arm.world, arm.world.ils[arm.il]
    reasons = [
        *_unknown("rule", [arm.settings.get("rule", "rho")], RULES),
        *_unknown("model", [arm.settings["model"], il.fit["model"]], NAMES),
        *_unknown("option of train", arm.settings, inspect.signature(rhostream.train).parameters),
        *_refused(arm.settings),
        *_unknown("option of fit_il", il.fit, inspect.signature(rhostream.fit_il).parameters),
        *(reason for need in arm.needs for reason in _needs(need)),
        *(reason for shards in _shards(arm) for reason in missing_files(shards, sources)),
    ]
    return f"{world.name}: {arm.name}: {reasons[0]}" if reasons else None


def _shards(arm: Arm) -> list[Shards]:
    holdouts = [il.holdout for name, il in arm.world.ils.items() if il.holdout is not None and name == arm.il]
    return [arm.world.train, arm.world.test, *holdouts]


def _unknown(what: str, wanted: Iterable[str], known: Iterable[str]) -> list[str]:
    """A name with a colon is a user's own (or another library's) and is looked for when it is used."""
    names = set(known)
    return [f"{what} {name!r} is not available in this version" for name in wanted
            if ":" not in name and name not in names]  # fmt: skip


def _refused(settings: Mapping[str, Any]) -> list[str]:
    """Why a value of a rule's option isn't known here, such as a schedule of a later version."""
    known = {field.name for field in dataclasses.fields(Options)}
    try:
        Options.of({name: value for name, value in settings.items() if name in known})
    except UsageError as exc:
        return [f"a value of an option is not available in this version ({exc})"]
    return []


def _needs(need: str) -> list[str]:
    if need == "svp" and importlib.util.find_spec("jobs.svp") is None:
        return ["selection via proxy (jobs.svp) is not available in this version"]
    if need == "il_model" and "il_model" not in inspect.signature(rhostream.train).parameters:
        return ["a live IL model (option il_model of train) is not available in this version"]
    return []


def missing_files(shards: Shards, sources: Mapping[str, str]) -> list[str]:
    """Why a set of shards can't be made here, as sentences; none when it can."""
    texts = {recipe: told(recipe) for recipe in shards.recipes}
    for recipe, text in texts.items():
        if text is None:
            return [f"recipe {recipe!r} of shards.make is not available in this version"]
    arguments = shards.arguments
    known = texts[shards.recipes[0]] or ""
    wanted = [word for word in arguments if word.startswith("--")]
    wanted += [value for word, value in itertools.pairwise(arguments) if word == "--noise"]
    for word in wanted:
        if word not in known:
            return [f"{word} of recipe {shards.recipes[0]!r} is not available in this version"]
    return [f"the files of {name} are needed: --source {name}=PATH (python -m shards.make {shards.recipes[-1]} --help "
            "says which)" for name in shards.files.values() if name not in sources]  # fmt: skip


@functools.cache
def told(recipe: str) -> str | None:
    """The help of a recipe, None for one that isn't there; asked as one asks, because a job doesn't import recipes."""
    asked = subprocess.run([sys.executable, "-m", "shards.make", recipe, "--help"], capture_output=True, text=True)
    return None if asked.returncode else asked.stdout
