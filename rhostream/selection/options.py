"""The options that any rule takes: read from what a user writes, and refused where a rule can't have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from rhostream.errors import UnknownNameError, UsageError
from rhostream.selection.clashes import AUTO, refuse, require_auto, require_shadows
from rhostream.selection.rules import RULES as KNOWN
from rhostream.selection.rules import Rule, find_rule
from rhostream.selection.schedule import Schedule, parse_ratios
from rhostream.setting import ASKED, CHOICE, RULES, check_types, defaults_of, setting, settings_of

if TYPE_CHECKING:
    from rhostream.selection.adjust.shape import Adjust
    from rhostream.selection.quota import ClassQuota
    from rhostream.selection.source_quota import SourceQuota

_OF_CLASSES = {"logits_BC", "label_B", "draws_KBC"}  # what a built-in rule takes of classes
Make = Callable[[Any], Any]  # an option's value to its `Adjust`, or to a function of (scores (B,), the buffer)


def option(default: Any, help: str, *, words: str | None = "", adjust: str | Make | None = None, **says: Any) -> Any:
    """A field of `Options`. `words`: in the names of runs, before its value; "" for its own name, None for nothing.

    `adjust`, where it re-ranks: the file of `selection/adjust/` whose `make` takes its value, or such a function.
    """
    return setting(
        default, help=help, heading=RULES, pin=ASKED, fixed=CHOICE, part="rule", words=words, adjust=adjust, **says
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options on a rule; docs/options.md says what each is for. Raises UsageError for a value that can't be.

    One that re-ranks is told here in one field, with its `adjust`.
    """

    adjust: str | None = option(
        None,
        "Your own function that re-ranks: module:name of (scores, buffer); before the other options.",
        metavar="MODULE:NAME",
        imports=True,
        words="adjusted by",
        adjust="own",
    )
    gumbel: float | None = option(
        None, "Draw without replacement from softmax(score / T): Gumbel top-k.", metavar="T", adjust="gumbel"
    )
    warm_up: int = option(0, "Uniform for the first N steps.", metavar="N", words="warm-up of")
    stop_after: int | None = option(None, "Uniform from step N on.", metavar="N", words="stop after")
    uniform_every: int | None = option(None, "One step in K is uniform.", metavar="K", words="uniform every")
    ratio: str | float | None = option(
        None,
        "From step s on keep that share of the buffer: 0:0.5,1000:0.1. auto: look only while it pays.",
        metavar="STEP:SHARE,...|auto",
    )
    class_quota: str | float | None = option(
        None,
        "No class has more than the share F of a batch; equal shares; at most 1.5 (TIMES) times its share of the "
        "buffer; or class weights that follow the classes' excess losses.",
        metavar="F|balanced|mild[:TIMES]|reducr[:ETA]",
        words="class quota",
        adjust="class_quota",
    )
    source_floor: Mapping[str, float] | Iterable[str] | None = option(
        None,
        "At least that share of a batch is of the source NAME, as far as a buffer has samples of it (--sources).",
        metavar="NAME=SHARE",
        words="at least",
        adjust="source_floor",
    )
    source_cap: Mapping[str, float] | Iterable[str] | None = option(
        None,
        "At most that share of a batch is of the source NAME (--sources).",
        metavar="NAME=SHARE",
        words="at most",
        adjust="source_cap",
    )
    deduplicate: float | None = option(
        None,
        "Of pictures of one buffer whose small views correlate by R (0.95) only the best is kept.",
        metavar="R",
        words="no duplicates above",
        adjust="duplicates",
    )
    clip: bool = option(
        False, "Scores below 0 count as 0; equal ones are ranked by chance.", words="clipped at 0", adjust="clip"
    )
    tau: bool = option(False, "grad_norm_is: uniform until importance sampling pays.", adjust="tau")
    mc_draws: int = option(10, "Forwards with dropout on, for the rules that compare them.", metavar="K", words=None)
    column: str | Iterable[str] | None = option(
        None,
        "The columns of the table that the rule looks at: kept fields of numbers, or similarity.",
        metavar="NAME,...",
        joined=True,
        words="by",
    )
    joint_chunks: int = option(
        16, "Of a joint rule (jest): how many chunks it chooses in.", metavar="N", words="chunks"
    )
    joint_negatives: float = option(
        1.0, "Of a joint rule: how much the other pairs of a batch weigh.", metavar="W", words="negatives weigh"
    )
    shadow: str | Iterable[str] | None = option(
        None,
        "Also log what these rules would have kept of the same forward.",
        metavar="RULE,...",
        joined=True,
        imports=True,
        words=None,
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.source_floor is not None or self.source_cap is not None:
            from rhostream.selection.source_quota import parse_shares

            for name in ("source_floor", "source_cap"):
                shares = parse_shares(f"--{name.replace('_', '-')}", getattr(self, name))
                object.__setattr__(self, name, shares)
        if self.gumbel is not None and not 0 < self.gumbel < math.inf:
            raise UsageError(f"--gumbel {self.gumbel:g}: expected a temperature above 0, in units of the score")
        if self.deduplicate is not None and not 0 < self.deduplicate <= 1:
            raise UsageError(f"--deduplicate {self.deduplicate:g}: expected a correlation above 0 and at most 1")
        if self.mc_draws < 1:
            raise UsageError(f"--mc-draws {self.mc_draws}: expected at least 1")
        if self.joint_chunks < 1:
            raise UsageError(f"--joint-chunks {self.joint_chunks}: expected at least 1")
        if not 0 < self.joint_negatives < math.inf:
            raise UsageError(f"--joint-negatives {self.joint_negatives:g}: expected a weight above 0")
        _ = self.kept_schedule, self.quota, self.source_quota, self.shadows, self.adjusts

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From keyword arguments. Raises UnknownNameError for one that is no option."""
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise UnknownNameError.of("option of a rule", name, names)
        return cls(**given)

    @property
    def kept_schedule(self) -> Schedule:
        return Schedule(
            warm_up=self.warm_up,
            stop_after=self.stop_after,
            uniform_every=self.uniform_every,
            ratios=parse_ratios(None if self.auto else self.ratio),
        )

    @property
    def auto(self) -> bool:
        """Whether scores decide how much of a buffer is kept."""
        return self.ratio == AUTO

    def require_sizes(self, batch_size: int, buffer_size: int) -> None:
        """Raise UsageError for a `ratio` that keeps nothing of such a buffer, or leaves `auto` no choice in it."""
        self.kept_schedule.require_kept(buffer_size)
        if self.auto:
            from rhostream.selection.ratio import rungs  # NumPy

            rungs(batch_size, buffer_size)

    @property
    def quota(self) -> ClassQuota | None:
        from rhostream.selection.quota import parse_quota  # NumPy: too slow for --help

        return parse_quota(self.class_quota)

    @property
    def source_quota(self) -> SourceQuota | None:
        if self.source_floor is None and self.source_cap is None:
            return None
        from rhostream.selection.source_quota import SourceQuota

        floors, caps = (cast("Mapping[str, float] | None", given) for given in (self.source_floor, self.source_cap))
        return SourceQuota.of(floors, caps)

    @property
    def shadows(self) -> tuple[Rule, ...]:
        """The shadow rules, each once, in the order in which they were named."""
        return tuple(find_rule(name) for name in _listed(self.shadow))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that --column names, each once."""
        return _listed(self.column)

    def columns_for(self, rule: Rule) -> tuple[str, ...]:
        """Every column of the table that the rule, its shadows or an option of one's own may look at."""
        similar = any(one.needs_similarity for one in (rule, *self.shadows))
        return tuple(dict.fromkeys([*self.columns, *(["similarity"] if similar else [])]))

    def check(self, rule: Rule, *, shortlist: bool = False, live: bool = False) -> None:
        """Raise UsageError for what this rule can't have."""
        reranks: dict[str, Any] = {**self._reranks}
        if self.auto:
            require_auto(rule, {"shortlist": shortlist, **reranks})
        if rule.score is None:
            if self.quota is not None and self.quota.kind != "reducr":
                del reranks["class_quota"]
            reranks = {name: value for name, value in reranks.items() if name not in ("source_floor", "source_cap")}
            useless = {
                **reranks,
                "shadow": self.shadows,
                "warm_up": self.warm_up,
                "stop_after": self.stop_after,
                "uniform_every": self.uniform_every,
            }
            refuse(useless, "--{} needs scores, and the rule uniform makes no forward")
        if rule.joint:
            refuse(
                {**reranks, "shortlist": shortlist},
                f"--{{}} changes which rows are kept, and the rule {rule.name} chooses them together",
            )
        elif (self.joint_chunks, self.joint_negatives) != (16, 1.0):
            raise UsageError(f"--joint-chunks and --joint-negatives are of joint rules (jest), not of {rule.name}")
        if self.columns and not any(one.takes_columns for one in (rule, *self.shadows)):
            raise UsageError(f"--column {','.join(self.columns)}: the rule {rule.name} looks at no column of the table")
        if rule.needs_columns and not self.columns:
            raise UsageError(f"the rule {rule.name} looks at columns of the table: name them with --column NAME,...")
        if rule.sampled:
            refuse(
                {**{name: value for name, value in reranks.items() if name != "tau"}, "shortlist": shortlist},
                f"--{{}} would bias the rule {rule.name}, whose weights make its draws stand for the whole buffer; "
                "take --rule grad_norm",
            )
        if self.tau and not rule.sampled:
            raise UsageError(
                f"--tau is when importance sampling pays: it goes with --rule grad_norm_is, not {rule.name}"
            )
        if rule.live and not live:
            raise UsageError(
                f"the rule {rule.name} needs an IL model that learns along: give --il-model DIR, the one "
                "that the table was made with"
            )
        require_shadows(rule, self.shadows, bool(self.columns))

    def require_no_classes(self, rule: Rule, what: str, *, loss_cap: bool = False) -> None:
        """Raise UsageError for what looks at classes. `what`: what the samples have instead, in words.

        A user's own rule is given the model's output as `logits_BC` and the target as `label_B`.
        """
        for option, one in (("rule", rule), *(("shadow", one) for one in self.shadows)):
            if one.needs_draws or (":" not in one.name and _OF_CLASSES & {*one.takes}):
                fine = ", ".join(name for name, known in KNOWN.items() if not _OF_CLASSES & {*known.takes})
                raise UsageError(
                    f"--{option} {one.name} looks at the logits of classes, and {what}; expected one of {fine}"
                )
        if self.quota is not None:
            raise UsageError(f"--class-quota {self.class_quota} is for samples whose target is a class, and {what}")
        if loss_cap:
            raise UsageError(f"--loss-cap clips at the loss of a guess among classes, and {what}")

    @property
    def _reranks(self) -> dict[str, tuple[str | Make, Any]]:
        """The options that re-rank and are asked for: what makes each, and its value."""
        given = ((name, says.adjust, getattr(self, name)) for name, says in settings_of(Options).items())
        defaults = defaults_of(Options)
        return {name: (how, value) for name, how, value in given if how is not None and value != defaults[name]}

    @property
    def adjusts(self) -> tuple[Adjust, ...]:
        """What re-ranks, made anew, in the order in which it is applied. Raises UsageError."""
        if not (reranks := self._reranks):
            return ()
        from rhostream.selection.adjust.own import made  # NumPy, and some of them torch

        return tuple(sorted((made(name, *how) for name, how in reranks.items()), key=lambda adjust: adjust.turn))

    def changed(self) -> dict[str, Any]:
        """The options that aren't at their default, as plain values."""
        changed = {
            field.name: getattr(self, field.name)
            for field in fields(Options)
            if getattr(self, field.name) != field.default
        }
        changed |= {name: str(changed[name]) for name in ("ratio", "class_quota") if name in changed}
        for name in ("source_floor", "source_cap"):
            if name in changed:
                changed[name] = ", ".join(f"{one}={share:g}" for one, share in sorted(changed[name].items()))
        for name, several in (("shadow", [rule.name for rule in self.shadows]), ("column", self.columns)):
            changed.pop(name, None)
            if several:
                changed[name] = ",".join(several)
        return changed


def _listed(names: str | Iterable[str] | None) -> tuple[str, ...]:
    """What a text with commas, or several names, says: each once, in their order."""
    several = names.split(",") if isinstance(names, str) else names or ()
    return tuple(dict.fromkeys(name.strip() for name in several if name.strip()))
