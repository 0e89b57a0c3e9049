"""The losses of pairs of image and caption, of which one exists only given the pairs beside it; knows no file.

    L_ij = a z_i . t_j + b, of unit vectors z (image) and t (text)
    siglip    p_ij = softplus(L_ij), i != j; p_ii = softplus(-L_ii); a batch of n has (1/n) sum_ij p_ij
    clip      a batch of n has the mean over i of ½ [lse_j L_ij - L_ii] + ½ [lse_j L_ji - L_ii]

What the loss of one pair is apart from any batch is made of three terms against many others k (the candidates of a
buffer, or a bank of reference vectors), so that loss and il are one quantity:

              own    image              text               in a batch of n
    siglip    p_ii   mean_k p_ik        mean_k p_ki        own + (n-1) (image + text)
    clip      0      lme_k L_ik - L_ii  lme_k L_ki - L_ii  ½ sp(ln(n-1) + image) + ½ sp(ln(n-1) + text)

lme: log-mean-exp, sp: softplus. Nats, of the type of the vectors (float32 or float64). Memory is that of BLOCK rows
against the others, and rows go through in blocks of that many whatever their number: what a row gets is a function of
that row and of the others, so the bits don't change with who stands beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rhostream.errors import UnknownNameError, UsageError

CONTRASTIVE = ("siglip", "clip")  # the losses that depend on the batch
BLOCK = 128  # rows; a multiple of what a matrix product takes at once, so that no row lies at an edge


@dataclass(frozen=True)
class Pairs:
    """N pairs as a model sees them. A row with NaN in it is no pair: what is made of it is NaN, of others it isn't."""

    image_ND: Tensor  # unit vectors
    text_ND: Tensor
    scale: Tensor  # (), a: the inverse temperature
    bias: Tensor  # (), b

    @classmethod
    def of(cls, output: Tensor) -> Pairs:
        """From a model's packed output (N, 2 D + 2): image vector, text vector, a and b in each row, differentiable.

        Half precision becomes float32. Raises UsageError for another shape or type.
        """
        if output.ndim != 2 or output.shape[1] < 4 or output.shape[1] % 2 or not output.is_floating_point():
            raise UsageError(
                f"the loss of pairs takes an output (N, 2 D + 2) of floats (image vector, text vector, scale, bias), "
                f"and the model gives {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
            )
        output = output if output.dtype == torch.float64 else output.float()
        width = output.shape[1] // 2 - 1
        return cls(output[:, :width], output[:, width:-2], _constant(output[:, -2]), _constant(output[:, -1]))

    def __len__(self) -> int:
        return len(self.image_ND)

    @property
    def finite_N(self) -> Tensor:
        """(N,) bool: rows that are pairs."""
        return torch.isfinite(self.image_ND).all(1) & torch.isfinite(self.text_ND).all(1)

    @property
    def similarity_N(self) -> Tensor:
        """(N,) the cosine of image and caption."""
        return (self.image_ND * self.text_ND).sum(1)

    @property
    def logit_N(self) -> Tensor:
        """(N,) L_ii."""
        return self.scale * self.similarity_N + self.bias

    def take(self, rows: Tensor) -> Pairs:
        """Those rows, int64 or bool."""
        return Pairs(self.image_ND[rows], self.text_ND[rows], self.scale, self.bias)


def _constant(value_N: Tensor) -> Tensor:
    """The one value that every row has but for those that are NaN; () NaN where all are."""
    if not len(value_N):
        return value_N.new_full((), torch.nan)
    value = torch.where(torch.isfinite(value_N), value_N, -torch.inf).amax()
    return torch.where(torch.isfinite(value), value, torch.nan)


# -- a pair against others -------------------------------------------------------------------------------------------


def own_loss_N(pairs: Pairs, loss: str) -> Tensor:
    """(N,) what a pair loses by itself: of siglip p_ii; of clip 0, as a batch of one has nobody to be taken for."""
    return softplus(-pairs.logit_N) if _is_siglip(loss) else 0 * pairs.logit_N


def bank_terms(pairs: Pairs, bank: Pairs, loss: str, own_place: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(own, image, text), (N,) each, against the vectors of a bank; a and b are those of `pairs`.

    `own_place` (N,) int64: the place in the bank of that very pair, which is left out, or a negative number. Rows of
    the bank that are NaN don't count. Where nobody is left, siglip has 0 and clip has -inf: a batch of one.
    """
    own = own_loss_N(pairs, loss)
    image = _rest(pairs.image_ND, bank.text_ND, bank.finite_N, pairs, loss, own_place)
    text = _rest(pairs.text_ND, bank.image_ND, bank.finite_N, pairs, loss, own_place)
    return (own, image, text) if _is_siglip(loss) else (own, image - pairs.logit_N, text - pairs.logit_N)


def il_of(own: Tensor, image: Tensor, text: Tensor, n: int, loss: str) -> Tensor:
    """The loss of pairs of those terms in a batch of n, (N,) nats. Raises UsageError for n below 1."""
    if n < 1:
        raise UsageError(f"the loss of a pair in a batch of {n}: expected at least 1")
    if n == 1:
        return own
    if _is_siglip(loss):
        return own + (n - 1) * (image + text)
    shift = math.log(n - 1)
    return own + (softplus(shift + image) + softplus(shift + text)) / 2


def marginal_loss_B(pairs: Pairs, n: int, loss: str, among: Tensor | None = None) -> Tensor:
    """(B,) nats: what each pair of a buffer adds to the loss of a batch of n, the others being those of the buffer.

        siglip    p_ii + (n-1) / (B-1) sum_{j != i} (p_ij + p_ji)
        clip      ½ softplus(ln(n-1) + lme_{j != i} L_ij - L_ii) + ½ the same of L_ji

    `among` (B,) bool: the candidates. Other rows and those that are NaN are NaN, and count nowhere.
    """
    if among is not None:
        out_B1 = ~among[:, None]
        image_BD, text_BD = (v.masked_fill(out_B1, torch.nan) for v in (pairs.image_ND, pairs.text_ND))
        pairs = Pairs(image_BD, text_BD, pairs.scale, pairs.bias)
    image_B, text_B = _rest_of_buffer(pairs, loss)
    if not _is_siglip(loss):
        image_B, text_B = image_B - pairs.logit_N, text_B - pairs.logit_N
    return il_of(own_loss_N(pairs, loss), image_B, text_B, n, loss)


def _rest(query_ND: Tensor, other_MD: Tensor, in_M: Tensor, pairs: Pairs, loss: str, place_N: Tensor | None) -> Tensor:
    """(N,) over those of the others that are in and not at the row's own place: mean softplus(L), or lme L."""
    outside, negative = _outside(loss)
    # A product with NaN would be NaN in every row: what isn't in is zero, and left out by its bias.
    other_MD, bias_M = torch.where(in_M[:, None], other_MD, 0), torch.where(in_M, negative * pairs.bias, outside)
    rests = []
    for start in range(0, len(query_ND), BLOCK):
        block_cD = query_ND[start : start + BLOCK]
        rows = len(block_cD)
        padded_cD = functional.pad(negative * pairs.scale * block_cD, (0, 0, 0, BLOCK - rows))
        logit_cM = _product(padded_cD, other_MD, bias_M)[:rows]
        count_c = in_M.sum().expand(rows)
        if place_N is not None and len(other_MD):
            place_c = place_N[start : start + BLOCK]
            at_c1, there_c = place_c.clamp(min=0)[:, None], place_c >= 0
            logit_cM.scatter_(1, at_c1, torch.where(there_c[:, None], outside, logit_cM.gather(1, at_c1)))
            count_c = count_c - (there_c & in_M[at_c1[:, 0]]).long()
        rest_c = _mean(_total(logit_cM, 1, loss), count_c, loss)
        # A row that is no pair stays NaN where nobody is left to make it so.
        rests.append(rest_c + 0 * block_cD.sum(1))
    return torch.cat(rests) if rests else query_ND.new_zeros(0)


def _rest_of_buffer(pairs: Pairs, loss: str) -> tuple[Tensor, Tensor]:
    """(B,) each: every pair's image against the captions of the others, its caption against their images.

    One product serves both, so what it costs is half of `_rest` twice.
    """
    outside, negative = _outside(loss)
    in_B, number_B = pairs.finite_N, torch.arange(len(pairs), device=pairs.image_ND.device)
    image_BD, text_BD = (torch.where(in_B[:, None], v, 0) for v in (pairs.image_ND, pairs.text_ND))
    image_BD, bias_B = negative * pairs.scale * image_BD, torch.where(in_B, negative * pairs.bias, outside)
    images, text_B = list[Tensor](), image_BD.new_full((len(pairs),), 0.0 if _is_siglip(loss) else -torch.inf)
    for start in range(0, len(pairs), BLOCK):
        block = slice(start, start + BLOCK)
        logit_cB = _product(image_BD[block], text_BD, bias_B)
        logit_cB.scatter_(1, number_B[block, None], outside)
        logit_cB.masked_fill_(~in_B[block, None], outside)
        images.append(_total(logit_cB, 1, loss))
        added_B = _total(logit_cB, 0, loss)
        text_B = text_B + added_B if _is_siglip(loss) else torch.logaddexp(text_B, added_B)
    if not images:
        return text_B, text_B
    nobody_B = torch.where(in_B, 0, torch.nan)
    image_B, text_B = (_mean(total_B, in_B.sum() - in_B.long(), loss) for total_B in (torch.cat(images), text_B))
    return image_B + nobody_B, text_B + nobody_B


def _outside(loss: str) -> tuple[float, int]:
    """The logit that counts for nothing, and the sign of logits: of siglip -L is at work, as -softplus(L) is
    logsigmoid(-L), one pass less over a large matrix each way."""
    return (math.inf, -1) if _is_siglip(loss) else (-math.inf, 1)


def _total(logit: Tensor, dim: int, loss: str) -> Tensor:
    """Over the others: the sum of softplus(L) of the negative logits, or ln sum exp L."""
    return -functional.logsigmoid(logit).sum(dim) if _is_siglip(loss) else logit.logsumexp(dim)


def _mean(total_N: Tensor, count_N: Tensor, loss: str) -> Tensor:
    """The mean over so many, or its logarithm; of nobody 0, or -inf."""
    count_N = count_N.clamp(min=1).to(total_N.dtype)
    return total_N / count_N if _is_siglip(loss) else total_N - count_N.log()


# -- a batch to learn from -------------------------------------------------------------------------------------------


def batch_loss_n(output: Tensor, loss: str) -> Tensor:
    """(n,) nats, differentiable: whose mean is the loss of the batch of these n pairs, in the packed output of a model.

    Of siglip row i is sum_j p_ij, the pair's image against all captions (the other direction is in the other rows), of
    clip the pair's symmetric cross-entropy.
    """
    pairs = Pairs.of(output)
    logit_nn = logits(pairs.image_ND, pairs.text_ND, pairs)
    if _is_siglip(loss):
        sign_nn = 1 - 2 * torch.eye(len(pairs), dtype=logit_nn.dtype, device=logit_nn.device)
        return softplus(sign_nn * logit_nn).sum(1)
    return (logit_nn.logsumexp(1) + logit_nn.logsumexp(0)) / 2 - logit_nn.diagonal()


# -- arithmetic ------------------------------------------------------------------------------------------------------


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x), as exact as its type (torch's own drops e^-x beyond x = 20)."""
    return -functional.logsigmoid(-x)


def logits(image_ND: Tensor, text_MD: Tensor, pairs: Pairs) -> Tensor:
    """L (N, M), not in half precision even where autocast is on: il and loss are to be the same quantity."""
    with torch.autocast(image_ND.device.type, enabled=False):
        return pairs.scale * (image_ND @ text_MD.T) + pairs.bias


def _product(query_cD: Tensor, other_MD: Tensor, bias_M: Tensor) -> Tensor:
    """(c, M): the products and the bias of each column, in one pass; autocast or not."""
    with torch.autocast(query_cD.device.type, enabled=False):
        return torch.addmm(bias_M, query_cD, other_MD.T)


def _is_siglip(loss: str) -> bool:
    if loss not in CONTRASTIVE:
        raise UnknownNameError.of("loss of pairs", loss, CONTRASTIVE)
    return loss == "siglip"
