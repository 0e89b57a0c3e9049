"""The job that measures pairs: its rule of the own pair, and what its tables say of runs whose curves are known."""

from __future__ import annotations

import torch
from torch.nn import functional

from jobs import captions
from rhostream.selection.contrastive import Pairs, il_of, own_loss_N
from rhostream.selection.rules import find_rule


def test_the_rule_of_the_own_pair_is_its_loss_less_the_references() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (functional.normalize(torch.randn(7, 5, generator=generator), dim=1) for _ in range(2))
    output = torch.cat([image, text, torch.full((7, 1), 8.0), torch.full((7, 1), -5.0)], 1)
    il = torch.rand(7, generator=generator)
    expected = own_loss_N(Pairs.of(output), "siglip") - il
    assert torch.allclose(captions.own_pair(output, {"il_own": il}), expected, atol=1e-6)


def test_rho_with_il_at_a_batch_of_n_is_the_formula_of_the_table() -> None:
    columns = {name: torch.tensor([1.0, 2.0]) for name in ("il_own", "il_image", "il_text")}
    expected = 700 - il_of(columns["il_own"], columns["il_image"], columns["il_text"], 256, "siglip")
    assert torch.equal(captions.rho_256(torch.tensor([700.0, 700.0]), columns), expected)
    assert find_rule("jobs.captions:rho_256").takes == ("loss_B", "column_B")


def test_towers_leave_padding_out_and_take_any_length() -> None:
    towers = captions.Towers(28, 1, 50, 0)
    tokens = torch.tensor([[3, 4, 5]])
    longer = functional.pad(tokens, (0, 4))
    assert torch.allclose(towers.encode_text(tokens), towers.encode_text(longer), atol=1e-6)
    assert towers.encode_image(torch.zeros(2, 1, 28, 28)).shape == towers.encode_text(tokens.repeat(2, 1)).shape


def run(slope: float, milliseconds: float) -> captions.Facts:
    """A run whose measures rise by `slope` a hundred steps, looked at every hundred."""
    steps = list(range(100, 1001, 100))
    curve = [slope * step / 100 for step in steps]
    return captions.Facts(steps, dict.fromkeys(captions.MEASURES, curve), 40.0, milliseconds)


def test_the_tables_compare_at_equal_steps_and_at_equal_seconds_with_the_reference_on_the_bill() -> None:
    found = {"uniform": [run(0.01, 10)], "rho, marginal": [run(0.03, 50)]}
    steps, times = (
        captions.equal_steps(found, 400).splitlines()[2:],
        captions.equal_time(found, 400, {"fit": 1.0, "score": 3.0}, "exact").splitlines(),
    )
    # Looks are averaged over the last three: 2, 3 and 4 hundred steps.
    assert "| uniform | 3.0 |" in steps[0] and "| 400 | 10 |" in steps[0]
    assert "| rho, marginal | 9.0 |" in steps[1] and "| 300 | 50 |" in steps[1]
    # rho's 400 steps are 20 s; with the reference 24 s, which uniform has for 2,400 steps: more than it made.
    assert "24 s in all" in times[0] and "9.0 at 1000 (its end) | 9.0 at 1000 (its end)" in times[2]
    assert "9.0 at 400 | 9.0 at 400" in times[3]
