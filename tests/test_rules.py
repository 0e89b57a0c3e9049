"""Every rule against NumPy, in float64 and written from the formulas; and importance sampling in expectation."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rhostream
from rhostream.errors import UnknownNameError, UsageError
from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection.adjust.tau import Tau, tau_of
from rhostream.selection.choice import by_importance
from rhostream.selection.gradient import take_step
from rhostream.selection.hardware import threads
from rhostream.selection.losses import cross_entropy, find_loss, sequence_mean
from rhostream.selection.rules import INPUTS, RULES, Evidence, find_rule
from rhostream.selection.selector import Selector
from tests.support import tiny
from tests.support.logs import rows_of
from tests.support.scoring import Array, buffer, entropy, softmax

K, B, C = 7, 60, 9


@pytest.fixture
def trained(trained: Callable[..., Path]) -> Callable[..., Path]:
    """The same, on one thread."""
    return lambda name="run", **options: trained(name, **{"threads": 1, **options})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing by more, and lose much where others compute too."""
    with threads(1):
        yield


def norm(z: Array, y: Array) -> Array:
    return np.sqrt(((softmax(z) - np.eye(C)[y]) ** 2).sum(1))


ORACLES: dict[str, Callable[..., Array]] = {
    "loss": lambda loss, il, z, y, d: loss,
    "small_loss": lambda loss, il, z, y, d: -loss,
    "grad_norm": lambda loss, il, z, y, d: norm(z, y),
    "grad_norm_is": lambda loss, il, z, y, d: norm(z, y),
    "irreducible": lambda loss, il, z, y, d: -il,
    "rho": lambda loss, il, z, y, d: loss - il,
    "rho_updated": lambda loss, il, z, y, d: loss - il,
    "entropy": lambda loss, il, z, y, d: entropy(softmax(d).mean(0)),
    "conditional_entropy": lambda loss, il, z, y, d: entropy(softmax(d)).mean(0),
    "bald": lambda loss, il, z, y, d: entropy(softmax(d).mean(0)) - entropy(softmax(d)).mean(0),
    "loss_minus_conditional_entropy": lambda loss, il, z, y, d: loss - entropy(softmax(d)).mean(0),
    "column": lambda loss, il, z, y, d: il[::-1],  # what stands in the column of the test
}


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if name != "uniform" and not rule.joint])
def test_every_rule_equals_its_formula_in_numpy(name: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    logits, draws = (rng.normal(0, scale, shape).astype(np.float32) for shape in ((B, C), (K, B, C)))
    label, il = rng.integers(0, C, B), rng.exponential(1, B).astype(np.float32)
    z = torch.from_numpy(logits)
    loss = cross_entropy(z, torch.from_numpy(label))
    columns = {"quality": torch.from_numpy(il).flip(0)}
    label_B = torch.from_numpy(label)
    score = RULES[name](Evidence(loss, torch.from_numpy(il), z, label_B, torch.from_numpy(draws), columns))
    exact = -np.log(softmax(logits.astype(np.float64)))[np.arange(B), label]
    expected = ORACLES[name](exact, il.astype(np.float64), logits.astype(np.float64), label, draws.astype(np.float64))
    assert score.dtype == torch.float32 and score.shape == (B,)
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_what_a_rule_needs_is_read_off_its_parameters() -> None:
    assert RULES["rho"].takes == ("loss_B", "il_B") and RULES["rho"].needs_il and not RULES["rho"].needs_draws
    assert RULES["bald"].takes == ("draws_KBC",) and not RULES["bald"].needs_il
    needing = ["irreducible", "rho", "rho_updated", "jest", "jest_top"]
    assert [name for name, rule in RULES.items() if rule.needs_il] == needing
    own = find_rule("tests.support.tiny:middle")
    assert own.takes == ("loss_B", "il_B", "logits_BC")
    assert find_rule("tests.support.tiny:confident").takes == ("label_B", "logits_BC")
    assert not find_rule("tests.support.tiny:confident").needs_il


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("grad_nrom", "did you mean 'grad_norm'"),
        ("tests.support.tiny:astray", "'losses'.*did you mean loss_B"),
        ("tests.support.tiny:nothing", r"package\.module:function"),
        ("tests.support.tiny:np", r"package\.module:function"),
    ],
)
def test_a_rule_that_is_none_is_refused_and_the_inputs_are_listed(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        find_rule(name)
    with pytest.raises(UsageError) as error:
        find_rule("tests.support.tiny:astray")
    assert all(one in str(error.value) for one in INPUTS)


def test_a_rule_of_another_shape_is_refused_saying_what_was_expected_and_got() -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    with pytest.raises(UsageError, match=r"one_number.* returned a scalar .*expected .*shape \(40,\)"):
        Selector(model, "tests.support.tiny:one_number", 8)(buffer())


# -- losses ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_a_scalar_is_refused_where_it_scores_and_where_it_trains() -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    says = r"mean_loss returned a scalar .*shape \((40|8),\).*reduction='none'"
    with pytest.raises(UsageError, match=says):
        Selector(model, "loss", 8, loss=tiny.mean_loss)(buffer())
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(UsageError, match=says):
        take_step(model, optimizer, torch.zeros(8, 1, 16, 16), torch.zeros(8, dtype=torch.long), tiny.mean_loss)
    with pytest.raises(UnknownNameError, match="did you mean 'cross_entropy'"):
        find_loss("cross_entropi")


def test_a_users_loss_is_what_is_scored_and_trained(trained: Callable[..., Path]) -> None:
    run = trained(rule="loss", loss="tests.support.tiny:smooth_loss", steps=3, model="mlp-64")
    plain = trained("plain", rule="loss", steps=3, model="mlp-64")
    first, other = (rows_of(r)["loss"].to_numpy()[:40] for r in (run, plain))
    torch.manual_seed(0)
    assert not np.allclose(first, other) and np.allclose(first, other, atol=0.3)
    with pytest.raises(rhostream.errors.MismatchError, match=r"loss: was 'tests.support.tiny:smooth_loss', now None"):
        trained(rule="loss", steps=3, model="mlp-64")
    with pytest.warns(UserWarning, match="two different losses"):
        trained("rho", loss="tests.support.tiny:smooth_loss", steps=1)


def test_the_mean_of_a_sequence_leaves_padding_out() -> None:
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(5, 6, 4)).astype(np.float32), rng.integers(0, 4, (5, 6))
    label[0, 3:], label[1, :] = -100, -1
    found = sequence_mean(torch.from_numpy(logits), torch.from_numpy(label)).numpy()
    nll = -np.log(softmax(logits.astype(np.float64)))
    for row in range(5):
        own = [nll[row, t, label[row, t]] for t in range(6) if label[row, t] >= 0]
        assert math.isnan(found[row]) if not own else abs(found[row] - np.mean(own)) < 1e-6


def test_labels_beyond_the_models_classes_are_refused_before_a_device_dies(trained: Callable[..., Path]) -> None:
    selector = Selector(build("mlp-64", image_size=16, channels=1, classes=3), "loss", 8)
    with pytest.raises(UsageError, match="label 3, and the model gives 3 logits, which are labels 0 to 2"):
        selector(buffer())
    for rule in ("rho", "uniform"):
        with pytest.raises(UsageError, match=r"gives 2 logits, and the labels go up to 3.*--classes 2"):
            trained(rule=rule, model="tests.support.tiny:narrow")


# -- importance sampling -----------------------------------------------------------------------------------------------


def test_importance_sampling_is_unbiased_in_expectation() -> None:
    """The mean over many draws of the weighted loss, and of its gradient, is that of the whole buffer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    candidates = buffer(classes=4)
    losses = cross_entropy(model(candidates.input), candidates.label)
    losses.mean().backward()
    whole = float(losses.detach().mean()), model[1].weight.grad.clone()
    selector, rounds = Selector(model, "grad_norm_is", 8), 1500
    factor, plain = np.zeros((rounds, 40)), np.zeros((rounds, 40))  # of each sample's loss, in each round
    for step in range(rounds):
        selection = selector(candidates, step)
        assert selection.draws == 8
        factor[step, selection.rows] = selection.factors / selection.draws
        plain[step, selection.rows] = 1 / len(selection)
    error = factor.std(0) / math.sqrt(rounds)
    assert (np.abs(factor.mean(0) - 1 / 40) < 4 * error).all()
    mean, unweighted = ((f @ losses.detach().numpy()) for f in (factor, plain))
    error = mean.std() / math.sqrt(rounds)
    assert abs(mean.mean() - whole[0]) < 3 * error and error < 0.01
    assert unweighted.mean() - whole[0] > 10 * error  # so weights that are wrong would show
    model.zero_grad()
    (cross_entropy(model(candidates.input), candidates.label) * torch.from_numpy(factor.mean(0))).sum().backward()
    assert float((model[1].weight.grad - whole[1]).norm() / whole[1].norm()) < 0.1


def test_logged_weights_give_the_draws_back(trained: Callable[..., Path]) -> None:
    """draws = weight x candidates x score / sum of scores, as docs/rules.md says; n_b of them in every step."""
    run = trained(rule="grad_norm_is", steps=10)
    with rhostream.open_ledger(str(run)) as ledger:
        answer = ledger.sql("""
            WITH drawn AS (SELECT step, kept, weight, weight * count(score) OVER s * score / sum(score) OVER s AS draws
                           FROM selections WHERE step IS NOT NULL WINDOW s AS (PARTITION BY step))
            SELECT step, sum(round(draws)) AS n, max(abs(draws - round(draws))) AS off, min(draws) AS least
            FROM drawn WHERE kept GROUP BY step ORDER BY step""").to_pydict()
        page = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
        told = ledger.sql(re.findall(r"```sql\n(.*?)```", page, re.DOTALL)[0]).to_pydict()
    assert sum(told["draws"]) == 80 and min(told["draws"]) == 1
    assert answer["n"] == [8] * 10 and max(answer["off"]) < 1e-3 and min(answer["least"]) > 0.99
    rows = rows_of(run)
    assert set(rows["weight"].to_numpy()[~rows["kept"].to_numpy()]) == {1.0}


def test_the_step_is_that_of_the_weighted_mean_over_the_draws() -> None:
    torch.manual_seed(0)
    model = build("mlp-64", image_size=16, channels=1, classes=4)
    twin = copy.deepcopy(model)
    selection = Selector(model, "grad_norm_is", 12)(buffer())
    assert 1 < len(selection) < selection.draws == 12
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    losses, mean = take_step(
        model,
        optimizers[0],
        selection.input,
        selection.label,
        cross_entropy,
        total=12,
        weight=selection.factors,
        accumulate=3,
    )
    p = selection.score / selection.score.sum()
    times = np.rint(selection.weight[selection.rows] * 40 * p[selection.rows])
    rows = np.repeat(np.arange(len(selection)), times.astype(int))
    weight = torch.from_numpy(1 / (40 * p[selection.rows]))[rows]
    expected = (cross_entropy(twin(selection.input[rows]), selection.label[rows]) * weight).mean()
    expected.backward()
    optimizers[1].step()
    assert len(losses) == len(selection) and abs(float(mean) - float(expected.detach())) < 1e-5
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_of_no_more_candidates_than_draws_each_counts_once() -> None:
    selection = Selector(build("mlp-64", image_size=16, channels=1, classes=4), "grad_norm_is", 40)(buffer())
    assert len(selection) == selection.draws == 40 and set(selection.weight.tolist()) == {1.0}
    choice = by_importance(np.zeros(5), 100, np.random.default_rng(0))  # no gradient anywhere: all alike
    assert choice.draws == 100 and choice.weight_B[choice.kept].sum() == pytest.approx(100) and len(choice.kept) == 5


def test_tau_is_katharopoulos_and_fleurets_and_switches_by_their_threshold() -> None:
    rng = np.random.default_rng(0)
    for score in (rng.exponential(1, 50), rng.exponential(1, 50) ** 6):
        g, u = score / score.sum(), np.full(50, 1 / 50)
        exact = (1 - np.sum((g - u) ** 2) / np.sum(g**2)) ** -0.5  # Eq. 26
        assert tau_of(score) == pytest.approx(exact, rel=1e-9)
    assert tau_of(np.ones(50)) == pytest.approx(1)
    tau = Tau()
    for _ in range(200):
        tau.see(np.eye(40)[0])  # one sample has all the gradient: tau is sqrt(40)
    assert tau.value == pytest.approx(math.sqrt(40)) and tau.pays(320, 32) and not tau.pays(3200, 32)


def test_with_tau_the_choice_begins_uniform_and_is_sampled_once_that_pays(trained: Callable[..., Path]) -> None:
    class Sure(nn.Module):
        """Right about nine tenths of the samples, whose gradient is nothing, and wrong about the others."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            right = self.label.clone()
            right[: len(right) // 10] = (right[: len(right) // 10] + 1) % 4
            return 9.0 * nn.functional.one_hot(right, 4).float()[[int(v) for v in x[:, 0, 0, 0]]]

    model = Sure()
    model.label = buffer().label
    numbers = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 2, 2, 1)
    candidates = buffer(image=numbers, prepare=lambda fields: fields.only.permute(0, 3, 1, 2).float())
    selector = Selector(model, "grad_norm_is", 30, tau=True)
    scored, taus = [], []
    for _ in range(12):
        taus.append(selector.state_dict()["tau"])
        selection = selector(candidates)
        scored.append(selection.scored)
        assert (selection.factors is None) == (selection.scored == 30) and selection.draws == 30
    assert scored[0] == 30 and scored[-1] == 40
    assert scored == [40 if tau > (40 + 90) / 90 else 30 for tau in taus]
    options = {"rule": "grad_norm_is", "tau": True, "threads": 1}
    run = trained(steps=9, **options)
    for steps in (5, 9):  # what was smoothed so far is in the checkpoint
        pieces = trained("pieces", steps=steps, **options)
    assert rows_of(pieces).equals(rows_of(run)) and checkpoint.latest(str(run)).cost["scored"] == 9 * 8
    states = [checkpoint.latest(str(r)).selector for r in (run, pieces)]
    assert states[0] == states[1] and 0 < states[0]["tau"] < 2


# -- MC dropout --------------------------------------------------------------------------------------------------------


def test_dropout_draws_are_the_models_own_seeded_and_leave_it_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4)
    ).train()
    model[4].eval()  # a user's own setting
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    picks = [
        Selector(model, "bald", 8, mc_draws=5, seed=seed)(buffer(), step)
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(torch.get_rng_state(), state) and modes == [m.training for m in model.modules()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert picks[0].score.tolist() == picks[1].score.tolist()
    assert picks[0].score.tolist() not in (picks[2].score.tolist(), picks[3].score.tolist())
    assert picks[0].scored == 5 * 40
    # By hand: the statistics of the buffer, the dropout of the model.
    hand = copy.deepcopy(model)
    hand[4].train()
    torch.manual_seed(123)
    with torch.no_grad():
        p = torch.stack([hand(buffer().input).softmax(1) for _ in range(800)]).double().numpy()
    many = Selector(model, "bald", 8, mc_draws=800)(buffer())
    expected = entropy(p.mean(0)) - entropy(p).mean(0)
    assert np.corrcoef(many.score, expected)[0, 1] > 0.95 and np.abs(many.score - expected).max() < 0.02
    np.testing.assert_allclose(many.loss, -np.log(p.mean(0)[np.arange(40), buffer().label.numpy()]), atol=0.05)


def test_a_model_without_dropout_or_whose_dropout_does_nothing_is_refused(trained: Callable[..., Path]) -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.dropout = build("mlp-64", image_size=16, channels=1, classes=4), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    with pytest.raises(UsageError, match="has no dropout"):
        trained(rule="bald", model="mlp-64")
    with pytest.raises(UsageError, match="its dropout has no effect"):
        Selector(Deaf(), "entropy", 8)(buffer())


def test_a_run_with_dropout_draws_is_exact_over_pieces_and_workers_and_charged(trained: Callable[..., Path]) -> None:
    options = {
        "rule": "loss_minus_conditional_entropy",
        "model": "tests.support.tiny:dropping",
        "mc_draws": 3,
        "shadow": "bald,rho",
    }
    whole = trained("whole", steps=8, **options)
    for steps in (3, 8):
        pieces = trained("pieces", steps=steps, **options)
    assert rows_of(whole).equals(rows_of(pieces))
    cost = json.loads((whole / "cost.json").read_text())
    assert cost["scored"] == 3 * 8 * 40 and cost["forward_units"] == 3 * 320 + 3 * 64
