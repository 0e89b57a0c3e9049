"""A user's own function that re-ranks, by name: what it decides, where it is told, and what it may not give back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rhostream.audit.facts import gather_all
from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.config.page import page
from rhostream.errors import MismatchError, UsageError
from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection import selector as selecting
from rhostream.selection.options import Options
from rhostream.selection.proxy import Proxy
from rhostream.selection.selector import Selector
from tests.support.logs import rows_of
from tests.support.process import run as command
from tests.support.ranks import together
from tests.support.scoring import buffer, kept_of, oracle, scored

pytestmark = pytest.mark.usefixtures("one_thread")
MINE = "tests.support.own_adjusts"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build("mlp-64", image_size=16, channels=1, classes=4)


def some_left_out(seed: int, **changes: Any) -> Candidates:
    reason = np.full(40, CANDIDATE, np.uint8)
    reason[seed % 7 :: 7] = Reason.quarantined
    return buffer(seed=seed, reason=reason, **changes)


# -- what it decides ---------------------------------------------------------------------------------------------------


def test_what_it_gives_back_is_ranked_and_the_log_has_the_rules_own_score(model: nn.Module) -> None:
    plain, adjusted = Selector(model, "rho", 8), Selector(model, "rho", 8, adjust=f"{MINE}:easy_at_half")
    for seed in range(100):
        candidates = some_left_out(seed)
        selection, unadjusted = adjusted(candidates), plain(candidates)
        il_B, label_B = candidates.il.numpy().astype(np.float64), candidates.label.numpy()
        score_B = np.where(il_B > 1, unadjusted.score.astype(np.float64) / 2, unadjusted.score.astype(np.float64))
        score_B[label_B == 0] = np.nan
        assert selection.rows.tolist() == oracle(score_B, np.zeros(40), 8)
        np.testing.assert_array_equal(selection.score, unadjusted.score)
        assert (selection.reason[selection.reason != Reason.kept] != Reason.nonfinite).all()


def test_one_that_changes_nothing_changes_nothing_whatever_the_other_options(model: nn.Module) -> None:
    il = buffer().il.clone()
    il[::5] = math.nan
    for options in ({}, {"gumbel": 0.5}, {"clip": True, "class_quota": 0.3}, {"deduplicate": 0.3, "shadow": "loss"}):
        mine = Selector(model, "rho", 8, adjust=f"{MINE}:unchanged", **options)
        for seed in range(5):
            candidates = some_left_out(seed, il=il)
            first, second = Selector(model, "rho", 8, **options)(candidates, seed), mine(candidates, seed)
            for name, column in first.columns().items():
                np.testing.assert_array_equal(column, second.columns()[name], err_msg=name)


def test_its_chance_is_a_function_of_the_seed_and_the_step(model: nn.Module) -> None:
    def kept(seed: int, step: int) -> list[int]:
        return Selector(model, "rho", 8, adjust=f"{MINE}:any_of_them", seed=seed)(buffer(), step).rows.tolist()

    assert kept(0, 0) == kept(0, 0) and len({tuple(kept(*words)) for words in ((0, 0), (0, 1), (1, 0))}) == 3


def test_any_function_of_an_option_is_such_an_adjust_and_comes_before_the_others() -> None:
    adjusts = Options(adjust=f"{MINE}:unchanged", class_quota="reducr", gumbel=1.0, clip=True, deduplicate=0.5).adjusts
    assert [type(a).__name__ for a in adjusts] == ["Own", "Clip", "ClassWeights", "Gumbel", "Duplicates"]
    assert [type(a).__name__ for a in Options(class_quota="mild", deduplicate=0.9).adjusts] == ["Duplicates", "Quota"]
    own = Options(adjust=f"{MINE}:easy_at_half").adjusts
    buffer_ = scored([3.0, 2.0, 1.0], 2, il_B=np.array([0, 3, 0], np.float32), label_B=np.array([0, 1, 1]))
    assert own[0](buffer_.score_B, buffer_).tolist()[1:] == [1.0, 1.0]
    assert kept_of([3.0, 2.0, 1.0], 1, *own, il_B=buffer_.il_B, label_B=buffer_.label_B) == [1]


# -- where it is told --------------------------------------------------------------------------------------------------


def test_a_run_names_it_keeps_its_state_and_refuses_another(trained: Callable[..., Path], tmp_path: Path) -> None:
    name = f"{MINE}:RarelyKept"
    whole = trained("whole", steps=8, adjust=name, threads=1)
    for steps in (3, 8):
        pieces = trained("pieces", steps=steps, adjust=name, threads=1)
    assert rows_of(whole).equals(rows_of(pieces))
    assert not rows_of(whole)["kept"].equals(rows_of(trained("plain", steps=8, threads=1))["kept"])
    states = [checkpoint.latest(str(run)).selector["adjust"] for run in (whole, pieces)]
    assert states[0] == states[1] and sum(states[0]["wanted"]) == 64
    record = json.loads((whole / "run.json").read_text())
    assert record["fingerprints"]["adjust"] == record["config"]["adjust"] == name
    assert gather_all({"r": str(whole)}, None)["r"].kind == f"rho, adjusted by {name}"
    assert "`adjust`" in page() and "--adjust MODULE:NAME" in command("train", "--help")[0]
    with pytest.raises(MismatchError, match=f"adjust: was '{name}', now None"):
        trained("whole", steps=9, threads=1)


def choose_on_ranks(rank: int) -> list[list[int]]:
    from tests.support.ranks import join_group, leave_group

    join_group()
    torch.manual_seed(0)
    network = build("mlp-64", image_size=16, channels=1, classes=4)
    selector, kept = Selector(network, "rho", 8, adjust=f"{MINE}:RarelyKept", gradients="mean"), []
    for seed in range(4):
        mine = np.arange(rank * 20, rank * 20 + 20)
        kept.append((selector(some_left_out(seed).take(mine)).rows + rank * 20).tolist())
    leave_group()
    return kept


def test_ranks_make_the_choice_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    selector = Selector(
        build("mlp-64", image_size=16, channels=1, classes=4), "rho", 8, adjust=f"{MINE}:RarelyKept", group=None
    )
    expected = [selector(some_left_out(seed)).rows.tolist() for seed in range(4)]
    first, second = together(tmp_path, choose_on_ranks, 2)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == expected


# -- what it may not ---------------------------------------------------------------------------------------------------

BAD = [
    ("too_many", "too many"),
    ("none", "keeps none"),
    ("shorter", r"shape \(34,\)"),
    ("rows", "int64"),
    ("tensor", "a Tensor"),
    ("nothing", "nothing"),
    ("infinite", "row 7 .*infinite"),
    ("raises", "KeyError.*own_adjusts.py"),
]


@pytest.mark.parametrize(("name", "says"), BAD)
def test_what_it_may_not_give_back_is_one_error_that_names_it(model: nn.Module, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"--adjust {MINE}:{name} .*{says}") as error:
        Selector(model, "rho", 8, adjust=f"{MINE}:{name}")(some_left_out(1))
    assert "\n" not in str(error.value)


def test_nothing_is_logged_of_a_step_that_it_broke(trained: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{MINE}:none"):
        trained(steps=2, adjust=f"{MINE}:none")
    assert not [*(tmp_path / "run").glob("log/**/*.parquet")] and checkpoint.latest(str(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"adjust": "gumbel"}, r"package\.module:name"),
        ({"adjust": f"{MINE}:absent"}, f"--adjust '{MINE}:absent'.*absent"),
        ({"adjust": f"{MINE}:np"}, "module"),
        ({"adjust": f"{MINE}:NeedsSomething"}, "NeedsSomething: making it raised TypeError"),
        ({"adjust": f"{MINE}:unchanged", "rule": "uniform"}, "--adjust needs scores"),
        ({"adjust": f"{MINE}:unchanged", "rule": "grad_norm_is"}, "--adjust would bias"),
    ],
)
def test_one_that_can_not_be_stops_before_any_work(
    trained: Callable[..., Path], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        trained(**options)
    assert not (tmp_path / "run").exists()


def test_a_state_that_is_no_plain_values_is_refused_and_one_that_is_missing_too(model: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"KeepsAnArray.*plain values"):
        Selector(model, "rho", 8, adjust=f"{MINE}:KeepsAnArray").state_dict()
    with pytest.raises(MismatchError, match=f"{MINE}:RarelyKept"):
        Selector(model, "rho", 8, adjust=f"{MINE}:RarelyKept").load_state_dict({"calls": 3})


# -- what a choice costs -----------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """Counts the rows of its forwards."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        return self.network(x)


SCALARS = 8 + 4 + 4 + 1  # row, loss, score, correct


@pytest.mark.parametrize(
    ("options", "forwards", "cheap", "copied"),
    [
        ({}, 34, 0, 34 * SCALARS),
        ({"rule": "uniform"}, 0, 0, None),
        ({"shortlist": 3}, 24, 34, 24 * SCALARS),
        ({"shadow": "loss,irreducible", "gumbel": 0.5}, 34, 0, 34 * (SCALARS + 8)),
        ({"deduplicate": 0.9, "shortlist": 2}, 16, 34, 16 * (SCALARS + 4 * 64)),
        ({"warm_up": 5}, 0, 0, None),
    ],
)
def test_only_rows_that_reach_a_stage_are_forwarded_and_one_copy_comes_off_the_device(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], forwards: int, cheap: int, copied: int | None
) -> None:
    models = [Counted(build("mlp-64", image_size=16, channels=1, classes=4)) for _ in range(2)]
    copies, unpack = [], selecting.unpack
    monkeypatch.setattr(selecting, "unpack", lambda data, layout: copies.append(data.nbytes) or unpack(data, layout))
    proxy = Proxy(models[1]) if "shortlist" in options else None
    if proxy is not None:
        proxy.learn = lambda *_: None
    selection = Selector(models[0], **{"rule": "rho", "batch_size": 8, "proxy": proxy, **options})(some_left_out(1))
    assert (models[0].rows, models[1].rows) == (forwards, cheap) == (selection.scored, selection.shortlisted)
    assert copies == ([] if copied is None else [copied]) and len(selection) == 8
    assert np.isnan(selection.score).sum() == 40 - forwards


def test_what_comes_off_the_device_keeps_its_type_and_its_bits() -> None:
    columns = {
        "right": torch.tensor([True, False, True]),
        "row": torch.tensor([0, 2**40 + 1, -1]),
        "loss": torch.tensor([math.nan, math.inf, 1e-45]),
        "shadow": torch.arange(6.0).view(2, 3).T,
        "none": torch.zeros(0, 3),
    }
    data, layout = selecting.pack(columns)
    host = selecting.unpack(data, layout)
    assert data.nbytes == 3 * (1 + 8 + 4 + 8) and set(host) == set(columns)
    for name, column in columns.items():
        assert host[name].dtype == column.numpy().dtype
        np.testing.assert_array_equal(host[name], column.numpy())
