"""The options that any rule takes: read from what a user writes, and refused where a rule can't have them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rhostream.errors import UnknownNameError, UsageError
from rhostream.selection.quota import ClassQuota, parse_quota
from rhostream.selection.rules import Rule, find_rule
from rhostream.selection.schedule import Schedule, parse_ratios


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options on a rule; docs/rules.md says what each is for. Raises UsageError for a value that can't be."""

    clip: bool = False  # scores below 0 count as 0, and those that are equal are ranked by chance
    gumbel: float | None = None  # temperature: Gumbel top-k, a draw without replacement from softmax(score / T)
    warm_up: int = 0
    stop_after: int | None = None
    uniform_every: int | None = None
    ratio: str | float | None = None  # "0:0.5,1000:0.1"
    class_quota: str | float | None = None  # a share, "balanced", "reducr" or "reducr:ETA"
    deduplicate: float | None = None  # correlation of small grey views from which two pictures count as one
    tau: bool = False  # grad_norm_is: sample by importance only while it pays
    mc_draws: int = 10  # K forwards with dropout on
    shadow: str | Iterable[str] | None = None  # rules whose choice is noted from the same forward

    def __post_init__(self) -> None:
        if self.gumbel is not None and not 0 < self.gumbel < math.inf:
            raise UsageError(f"--gumbel {self.gumbel:g}: expected a temperature above 0, in units of the score")
        if self.deduplicate is not None and not 0 < self.deduplicate <= 1:
            raise UsageError(f"--deduplicate {self.deduplicate:g}: expected a correlation above 0 and at most 1")
        if self.mc_draws < 1:
            raise UsageError(f"--mc-draws {self.mc_draws}: expected at least 1")
        _ = self.schedule, self.quota, self.shadows

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From keyword arguments. Raises UnknownNameError for one that is no option."""
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise UnknownNameError.of("option of a rule", name, names)
        return cls(**given)

    @property
    def schedule(self) -> Schedule:
        return Schedule(warm_up=self.warm_up, stop_after=self.stop_after, uniform_every=self.uniform_every,
                        ratios=parse_ratios(self.ratio))

    @property
    def quota(self) -> ClassQuota | None:
        return parse_quota(self.class_quota)

    @property
    def shadows(self) -> tuple[Rule, ...]:
        """The shadow rules, each once, in the order in which they were named."""
        names = self.shadow.split(",") if isinstance(self.shadow, str) else self.shadow or ()
        return tuple(find_rule(name) for name in dict.fromkeys(n.strip() for n in names if n.strip()))

    def check(self, rule: Rule, *, shortlist: bool = False, live: bool = False) -> None:
        """Raise UsageError for what this rule can't have."""
        if rule.score is None:
            useless = {"clip": self.clip, "gumbel": self.gumbel, "deduplicate": self.deduplicate,
                       "shadow": self.shadows, "warm-up": self.warm_up, "stop-after": self.stop_after,
                       "uniform-every": self.uniform_every,
                       "class-quota reducr": self.quota is not None and self.quota.kind == "reducr"}
            _refuse(useless, "--{} needs scores, and the rule uniform makes no forward")
        if rule.sampled:
            _refuse({"gumbel": self.gumbel, "class-quota": self.class_quota, "deduplicate": self.deduplicate,
                     "shortlist": shortlist},
                    f"--{{}} would bias the rule {rule.name}, whose weights make its draws stand for the whole buffer; "
                    "take --rule grad_norm")
        if self.tau and not rule.sampled:
            raise UsageError(f"--tau is when importance sampling pays: it goes with --rule grad_norm_is, not "
                             f"{rule.name}")
        if rule.live and not live:
            raise UsageError(f"the rule {rule.name} needs an IL model that learns along: give --il-model DIR, the one "
                             "that the table was made with")
        for one in self.shadows:
            if one.needs_draws and not rule.needs_draws:
                raise UsageError(f"--shadow {one.name} needs forwards with dropout on, which the rule {rule.name} "
                                 "doesn't make: a shadow costs no forward (--rule bald makes them)")
            if one.live and not rule.live:
                raise UsageError(f"--shadow {one.name} needs an IL model that learns along, which the rule {rule.name} "
                                 "doesn't have: a shadow costs no forward")

    def changed(self) -> dict[str, Any]:
        """The options that aren't at their default, as plain values."""
        found = {field.name: getattr(self, field.name) for field in fields(self)
                 if getattr(self, field.name) != field.default}
        found |= {name: str(found[name]) for name in ("ratio", "class_quota") if name in found}
        if self.shadows:
            found["shadow"] = ",".join(rule.name for rule in self.shadows)
        else:
            found.pop("shadow", None)
        return found


def _refuse(given: Mapping[str, Any], why: str) -> None:
    for name, value in given.items():
        if value not in (None, False, 0, ()):
            raise UsageError(why.format(name))
