"""`--ratio auto` by an IL model of other samples than D's: harm, mistakes, and the trial of training on everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError
from rhostream.models import build
from rhostream.runs.cost import Cost
from rhostream.runs.measure import price
from rhostream.selection import trial
from rhostream.selection.ratio import Ratio, rungs
from rhostream.selection.selector import Selector
from rhostream.selection.trial import HELD, LOOKS, PROOF, TRIAL, Trial
from rhostream.tables.il import TableInfo
from tests.support.chosen import CLASSES, recomputed, verdicts
from tests.support.ledger import rows
from tests.support.logs import same
from tests.support.shards import sample, write_shard

pytestmark = pytest.mark.usefixtures("one_thread")


def test_labels_that_a_target_has_learned_to_find_even_are_no_mistakes_of_an_il_model_of_others() -> None:
    rng = np.random.default_rng(0)
    il = np.where(np.arange(320) % 5 == 0, 4.0, 0.05).astype(
        np.float32
    )  # a fifth is wrong, and a clean holdout says so
    loss = np.where(np.arange(320) % 5 < 2, 0.72, 0.1).astype(np.float32) + rng.normal(0, 0.01, 320).astype(np.float32)
    chosen = {}
    for outside in (False, True):
        ratio = Ratio(32)
        ratio.classes, ratio.outside = 10, outside
        ratio.see(loss - il, loss, il, 320)
        chosen[outside] = ratio.turn(320).n
    assert chosen[False] == 320 and chosen[True] < 320


@pytest.mark.parametrize(
    ("mode", "reference", "outside"),
    [("holdout", {}, True), ("fraction", {}, False), ("folds", {}, False), (None, {"name": "timm:resnet18"}, True)],
)
def test_a_table_says_whose_labels_its_il_are_of(mode: str | None, reference: dict[str, str], outside: bool) -> None:
    model = build("mlp-64", image_size=16, channels=1, classes=CLASSES)
    selector = Selector(model, "rho", 8, ratio="auto")
    price(selector, Cost(macs=1), TableInfo(kind="il", ingredients={"reference": reference}, model={"mode": mode}))
    assert selector.chooser.ratio is not None and selector.chooser.ratio.outside is outside


# -- the trial ---------------------------------------------------------------------------------------------------------


def told(unlearned: float, agreed: float, rng: np.random.Generator, n: int = 320) -> tuple[Any, Any]:
    """(loss, il) of a buffer: half its il are sure, with a mean loss of `unlearned`; of all a share is agreed with."""
    il = np.where(np.arange(n) < n // 2, 0.1, 2.0).astype(np.float32)
    loss = np.where(rng.random(n) < agreed, 0.2, 1.5).astype(np.float32)
    loss[: n // 2] += unlearned - loss[: n // 2].mean()
    return loss, il


def judged(one: Trial, before: tuple[float, float], after: tuple[float, float], looks: int = LOOKS) -> list[int]:
    """Look, go over to everything, and give back for how many buffers it is out of the question after how many."""
    rng = np.random.default_rng(0)
    for _ in range(looks):
        assert not one.back()
        one.take(False)
        one.see(*told(*before, rng), 10)
    looked = []
    for at in range(3 * TRIAL):
        if one.back():
            break
        one.take(True)
        if one.looks:
            one.see(*told(*after, rng), 10)
            looked.append(at)
    else:
        assert looked == ([] if looks < LOOKS else list(range(TRIAL - PROOF, TRIAL)))
        return []
    assert looked == list(range(TRIAL - PROOF, TRIAL))
    held = 1
    one.take(False)
    while one.back():
        held, _ = held + 1, one.take(False)
    return [at, held]


@pytest.mark.parametrize(
    ("after", "failed"),
    [
        ((0.3, 0.6), True),  # what the IL model is sure of is found less likely, and D's labels are met no more often
        ((0.3, 0.7), False),  # they are: the IL model knew less than the target
        ((0.2, 0.6), False),  # nothing has changed
        ((0.1, 0.6), False),
    ],
)
def test_a_trial_fails_by_what_was_unlearned_where_no_more_labels_agree(
    after: tuple[float, float], failed: bool
) -> None:
    assert judged(Trial(), (0.2, 0.6), after) == ([TRIAL, HELD] if failed else [])


def test_each_trial_that_fails_is_followed_by_twice_as_much_looking_and_few_looks_are_no_measure() -> None:
    one = Trial()
    assert [judged(one, (0.2, 0.6), (0.3, 0.6)) for _ in range(3)] == [[TRIAL, HELD << n] for n in range(3)]
    assert judged(Trial(), (0.2, 0.6), (0.3, 0.6), LOOKS - 1) == []


def test_a_buffer_without_a_sure_il_says_nothing_and_a_trial_without_its_looks_has_no_verdict() -> None:
    one = Trial()
    for _ in range(LOOKS):
        one.back(), one.take(False)
        one.see(*told(0.2, 0.6, np.random.default_rng(0)), 10)
    for _ in range(3 * TRIAL):
        assert not one.back()
        one.take(True)
        one.see(np.full(8, 9.0), np.full(8, 2.0), 10)


def test_a_run_that_unlearns_by_everything_goes_back_to_the_share_that_is_worth_most() -> None:
    rng, kept = np.random.default_rng(0), []
    ratio = Ratio(32)
    ratio.classes, ratio.outside = 10, True
    wrong = np.arange(320) % 5 == 0
    il = np.where(wrong, 4.0, 0.05).astype(np.float32)  # it knows which labels are wrong, and so does the target
    for step in range(LOOKS + TRIAL + HELD):
        # A few have something to teach at first, then none has; everything makes the target less sure of the others.
        right = np.where(np.arange(320) % 10 == 1, 0.6, 0.05) if step < LOOKS else 0.04
        right = 0.3 if kept and kept[-1] == 320 else right
        loss = (np.where(wrong, 3.0, right) + rng.normal(0, 0.01, 320)).astype(np.float32)
        ratio.see(loss - il, loss, il, 320)
        turn = ratio.turn(320)
        kept.append(turn.n)
    first = kept.index(320)
    assert first >= LOOKS and kept[first : first + TRIAL] == [320] * TRIAL
    assert max(kept[first + TRIAL :]) < 320 and len(kept) - first - TRIAL > HELD // 2


# -- runs --------------------------------------------------------------------------------------------------------------


def by(world: Path, root: Path, epochs: int) -> Path:
    """il/ of the world's shards by an IL model that learned from its test shards."""
    data, fit = [str(world / "shards")], {"model": "mlp-64", "epochs": epochs, "seed": 0}
    rhostream.fit_il(data, str(root / "il-model"), holdout=[str(world / "test")], **fit)
    rhostream.compute_il(data, str(root / "il-model"), str(root / "il"))
    return root


@pytest.fixture(scope="module")
def by_holdout(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by(world, tmp_path_factory.mktemp("holdout"), epochs=4)


def test_choices_by_an_il_model_of_a_holdout_can_be_made_again_too(
    world: Path, by_holdout: Path, tmp_path: Path
) -> None:
    run, sizes = tmp_path / "run", rungs(8, 40)
    asked = {"buffer_size": 40, "batch_size": 8, "model": "mlp-64", "steps": 60, "ratio": "auto"}
    rhostream.train([str(world / "shards")], str(by_holdout / "il"), str(run), **asked)
    chosen = [round(one["ratio"] * 40) for one in rows(run, "SELECT ratio FROM steps ORDER BY step")]
    assert chosen == recomputed(run, sizes, outside=True) and chosen != recomputed(run, sizes)
    assert len({*chosen}) > 1


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/, in which half of each of two classes has the other's label, and il/ by a clean holdout."""
    root, rng = tmp_path_factory.mktemp("swapped"), np.random.default_rng(0)
    samples = [sample(number, rng) for number in range(2400)]
    for one in samples[1200:]:
        one["cls"] = {"0": "1", "1": "0"}.get(str(one["cls"]), one["cls"])
    rng.shuffle(samples)
    for at in range(3):
        write_shard(root / "shards" / f"train-{at}.tar", samples[at * 800 : (at + 1) * 800])
    write_shard(root / "test" / "test-0.tar", [sample(number, rng) for number in range(400)])
    return by(root, root, epochs=6)


@pytest.mark.parametrize("fails", [None, True])
def test_trials_can_be_made_again_out_of_the_ledger_and_are_on_the_bill(
    swapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool | None
) -> None:
    for name, value in (("LOOKS", 2), ("TRIAL", 4), ("PROOF", 2), ("HELD", 3)):
        monkeypatch.setattr(trial, name, value)
    if fails:
        monkeypatch.setattr(Trial, "_failed", lambda self: True)
    run, sizes = tmp_path / "run", rungs(8, 40)
    asked = {"buffer_size": 40, "batch_size": 8, "model": "mlp-64", "ratio": "auto", "lr": 3e-4}
    data = [str(swapped / "shards")], str(swapped / "il")
    rhostream.train(*data, str(run), steps=60, **asked)
    steps = rows(run, "SELECT s.step, ratio, s.forward_units, s.candidates, s.kept, count(correct) AS right "
                      "FROM steps s JOIN selections l USING (step) GROUP BY ALL ORDER BY s.step")  # fmt: skip
    chosen, units = [round(one["ratio"] * 40) for one in steps], 0
    found = list(verdicts(run, fails))
    assert chosen == recomputed(run, sizes, outside=True, fails=fails) and found
    if fails:
        assert [length for _, _, length in found] == [3 << n for n in range(len(found))] and len(found) > 1
        assert all(max(chosen[at : at + length], default=0) < 40 for at, _, length in found)
    looked = [one["step"] for one in steps if one["right"] and one["ratio"] == 1]
    proofs = [step for at, *_ in found for step in (at - 2, at - 1)]
    assert looked[: len(proofs)] == proofs
    assert looked[len(proofs) :] in ([], [59])  # the first of a proof, whose verdict the run's end forestalled
    for one in steps:
        units += 3 * one["kept"] + (one["candidates"] if one["right"] else 0)
        assert one["forward_units"] == units
    assert verify(str(run))["problems"] == []
    for pieces in (31, 33, 60):  # within a trial, and before it is decided
        rhostream.train(*data, str(tmp_path / "pieces"), steps=pieces, **asked)
    assert same(run, tmp_path / "pieces")


def test_a_checkpoint_of_before_there_were_trials_goes_on_and_a_broken_one_is_refused() -> None:
    one, other = Ratio(32), Ratio(32)
    state = {name: value for name, value in one.state_dict().items() if name != "trial"}
    other.load_state_dict(state)
    assert other.state_dict() == one.state_dict()
    with pytest.raises(MismatchError, match="--ratio auto"):
        other.load_state_dict({**state, "trial": {"whole": True}})
