"""From a stage's rows to scores: one forward (or K with dropout on), the loss, and what each rule makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rhostream.candidates import Candidates
from rhostream.errors import UsageError
from rhostream.randomness import torch_seed
from rhostream.samples.fields import Input
from rhostream.selection.contrastive import Pairs
from rhostream.selection.forward import Forward
from rhostream.selection.joint import chosen
from rhostream.selection.losses import LossFunction, per_sample, require_known
from rhostream.selection.pairs import Contrastive, InBuffer
from rhostream.selection.ranks import in_lockstep
from rhostream.selection.rules import Evidence, Rule, cap, mean_prediction
from rhostream.selection.shadow import shadow_scores
from rhostream.selection.stages import Rows, Stage, columns_of
from rhostream.selection.tokens import SequenceMean, correct_of

Bounds = tuple[int, int]  # the smallest and the largest label


def bounds_of(candidates: Candidates, rows: Rows) -> Bounds:
    """The smallest and the largest label of the rows, on the host; (0, -1) where there is none."""
    if candidates.target_field is not None:
        return 0, -1
    label = candidates.host.label[torch.from_numpy(rows)]
    return (int(label.min()), int(label.max())) if len(rows) and label.ndim == 1 else (0, -1)


class RuleScores:
    """Scores by a rule and its shadows; `draws` is K for a rule that compares forwards with dropout on, `columns` are
    those of the table that a rule looks at, `joint` what the options say to joint rules.

    Raises UsageError for a loss or a score of another shape, for labels that the model doesn't know, for a dropout that
    changes nothing, for a joint rule without a loss of pairs, and for candidates without what a rule looks at.
    """

    def __init__(
        self,
        rule: Rule,
        shadows: Sequence[Rule],
        loss: LossFunction,
        *,
        loss_cap: bool = False,
        seed: int = 0,
        draws: int = 10,
        rank: int = 0,
        columns: Sequence[str] = (),
        joint: Mapping[str, Any] | None = None,
    ) -> None:
        self.rule, self.shadows, self.loss, self.loss_cap = rule, shadows, loss, loss_cap
        self._columns, self._joint = columns, joint or {}
        if rule.joint and not isinstance(loss, Contrastive):
            raise UsageError(f"the rule {rule.name} chooses pairs together: it goes with --loss siglip or clip")
        self._seed, self._draws, self._rank = seed, draws, rank
        self._drawn = False
        self.classes: int | None = None  # of the newest forward; None where the target is no class

    def of_losses(self, loss: Tensor, il: Tensor, classes: int | None) -> Tensor:
        """The scores (m,) of a rule that looks at the loss and the il alone, without a forward."""
        return self.rule(self._capped(Evidence(loss, il, loss.new_zeros(len(loss), classes or 1), loss)))

    @torch.no_grad()  # a loss may have parameters
    def __call__(
        self,
        forward: Forward,
        stage: Stage,
        bounds: Bounds,
        step: int,
        n: int = 0,
        rng: np.random.Generator | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, `score`, `correct` (whether the prediction was right), (m,) each; the `shadow` rules' (rules, m).

        Of a joint rule also `chosen` (m,) bool, n rows of all ranks; `rng` is what it draws by, alike on every rank.
        """
        if not len(stage.x_m) and not in_lockstep(forward.model):
            nothing = stage.il_m.new_zeros(0)  # batch norm refuses a forward of nothing
            shadow = nothing.new_zeros(len(self.shadows), 0)
            if isinstance(self.loss, Contrastive):
                self.loss.in_buffer(nothing.new_zeros(0, 0))  # the other ranks wait for what this one hasn't got
            empty = {"loss": nothing, "score": nothing, "correct": nothing.bool(), "shadow": shadow}
            return {**empty, "chosen": nothing.bool()} if self.rule.joint else empty
        draws = self._dropout_draws(forward, stage.x_m, step) if self.rule.needs_draws else None
        logits = forward(stage.x_m) if draws is None else mean_prediction(draws)
        if not isinstance(self.loss, SequenceMean):  # of language no label is looked at
            require_known(bounds, logits)
            self.classes = logits.shape[-1] if stage.labelled and logits.ndim == 2 else None
        columns, joint = columns_of(stage, self._columns), {}
        if isinstance(self.loss, Contrastive):
            beside = self._beside(stage, columns) if self.rule.joint else None
            buffer = self.loss.among(logits, beside)
            loss = buffer.loss_B[buffer.own]
            if self.rule.joint:
                joint = self._together(buffer, columns, n, rng)
        else:
            loss = per_sample(self.loss, logits, stage.target_m).float()
        evidence = Evidence(loss, stage.il_m, logits, stage.target_m, draws, columns)
        live = None if stage.live_m is None else replace(evidence, il_B=stage.live_m)
        if not joint:
            joint = {"score": self.rule(self._capped(live if self.rule.live and live is not None else evidence))}
        return {
            "loss": loss,
            **joint,
            "correct": correct_of(self.loss)(logits, stage.label_m) if stage.labelled else loss.isnan(),
            "shadow": shadow_scores(self.shadows, evidence, live),
        }

    def _beside(self, stage: Stage, columns: Mapping[str, Tensor]) -> Tensor:
        """What travels with each row (m, k): il, the columns in their order, the reference's vectors."""
        reference = stage.reference_m
        if self.rule.needs_reference and reference is None:
            raise UsageError(
                f"the rule {self.rule.name} needs the vectors of the table's reference, and these candidates carry "
                "none: open_stream(vectors=True), of a table made by compute-il --vectors"
            )
        kept = [reference.float()] if self.rule.needs_reference and reference is not None else []
        return torch.cat([torch.stack([stage.il_m, *(columns[name] for name in columns)], 1), *kept], 1)

    def _together(
        self, buffer: InBuffer, columns: Mapping[str, Tensor], n: int, rng: np.random.Generator | None
    ) -> dict[str, Tensor]:
        """`score` and `chosen` of this rank's rows; each rank decides the same, as it knows the same."""
        assert self.rule.score is not None
        names = ["il", *columns]
        beside = dict(zip(names, buffer.beside_Bk.unbind(1), strict=False))
        given: dict[str, Any] = {
            "learner": buffer.learner,
            "columns": {"loss": buffer.loss_B, **beside},
            "n": n,
            "rng": rng,
            "loss": getattr(self.loss, "name", ""),
            **self._joint,
        }
        if self.rule.needs_reference:
            given["reference"] = Pairs.of(buffer.beside_Bk[:, len(names) :])
        row, score_B = chosen(self.rule.name, self.rule.score, self.rule.takes, given)
        chosen_B = torch.zeros_like(score_B, dtype=torch.bool).index_fill(0, row, True)
        return {"score": score_B[buffer.own], "chosen": chosen_B[buffer.own]}

    def _capped(self, evidence: Evidence) -> Evidence:
        """What the run's own rule sees; its shadows see the losses as they are, whatever the run's options."""
        if not self.loss_cap:
            return evidence
        loss, il = cap(evidence.loss_B, evidence.il_B, evidence.logits_BC.shape[-1])
        return replace(evidence, loss_B=loss, il_B=il)

    def _dropout_draws(self, forward: Forward, x: Input, step: int) -> Tensor:
        """K logits, a function of (seed, step, rank); the first time they are proved to differ."""
        draws = forward.draws(x, self._draws, torch_seed(self._seed, "mc-dropout", step, self._rank))
        if not self._drawn and len(draws) > 1 and len(x):
            self._drawn = True
            if bool((draws[0] == draws[1]).all()):
                raise UsageError(
                    f"the rule {self.rule.name} compares forwards with dropout on, and two forwards of "
                    f"{type(forward.model).__name__} were the same: its dropout has no effect"
                )
        return draws
