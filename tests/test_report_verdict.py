"""The verdict over every outcome, the looks of settings, the IL model on the test set, and what to do next."""

from __future__ import annotations

import html
import itertools
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rhostream import storage
from rhostream.audit import account
from rhostream.audit.account import LATER, PAID, STATES, Outcome, Standing, interval, outcome, standings
from rhostream.audit.advice import next_steps
from rhostream.audit.compare import EVERYTHING, KINDS, UNIFORM, Comparison, comparisons, grouped, not_compared
from rhostream.audit.facts import RunFacts, gather_all
from rhostream.audit.il_test import il_on_test_set, of_runs
from rhostream.audit.looks import CASCADE, LOOKS, RHO, looks
from rhostream.audit.looks import EVERYTHING as ALL
from rhostream.audit.looks import UNIFORM as CHANCE
from rhostream.audit.report import write_report
from rhostream.audit.sidebyside import (
    NOT_KNOWN,
    OTHER_TESTS,
    SETTINGS_HEAD,
    bill_rows,
    points,
    settings,
    with_interval,
)
from rhostream.audit.verdict import BAD, GOOD, MIXED, UNDECIDED, Verdict, headline, il_account, verdict
from rhostream.errors import MismatchError, UsageError
from rhostream.samples.image import ImageKind
from rhostream.stream.budget import Budget
from rhostream.tables import il
from rhostream.training.evaluate import TestSet
from tests.support.audit_fixtures import N_B, World, make_rows, make_run, make_world
from tests.support.process import run as rhostream
from tests.support.shards import make_shards

GRID = list(itertools.product(
    ("reached", "missed"), (0.5, 1.0, 3.0), (math.nan, -50.0, 0.0, 40.0, 400.0), (None, 0.0, 100.0, 1000.0),
    (None, "missed", math.nan, -50.0, 40.0, 400.0), (-0.1, 0.0, 0.1, None),
))  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("verdict"))


@pytest.fixture(scope="module")
def facts(made: World) -> dict[str, RunFacts]:
    """rho (two seeds), uniform and everything."""
    runs = made.root / "runs"
    log, chance = make_rows(made, 24), make_rows(made, 24, rule="uniform", seed=1)
    slow = {"rule": "uniform", "accuracy": lambda step: 0.5 + 0.01 * step}
    quick = {"accuracy": lambda step: min(0.85, 0.5 + 0.04 * step)}
    folders = {
        "rho": make_run(made, str(runs / "rho"), log, fingerprints={"il": _fingerprint(made)}, **quick),
        "rho-1": make_run(made, str(runs / "rho-1"), log, seed=1, fingerprints={"il": _fingerprint(made)}, **quick),
        "uniform": make_run(made, str(runs / "uniform"), chance, **slow),
        "everything": make_run(made, str(runs / "everything"), chance, n_b=N_B, **slow),
    }
    return gather_all(folders, None)


def _fingerprint(made: World) -> str:
    return il.open_info(str(made.table)).fingerprint


def _comparison(kind: str, gain: float | None, saved: float) -> Comparison:
    steps = None if gain is None else 100
    return Comparison("a", "b", kind, 0.7, 1000, 1000, int(100 * (gain or 1)), 1000.0, steps, 1000.0 - saved, 2.0, 0.8,
                      0.8)  # fmt: skip


# -- one verdict -------------------------------------------------------------------------------------------------------


def test_no_outcome_is_green_unless_the_first_run_paid_with_everything_on_its_bill(facts: dict[str, RunFacts]) -> None:
    """Law, over the whole grid: green exactly for what paid at once, amber exactly for a run from the second on."""
    run, seen = facts["rho"], set()
    for end, gain, saved, once, other, lead in GRID:
        found = [_comparison(UNIFORM, None if end == "missed" else gain, saved)]
        theirs = [] if other is None else [_comparison(EVERYTHING, None if other == "missed" else 3.0,
                                                       0.0 if other == "missed" else other)]  # type: ignore[arg-type]  # fmt: skip
        stand = [Standing(kind, account.FIRST, 10.0, 0.5 + lead, 0.5, (lead,)) for kind in (UNIFORM, EVERYTHING)
                 ] if lead is not None else []  # fmt: skip
        units = {"il_units": once, "keep_list_units": None}
        runs = [replace(run, row={**run.row, **units})]
        said = verdict(runs, found, 1, everything=theirs, stand=stand)
        words = f"{said.title} {said.text} {il_account(runs, {UNIFORM: found}, 1)}"
        bill = account.bill(runs)
        paid = end == "reached" and saved > 0 and bill is not None and bill <= saved
        after = re.search(r"paid after ([\d,]+) run", words)
        assert (said.tone == GOOD) <= paid and (said.tone == GOOD) == words.startswith("Selection paid:")
        assert (said.tone == GOOD) == (said.nth == 1) and (said.tone == MIXED) == ((said.nth or 0) > 1)
        if said.tone == GOOD:
            assert after is None or after[1] == "1"
            assert other is None or (isinstance(other, float) and other > 0 and bill is not None and bill <= other)
        if after and after[1] != "1":
            assert said.tone != GOOD and "paid already" not in words
        if said.tone == MIXED and after and theirs == []:
            assert int(after[1].replace(",", "")) == said.nth and f"from the {said.nth}" in said.title
        seen.add(said.tone)
    assert seen == {GOOD, MIXED, BAD, UNDECIDED}


def test_every_state_has_one_headline() -> None:
    for ours, theirs, lead, ahead in itertools.product(STATES, STATES, (None, -0.1, 0.1), (None, -0.1, 0.1)):
        a, b = Outcome(ours, nth={PAID: 1, LATER: 5}.get(ours)), Outcome(theirs, nth={PAID: 1, LATER: 9}.get(theirs))
        tone, title, nth = headline(a, b, 2.0, lead, ahead)
        assert title and (tone == MIXED) == (nth is not None and nth > 1) and (tone == GOOD) == (nth == 1)
        if tone == MIXED:
            assert str(nth) in title and nth == max(a.nth or 1, b.nth or 1)


def test_what_is_paid_once_is_on_the_bill_at_equal_cost_and_not_of_a_later_run(facts: dict[str, RunFacts]) -> None:
    run, uniform = facts["rho"], facts["uniform"]
    by_what = {(s.kind, s.over): s for s in standings([run], list(facts.values()), 1)}
    first, again = by_what[UNIFORM, account.FIRST], by_what[UNIFORM, account.AGAIN]
    once = account.bill([run])
    assert once == 119 and first.spent == min(run.curve.units[-1] + once, uniform.curve.units[-1])
    within = [a for a, u in zip(run.curve.accuracy, run.curve.units, strict=True) if u + once <= first.spent]
    assert first.mine == max(within) < (again.mine or 0)
    costly = replace(run, row={**run.row, "il_units": 1e9})
    (late,) = [s for s in standings([costly], [uniform], 1) if s.over == account.FIRST]
    assert not late.begun and late.mine is None and late.gain is None


def test_a_mean_over_seeds_has_its_interval_and_one_seed_is_no_claim() -> None:
    low, high = interval([0.7, 0.8, 0.9]) or (0, 0)
    assert low == pytest.approx(0.8 - 4.303 * 0.1 / math.sqrt(3)) and low + high == pytest.approx(1.6)
    assert interval([0.7]) is None and "one seed: no claim" in with_interval([0.7])
    assert with_interval([0.5, 0.9]) == "70.0 % (95 % interval 0.0 to 100.0 %, 2 seeds)" and points([]) == "–"
    assert points([0.01]) == "+1.0 points (one seed: no claim)"


def test_the_table_under_the_verdict_says_the_same_as_its_headline(facts: dict[str, RunFacts]) -> None:
    runs = [facts["rho"], facts["rho-1"]]
    found = {kind: comparisons(runs, list(facts.values()), kind, 1) for kind in KINDS}
    rows = bill_rows(runs, found, standings(runs, list(facts.values()), 1), 1, None)
    came = outcome(found[UNIFORM], account.bill(runs))
    (last,) = [row for row in rows if row[0].startswith("against uniform choice, units")]
    assert came.state == LATER and last[3] == f"paid after {came.nth} runs" and last[1].endswith("+ 119 once")
    assert ["against the IL model itself, on the test set", "85.0 %", "not known: see what to do next", "–"] in rows


# -- one look ----------------------------------------------------------------------------------------------------------


def test_uniform_rho_cascade_and_everything_look_the_same_on_every_page_and_never_alike(
    facts: dict[str, RunFacts],
) -> None:
    cascade = _changed(facts["rho"], band="20%:90%", shortlist="proxy:4")
    capped = _changed(facts["rho"], lr=0.5)
    groups = grouped([cascade, *facts.values(), capped])
    given = looks(groups)
    assert [look for name, look in given.items() if "band" in name] == [CASCADE]
    assert given["uniform"] == CHANCE and given["train on everything"] == ALL and RHO in given.values()
    assert len({look.colour for look in given.values()}) == len(given) == 5
    assert looks(dict(reversed(groups.items())))["uniform"] == CHANCE


def _changed(run: RunFacts, **settings: Any) -> RunFacts:
    record = {**run.folder.record, "settings": {**run.folder.settings, **settings}}
    return replace(run, name=str(settings), folder=replace(run.folder, record=record))


def test_no_two_of_42_settings_look_alike() -> None:
    assert len({(look.colour, look.dash) for look in LOOKS[:42]}) == 42
    assert len({look.colour for look in LOOKS[:7]}) == len({look.dash for look in LOOKS[:7]}) == 7
    assert len({look.marker for look in LOOKS[:7]}) == 7


# What a colour becomes for people without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "all cones": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.052]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.9689]]
    ),
    "no blue": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3]]),
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _linear(colour: str) -> np.ndarray[Any, Any]:
    c = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = _XYZ @ np.clip(linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_usual_settings_are_told_apart_with_any_colour_vision_and_in_grey() -> None:
    usual = {"rho": RHO, "uniform": CHANCE, "everything": ALL, "cascade": CASCADE}
    for look in LOOKS[:7]:
        assert 1.05 / (float(_XYZ[1] @ _linear(look.colour)) + 0.05) >= 3, look  # as WCAG asks of graphics on white
    for one, other in itertools.combinations(usual.values(), 2):
        a, b = _linear(one.colour), _linear(other.colour)
        for name, matrix in SIGHT.items():
            assert np.linalg.norm(_lab(matrix @ a) - _lab(matrix @ b)) > 20, (name, one, other)
        assert abs(_lab(a)[0] - _lab(b)[0]) > 7, (one, other)


# -- the IL model on the test set, and what to do ----------------------------------------------------------------------


def _table_of_tests(made: World, root: Path, shard: str, **changes: Any) -> str:
    info = replace(il.open_info(str(made.table)), **changes)
    il.make_or_match(str(root), info)
    rows = [{name: part[name] for name in info.schema.names} for part in made.parts if part["shard"] == made.shards[0]]
    used = sum(len(row["members"]) for row in rows)
    facts = il.PartFacts(fingerprint=info.fingerprint, kind="il", shard=shard, shard_size=1, shard_tag="1",
                         samples=len(rows), statuses={"decode:broken": 1, "ok": len(rows) - 1}, members_seen=used,
                         members_used=used, members_ignored=0, il_rows=len(rows) - 1)  # fmt: skip
    storage.create(il.part_url(str(root), shard), il.encode_part(pa.Table.from_pylist(rows, info.schema), facts))
    return str(root)


def test_the_il_models_accuracy_on_the_test_set_is_that_of_a_table_of_the_test_shards(
    made: World, facts: dict[str, RunFacts], tmp_path: Path
) -> None:
    runs = {name: one.folder for name, one in facts.items() if one.rule == "rho"}
    found = il_on_test_set(_table_of_tests(made, tmp_path / "tests", "web/test-000.tar"), runs)
    used = [p for p in made.parts if p["shard"] == made.shards[0] and p["status"] == "ok"]
    assert found.accuracy == pytest.approx(sum(p["predicted"] == p["label"] for p in used) / len(used))
    assert found.samples == len(used) and of_runs(found, [facts["rho"]]) == found
    assert of_runs(found, [facts["uniform"]]) is None
    with pytest.raises(UsageError, match="was trained on"):
        il_on_test_set(_table_of_tests(made, tmp_path / "same", made.shards[0]), runs)
    with pytest.raises(MismatchError, match="another IL model"):
        il_on_test_set(_table_of_tests(made, tmp_path / "x", "web/test-000.tar", ingredients={"by": "another"}), runs)
    with pytest.raises(UsageError, match="is no IL table"):
        il_on_test_set(str(tmp_path), runs)


def test_the_page_shows_the_il_models_accuracy_beside_the_targets(
    made: World, facts: dict[str, RunFacts], tmp_path: Path
) -> None:
    table = _table_of_tests(made, tmp_path / "tests", "web/test-000.tar")
    right = il_on_test_set(table, {"rho": facts["rho"].folder}).accuracy
    out = write_report(facts["rho"].folder.url, str(tmp_path / "x.html"), il_test=table)
    page = Path(out).read_text(encoding="utf-8")
    assert page.count(f"IL model on the test set {100 * right:.1f} %") == 2  # in the words of both figures
    assert f"<td>{100 * right:.1f} % of 30</td>" in page and "isn&#39;t known: score the test" not in page
    with pytest.raises(MismatchError, match="another IL model"):
        write_report(facts["uniform"].folder.url, str(tmp_path / "y.html"), il_test=table)


def test_a_table_with_targets_always_says_how_right_their_il_model_is_or_how_to_know(
    made: World, facts: dict[str, RunFacts], tmp_path: Path
) -> None:
    table = _table_of_tests(made, tmp_path / "tests", "web/test-000.tar")
    right = f"{100 * il_on_test_set(table, {'rho': facts['rho'].folder}).accuracy:.1f} %"
    beside, urls = "its IL model on the test set", [one.folder.url for one in facts.values()]
    for il_test, says in ((None, NOT_KNOWN), (table, right)):
        tested = il_on_test_set(table, {"rho": facts["rho"].folder}) if il_test else None
        groups = grouped(facts.values())
        rows = settings(groups, {}, looks(groups), 1, tested)
        cells = {row["name"]: dict(zip(SETTINGS_HEAD[2:], row["cells"], strict=True))[beside] for row in rows}
        assert cells == {"rho": says, "uniform": "none", "train on everything": "none"}
        page = Path(write_report(urls, str(tmp_path / "x.html"), il_test=il_test)).read_text(encoding="utf-8")
        assert page.count(html.escape("How right the IL model is on the test set isn't known", quote=True).replace(
            "&#x27;", "&#39;")) == (il_test is None)  # fmt: skip


# -- runs that don't share what they are tested on ---------------------------------------------------------------------


def _tested(run: RunFacts, samples: int, digest: str | None = None, **fingerprints: Any) -> RunFacts:
    record = {**run.folder.record, "test_set": {"ok": samples}, "test_fingerprint": digest}
    record["fingerprints"] = {**(record.get("fingerprints") or {}), **fingerprints}
    return replace(run, folder=replace(run.folder, record=record))


@pytest.mark.parametrize(
    ("mine", "theirs", "differ"),
    [((500, "ab"), (500, "ab"), False), ((500, "ab"), (500, "cd"), True), ((500, "ab"), (600, "ab"), True),
     ((500, None), (500, "ab"), False), ((500, None), (600, "ab"), True), ((500, None), (500, None), False)],
)  # fmt: skip
def test_runs_that_are_tested_on_other_samples_are_no_comparison_and_the_page_names_the_field(
    facts: dict[str, RunFacts], mine: tuple[Any, Any], theirs: tuple[Any, Any], differ: bool
) -> None:
    """A digest that only one states (an older run has none) tells nothing; another number of samples always does."""
    run, seed, uniform = (
        _tested(facts["rho"], *mine),
        _tested(facts["rho-1"], *mine),
        _tested(facts["uniform"], *theirs),
    )
    groups = grouped([run, seed, uniform])
    assert len(groups) == 2  # seeds of one world stay together
    assert (comparisons([run, seed], [uniform], UNIFORM, 1) == []) == differ
    says = not_compared(groups, ["rho"])
    assert says == ([] if not differ else says) and all("(test set" in one for one in says) and bool(says) == differ
    rows = {row["name"]: row["cells"] for row in settings(groups, {}, looks(groups), 1, None)}
    assert (OTHER_TESTS in rows["uniform"]) == differ and OTHER_TESTS not in rows["rho"]


def test_two_selections_from_other_samples_are_not_set_side_by_side_and_the_field_is_named(
    facts: dict[str, RunFacts],
) -> None:
    here, elsewhere = _tested(facts["rho"], 500, "ab"), _tested(facts["rho-1"], 500, "ab", shards="another")
    groups = grouped([here, elsewhere])
    assert any(one.startswith("Not at equal cost: ") and "shards" in one for one in not_compared(groups, list(groups)))
    alike = grouped([here, _changed(here, lr=0.5)])
    assert not any(one.startswith("Not at equal cost") for one in not_compared(alike, list(alike)))


def test_a_test_set_is_known_by_its_keys_and_labels_wherever_it_lies_and_in_whatever_order(tmp_path: Path) -> None:
    def fingerprint(shards: list[Path]) -> str:
        tests = TestSet(map(str, shards), ImageKind(image_size=16, channels=1), 4, "pillow", 0)
        assert tests.fingerprint == "" and tests.examine(Budget())["ok"] > 0
        return tests.fingerprint

    here = make_shards(tmp_path / "here", [6, 5])
    moved = [path.rename(tmp_path / f"moved-{path.name}") for path in make_shards(tmp_path / "there", [6, 5])]
    known = fingerprint(here)
    assert len(known) == 16 and fingerprint(moved) == fingerprint(here[::-1]) == known
    others = (here[:1], make_shards(tmp_path / "labels", [6, 5], seed=1), make_shards(tmp_path / "more", [6, 6]))
    assert len({known, *map(fingerprint, others)}) == 4


@pytest.mark.slow
def test_the_commands_that_train_and_score_do_so_when_they_are_pasted(
    trained: Callable[..., Path], world: Path, tmp_path: Path
) -> None:
    run = trained("rho", steps=4, test_shards=[str(world / "test")], eval_every=2)
    page = Path(write_report(str(run), str(tmp_path / "x.html"))).read_text(encoding="utf-8")
    commands = [shlex.split(html.unescape(c)) for c in re.findall(r"<code>(rhostream .*?)</code>", page)]
    for verb, made in (("train", f"{run}-uniform"), ("compute-il", "il-test")):
        (command,) = [c for c in commands if c[1] == verb]
        rhostream(*(str(tmp_path / word) if word == "il-test" else word for word in command[1:]))
        assert (tmp_path / made).exists()
    table = str(tmp_path / "il-test")
    page = Path(write_report(str(run), str(tmp_path / "y.html"), against=[f"{run}-uniform"], il_test=table)).read_text()
    assert "IL model on the test set" in page and "One seed is no claim" in page


def test_what_to_do_next_follows_from_the_run(facts: dict[str, RunFacts]) -> None:
    run = _changed(facts["rho"])
    run = replace(run, noisy={True: 0.5, False: 0.2}, folder=replace(run.folder, record={
        **run.folder.record, "arguments": {"test_shards": ["s3://b/t.tar"]}}))  # fmt: skip
    found = {kind: comparisons([run], list(facts.values()), kind, 1) for kind in KINDS}
    said = verdict([run], found[UNIFORM], 1)
    flat = {"rows": 9, "noise": None, "quantiles": {"5 %": 1.0, "95 %": 1.01}}
    steps = next_steps([run], {**found, UNIFORM: []}, said, flat, None)
    assert "tells no samples apart" in steps[0].says and "Wrong labels are more frequent" in steps[1].says
    assert steps[2].command[:2] == ("rhostream", "train") and steps[2].command[-2:] == ("--rule", "uniform")
    assert "--il-test" in steps[3].says
    assert [step.command[1] for step in steps[-2:]] == ["view", "export"] and len(steps) == 6
    calm = replace(run, noisy={})
    telling = {"rows": 9, "noise": {"auroc": 0.9}, "quantiles": {"5 %": 0.0, "95 %": 3.0}}
    says = [step.says for step in next_steps([calm], found, said, telling, None)]
    assert f"It pays from the {said.nth}" in says[0] and "One seed is no claim" in says[1]
    assert "--il-test" in says[2]


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({}, True),
        ({"rule": "loss"}, False),
        ({"ratio": "auto"}, False),
        ({"band": "20%:90%"}, False),
        ({"batch_size": None}, False),
    ],
)
def test_where_it_did_not_pay_a_plain_rho_may_go_on_as_one_that_looks_only_while_that_pays(
    facts: dict[str, RunFacts], changes: dict[str, Any], offered: bool
) -> None:
    run = _changed(facts["rho"], **changes)
    run = replace(run, row={**run.row, "rule": "rho", **{name: changes[name] for name in run.row.keys() & changes}},
                  folder=replace(run.folder, record={**run.folder.record, "arguments": {"rule": "rho"}}))  # fmt: skip
    found = {kind: comparisons([run], list(facts.values()), kind, 1) for kind in KINDS}
    steps = next_steps([run], found, Verdict(BAD, "", ""), None, None)
    (step,) = [step for step in steps if step.says.startswith("It did not pay here")]
    n_B, n_b = (facts["rho"].row[name] for name in ("buffer_size", "batch_size"))
    last = ("--ratio", "auto", "--buffer-size", f"{min(n_B, 5 * n_b)}")
    assert step.command[-4:] == (last if offered else ())
    assert step.says.endswith("looking pays:" if offered else "so that a step costs less.")
