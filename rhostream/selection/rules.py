"""The selection rules, as pure functions from what one forward gives to a score; the top n_b by score are kept.

    uniform       a random n_b, no forward                       (the baseline)
    loss          L                                              (Loshchilov & Hutter 2015; Kawaguchi & Lu 2020)
    irreducible   -il                                            (the paper's negative IL)
    rho           L - il                                         (Algorithm 1, line 7)

A user's own rule is `package.module:function` with the same signature: (loss_B, il_B, logits_BC) -> score_B.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rhostream.errors import UnknownNameError, UsageError

Score = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rule:
    """A named score and what it needs."""

    name: str
    score: Score | None  # None: no forward, a random choice
    needs_il: bool = False


def score_loss(loss_B: Tensor, il_B: Tensor, logits_BC: Tensor) -> Tensor:
    """The training loss: hard points first, noisy ones too."""
    return loss_B


def score_irreducible(loss_B: Tensor, il_B: Tensor, logits_BC: Tensor) -> Tensor:
    """Minus the irreducible loss: easy points first, learnt ones too."""
    return -il_B


def score_rho(loss_B: Tensor, il_B: Tensor, logits_BC: Tensor) -> Tensor:
    """The reducible holdout loss: training loss minus irreducible loss (paper, Eq. 3 and Algorithm 1)."""
    return loss_B - il_B


RULES = {
    rule.name: rule
    for rule in (
        Rule("uniform", None),
        Rule("loss", score_loss),
        Rule("irreducible", score_irreducible, needs_il=True),
        Rule("rho", score_rho, needs_il=True),
    )
}


def find_rule(name: str) -> Rule:
    """A built-in rule, or the user's `package.module:function` (which is taken to need il).

    Raises UnknownNameError, UsageError.
    """
    if ":" not in name:
        if name not in RULES:
            raise UnknownNameError.of("rule", name, RULES)
        return RULES[name]
    module, _, function = name.partition(":")
    try:
        score = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as exc:
        raise UsageError(f"rule {name!r}: {exc}; expected package.module:function on the Python path") from exc
    return Rule(name, score, needs_il=True)


def cap(loss_B: Tensor, il_B: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Both losses clipped at ln C, the loss of a guess. Ours, not the paper's.

    A noisy IL model makes the score of a wrong label the difference of two large losses; beyond a guess's loss there
    is nothing left to reduce.
    """
    ceiling = math.log(classes)
    return loss_B.clamp(max=ceiling), il_B.clamp(max=ceiling)


def top(score_B: Tensor, n: int) -> Tensor:
    """Rows of the n largest finite scores, ties to the lower row, in ascending row order: (min(n, finite),) int64.

    `topk` and descending `argsort` put NaN first and break ties in any order; this does neither.
    """
    return leading(score_B, min(n, int(torch.isfinite(score_B).sum())))


def leading(score_B: Tensor, n: int) -> Tensor:
    """Like `top`, but always n rows (all, where there are fewer), those that are not finite last: (n,) int64.

    It asks the device for nothing, so a shortlist costs no wait; whoever comes after looks at finiteness again.
    """
    ranked = torch.where(torch.isfinite(score_B), score_B, -torch.inf).argsort(descending=True, stable=True)
    return ranked[:n].sort().values


def choose(score_B: Tensor, chance_B: Tensor, n: int, best: Callable[[Tensor, int], Tensor] = top) -> Tensor:
    """Rows to keep, ascending, on the device of `score_B`: the `best`, and of the chance rows their fair share.

    `chance_B` (bool, on the host) marks rows without an il, which compete by chance: evenly spread over their rows.
    """
    missing = torch.nonzero(chance_B).flatten()
    if not len(missing):
        return best(score_B, n)
    share = min(len(missing), round(n * len(missing) / len(score_B)))
    picked = missing[torch.linspace(0, len(missing) - 1, share).round().long()] if share else missing[:0]
    others = torch.nonzero(~chance_B).flatten().to(score_B.device)
    chosen = others[best(score_B[others], n - len(picked))]
    return torch.cat([chosen, picked.to(score_B.device)]).sort().values
