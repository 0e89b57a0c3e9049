"""Which runs are of one setting: everything that a run pins, but its seed, and what it changed on purpose.

What a run doesn't state (one of an older version lacks a setting of today) is unknown and equal to nothing but unknown:
two such runs are of one setting where all that they state is equal. An option that stands in no run.json unless it was
asked for is at its default there, so its absence differs from any value, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rhostream.audit.runs import RunFolder
from rhostream.config.train import TrainConfig
from rhostream.inert import one_line
from rhostream.setting import RECORDED, settings_of

_SAYS = settings_of(TrainConfig)
# What run.json has among the settings that decides neither which samples are kept nor what the weights become.
_FREE = {
    "seed",
    "selector_seed",
    "last_step",
    "prefilters",
    *(name for name, says in _SAYS.items() if says.pin == RECORDED),
}
# What makes the choice and nothing else: a baseline differs in these on purpose. Stages that cost a forward are in it,
# and how scores are computed, because uniform choice makes none.
OF_THE_RULE = {"selection", *(name for name, says in _SAYS.items() if says.part == "rule")}
# One that trains on everything has a buffer of its own, and may split its batch.
OF_THE_SIZES = {name for name, says in _SAYS.items() if says.part == "sizes"}
TEST_SET = "test_set"
OF_D = ("shards", TEST_SET)  # what runs must share for accuracies at equal cost: D, and what they are tested on
SHOWN = 3  # differing settings that are named one by one
_UNSTATED = "not stated"


def setting_of(run: RunFolder) -> dict[str, Any]:
    """What is pinned but the seed, name -> value; "change 1" and so on is what was changed on purpose, in order."""
    pinned = {**run.settings, **(run.record.get("fingerprints") or {})}
    stated = {name: value for name, value in pinned.items() if name not in _FREE}
    stated.setdefault("selection", "global")  # a run of before ranks could differ chose among the whole buffer
    if stated.get("preprocess_resize") == "crop":
        del stated["preprocess_resize"]  # as runs of before there were other geometries, which don't state it
    changes = run.checkpoint.changes if run.checkpoint else []
    return stated | {f"change {n + 1}": says_change(change) for n, change in enumerate(changes)}


def tested_on(run: RunFolder) -> dict[str, Any]:
    """What its accuracies are of: {"test_set": "5,000 samples, 3f2a..."}, {} where run.json doesn't say.

    The digest is of keys and labels, so a test set is the same wherever it lies; older runs have the number alone.
    """
    counts, digest = run.record.get("test_set"), run.record.get("test_fingerprint")
    if not counts:
        return {}
    return {TEST_SET: f"{sum(counts.values()):,} samples" + (f", {digest}" if digest else "")}


def other_tests(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs are known to be tested on other samples; a digest that only one states tells nothing."""
    a, b = (str(setting.get(TEST_SET) or "").split(", ") for setting in (one, other))
    return "" not in (a[0], b[0]) and any(x != y for x, y in zip(a, b, strict=False))


def says_change(change: Mapping[str, Any]) -> str:
    """A recorded change in words."""
    return f"{change['field']} {shown(change['old'])} to {shown(change['new'])} from step {change['step']:,}"


def digest_of(setting: Mapping[str, Any]) -> str | None:
    """12 hex digits, equal for runs of one setting; None for a run that doesn't say what it was."""
    if "rule" not in setting or setting.get("config") == "unknown":  # a loop of one's own, of which nothing is stated
        return None
    return hashlib.sha256(json.dumps(setting, sort_keys=True, default=str).encode()).hexdigest()[:12]


def differing(one: Mapping[str, Any], other: Mapping[str, Any], but: Iterable[str] = ()) -> list[str]:
    """Names of the settings that differ, or that only one of them states, sorted; without those of `but`.

    Of test sets only two that are known differ (`other_tests`).
    """
    names = ({*one} | {*other}) - {*but, TEST_SET}
    found = {n for n in names if (n in one) != (n in other) or one[n] != other[n]}
    return sorted(found | ({TEST_SET} if other_tests(one, other) else set()))


def says_difference(one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> str:
    """`lr 0.001 against 0.01, ...`: the first few of the names with both values."""
    names = list(names)
    each = [
        f"{name.replace('_', ' ')} {shown(one.get(name, _UNSTATED))} against {shown(other.get(name, _UNSTATED))}"
        for name in names[:SHOWN]
    ]
    return ", ".join(each) + (f" and {len(names) - SHOWN} more settings" if len(names) > SHOWN else "")


def unfair(run: Mapping[str, Any], baseline: Mapping[str, Any], everything: bool) -> list[str]:
    """The settings in which a baseline differs though its choice (or its sizes) isn't why.

    A baseline that looks at no il states none, which is no difference; two different tables are one.
    """
    but = OF_THE_RULE | (OF_THE_SIZES if everything else set())
    if run.get("il") is None or baseline.get("il") is None:
        but = but | {"il"}
    return differing(run, baseline, but)


def shown(value: Any) -> str:
    """A value in a sentence: on one line, and a long one shortened in its middle."""
    return one_line((f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)), 40)
