"""The selection rules, as pure functions from what one forward gives to a score; the top n_b by score are kept.

    uniform                         a random n_b, no forward             (the baseline)
    loss                            L                                    (Loshchilov & Hutter 2015; Kawaguchi & Lu 2020)
    small_loss                      -L                                   (small-loss selection: Han et al. 2018)
    grad_norm                       |p - y|, the gradient at the logits  (Katharopoulos & Fleuret 2018, an upper bound)
    grad_norm_is                    the same, by importance sampling     (Katharopoulos & Fleuret 2018)
    irreducible                     -il                                  (the paper's negative IL)
    rho                             L - il                               (Algorithm 1, line 7)
    rho_updated                     L - il of a model that learns along  (Eq. 3 as it stands; paper, App. D)
    entropy                         H[mean p_k]                          (of K dropout draws p_k: Gal et al. 2017)
    conditional_entropy             mean H[p_k]
    bald                            H[mean p_k] - mean H[p_k]            (Houlsby et al. 2011)
    loss_minus_conditional_entropy  L - mean H[p_k]
    column                          a kept field of the table            (any classifier's score, a similarity)

and joint rules of pairs, which choose rows by who else is chosen (`joint.py`):

    jest                            by joint learnability, drawn         (Evans et al. 2024)
    jest_top                        the same, the largest
    divbs                           what spans the sum of the features   (Hong et al. 2024)

A function asks for what it needs by the names of its parameters (`INPUTS`, a joint one `JOINT`), so that what a rule
costs follows from its signature. A user's own rule is `package.module:function`, by the same names.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rhostream.errors import UnknownNameError, UsageError, users_code
from rhostream.own_code import own_function
from rhostream.selection.joint import JOINT, choose_divbs, choose_jest, choose_jest_top

if TYPE_CHECKING:  # the names of the rules are asked for by --help, which has no time to import torch
    from torch import Tensor

Score = Callable[..., Any]  # to a Tensor (B,); of a joint rule to what `joint.chosen` takes
INPUTS = {
    "loss_B": "the training loss of each candidate, nats",
    "il_B": "its irreducible loss, nats",
    "logits_BC": "the model's logits",
    "label_B": "the label as given",
    "draws_KBC": "K logits with dropout on (MC dropout)",
    "similarity_B": "the table's similarity of image and caption, a cosine",
    "column_B": "{name: (B,)} of the table's columns that --column names",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one forward gives of B candidates, on its device."""

    loss_B: Tensor  # float32, nats
    il_B: Tensor  # float32, nats; NaN where there is none
    logits_BC: Tensor  # float32; with dropout draws the logarithm of their mean probabilities
    label_B: Tensor
    draws_KBC: Tensor | None = None
    column_B: Mapping[str, Tensor] = field(default_factory=dict)  # of the table, float32; NaN where there is none

    @property
    def similarity_B(self) -> Tensor:
        return self.column_B["similarity"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A named score, or a joint choice, what it needs, and how the n_b are taken by it."""

    name: str
    score: Score | None  # None: no forward, a random choice; of a joint rule the function that chooses
    takes: tuple[str, ...] = ()  # its parameters in their order, by the names of INPUTS, or of JOINT
    sampled: bool = False  # n_b draws with replacement in proportion to the score, weighted; else the largest n_b
    live: bool = False  # its il is that of a model that learns along
    joint: bool = False  # it chooses rows itself, from the vectors of pairs: `joint.chosen`

    @property
    def needs_il(self) -> bool:
        """Whether a row without an il, or without what was made along with it, can't be chosen by it."""
        return "il_B" in self.takes or self.needs_reference

    @property
    def needs_draws(self) -> bool:
        return "draws_KBC" in self.takes

    @property
    def needs_reference(self) -> bool:
        """Whether it takes the vectors that the table's reference gave (`--vectors` of compute-il)."""
        return self.joint and "reference" in self.takes

    @property
    def needs_similarity(self) -> bool:
        return "similarity_B" in self.takes

    @property
    def needs_columns(self) -> bool:
        """Whether it looks at columns that an option has to name."""
        return "column_B" in self.takes

    @property
    def takes_columns(self) -> bool:
        """Whether it can look at columns that an option names."""
        return self.needs_columns or (self.joint and "columns" in self.takes)

    def __call__(self, evidence: Evidence) -> Tensor:
        """The score (B,) of each candidate. Raises UsageError when the rule's function returns anything else."""
        from torch import Tensor

        from rhostream.selection.outputs import described

        assert self.score is not None
        with users_code(f"rule {self.name!r}"):
            score: Any = self.score(*(getattr(evidence, name) for name in self.takes))
        shape = evidence.loss_B.shape
        if not isinstance(score, Tensor) or score.shape != shape:
            raise UsageError(
                f"rule {self.name!r} returned {described(score)}, expected a tensor with one score for "
                f"each candidate, shape {tuple(shape)}"
            )
        found: Tensor = score.float()
        return found


# -- the scores ------------------------------------------------------------------------------------------------------


def score_loss(loss_B: Tensor) -> Tensor:
    """The training loss: hard points first, noisy ones too."""
    return loss_B


def score_small_loss(loss_B: Tensor) -> Tensor:
    """Minus the training loss: what is probably labelled right, and mostly learnt already."""
    return -loss_B


def score_grad_norm(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """The norm of the loss's gradient at the logits, |softmax(z) - y|_2: (B,) in [0, sqrt(2)]."""
    import torch

    p_BC = logits_BC.softmax(1)
    rows = torch.arange(len(p_BC), device=p_BC.device)
    gradient_BC = p_BC.index_put((rows, label_B), p_BC[rows, label_B] - 1)
    return gradient_BC.square().sum(1).sqrt()


def score_irreducible(il_B: Tensor) -> Tensor:
    """Minus the irreducible loss: easy points first, learnt ones too."""
    return -il_B


def score_rho(loss_B: Tensor, il_B: Tensor) -> Tensor:
    """The reducible holdout loss: training loss minus irreducible loss (paper, Eq. 3 and Algorithm 1)."""
    return loss_B - il_B


def score_entropy(draws_KBC: Tensor) -> Tensor:
    """The entropy of the mean prediction, nats: (B,)."""
    return entropy(mean_prediction(draws_KBC))


def score_conditional_entropy(draws_KBC: Tensor) -> Tensor:
    """The mean entropy of the predictions, nats: what no look at the label would resolve."""
    return entropy(draws_KBC).mean(0)


def score_bald(draws_KBC: Tensor) -> Tensor:
    """The mutual information between label and weights, nats: entropy minus conditional entropy."""
    return score_entropy(draws_KBC) - score_conditional_entropy(draws_KBC)


def score_loss_minus_conditional_entropy(loss_B: Tensor, draws_KBC: Tensor) -> Tensor:
    """The training loss minus what of it the model takes for noise, nats."""
    return loss_B - score_conditional_entropy(draws_KBC)


def score_column(column_B: Mapping[str, Tensor]) -> Tensor:
    """The one column of the table that --column names, the largest first."""
    if len(column_B) != 1:
        raise UsageError(
            f"the rule column goes by one column of the table, and --column names {', '.join(column_B) or 'none'}"
        )
    (value_B,) = column_B.values()
    return value_B


def mean_prediction(draws_KBC: Tensor) -> Tensor:
    """Log of the mean of K softmaxes: (B, C), logits of the mean prediction."""
    return draws_KBC.log_softmax(2).logsumexp(0) - math.log(len(draws_KBC))


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax over the last dimension, nats."""
    import torch

    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)  # 0 log 0 is 0


# -- the registry ----------------------------------------------------------------------------------------------------


def make_rule(name: str, score: Score | None, *, sampled: bool = False, live: bool = False) -> Rule:
    """A rule whose needs are read off its function's parameters. Raises UsageError for one that no forward gives.

    The suffix of the shape may be left out (`loss` for `loss_B`); what has a default value and another name keeps it.
    One that takes `learner` is joint.
    """
    if score is None:
        return Rule(name, None)
    try:
        parameters = list(inspect.signature(score).parameters.values())
    except (TypeError, ValueError) as exc:
        raise UsageError(f"rule {name!r}: {exc}; expected a function of {', '.join(INPUTS)}") from exc
    joint = any(parameter.name == "learner" for parameter in parameters)
    known = {one: one for one in JOINT}
    if not joint:
        known = {short: full for full in INPUTS for short in (full, full.partition("_")[0])}
    takes = []
    for parameter in parameters:
        if parameter.name in known and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            takes.append(known[parameter.name])
        elif parameter.default is parameter.empty:
            near = difflib.get_close_matches(parameter.name, known, n=1)
            hint = f"; did you mean {known[near[0]]}?" if near else ""
            kind, gives = ("a joint rule", JOINT) if joint else ("a rule", INPUTS)
            raise UsageError(
                f"rule {name!r} takes {parameter.name!r}, which no forward gives{hint} ({kind} is a "
                f"function of any of {', '.join(gives)}, by position)"
            )
        else:
            break  # nothing after a default value can be given by position
    return Rule(name, score, tuple(takes), sampled, live, joint)


RULES = {
    rule.name: rule
    for rule in (
        make_rule("uniform", None),
        make_rule("loss", score_loss),
        make_rule("small_loss", score_small_loss),
        make_rule("grad_norm", score_grad_norm),
        make_rule("grad_norm_is", score_grad_norm, sampled=True),
        make_rule("irreducible", score_irreducible),
        make_rule("rho", score_rho),
        make_rule("rho_updated", score_rho, live=True),
        make_rule("entropy", score_entropy),
        make_rule("conditional_entropy", score_conditional_entropy),
        make_rule("bald", score_bald),
        make_rule("loss_minus_conditional_entropy", score_loss_minus_conditional_entropy),
        make_rule("column", score_column),
        make_rule("jest", choose_jest),
        make_rule("jest_top", choose_jest_top),
        make_rule("divbs", choose_divbs),
    )
}


def find_rule(name: str) -> Rule:
    """A built-in rule, or the user's `package.module:function`. Raises UnknownNameError, UsageError."""
    if ":" not in name:
        if name not in RULES:
            raise UnknownNameError.of("rule", name, [*RULES, "package.module:function"])
        return RULES[name]
    return make_rule(name, own_function("rule", name))


def cap(loss_B: Tensor, il_B: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Both losses clipped at ln C, the loss of a guess. Ours, not the paper's.

    A noisy IL model makes the score of a wrong label the difference of two large losses; beyond a guess's loss there
    is nothing left to reduce.
    """
    ceiling = math.log(classes)
    return loss_B.clamp(max=ceiling), il_B.clamp(max=ceiling)
