"""How good a model is on a batch: the loss of each sample, and what of it is right. The caller sets modes and sums."""

from __future__ import annotations

from torch import Tensor, nn

from rhostream.samples.fields import Input, Target
from rhostream.selection.losses import LossFunction, cross_entropy, is_correct, per_sample
from rhostream.selection.outputs import called
from rhostream.selection.tokens import LanguageLoss, SequenceMean


def judged(
    model: nn.Module, x: Input, target: Target, loss: LossFunction = cross_entropy, *, classes: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Losses (B,) float32, and how much is right (B,) float32: of a class 1 or 0, of a text the share of tokens.

    `target` (B,) labels of `classes`; of a target (B, ...) that is no class nothing is right, None. A model of language
    is judged by the tokens of `x` itself. Logits that aren't finite are never right. Raises UsageError for an output
    that holds no logits, or that the loss can't take.
    """
    if isinstance(model, LanguageLoss) and isinstance(x, Tensor):
        loss_BT, right_BT = model.judge(x)
        return SequenceMean()(loss_BT, target), right_BT.sum(1) / (x != model.padding).sum(1)
    output = called(model, x)
    loss_B = per_sample(loss, output.float(), target).float()
    return loss_B, is_correct(output, target).float() if classes else None
