"""What an experiment is, as data: shards, IL tables and runs, each known by its content, and arms to compare.

Nothing here does anything. A folder's name is made of what lies in it, so experiments share shards, tables and runs,
and a changed setting is another folder, never a resume that is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhostream.errors import MismatchError, UnknownNameError

Options = Mapping[str, Any]
DEFAULTS: dict[str, Any] = {"buffer_size": 320, "batch_size": 32, "model": "mlp-512"}
FACTS = {"is_noisy": "bool", "true_label": "int"}


def digest(value: Any) -> str:
    """Eight letters of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Shards:
    """One call of `python -m shards.make`; `source` names the data set whose files the user must have, if any.

    `labels` names another, of labels for those images.
    """

    arguments: tuple[str, ...]
    source: str | None = None
    labels: str | None = None

    @property
    def files(self) -> dict[str, str]:
        """Option of the recipe -> name of the data set that it points to."""
        found = {"--source": self.source, "--labels": self.labels}
        return {option: name for option, name in found.items() if name is not None}

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipe, and the base of one that has a base."""
        at = self.arguments.index("--base") + 1 if "--base" in self.arguments else 0
        return (self.arguments[0], self.arguments[at]) if at else (self.arguments[0],)

    @property
    def folder(self) -> str:
        """Below `<out>/shards`."""
        return f"{self.recipes[-1]}-{digest(self.arguments)}"


@dataclass(frozen=True, kw_only=True)
class IL:
    """An IL table of D: settings of `fit_il`; `holdout` None means a split of D itself, cross-fit unless `fit` says.

    `balance_of`, `checkpoint`: filled in by options of `fit_il` that not every version has; what is missing is said.
    """

    fit: Options
    holdout: Shards | None = None


@dataclass(frozen=True, kw_only=True)
class World:
    """D, its test set and its IL tables by name."""

    name: str
    says: str  # what D and the holdout are, noise of both included
    train: Shards
    test: Shards
    ils: Mapping[str, IL]
    samples: int  # of D, to count passes
    keep: Options = field(default_factory=lambda: dict(FACTS))

    def il_folder(self, name: str) -> str:
        """Below `<out>/il`, whatever the world is called. Raises UnknownNameError for an IL that it doesn't have."""
        if name not in self.ils:
            raise UnknownNameError.of(f"IL of {self.name}", name, self.ils)
        il = self.ils[name]
        asked = [self.train.arguments, dict(il.fit), il.holdout.arguments if il.holdout else None, dict(self.keep)]
        model = "".join(c if c.isalnum() or c in "-." else "_" for c in str(il.fit["model"]))
        return f"{self.train.recipes[-1]}-{model}-{digest(asked)}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train in a world; `baselines` are the arms it is paired with: names in its world, or labels.

    `equal`: arms that it is read against where both have spent the same forward units, at the end of its own budget:
    the IL model charged to it, and not. `train`: keyword arguments of `rhostream.train`. `needs`: options of train that
    name files of this program: "il_model" (the folder of its IL model) and "svp" (a keep-list by `jobs.svp`).
    """

    name: str
    world: World
    steps: int
    eval_every: int
    train: Options = field(default_factory=dict)
    il: str = "il"
    baselines: tuple[str, ...] = ("uniform",)
    needs: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()
    units: float | None = None  # evaluations beyond so many forward units aren't read: of an arm that chooses its cost

    @property
    def settings(self) -> dict[str, Any]:
        """All of `train`'s arguments but paths, seed and steps."""
        return {**DEFAULTS, **self.train}

    @property
    def label(self) -> str:
        """World and arm, unique in an experiment."""
        return f"{self.world.name}: {self.name}"

    def folder(self, seed: int) -> str:
        """Below `<out>/runs`. More steps are more of the same run, so they are no part of its name."""
        asked = [self.world.train.arguments, self.world.test.arguments, self.world.il_folder(self.il), self.settings,
                 self.eval_every, self.needs]  # fmt: skip
        safe = "".join(c if c.isalnum() or c in "-." else "_" for c in self.name)
        return f"{self.world.name}-{safe}-{digest(asked)}-s{seed}"

    def passes(self, step: int) -> float:
        """Looks at D after that many steps."""
        return float(step * self.settings["buffer_size"] / self.world.samples)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The same experiment at one size."""

    says: str
    arms: Sequence[Arm]
    seeds: int
    targets: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # world -> accuracies
    after: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # world -> steps to compare accuracies at

    @property
    def worlds(self) -> list[World]:
        """Each once, in the order of the arms."""
        return list({arm.world.name: arm.world for arm in self.arms}.values())

    def baselines(self, arm: Arm) -> list[Arm]:
        """The arms that it is paired with. Raises UnknownNameError, MismatchError for one of another test set."""
        found = self._named(arm, arm.baselines)
        for other in found:
            _require_shared(arm, other, ("test",))
        return found

    def equals(self, arm: Arm) -> list[Arm]:
        """The arms that it is read against at equal units.

        Raises UnknownNameError, and MismatchError for one of another D or another test set: no cost makes them equal.
        """
        found = self._named(arm, arm.equal)
        for other in found:
            _require_shared(arm, other, ("train", "test"))
        return found

    def _named(self, arm: Arm, names: tuple[str, ...]) -> list[Arm]:
        named = {other.label: other for other in self.arms}
        mine = {other.name: other for other in self.arms if other.world.name == arm.world.name}
        for name in names:
            if name not in mine and name not in named:
                raise UnknownNameError.of(f"baseline of {arm.label}", name, [*mine, *named])
        return [mine.get(name) or named[name] for name in names]


def _require_shared(arm: Arm, other: Arm, names: Sequence[str]) -> None:
    for name in names:
        mine, theirs = (getattr(one.world, name).arguments for one in (arm, other))
        if mine != theirs:
            raise MismatchError(
                f"{arm.label} and {other.label} can't be compared: they don't share "
                f"{'D' if name == 'train' else 'the test set'} ({name}: {' '.join(mine)} against {' '.join(theirs)})"
            )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something the paper claims, and which of our comparisons says whether it points the same way here.

    `metric` is how the comparison's begins. Of speed-ups the interval of the seeds is held against `beyond` (NR is
    short of every bound), of accuracies and shares the paired difference to `baseline`. Claims of the same words are
    one claim in several settings.
    """

    says: str
    paper: str  # its number, as it is printed there
    world: str
    arm: str
    metric: str
    baseline: str = "uniform"
    beyond: float = 0.0
    less: bool = False  # it claims less than `beyond`, not more


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One of the paper's experiments."""

    name: str
    title: str
    where: str  # in the paper
    scales: Mapping[str, Scale]  # quick, small, full
    claims: Sequence[Claim] = ()
    shares: tuple[str, ...] = ()  # of measure.SHARES, for each arm
    figure: str = "curves"  # of figures.FIGURES
    drawn: tuple[str, ...] = ()  # of "cost bands": these arms alone
    notes: tuple[str, ...] = ()  # what is decided here, and what the experiment does not show
