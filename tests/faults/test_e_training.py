"""What goes wrong inside a training step, and what a resume may not change."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rhostream
from rhostream.errors import MismatchError, NonFiniteError
from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection.selector import Selector
from rhostream.tables import parquet
from tests.support import ranks, tiny
from tests.support.logs import log_of, same, weights_of
from tests.support.scoring import buffer


def layers() -> nn.Module:
    """An MLP for the world's images, always with the same first weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 4))


# -- B19, B20 ---


class Poisoned(nn.Module):
    """A model that gives NaN, or infinity, for some images: those whose first pixel is dark."""

    def __init__(self, value: float, share: float) -> None:
        super().__init__()
        self.layers, self.value, self.threshold = layers(), value, 2 * share * 120 / 255 - 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        bad = (x[:, 0, 15, 8] < self.threshold)[:, None]
        return torch.where(bad, torch.full_like(self.layers(x), self.value), self.layers(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_B19_a_loss_that_is_not_finite_is_never_selected(trained: Callable[..., Path], value: float) -> None:
    """A sample whose loss is NaN or infinite is never selected: it is logged with the reason `nonfinite` and counted, and the run goes on."""  # noqa: E501
    run = trained(make_model=lambda: Poisoned(value, 0.1), model="poisoned", steps=12, threads=1)
    rows = log_of(run)
    bad = [r for r in rows if r["reason"] == "nonfinite"]
    assert 10 < len(bad) == checkpoint.latest(str(run)).counts["nonfinite"]
    assert not any(r["kept"] for r in bad) and all(r["loss"] is None and r["score"] is None for r in bad)
    for step in range(12):
        assert sum(r["kept"] for r in rows if r["step"] == step) == 8
    assert all(torch.isfinite(v).all() for v in weights_of(run).values())


class Overflowing(nn.Module):
    """A model whose logits are too large for float16."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        return (self.layers(x) * 1e9).half()  # type: ignore[no-any-return]


def test_B20_whole_batches_that_are_not_finite_stop_the_run_with_advice(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    """When no score of three buffers in a row is finite, or no loss of three batches, the run stops with exit code 3 and advises a lower learning rate, float32 or bfloat16."""  # noqa: E501
    with pytest.raises(NonFiniteError, match=r"3 buffers in a row.*float32 or bfloat16") as error:
        trained(make_model=Overflowing, model="overflowing")
    assert error.value.exit_code == 3
    with pytest.raises(NonFiniteError, match=r"3 batches in a row.*--lr.*float32 or bfloat16"):
        trained("uniform", make_model=Overflowing, model="overflowing", rule="uniform")
    assert checkpoint.latest(str(tmp_path / "run")) is None  # no weights that saw it are committed


# -- E5 ---


class Hungry(nn.Module):
    """A model that has memory for so many samples at once and no more, like a GPU."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room = model, room
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 4)."""
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"out of memory for {len(x)} samples")
        self.largest = max(self.largest, len(x))
        return self.model(x)  # type: ignore[no-any-return]


def test_E5_out_of_memory_while_scoring_halves_the_chunk_and_keeps_the_same_samples(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    """When the device runs out of memory while `train` scores a buffer, the chunk is halved with a warning and the run goes on; without batch norm the same samples are kept, but where scores differ by rounding alone, and with it the warning says that others may be kept."""  # noqa: E501
    model = Hungry(layers(), room=11)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained("hungry", make_model=lambda: model, model="layers", steps=10, threads=1)
    said = [str(w.message) for w in told]
    assert len(said) == 2 and "out of memory for 40 samples at once: scoring 20" in said[0]
    assert "scoring 10 at a time from here on, which changes scores by rounding alone" in said[1]
    assert model.largest == 10
    trained("fed", make_model=lambda: Hungry(layers(), room=10_000), model="layers", steps=10, threads=1)
    assert ranks.assert_same_but_for_noise(tmp_path / "fed", tmp_path / "hungry", noise=1e-6) == 10
    norm = build("small-cnn", image_size=16, channels=1, classes=4)
    with pytest.warns(UserWarning, match=r"scoring 20 at a time from here on; this model has batch norm.*may be kept"):
        selection = Selector(Hungry(norm, room=20), "rho", 8)(buffer())
    assert len(selection) == 8
    with pytest.raises(torch.OutOfMemoryError):
        Selector(Hungry(layers(), room=0), "rho", 8, chunk=1)(buffer())


def test_E5_out_of_memory_in_compute_il_halves_the_batch_and_gives_the_same_table(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the device runs out of memory in `compute-il`, the batch is halved, with one line in the log, and the table is the same."""  # noqa: E501
    shards = [str(world / "shards")]
    rhostream.fit_il(
        shards, str(tmp_path / "model"), model="tests.support.tiny:hungry", epochs=1, fit_samples=200, seed=0
    )
    rhostream.compute_il(shards, str(tmp_path / "model"), str(tmp_path / "fed"), model="tests.support.tiny:hungry")
    monkeypatch.setattr(tiny.Hungry, "room", 20)
    rhostream.compute_il(shards, str(tmp_path / "model"), str(tmp_path / "hungry"), model="tests.support.tiny:hungry")
    assert len([r for r in caplog.records if "out of memory" in r.message]) == 1
    for part in sorted((tmp_path / "fed" / "parts").rglob("*.parquet")):
        same_part = tmp_path / "hungry" / part.relative_to(tmp_path / "fed")
        fed, hungry = (parquet.read(str(p))[0] for p in (part, same_part))
        np.testing.assert_allclose(fed["il"].to_numpy(), hungry["il"].to_numpy(), atol=1e-6)
        assert fed.drop_columns("il").equals(hungry.drop_columns("il"))


# -- E14 ---


def test_E14_a_resume_with_other_settings_names_the_field_the_old_value_and_the_new(
    trained: Callable[..., Path], world: Path, tmp_path: Path
) -> None:
    """A resume with another buffer size, seed or list of shards stops before any work and names the field, the old value and the new; nothing of the run is touched."""  # noqa: E501
    run = trained(checkpoint_every=10, threads=1)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in run.rglob("*"))
    for change, says in (
        ({"buffer_size": 80}, "buffer_size: was 40, now 80"),
        ({"buffer_size": 50}, "buffer_size: was 40, now 50"),
        ({"seed": 1}, "seed: was 0, now 1"),
    ):
        with pytest.raises(MismatchError, match=says) as error:
            trained(**change)
        assert error.value.exit_code == 2
    fewer = sorted(str(p) for p in (world / "shards").glob("*.tar"))[:-1]
    with pytest.raises(MismatchError, match=r"shards: was '\w+', now '\w+'") as error:
        rhostream.train(fewer, str(world / "il"), str(run), buffer_size=40, batch_size=8, model="mlp-64", steps=30)
    assert any("no longer given: 1" in note and "train-006.tar" in note for note in error.value.__notes__)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in run.rglob("*")) == before


# -- E19 ---


def test_E19_what_evaluates_inside_the_loop_changes_no_decision(
    trained: Callable[..., Path], tmp_path: Path, world: Path
) -> None:
    """Scoring leaves modes, running statistics, gradients and the random state of a model as they were, and whatever an evaluation inside the loop does to the random state changes neither kept samples nor weights."""  # noqa: E501

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 14 * 14, 4)
        )

    found = model().train()
    state, random, candidates = copy.deepcopy(found.state_dict()), torch.get_rng_state(), buffer()
    selection = Selector(found, "rho", 8)(candidates)
    assert torch.equal(random, torch.get_rng_state()) and all(m.training for m in found.modules())
    assert all(torch.equal(state[k], v) for k, v in found.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in found.parameters())
    assert selection.input is not None and not selection.input.requires_grad and not selection.input.is_inference()

    def disturb(row: dict[str, Any]) -> None:
        torch.manual_seed(int(row["step"]) * 7)
        np.random.seed(3)
        torch.rand(5)

    settings = {"make_model": model, "model": "dropout", "steps": 8, "threads": 1}
    trained("plain", **settings)
    trained("tested", **settings, metrics=disturb, test_shards=[str(world / "test")], eval_every=2)
    assert same(tmp_path / "plain", tmp_path / "tested")
