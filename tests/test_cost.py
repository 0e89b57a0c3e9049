"""The cost account: the paper's own arithmetic comes out of it, and each stage is charged for what it is."""

from __future__ import annotations

import pytest

from rhostream.runs.cost import Cost, break_even

RESNET50, RESNET18 = 4_100_000_000, 1_800_000_000  # multiply-adds of one forward at 224 pixels


def test_the_papers_factor_of_2_7_on_clothing_1m_comes_out_of_the_account() -> None:
    """Uniform 30 passes and rho 2 of 3,318 steps, 32 of 320; the IL model 4.48k steps of 64, and all of D scored."""
    uniform = Cost(trained=99_540 * 32, macs=RESNET50)
    il = {"fit_samples": 4_480 * 64, "scored_samples": 1_061_883, "macs": RESNET18}
    rho = Cost(scored=6_636 * 320, trained=6_636 * 32, macs=RESNET50, il=il)
    assert uniform.forward_units == 99_540 * 96 and rho.forward_units == 6_636 * 416
    assert uniform.forward_units / (rho.forward_units + rho.il_units) == pytest.approx(2.65, abs=0.005)
    assert uniform.forward_units / rho.forward_units == pytest.approx(3.46, abs=0.005)  # the IL amortised
    assert 99_540 / 6_636 == 15 > break_even(320, 32) == pytest.approx(13 / 3)


def test_every_stage_is_weighed_by_the_model_that_it_goes_through() -> None:
    cost = Cost(
        scored=100,
        trained=10,
        shortlisted=1000,
        proxy_trained=10,
        live_scored=1000,
        live_trained=20,
        macs=50,
        shortlist_macs=5,
        live_macs=25,
        keep_list={"fit_samples": 100, "scored_samples": 50, "macs": 10},
    )
    assert cost.forward_units == 100 + 30 + (1000 + 30) * 0.1 + (1000 + 60) * 0.5
    assert cost.keep_list_units == (300 + 50) * 0.2 and cost.il_units == 0
    again = Cost.from_json(cost.as_json())
    assert again == cost and {"forward_units", "il_units", "keep_list_units"} <= set(cost.as_json())
    assert Cost.from_json({"scored": 3, "macs": 1}).forward_units == 3  # an account of before there were the others
