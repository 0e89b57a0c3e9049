"""What can't go together with a rule, refused by name. Without NumPy and torch, as `--help` waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhostream.errors import UsageError
from rhostream.selection.rules import Rule

AUTO = "auto"  # the ratio that scores decide
_REORDER = ("clip", "gumbel")  # options that leave no row out


def refuse(given: Mapping[str, Any], why: str) -> None:
    """Raise UsageError for the first that is set; `why` has a place for its name."""
    for name, value in given.items():
        if value not in (None, False, 0, ()):
            raise UsageError(why.format(name.replace("_", "-")))


def require_auto(rule: Rule, others: Mapping[str, Any]) -> None:
    """For `--ratio auto`: raise UsageError for a rule whose scores aren't losses against an il, and for `others`, the
    shortlist and options that re-rank, which can leave rows out."""
    if rule.score is None or rule.live or rule.joint or rule.sampled or {*rule.takes} != {"loss_B", "il_B"}:
        what = "looks at more than these, or at one of them" if rule.needs_il else "has no il"
        raise UsageError(
            f"--ratio auto goes by how far losses lie above their il, and the rule {rule.name} {what}: take --rule rho"
        )
    refuse(
        {name: value for name, value in others.items() if name not in _REORDER},
        "--{} leaves rows of a buffer out, and --ratio auto has to know the scores of all, and may keep them all",
    )


def require_shadows(rule: Rule, shadows: Sequence[Rule], columns: bool) -> None:
    """Raise UsageError for a shadow that would need what the rule doesn't make; `columns`: some are named."""
    for one in shadows:
        if one.joint:
            raise UsageError(f"--shadow {one.name} chooses rows together and has no score of each: take another")
        if one.needs_columns and not columns:
            raise UsageError(f"--shadow {one.name} looks at columns of the table: name them with --column NAME,...")
        if one.needs_draws and not rule.needs_draws:
            raise UsageError(
                f"--shadow {one.name} needs forwards with dropout on, which the rule {rule.name} "
                "doesn't make: a shadow costs no forward (--rule bald makes them)"
            )
        if one.live and not rule.live:
            raise UsageError(
                f"--shadow {one.name} needs an IL model that learns along, which the rule {rule.name} "
                "doesn't have: a shadow costs no forward"
            )
