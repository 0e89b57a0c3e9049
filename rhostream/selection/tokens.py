"""Language: a loss for each token, a sequence's mean of them, and the tokens of a sequence that are worth the gradient.

A model of language gives logits (B, T, V), those at t for the token at t. `LanguageLoss` around it gives what the rest
works with, (B, T) losses in nats with NaN where there is no token: a sequence's loss is the mean over its tokens, and
il is the mean over the same tokens of the IL model's. So rules, shortlists and the log know nothing of tokens.

Inside a sequence that is kept, the gradient may go through a share of the tokens only, those of the largest loss - il
(Rho-1, Lin et al. 2024): `TokenShare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rhostream.errors import UsageError
from rhostream.selection.losses import cross_entropy, is_correct
from rhostream.selection.outputs import logits_of_output

LOGIT_BYTES = 256 << 20  # of the logits that are in memory at once while no gradient is wanted
RULES = ("uniform", "loss", "small_loss", "irreducible", "rho", "column")  # those that look at no logits


class LanguageLoss(nn.Module):
    """A model of language as a function from token ids to their losses.

    `end_of_text`: the id that ends a document, where several are packed into a sequence. The token behind one has no
    loss then, as if none were there: nothing before it tells it.
    """

    def __init__(self, model: nn.Module, vocabulary: int, padding: int, end_of_text: int | None = None) -> None:
        super().__init__()
        self.model, self.vocabulary, self.padding, self.end_of_text = model, vocabulary, padding, end_of_text

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 to (B, T) float32 nats, NaN where x is padding, or the first token of a document but the
        sequence's own first."""
        if torch.is_grad_enabled() or not len(x):
            return self._judged(x)[0]
        return self.judge(x)[0]

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B, T) as `forward`'s, and whether the likeliest token is the one that stands there, (B, T) bool.

        Logits of a large vocabulary are made for a few sequences at a time.
        """
        rows = max(1, LOGIT_BYTES // (4 * self.vocabulary * max(x.shape[1], 1)))
        parts = [self._judged(part) for part in x.split(rows)]
        return torch.cat([loss for loss, _ in parts]), torch.cat([right for _, right in parts])

    def _judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of_output(self.model(x), len(x), self.model)
        if logits.shape[:2] != x.shape:
            raise UsageError(
                f"a model of language gives logits (B, T, V) for ids (B, T): expected {tuple(x.shape)} "
                f"and V, got {tuple(logits.shape)}"
            )
        # The filling is no token, and where it is the last id a model may have no logit of it.
        if logits.shape[2] < (ids := self.vocabulary - (self.padding == self.vocabulary - 1)):
            raise UsageError(
                f"the model of language gives {logits.shape[2]:,} logits a token, the samples have {ids:,} ids"
            )
        logits = logits.float()
        loss = functional.cross_entropy(
            logits.flatten(0, 1), x.flatten(), reduction="none", ignore_index=self.padding
        ).view(x.shape)
        there = x != self.padding
        if self.end_of_text is not None:
            there[:, 1:] &= x[:, :-1] != self.end_of_text
        return loss.masked_fill(~there, math.nan), (logits.detach().argmax(2) == x) & there


class SequenceMean:
    """The loss of a sequence: the mean over its tokens."""

    def __call__(self, loss_BT: Tensor, label: Tensor) -> Tensor:
        """(B, T) with NaN for no token to (B,); labels mean nothing here."""
        return mean_over(loss_BT, ~torch.isnan(loss_BT.detach()))

    def is_correct(self, loss_BT: Tensor, label: Tensor) -> Tensor:
        """(B,) bool: half of the tokens or more have a probability above a half, so are surely the likeliest."""
        there = (~torch.isnan(loss_BT)).sum(1)
        return (there > 0) & (2 * (loss_BT < math.log(2)).sum(1) >= there)


class TokenShare:
    """The loss of a sequence over the `share` of its tokens with the largest loss - il, of the losses at hand."""

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise UsageError(f"--token-share {share:g}: expected a share of each sequence's tokens above 0, at most 1")
        self.share = share

    def __call__(self, loss_BT: Tensor, il_BT: Tensor) -> Tensor:
        """(B, T) losses and il, NaN for no token, to (B,)."""
        return mean_over(loss_BT, kept_tokens(loss_BT.detach(), il_BT, self.share))


def kept_tokens(loss_BT: Tensor, il_BT: Tensor, share: float) -> Tensor:
    """(B, T) bool: of each sequence's n tokens the ceil(share * n) of the largest loss - il, of equals the first.

    A token without a finite score isn't kept; of a sequence that has none all tokens are.
    """
    score = loss_BT.float() - il_BT.to(loss_BT.device).float()
    finite, there = torch.isfinite(score), ~torch.isnan(loss_BT)
    number = torch.ceil(finite.sum(1, keepdim=True) * share - 1e-6)
    ranked = torch.where(finite, score, -math.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(ranked).scatter_(
        1, ranked, torch.arange(score.shape[1], device=score.device).expand_as(ranked)
    )
    return torch.where(finite.any(1, keepdim=True), finite & (place < number), there)


def mean_over(loss_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """(B,): the mean of the kept; NaN where none is."""
    return loss_BT.masked_fill(~kept_BT, 0.0).sum(1) / kept_BT.sum(1)


def is_language(model: nn.Module) -> bool:
    """Whether the model gives token losses; looks through wrappers that keep it as `module`."""
    return isinstance(getattr(model, "module", model), LanguageLoss)


def loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a sample by what the model gives: (output, label) to (B,) nats."""
    return SequenceMean() if is_language(model) else cross_entropy


def correct_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """What tells, of the same output, which samples are right: (B,) bool."""
    return loss.is_correct if isinstance(loss, SequenceMean) else is_correct
