"""The arithmetic of joint choices of pairs (`joint.py`): pure functions from vectors to rows; knows no file.

    JEST (Evans et al. 2024), s = what the learner loses less what a reference loses, in nats:
      the first chunk by s_ii, each later one by s_ii + w sum over chosen k (s_ik + s_ki)
      drawn without replacement from the softmax of that, or the largest
    DivBS (Hong et al. 2024): orthogonal greedy choice of what spans the sum of a buffer's features

With the sigmoid loss s_ij is the difference of p_ij, so sums run along; memory is that of the buffer against one chunk.
A batch's softmax loss is no sum over pairs: there the running sums are ln sum_k exp L_ik and L_ki, a pair's score is
what it loses among the chosen (with w times their number), and the first chunk, which nobody is beside, goes by the
marginal losses of a batch of n. The paper has the sigmoid alone.

Scores are (B,), what a row had when it was taken, or has at the end; NaN for a row that is no pair, which nobody takes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rhostream.selection.contrastive import Pairs, logits, marginal_loss_B, own_loss_N, softplus

# The part of the sum of features that may be left over, beyond which what remains to be chosen is rounding.
NOTHING = 1e-5


def in_chunks(
    learner: Pairs,
    reference: Pairs,
    n: int,
    loss: str,
    *,
    chunks: int,
    negatives: float,
    rng: np.random.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """JEST: n rows in the order in which they were taken, and their scores (B,). Without `rng` the largest are taken.

    `negatives`: w, how much the other pairs of a batch weigh. Fewer than n pairs are all taken.
    """
    left_B = learner.finite_N & reference.finite_N
    n = min(n, int(left_B.sum()))
    beside = _Beside(learner, reference, n, loss, negatives, left_B)
    taken_B, rows = left_B.new_full((len(learner),), torch.nan, dtype=learner.image_ND.dtype), []
    for chunk in range(chunks):
        size = n // chunks + (chunk < n % chunks)
        if not size:
            break
        score_B = beside.score_B()
        rank_B = score_B
        if rng is not None:  # the largest of score + Gumbel noise are draws without replacement from the softmax
            rank_B = score_B + torch.from_numpy(rng.gumbel(size=len(score_B))).to(score_B)
        chosen = torch.where(left_B, rank_B, -torch.inf).argsort(descending=True, stable=True)[:size]
        taken_B[chosen], left_B[chosen] = score_B[chosen], False
        rows.append(chosen)
        beside.add(chosen)
    at_end_B = torch.where(left_B, beside.score_B(), taken_B)
    return (torch.cat(rows) if rows else left_B.new_zeros(0, dtype=torch.int64)), at_end_B


class _Beside:
    """What each row loses by itself and beside the rows that were taken so far, the learner's less the reference's."""

    def __init__(self, learner: Pairs, reference: Pairs, n: int, loss: str, negatives: float, among_B: Tensor) -> None:
        self.models, self.loss, self.weight = (learner, reference), loss, negatives
        self.sum_B: Tensor | None = None
        if loss == "siglip":
            self.first_B = own_loss_N(learner, loss) - own_loss_N(reference, loss)
        else:
            first, other = (marginal_loss_B(pairs, max(n, 1), loss, among_B) for pairs in self.models)
            self.first_B = first - other
        # Of the softmax loss: ln sum_k exp L_ik and L_ki of each model, (2, B).
        self.lse_2B: list[Tensor | None] = [None, None]

    def score_B(self) -> Tensor:
        if self.loss == "siglip":
            return self.first_B if self.sum_B is None else self.first_B + self.weight * self.sum_B
        loss_B = [
            softplus(math.log(self.weight) + lse_2B - pairs.logit_N).mean(0)
            for pairs, lse_2B in zip(self.models, self.lse_2B, strict=True)
            if lse_2B is not None
        ]
        return loss_B[0] - loss_B[1] if loss_B else self.first_B

    def add(self, chosen: Tensor) -> None:
        """These rows are beside the others from now on."""
        sums = []
        for model, pairs in enumerate(self.models):
            some = pairs.take(chosen)
            # (B, chunk): image i with caption k, and image k with caption i.
            to_Bc = logits(pairs.image_ND, some.text_ND, pairs)
            of_Bc = logits(pairs.text_ND, some.image_ND, pairs)
            if self.loss == "siglip":
                sums.append(softplus(to_Bc).sum(1) + softplus(of_Bc).sum(1))
                continue
            lse_2B = torch.stack([to_Bc.logsumexp(1), of_Bc.logsumexp(1)])
            before = self.lse_2B[model]
            self.lse_2B[model] = lse_2B if before is None else torch.logaddexp(before, lse_2B)
        if sums:
            added_B = sums[0] - sums[1]
            self.sum_B = added_B if self.sum_B is None else self.sum_B + added_B


def diverse(learner: Pairs, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """DivBS: n rows in the order in which they were taken, and their scores (B,).

    A pair's feature is its image vector beside its text vector. Each time that row is taken whose feature goes furthest
    along what is left of the sum of all features, |g . r|; the sum then loses its part along that feature, made
    orthogonal to those taken before. Once nothing is left (after 2 D rows at the latest) the others are drawn.
    """
    left_B = learner.finite_N
    n = min(n, int(left_B.sum()))
    feature_BF = torch.where(left_B[:, None], torch.cat([learner.image_ND, learner.text_ND], 1), 0)
    rest_F, basis_nF = feature_BF.sum(0), feature_BF.new_zeros(min(n, feature_BF.shape[1]), feature_BF.shape[1])
    enough = NOTHING * float(rest_F.norm())
    score_B, rows = left_B.new_full((len(learner),), torch.nan, dtype=feature_BF.dtype), list[int]()
    along_B = (feature_BF @ rest_F).abs()
    while len(rows) < len(basis_nF):
        row = int(torch.where(left_B, along_B, -torch.inf).argmax())
        if float(along_B[row]) <= enough:
            break
        part_F, basis_kF = feature_BF[row], basis_nF[: len(rows)]
        for _ in range(2):  # once leaves rounding that would grow with every row
            part_F = part_F - basis_kF.T @ (basis_kF @ part_F)
        part_F = part_F / part_F.norm()
        basis_nF[len(rows)] = part_F
        score_B[row], left_B[row] = along_B[row], False
        rows.append(row)
        rest_F = rest_F - (rest_F @ part_F) * part_F
        along_B = (feature_BF @ rest_F).abs()
    others = rng.permutation(left_B.nonzero()[:, 0].cpu().numpy())[: n - len(rows)]
    score_B = torch.where(left_B, along_B, score_B)
    return torch.tensor([*rows, *others.tolist()], dtype=torch.int64, device=left_B.device), score_B
