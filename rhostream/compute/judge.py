"""How good a model is on a batch: the loss of each sample, and what of it is right. The caller sets modes and sums."""

from __future__ import annotations

from torch import Tensor, nn

from rhostream.selection.losses import cross_entropy, is_correct
from rhostream.selection.outputs import called
from rhostream.selection.tokens import LanguageLoss, SequenceMean


def judged(model: nn.Module, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) float32, nats, and how much is right (B,) float32: of a class 1 or 0, of a text the share of tokens.

    `label` (B,); a model of language is judged by the tokens of `x` itself. Logits that aren't finite are never right.
    Raises UsageError for an output that holds no logits.
    """
    if isinstance(model, LanguageLoss):
        loss_BT, right_BT = model.judge(x)
        return SequenceMean()(loss_BT, label), right_BT.sum(1) / (x != model.padding).sum(1)
    logits = called(model, x)
    return cross_entropy(logits, label), is_correct(logits, label).float()
