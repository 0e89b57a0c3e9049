"""What people bring: models, losses and rules of any form are taken, or refused in one sentence, in their own words."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rhostream
from rhostream.errors import BudgetError, NonFiniteError, UsageError
from rhostream.il_model.networks import Divided
from rhostream.runs import checkpoint
from rhostream.selection.gradient import require_finite, take_step
from rhostream.selection.losses import cross_entropy, per_sample
from rhostream.selection.outputs import called, logits_of_output
from rhostream.selection.selector import Selector
from tests.support.logs import rows_of, weights_of
from tests.support.own_models import REFUSED, TAKEN, Own, Poisoned, SometimesPoisoned, whole_loss
from tests.support.scoring import buffer

# -- outputs ---


@pytest.mark.parametrize("form", TAKEN)
def test_a_model_of_any_known_form_selects_trains_and_fits_as_one_that_gives_a_tensor(
    form: str, trained: Callable[..., Path], world: Path, tmp_path: Path
) -> None:
    plain, own = (Selector(Own(TAKEN[name]), "rho", 8)(buffer()) for name in ("tensor", form))
    assert own.rows.tolist() == plain.rows.tolist()
    run = trained(model=f"tests.support.own_models:make_{form}", steps=2, test_shards=[str(world / "test")], threads=1)
    other = trained("plain", model="tests.support.own_models:make_tensor", steps=2, threads=1)
    first, second = weights_of(run), weights_of(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    if form in ("pair", "mapping"):
        shards, made = [str(world / "shards")], str(tmp_path / "il-model")
        info = rhostream.fit_il(shards, made, model=f"tests.support.own_models:make_{form}", epochs=1, fit_samples=300)
        rhostream.compute_il(shards, made, str(tmp_path / "il"), model=f"tests.support.own_models:make_{form}")
        assert np.isfinite(info.quality["loss"])


@pytest.mark.parametrize("form", REFUSED)
def test_any_other_output_is_refused_saying_what_came(
    form: str, trained: Callable[..., Path], world: Path, tmp_path: Path
) -> None:
    make, says = REFUSED[form]
    for attempt in (
        lambda: Selector(Own(make), "rho", 8)(buffer()),
        lambda: trained(model=f"tests.support.own_models:make_{form}"),
        lambda: rhostream.fit_il(
            [str(world / "shards")],
            str(tmp_path / "il-model"),
            classes=4,
            model=f"tests.support.own_models:make_{form}",
        ),
    ):
        with pytest.raises(UsageError, match=says) as error:
            attempt()
        assert "expected logits of shape (B, C)" in str(error.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "il-model" / "model.json").exists()


def test_hugging_faces_own_output_is_taken() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    z = torch.randn(3, 4)
    assert logits_of_output(outputs.SequenceClassifierOutput(logits=z), 3) is z


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("few", "2 logits.*0 to 3|2 logits.*labels"),
        ("missing", r"FileNotFoundError: the weights.*line \d+, in missing"),
        ("failing", "forward of Own.*KeyError: 'absent'.*in <lambda>"),
    ],
)
def test_a_model_that_fails_says_so_in_its_own_words_before_any_work(
    name: str, says: str, world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    model, made = f"tests.support.own_models:{name}", str(tmp_path / "il-model")
    for attempt in (
        lambda: trained(model=model),
        lambda: rhostream.fit_il([str(world / "shards")], made, model=model, epochs=1),
    ):
        with pytest.raises(UsageError, match=says):
            attempt()
    assert not (tmp_path / "run").exists() and not (tmp_path / "il-model" / "model.json").exists()


def test_a_forward_that_fails_in_the_middle_of_a_run_is_told_as_what_it_is(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    calls = []

    def later(z: Tensor) -> Tensor:
        calls.append(len(z))
        if len(calls) > 9:
            raise ZeroDivisionError("mine")
        return z

    with pytest.raises(UsageError, match=r"forward of Own.*ZeroDivisionError: mine"):
        trained(make_model=lambda: Own(later), model="own", checkpoint_every=2)
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == 2


# -- losses and rules ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rule": "tests.support.own_models:raising_rule"}, "raising_rule.*KeyError: 'mine'"),
        ({"loss": "tests.support.own_models:raising"}, "loss function raising.*KeyError: 'mine'"),
        ({"loss": "tests.support.own_models:whole_loss"}, "whole_loss returned.*int64"),
        ({"loss": "sequence_mean"}, "sequence_mean takes a label for each token"),
        ({"model": "tests.support.own_models:TAKEN"}, "is a dict, expected a function"),
    ],
)
def test_functions_of_the_users_that_fail_are_named(
    trained: Callable[..., Path], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as error:
        trained(**{"rule": "loss", **options})
    assert error.value.exit_code == 2 and not (tmp_path / "run" / "run.json").exists()


def test_a_module_that_fails_when_it_is_imported_is_named(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crooked_nets.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for option in ("model", "rule", "loss"):
        with pytest.raises(UsageError, match=r"importing crooked_nets raised ZeroDivisionError.*nets.py, line 1"):
            trained(**{option: "crooked_nets:anything"})
    sys.modules.pop("crooked_nets", None)


# -- left as it was found ---


class Rotary(nn.Module):
    """A model that makes a table in its first forward and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.table = nn.Linear(256, 4), None

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        if self.table is None:
            self.table = torch.cos(torch.arange(256, device=x.device) / 7)
        return self.layer(x.flatten(1).requires_grad_() * self.table)  # type: ignore[no-any-return]


class Tempered(nn.Module):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """(B, 4), (B,) to (B,)."""
        return functional.cross_entropy(logits * self.scale, label, reduction="none")


@pytest.mark.parametrize("rule", ["rho", "grad_norm_is"])
def test_a_cache_of_the_scoring_forward_and_a_loss_with_a_parameter_train_afterwards(rule: str) -> None:
    model, loss = Rotary(), Tempered()
    selector = Selector(model, rule, 8, loss=loss)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    for seed in range(2):
        kept = selector(buffer(seed=seed))
        assert model.table is not None and not model.table.is_inference() and not model.table.requires_grad
        loss_b = loss(model(kept.input), kept.label)
        optimizer.zero_grad()
        kept.mean(loss_b).backward()
        optimizer.step()
    assert float(loss.scale.detach()) != 1.5 and loss.scale.grad is not None


# -- gradients that aren't finite ---


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(
    trained: Callable[..., Path], value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Poisoned, "value", value)
    # Every fifth batch, whatever is in it: the order of a pass hangs on the shards' names, here on a temporary folder.
    options = {"make_model": SometimesPoisoned, "model": "poisoned", "threads": 1, "checkpoint_every": 4}
    run = trained(steps=16, **options)
    assert all(t.isfinite().all() for t in weights_of(run).values())
    with rhostream.open_ledger(str(run)) as ledger:
        told = ledger.sql("SELECT step, kept, loss_kept FROM steps ORDER BY step").to_pydict()
        bad = ledger.sql("SELECT step, count(*) AS n FROM selections WHERE reason = 'nonfinite' GROUP BY 1").to_pydict()
    skipped = {s for s, kept in zip(told["step"], told["kept"], strict=True) if not kept}
    assert 0 < len(skipped) < 16 and dict(zip(bad["step"], bad["n"], strict=True)) == dict.fromkeys(skipped, 8)
    pieces = [trained("pieces", steps=steps, **options) for steps in (5, 16)]
    assert rows_of(pieces[-1]).equals(rows_of(run))


def test_gradients_that_never_are_finite_stop_the_run_with_its_last_checkpoint_clean(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"make_model": Poisoned, "model": "poisoned", "threads": 1}
    monkeypatch.setattr(Poisoned, "every", 10**9)
    trained(steps=3, **options)
    monkeypatch.setattr(Poisoned, "every", 1)
    with pytest.raises(NonFiniteError, match=r"gradient.*--lr") as error:
        trained(steps=20, **options)
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert error.value.exit_code == 3 and latest is not None and latest.step == 3
    assert all(t.isfinite().all() for t in weights_of(tmp_path / "run").values())


def test_weights_that_something_else_poisoned_are_never_committed(trained: Callable[..., Path], tmp_path: Path) -> None:
    models = []

    def make() -> nn.Module:
        models.append(Own(lambda z: z))
        return models[-1]

    def poison(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            with torch.no_grad():
                models[0].layer.bias.fill_(torch.nan)

    with pytest.raises(NonFiniteError, match=r"step 6 \(first layer.bias\)"):
        trained(make_model=make, model="own", rule="uniform", steps=7, checkpoint_every=3, metrics=poison)
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.step == 3


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_step_changes_no_weight_and_no_running_statistic(fused: bool) -> None:
    model = Poisoned()
    model.every = 1
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    x, label = torch.rand(8, 1, 16, 16), torch.zeros(8, dtype=torch.long)
    losses, mean = take_step(model, optimizer, x, label, cross_entropy)
    assert bool(losses.isfinite().all()) and bool(mean.isnan())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items() if "num_batches" not in k)
    require_finite({"it": model, "nobody": None}, 1)
    model.norm.running_var.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match=r"norm\.running_var"):
        require_finite({"it": model}, 1)


def test_fit_il_leaves_such_steps_out_and_stops_when_there_are_no_others(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit: dict[str, Any] = {
        "model": "tests.support.own_models:make_poisoned",
        "epochs": 1,
        "fit_samples": 400,
        "batch_size": 8,
    }
    info = rhostream.fit_il([str(world / "shards")], str(tmp_path / "some"), **fit)
    assert np.isfinite(info.val_loss)
    monkeypatch.setattr(SometimesPoisoned, "often", 1)
    with pytest.raises(NonFiniteError, match="3 batches in a row"):
        rhostream.fit_il([str(world / "shards")], str(tmp_path / "none"), **fit)


def test_fit_il_with_batches_of_one_learns_or_says_why_not(world: Path, tmp_path: Path) -> None:
    fit: dict[str, Any] = {"shards": [str(world / "shards")], "epochs": 1, "fit_samples": 60, "batch_size": 1}
    info = rhostream.fit_il(out=str(tmp_path / "one"), model="mlp-64", **fit)
    assert info.cost["fit_samples"] >= 50
    with pytest.raises(UsageError, match=r"--batch-size 1 .*more than one value a channel"):
        rhostream.fit_il(out=str(tmp_path / "norm"), model="tests.support.own_models:with_norm", **fit)


def test_a_loss_of_whole_numbers_has_no_gradient_and_is_refused() -> None:
    with pytest.raises(UsageError, match="int64"):
        per_sample(whole_loss, torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


def test_a_forward_that_batch_norm_refuses_leaves_the_norms_before_it_as_they_were() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(256, 4), nn.BatchNorm1d(4)).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    called(model, torch.randn(1, 1, 16, 16))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()) and model[3].training


def test_logits_of_every_form_are_divided_by_a_temperature() -> None:
    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": super().forward(x)}

    network, x = Named(3, 2), torch.randn(5, 3)
    logits = network(x)["logits"]
    network.register_forward_hook(Divided(2.0))
    torch.testing.assert_close(called(network, x), logits / 2)


def test_a_run_that_kept_nothing_is_exit_code_3(world: Path, tmp_path: Path) -> None:
    shards = [str(world / "shards")]
    rhostream.fit_il(shards, str(tmp_path / "m"), model="mlp-64", epochs=1, holdout=shards)
    rhostream.compute_il(shards, str(tmp_path / "m"), str(tmp_path / "il"))
    with pytest.raises(BudgetError, match=r"holdout 1,003") as error:
        rhostream.train(
            shards, str(tmp_path / "il"), str(tmp_path / "run"), model="mlp-64", buffer_size=40, batch_size=8
        )
    assert error.value.exit_code == 3
