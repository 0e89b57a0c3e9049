"""`--ratio auto`: every choice is what the ledger says it must be, a resume makes the same, and the bill adds up."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import rhostream
from rhostream.audit.looking import looking_of
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, UsageError
from rhostream.integrations.batches import Batches
from rhostream.models import build
from rhostream.runs import checkpoint
from rhostream.selection.ratio import UNHEARD, WINDOW, Ratio, gains_of, rungs
from rhostream.selection.selector import Selector
from tests.support import ranks
from tests.support.chosen import recomputed
from tests.support.ledger import rows
from tests.support.logs import rows_of, same, weights_of
from tests.support.ranks import train_killed_at
from tests.support.scoring import buffer

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 4  # of the world


def score(n: int, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score, loss, il) of n rows: alike, a tenth of them worth a look, or of an IL model that knows nothing."""
    il = rng.uniform(0.0, 0.4, n).astype(np.float32)
    above = {"alike": 0.3, "few": np.where(np.arange(n) < n // 10, 1.5, 0.01), "noise": rng.normal(-0.05, 0.5, n)}[kind]
    loss = (il + above).astype(np.float32)
    return loss - il, loss, il


# -- the choice --------------------------------------------------------------------------------------------------------


def test_the_shares_are_whole_batches_and_the_whole_buffer() -> None:
    assert rungs(8, 40) == [8, 16, 40] and rungs(32, 320) == [32, 64, 96, 160, 320] and rungs(10, 25) == [10, 25]
    with pytest.raises(UsageError, match="take a larger --buffer-size"):
        rungs(8, 8)


@pytest.mark.parametrize(("kind", "n"), [("alike", 320), ("few", 32), ("noise", 320)])
def test_it_looks_while_few_hold_most_of_what_can_be_learned_and_trusts_no_il_that_knows_less(
    kind: str, n: int
) -> None:
    rng, ratio = np.random.default_rng(0), Ratio(32)
    assert ratio.turn(320).scored  # nothing is known yet
    for _ in range(2 * WINDOW):
        ratio.see(*score(320, kind, rng), 320)
        turn = ratio.turn(320)
    assert (turn.n, turn.scored) == (n, n < 320)


def test_a_cheap_look_pays_where_a_dear_one_does_not() -> None:
    rng = np.random.default_rng(0)
    chosen = []
    for looking in (0.02, 3.0):
        ratio = Ratio(32)
        ratio.looking = looking
        il = np.zeros(320, np.float32)
        loss = np.where(np.arange(320) < 160, 0.4, 0.3).astype(np.float32) + rng.normal(0, 1e-3, 320).astype(np.float32)
        ratio.see(loss, loss, il, 320)
        chosen.append(ratio.turn(320).n)
    assert chosen[0] < 320 and chosen[1] == 320


def test_gains_are_of_the_best_rows_less_twice_as_many_of_the_most_negative() -> None:
    loss, il = np.array([3.0, 1.0, 0.5, 0.2, 9.0]), np.array([0.5, 0.2, 0.9, 0.5, 0.1])
    gains = gains_of(loss - il, loss, il, None, [1, 2, 5])
    np.testing.assert_allclose(gains, [8.9 - 2 * 0.4, 8.9 + 2.5 - 2 * 0.7, 8.9 + 2.5 + 0.8 - 2 * 0.7])
    capped = np.minimum(loss, math.log(4)) - np.minimum(il, math.log(4))
    both = np.maximum(capped, 0).sum() + 2 * np.minimum(capped, 0).sum()
    np.testing.assert_allclose(gains_of(loss - il, loss, il, 4, [5]), [both])
    # By an IL model of others what is kept counts with its sign, and a mistake by how sure the target is of it.
    sure = 4 * (2 * np.exp(-loss[2:4]) - 1) * (loss - il)[2:4]
    ceiling = math.log(4)
    kept = np.array([ceiling - 0.1, 2 * ceiling - 0.6, 2 * ceiling - 0.6 + 0.8 - 0.3 - 0.4])
    outside = gains_of(loss - il, loss, il, 4, [1, 2, 5], outside=True)
    np.testing.assert_allclose(outside, kept + np.array([sure.min(), sure.sum(), sure.sum()]))
    # Without classes a loss is no chance, so nobody is sure.
    np.testing.assert_allclose(gains_of(loss - il, loss, il, None, [1, 2, 5], outside=True), gains)


@pytest.mark.parametrize("more", [{}, {"warm_up": 2, "uniform_every": 7, "loss_cap": True}])
def test_every_choice_can_be_made_again_out_of_the_ledger_and_the_bill_adds_up(
    trained: Callable[..., Path], more: dict[str, Any]
) -> None:
    run, sizes = trained(ratio="auto", steps=40, **more), rungs(8, 40)
    with rhostream.open_ledger(str(run)) as ledger:
        steps = ledger.sql("SELECT * FROM steps ORDER BY step").to_pylist()
        looked = ledger.sql(
            "SELECT step, count(score) AS n, count(correct) AS right, sum(kept::int) AS kept FROM selections "
            "WHERE step IS NOT NULL GROUP BY step ORDER BY step"
        ).to_pylist()
    asked = [round(one["ratio"] * 40) for one in steps if one["ratio"] is not None]
    assert asked == recomputed(run, sizes) and len({*asked}) > 1  # it did change its mind
    cost, units = json.loads((run / "cost.json").read_text()), 0
    for one, seen in zip(steps, looked, strict=True):
        whole = one["ratio"] == 1.0
        units += 3 * one["kept"] + (0 if one["ratio"] is None or whole else one["candidates"])
        assert one["forward_units"] == units
        n = 8 if one["ratio"] is None else round(one["ratio"] * 40)
        assert one["kept"] == seen["kept"] == min(n, one["candidates"])
        assert (seen["right"] > 0) == (one["ratio"] is not None and not whole)
        assert (seen["n"] > 0) == (one["ratio"] is not None)  # of a step that looked at nothing, the training's own
        assert (one["loss_candidates"] is None) == (one["ratio"] is None or whole)
        assert one["ratio_worth"] is None or len(one["ratio_worth"]) == len(sizes)
    assert cost["forward_units"] == units == cost["scored"] + 3 * cost["trained"]
    assert verify(str(run))["problems"] == []


@pytest.mark.parametrize("more", [{"mixup": 0.3}, {"label_smoothing": 0.1}])
def test_losses_of_mixed_pictures_or_smoothed_labels_are_no_scores_so_it_looks_now_and_then(
    trained: Callable[..., Path], more: dict[str, Any]
) -> None:
    run, sizes = trained(ratio="auto", steps=60, **more), rungs(8, 40)
    steps = rows(
        run,
        "SELECT s.step, s.ratio, count(l.score) AS scored FROM steps s JOIN selections l USING (step) "
        "GROUP BY ALL ORDER BY s.step",
    )
    assert [round(one["ratio"] * 40) for one in steps] == recomputed(run, sizes)
    whole = [one["step"] for one in steps if one["ratio"] == 1.0]
    looks = [one["step"] for one in steps if one["ratio"] == 1.0 and one["scored"]]
    assert len(whole) > 2 * UNHEARD and 1 <= len(looks) <= len(whole) // UNHEARD
    assert all(later - earlier > UNHEARD for earlier, later in itertools.pairwise(looks))


def test_status_and_report_tell_how_often_a_run_looked_and_what_that_would_have_bought(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained(ratio="auto", steps=20)
    with rhostream.open_ledger(str(run)) as ledger:
        found = looking_of(ledger)
        steps = ledger.sql("SELECT * FROM steps ORDER BY step").to_pylist()
    assert found is not None and found.looked + found.whole == 20 and len(found.share) == 5
    assert found.looked == sum(one["loss_candidates"] is not None for one in steps)
    assert found.share == pytest.approx(
        [np.mean([one["ratio"] for one in steps[at : at + 4]]) for at in (0, 4, 8, 12, 16)]
    )
    newest = status_of(str(run))["ratio"]
    assert newest == {"step": 19, **{name: pytest.approx(steps[-1][name]) for name in ("ratio", "ratio_worth")}}
    assert f"keeps {100 * steps[-1]['ratio']:.0f} % of a buffer at step 19" in render_status(status_of(str(run)))
    page = Path(rhostream.write_report(str(run), str(tmp_path / "report.html"))).read_text()
    cost = json.loads((run / "cost.json").read_text())
    assert f"It looked at {found.looked} of 20 buffers, for {cost['scored']:,} of its" in page
    assert f"(training on {cost['scored'] / 3:,.0f} samples more would have cost as much" in page
    assert status_of(str(trained("plain", steps=2)))["ratio"] is None


# -- resume, ranks and loops of one's own ------------------------------------------------------------------------------


def test_pieces_and_workers_change_nothing(trained: Callable[..., Path]) -> None:
    run = trained("whole", ratio="auto", steps=24)
    for steps in (7, 13, 24):
        pieces = trained("pieces", ratio="auto", steps=steps, workers=steps % 2)
    assert rows_of(run).equals(rows_of(pieces))
    first, second = weights_of(run), weights_of(pieces)
    assert all(torch.equal(first[k], second[k]) for k in first)
    states = [checkpoint.latest(str(r)).selector["ratio"] for r in (run, pieces)]
    assert states[0] == states[1] and len(states[0]["seen"]) == WINDOW


def test_a_loop_of_ones_own_that_says_its_losses_chooses_the_same_and_one_that_says_none_looks_now_and_then(
    world: Path, tmp_path: Path
) -> None:
    shares: dict[bool, list[float]] = {}
    for says in (True, False):
        torch.manual_seed(0)
        model = build("mlp-64", image_size=16, channels=1, classes=CLASSES)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
        stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40, passes=2)
        selector = Selector(model, "rho", 8, ratio="auto")
        assert selector.chooser.ratio is not None
        selector.chooser.ratio.see(np.ones(40), np.ones(40), np.zeros(40), 40)  # all alike: looking is worth nothing
        run = rhostream.Run(str(tmp_path / str(says)), stream, selector, state={"model": model})
        scored = []
        for kept in run:
            losses = torch.zeros(len(kept))
            for part in kept.parts(8):
                loss_b = cross_entropy(model(part.input), part.label, reduction="none")
                optimizer.zero_grad()
                part.mean(loss_b).backward()
                optimizer.step()
                losses[part.position] = loss_b.detach()
            run.step(losses if says else None)
            scored.append(kept.scored)
            assert len(kept) == round(kept.share[0] * 40) or not kept.scored
        assert scored[0] == 0
        shares[says] = scored
    assert next(at for at, n in enumerate(shares[False]) if n) == UNHEARD
    assert np.count_nonzero(shares[False][:UNHEARD]) == 0


def test_a_buffer_that_is_learned_in_many_updates_of_one_look_is_doubted_in_both_loops(
    world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    runs = [trained("train", ratio="auto", steps=1, buffer_size=48), trained("whole", steps=1, buffer_size=48)]
    model = build("mlp-64", image_size=16, channels=1, classes=CLASSES)
    stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=48, passes=1)
    own = rhostream.Run(str(tmp_path / "own"), stream, Selector(model, "rho", 8, ratio="auto"), state={"model": model})
    for _ in own:
        own.step(None)
    doubts = [json.loads((run / "run.json").read_text()).get("doubts", []) for run in (*runs, tmp_path / "own")]
    says = (
        "in up to 3 updates of 8 from one look at 48 samples, the later ones by stale scores: take a --buffer-size of "
        "about 40, of which it decides 2"
    )
    assert [sum(says in doubt for doubt in found) for found in doubts] == [1, 0, 1]


def test_killed_and_resumed_it_is_the_run_in_one_piece(
    world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    settings = {"ratio": "auto", "steps": 16, "checkpoint_every": 3, "buffer_size": 40, "batch_size": 8,
                "model": "mlp-64", "threads": 1}  # fmt: skip
    whole = trained("whole", **settings)
    options = {"shards": [str(world / "shards")], "il": str(world / "il"), "run": str(tmp_path / "killed"), **settings}
    train_killed_at(8, options)
    rhostream.train(**options)
    assert same(whole, tmp_path / "killed")
    asked = "SELECT step, ratio, ratio_worth, forward_units FROM steps ORDER BY step"
    assert rows(whole, asked) == rows(tmp_path / "killed", asked)


def _train(rank: int, world: str, run: str, steps: int) -> None:
    rhostream.train(
        [f"{world}/shards"], f"{world}/il", run, buffer_size=40, batch_size=8, model="mlp-64", steps=steps, threads=1,
        ratio="auto",
    )  # fmt: skip


def test_ranks_choose_what_one_chooses_and_a_run_goes_on_with_more_or_fewer(world: Path, tmp_path: Path) -> None:
    _train(0, str(world), str(tmp_path / "one"), 14)
    _train(0, str(world), str(tmp_path / "elastic"), 5)
    ranks.together(tmp_path / "answers", _train, 2, str(world), str(tmp_path / "elastic"), 14)
    ranks.assert_same_but_for_noise(tmp_path / "one", tmp_path / "elastic")
    asked = "SELECT step, ratio, kept, forward_units FROM steps ORDER BY step"
    mine, theirs = rows(tmp_path / "one", asked), rows(tmp_path / "elastic", asked)
    assert mine == theirs and len({row["ratio"] for row in mine}) > 1
    assert verify(str(tmp_path / "elastic"))["problems"] == []


# -- what can't be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(
            ({"rule": rule}, f"--ratio auto .* the rule {rule} has no il")
            for rule in ("uniform", "loss", "grad_norm_is")
        ),
        ({"rule": "irreducible"}, "the rule irreducible looks at"),
        ({"rule": "rho_updated"}, "the rule rho_updated looks at"),
        ({"shortlist": "proxy:2"}, "--shortlist leaves rows of a buffer out"),
        ({"class_quota": "balanced"}, "--class-quota leaves rows"),
        ({"deduplicate": 0.9}, "--deduplicate leaves rows"),
        ({"batch_size": 40}, "take a larger --buffer-size"),
        ({"ratio": 0.01}, "0.01 of a buffer of 40 keeps nothing; give at least 0.025"),
        ({"ratio": "0:0.5,9:0.012"}, "keeps nothing"),
        ({"ratio": "aut"}, "STEP:SHARE"),
    ],
)
def test_what_it_can_not_go_by_is_refused_before_any_work(
    trained: Callable[..., Path], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        trained(**{"ratio": "auto", **options})
    assert not (tmp_path / "run").exists()


def test_a_state_of_another_option_and_pairs_and_a_trainers_loop_are_refused(world: Path, tmp_path: Path) -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=CLASSES)
    selector = Selector(model, "rho", 8, ratio="auto")
    with pytest.raises(MismatchError, match="--ratio auto"):
        selector.load_state_dict({"calls": 3})
    selector.load_state_dict(selector.state_dict())
    assert selector(buffer()).scored == 40
    with pytest.raises(UsageError, match="--ratio auto is for losses of one sample alone"):
        Selector(model, "rho", 8, ratio="auto", loss="siglip")
    stream = rhostream.open_stream(str(world / "shards"), il=str(world / "il"), buffer_size=40)
    with pytest.raises(UsageError, match="--ratio auto keeps more or less"):
        Batches(rhostream.Run(str(tmp_path / "run"), stream, selector))
