"""The losses of pairs against double loops in float64, written from the formulas and from nothing of the library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rhostream.errors import UnknownNameError, UsageError
from rhostream.selection.contrastive import (
    BLOCK,
    CONTRASTIVE,
    Pairs,
    bank_terms,
    batch_loss_n,
    il_of,
    marginal_loss_B,
    own_loss_N,
)
from tests.support.vectors import Array, Literal, lme, packed, sp

NAN = math.nan


def close(got: Tensor, expected: list[float] | Array) -> None:
    np.testing.assert_allclose(got.detach().numpy(), np.asarray(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_every_loss_of_pairs_is_that_of_a_literal_double_loop(loss: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, width, n = int(rng.integers(1, 9)), int(rng.integers(1, 6)), int(rng.integers(1, 40))
        scale, bias = float(rng.uniform(0.5, 60)), float(rng.uniform(-12, 3))
        output = packed(rng, rows, width, scale, bias)
        pairs, literal = Pairs.of(output), Literal(output)
        among = rng.random(rows) < 0.8
        # The marginal loss: the others are the buffer's candidates.
        expected = []
        for i in range(rows):
            others = [j for j in range(rows) if among[j] and j != i]
            own, _, _ = literal.terms(i, loss, others)
            if loss == "siglip":
                rest = sum(sp(literal.to(i, j)) + sp(literal.to(j, i)) for j in others)
                found = own + (n - 1) / max(len(others), 1) * rest
            elif n == 1 or not others:
                found = 0.0
            else:
                to = lme([literal.to(i, j) for j in others]) - literal.own(i)
                of = lme([literal.to(j, i) for j in others]) - literal.own(i)
                found = (sp(math.log(n - 1) + to) + sp(math.log(n - 1) + of)) / 2
            expected.append(found if among[i] else NAN)
        close(marginal_loss_B(pairs, n, loss, torch.from_numpy(among)), expected)
        # Against a bank, some of whose rows are these very pairs.
        bank = packed(rng, int(rng.integers(1, 9)), width, scale, bias)
        place = rng.integers(-1, len(bank), rows)
        literal = Literal(output, bank)
        found_terms = bank_terms(pairs, Pairs.of(bank), loss, torch.from_numpy(place))
        expected_terms = [literal.terms(i, loss, [k for k in range(len(bank)) if k != place[i]]) for i in range(rows)]
        for found_N, expected_N in zip(found_terms, zip(*expected_terms, strict=True), strict=True):
            close(found_N, list(expected_N))
        close(own_loss_N(pairs, loss), [literal.terms(i, loss, [])[0] for i in range(rows)])
        whole = []
        for own, image, text in expected_terms:
            if n == 1:
                whole.append(own)
            elif loss == "siglip":
                whole.append(own + (n - 1) * (image + text))
            else:
                whole.append((sp(math.log(n - 1) + image) + sp(math.log(n - 1) + text)) / 2)
        close(il_of(*found_terms, n, loss), whole)
        # And the loss of a batch of all rows.
        literal = Literal(output)
        if loss == "siglip":
            batch = sum(sp(literal.to(i, j) if i != j else -literal.to(i, i)) for i in range(rows) for j in range(rows))
        else:
            batch = 0.0
            for i in range(rows):
                for L in (literal.to, literal.of):
                    batch += (lme([L(i, j) for j in range(rows)]) + math.log(rows) - literal.own(i)) / 2
        close(batch_loss_n(output, loss).mean(), np.array(batch / rows))


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_the_gradient_is_that_of_the_losses_that_open_clip_trains_with(loss: str) -> None:
    rng = np.random.default_rng(1)
    z, t = (torch.from_numpy(v).requires_grad_() for v in rng.standard_normal((2, 17, 6)))
    log_scale = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0 if loss == "siglip" else 0.0, dtype=torch.float64, requires_grad=True)
    learned = [z, t, log_scale, bias]

    def units() -> tuple[Tensor, Tensor]:
        return z / z.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)

    image, text = units()
    logits = log_scale.exp() * image @ text.T + bias
    if loss == "siglip":
        plain = -torch.nn.functional.logsigmoid((2 * torch.eye(17) - 1) * logits).sum() / 17
    else:
        labels = torch.arange(17)
        entropy = torch.nn.functional.cross_entropy
        plain = (entropy(logits, labels) + entropy(logits.T, labels)) / 2
    expected = torch.autograd.grad(plain, learned)

    constant = torch.stack([log_scale.exp(), bias]).expand(17, 2)
    output = torch.cat([*units(), constant], dim=1)
    own = batch_loss_n(output, loss)
    assert own.shape == (17,)
    close(own.mean(), plain.detach().numpy())
    for found, right in zip(torch.autograd.grad(own.mean(), learned), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), right.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_what_a_row_gets_does_not_depend_by_a_bit_on_the_rows_beside_it(loss: str) -> None:
    rng = np.random.default_rng(2)
    output, bank = (packed(rng, rows, 24, 14.0, -7.0).float() for rows in (2 * BLOCK + 37, 300))
    whole = bank_terms(Pairs.of(output), Pairs.of(bank), loss)
    for rows in (slice(0, 1), slice(5, 9), slice(100, 100 + BLOCK), slice(30, None), slice(None, None, 3)):
        some = bank_terms(Pairs.of(output[rows]), Pairs.of(bank), loss)
        for part, full in zip(some, whole, strict=True):
            assert part.dtype == torch.float32 and torch.equal(part, full[rows])
    exact = bank_terms(Pairs.of(output.double()), Pairs.of(bank.double()), loss)
    for part, full in zip(whole, exact, strict=True):
        torch.testing.assert_close(part.double(), full, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_a_row_of_nan_is_nan_alone_and_counts_nowhere(loss: str) -> None:
    rng = np.random.default_rng(3)
    output = packed(rng, 12, 5, 10.0, -5.0)
    broken = output.clone()
    broken[0], broken[7, 2] = NAN, NAN  # the first row has no scale either
    good = torch.ones(12, dtype=torch.bool)
    good[[0, 7]] = False
    marginal = marginal_loss_B(Pairs.of(broken), 8, loss)
    assert torch.equal(marginal.isnan(), ~good)
    torch.testing.assert_close(marginal[good], marginal_loss_B(Pairs.of(output[good]), 8, loss))
    terms = bank_terms(Pairs.of(output), Pairs.of(broken), loss)
    for found, right in zip(terms, bank_terms(Pairs.of(output), Pairs.of(output[good]), loss), strict=True):
        torch.testing.assert_close(found, right)
    nothing = marginal_loss_B(Pairs.of(broken), 8, loss, torch.zeros(12, dtype=torch.bool))
    assert nothing.isnan().all()


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_a_pair_alone_and_a_batch_of_one_have_the_loss_of_the_pair_itself(loss: str) -> None:
    output = packed(np.random.default_rng(4), 5, 3, 10.0, -5.0)
    one, own = Pairs.of(output[:1]), own_loss_N(Pairs.of(output), loss)
    close(marginal_loss_B(one, 64, loss), own[:1].numpy())
    close(marginal_loss_B(Pairs.of(output), 1, loss), own.numpy())
    assert len(marginal_loss_B(Pairs.of(output[:0]), 64, loss)) == 0
    with pytest.raises(UsageError, match="batch of 0"):
        marginal_loss_B(one, 0, loss)


def test_an_output_of_another_shape_and_a_loss_nobody_knows_are_refused() -> None:
    for output in (torch.zeros(4), torch.zeros(4, 5), torch.zeros(4, 2), torch.zeros(4, 6, dtype=torch.int64)):
        with pytest.raises(UsageError, match="2 D"):
            Pairs.of(output)
    with pytest.raises(UnknownNameError, match="siglop"):
        marginal_loss_B(Pairs.of(torch.zeros(4, 6)), 8, "siglop")
    assert Pairs.of(torch.zeros(4, 6, dtype=torch.bfloat16)).image_ND.dtype == torch.float32
