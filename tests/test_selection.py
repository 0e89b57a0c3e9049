"""Rules and selector: held against NumPy, and leaving the model as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.errors import NonFiniteError, UnknownNameError, UsageError
from rhostream.models import build
from rhostream.selection.proxy import Proxy
from rhostream.selection.rules import RULES, find_rule
from rhostream.selection.selector import Selection, Selector, scoring
from tests.support.scoring import buffer, kept_of, oracle

VALUES = st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]))


@given(st.lists(VALUES, max_size=30), st.integers(1, 10))
def test_top_keeps_the_largest_finite_scores_with_ties_to_the_lower_row(values: list[float], n: int) -> None:
    score = np.array(values, np.float32)
    kept = kept_of(score, n)
    assert kept == oracle(score, np.zeros_like(score), n)


def test_kept_rows_equal_the_numpy_oracle_on_a_thousand_buffers() -> None:
    torch.manual_seed(0)
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    selector = Selector(model, "rho", 8)
    for number in range(1000):
        candidates = buffer(seed=number)
        selection = selector(candidates)
        with torch.no_grad():
            logits = model(candidates.input).double().numpy()
        shifted = logits - logits.max(1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(40), candidates.label.numpy()]
        np.testing.assert_allclose(selection.loss, loss, atol=1e-5)
        assert selection.rows.tolist() == oracle(selection.loss, candidates.il.numpy(), 8)
        assert torch.equal(selection.input, candidates.input[torch.from_numpy(selection.rows)])


@pytest.mark.parametrize("name", ["small-cnn", "resnet18-small"])
def test_scoring_uses_the_buffers_statistics_and_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(build(name, image_size=16, channels=1, classes=4), nn.Dropout(0.5)).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    candidates = buffer()
    first, second = Selector(model, "loss", 8)(candidates), Selector(model, "loss", 8)(candidates)
    assert first.loss.tolist() == second.loss.tolist()  # dropout is off
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and modes == [m.training for m in model.modules()]
    reference = copy.deepcopy(model)
    reference[1].eval()
    with torch.no_grad():
        logits = reference(candidates.input)  # train mode: statistics of this batch
    expected = nn.functional.cross_entropy(logits, candidates.label, reduction="none").numpy()
    np.testing.assert_allclose(first.loss, expected, rtol=1e-5)
    with scoring(model, "eval"), torch.no_grad():
        assert not torch.allclose(model(candidates.input), logits)


def test_without_batch_norm_chunks_change_no_bit() -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    whole, parts = Selector(model, "rho", 8)(buffer()), Selector(model, "rho", 8, chunk=7)(buffer())
    np.testing.assert_allclose(whole.loss, parts.loss, rtol=1e-6)
    assert whole.rows.tolist() == parts.rows.tolist()


@pytest.mark.parametrize(
    "how",
    [{}, {"gumbel": 0.5, "class_quota": 0.5}, {"warm_up": 1}, {"shortlist": 2.0}],
    ids=["plain", "options", "uniform step", "shortlist"],
)
def test_a_sample_without_an_il_can_not_be_chosen_by_a_rule_that_needs_one(how: dict[str, Any]) -> None:
    """It makes no forward, the log says why, and the others are chosen as if it weren't there."""
    il, model = buffer().il.clone(), build("mlp-64", image_size=16, channels=1, classes=4)
    il[::2], reason = math.nan, np.full(40, CANDIDATE, np.uint8)
    reason[::2] = Reason.missing_il  # what a stream makes of them

    def selected(candidates: Candidates) -> Selection:
        proxy = {"proxy": Proxy(copy.deepcopy(model))} if "shortlist" in how else {}
        return Selector(model, "rho", 8, **how, **proxy)(candidates, 0)

    selection, left_out = selected(buffer(il=il)), selected(buffer(il=il, reason=reason))
    assert (selection.reason[::2] == Reason.missing_il).all() and np.isnan(selection.loss[::2]).all()
    assert len(selection) == 8 and (selection.rows % 2 == 1).all()
    for name, column in left_out.columns().items():
        np.testing.assert_array_equal(column, selection.columns()[name], err_msg=name)


def test_a_buffer_without_one_il_keeps_nothing_and_a_rule_that_needs_none_takes_no_notice() -> None:
    il, model = torch.full((40,), math.nan), build("mlp-64", image_size=16, channels=1, classes=4)
    for _ in range(4):  # no sign of a model that has diverged
        selection = Selector(model, "rho", 8)(buffer(il=il))
        assert len(selection) == 0 and selection.input is None and (selection.reason == Reason.missing_il).all()
    for rule in ("loss", "uniform"):
        assert Selector(model, rule, 8)(buffer(il=il)).rows.tolist() == Selector(model, rule, 8)(buffer()).rows.tolist()


def test_dropped_rows_never_reach_the_forward() -> None:
    reason = np.full(40, CANDIDATE, np.uint8)
    reason[:35] = Reason.quarantined
    selection = Selector(build("mlp-64", image_size=16, channels=1, classes=4), "rho", 8)(buffer(reason=reason))
    assert selection.scored == 5 and selection.rows.tolist() == [35, 36, 37, 38, 39]
    assert np.isnan(selection.loss[:35]).all() and (selection.reason[:35] == Reason.quarantined).all()


def test_a_buffer_without_candidates_keeps_nothing() -> None:
    reason = np.full(40, Reason.missing_il, np.uint8)
    for rule in ("rho", "uniform"):
        selection = Selector(build("mlp-64", image_size=16, channels=1, classes=4), rule, 8)(buffer(reason=reason))
        assert len(selection) == 0 and selection.input is None


def test_nonfinite_losses_are_never_kept_and_stop_the_run_when_nothing_else_is_left() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad = nn.Parameter(torch.tensor(10.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(x), 4)
            logits[: int(self.bad)] = math.nan
            return logits

    model = Broken()
    selection = Selector(model, "rho", 40)(buffer())
    assert selection.rows.tolist() == list(range(10, 40))
    assert (selection.reason[:10] == Reason.nonfinite).all()
    model.bad.data.fill_(40)
    selector = Selector(model, "rho", 8)
    assert len(selector(buffer())) == 0
    with pytest.raises(NonFiniteError, match="float32"):
        for _ in range(3):
            selector(buffer())


def test_loss_cap_clips_both_losses_at_the_loss_of_a_guess() -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    il = torch.full((40,), 9.0)
    selection = Selector(model, "rho", 8, loss_cap=True)(buffer(il=il))
    np.testing.assert_allclose(selection.score, np.minimum(selection.loss, math.log(4)) - math.log(4), atol=1e-6)


def test_uniform_makes_no_forward_and_is_a_function_of_the_seed() -> None:
    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("a forward was made")

    picks = [Selector(Never(), "uniform", 8, seed=s)(buffer()).rows.tolist() for s in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2] and len(picks[0]) == 8


def test_names_nobody_knows_are_refused_with_a_guess() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'rho'"):
        find_rule("rhoo")
    with pytest.raises(UnknownNameError, match="small-cnn"):
        build("small-cn", image_size=28, channels=1, classes=10)
    with pytest.raises(UsageError, match=r"package\.module:function"):
        find_rule("nowhere:rule")
    assert {"uniform", "loss", "irreducible", "rho"} <= set(RULES)


def test_the_small_cnn_has_the_papers_ratios_to_the_resnet() -> None:
    from rhostream.runs.macs import macs_per_sample

    image = torch.zeros(1, 3, 32, 32)
    sizes = {}
    for name in ("resnet18-small", "small-cnn"):
        model = build(name, image_size=32, channels=3, classes=10)
        sizes[name] = sum(p.numel() for p in model.parameters()), macs_per_sample(model, image)
    (big, big_macs), (small, small_macs) = sizes["resnet18-small"], sizes["small-cnn"]
    assert round(big / small) == 21 and round(big_macs / small_macs) == 29
