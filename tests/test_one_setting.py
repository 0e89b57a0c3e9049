"""Runs are seeds of one setting, and a baseline is fair, only where everything else is equal; what differs is named."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream.audit.alike import OF_THE_RULE, OF_THE_SIZES
from rhostream.audit.compare import EVERYTHING, UNIFORM, baseline_of, grouped, not_compared, refused
from rhostream.audit.facts import RunFacts, gather_all
from rhostream.audit.report import write_report
from rhostream.selection.options import Options
from rhostream.training.settings import Settings
from rhostream.training.start import train
from tests.support.audit_fixtures import World, make_rows, make_run, make_world

SWITCHES = ("clip", "tau", "loss_cap")
NOT_DEFAULT = {
    "loss": "tests.support.tiny:smooth_loss",
    "token_share": 0.5,
    "update_size": 16,
    "il_lr_scale": 0.5,
    "optimizer": "sgd",
    "momentum": 0.5,
    "no_decay": True,
    "schedule": "cosine",
    "schedule_steps": 9,
    "lr_warm_up": 2,
    "clip_gradient": 1.0,
    "ema": 0.9,
    "evaluate": "tests.support.own_training:weighed",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("one-setting"))


@pytest.fixture(scope="module")
def pins(world: Path) -> dict[str, Any]:
    """What a run on the small world pins, as run.json has it; asked of the trainer itself, so a new pin is in it."""
    given = {p.name: p.default for p in inspect.signature(train).parameters.values()}
    given |= {"shards": str(world / "shards"), "il": str(world / "il"), "run": "unused", "model": "mlp-64"}
    loader = rhostream.open_stream(given["shards"], given["il"], buffer_size=320)
    settings = Settings(**{k: v for k, v in given.items() if k in {f.name for f in fields(Settings)}})
    pinned: dict[str, Any] = json.loads(json.dumps(settings.pinned(loader.stream, 4), default=str))
    return pinned


def every_pin(pins: dict[str, Any]) -> list[str]:
    """Those of any run, and those that stand in run.json only where they were asked for."""
    return sorted({*pins, *(f.name for f in fields(Options)), *NOT_DEFAULT} - {"seed"})


def run_of(made: World, folder: Path, pins: dict[str, Any], **changes: Any) -> str:
    pinned = {**pins, "buffer_size": 12, "batch_size": 3, **changes}
    seed, rule = int(pinned["seed"]), str(pinned["rule"])
    run = make_run(
        made,
        str(folder),
        make_rows(made, 6, rule="uniform" if rule == "uniform" else "rho"),
        rule=rule,
        seed=seed,
        fingerprints=pinned,
    )
    record = json.loads(Path(run, "run.json").read_text())
    record["settings"] |= pinned
    Path(run, "run.json").write_text(json.dumps(record))
    return run


def with_pins(run: RunFacts, drop: tuple[str, ...] = (), **changes: Any) -> RunFacts:
    """The same facts of a run whose run.json says otherwise."""
    from dataclasses import replace

    record = json.loads(json.dumps(run.folder.record))
    for name in ("fingerprints", "settings"):
        record[name] = {k: v for k, v in {**record[name], **changes}.items() if k not in drop}
    folder = replace(run.folder, record=record, name="other")
    return replace(
        run, folder=folder, name="other", row={**run.row, **{k: v for k, v in changes.items() if k in run.row}}
    )


@pytest.fixture(scope="module")
def facts(made: World, pins: dict[str, Any]) -> RunFacts:
    run = run_of(made, made.root / "runs" / "rho", pins)
    return gather_all({"rho": run}, None)["rho"]


@pytest.fixture(scope="module")
def uniform(facts: RunFacts) -> RunFacts:
    return with_pins(facts, rule="uniform", il=None)


def test_runs_that_differ_in_any_pin_but_the_seed_are_no_seeds_of_one_setting_and_the_pin_is_named(
    facts: RunFacts, pins: dict[str, Any]
) -> None:
    assert len(grouped([facts, with_pins(facts, seed=1)])) == 1
    assert "lr" in every_pin(pins) and "shards" in every_pin(pins) and len(every_pin(pins)) > 35
    for pin in every_pin(pins):
        other = with_pins(facts, **{pin: "another"})
        groups = grouped([facts, other])
        assert len(groups) == 2, pin
        words = " ".join([*groups, *not_compared(groups, [])])
        assert "another" in words or pin in SWITCHES, (pin, words)  # a switch is named by its words alone
        lacking = grouped([facts, with_pins(facts, drop=(pin,))])  # of an older version: unknown
        known = ("selection", "preprocess_resize")  # what a run of an older version did is known: global, crop
        assert len(lacking) == (2 if pin in pins and pin not in known else 1), pin
    assert len(grouped([with_pins(facts, drop=("lr",)), with_pins(facts, drop=("lr",), seed=3)])) == 1
    nothing = with_pins(facts, drop=tuple(facts.folder.settings))
    assert len(grouped([nothing, with_pins(nothing)])) == 2  # who says nothing is like nobody


def test_a_baseline_is_one_only_where_all_but_the_rule_is_equal_and_what_differs_is_named(
    facts: RunFacts, uniform: RunFacts, pins: dict[str, Any]
) -> None:
    everything = with_pins(uniform, buffer_size=3, batch_size=3, lanes=3)
    for baseline, kind, free in ((uniform, UNIFORM, OF_THE_RULE), (everything, EVERYTHING, OF_THE_RULE | OF_THE_SIZES)):
        assert baseline_of(facts, [baseline], kind) is baseline
        for pin in every_pin(pins):
            if pin in ("buffer_size", "batch_size", "rule"):  # which make it another kind of baseline
                continue
            other = with_pins(baseline, **{pin: "another"})
            groups = grouped([facts, other])
            says = not_compared(groups, [next(iter(groups))])
            fair = baseline_of(facts, [other], kind) is other
            assert fair == (pin in free), pin
            assert fair == (not refused(groups, next(iter(groups)))), pin
            assert fair or any("another" in one and pin.replace("_", " ") in one for one in says), (pin, says)


def test_the_il_of_another_table_is_a_difference_and_none_is_not(facts: RunFacts, uniform: RunFacts) -> None:
    assert baseline_of(facts, [with_pins(uniform, il=None)], UNIFORM) is not None
    assert baseline_of(facts, [with_pins(uniform, il="another", band="20%:90%")], UNIFORM) is None


def test_the_report_says_why_a_run_of_another_rate_is_neither_a_seed_nor_a_baseline(
    made: World, pins: dict[str, Any], facts: RunFacts, tmp_path: Path
) -> None:
    faster = run_of(made, tmp_path / "faster", pins, lr=0.01, seed=1)
    seed = run_of(made, tmp_path / "seed", pins, seed=1)
    fair = run_of(made, tmp_path / "uniform", pins, rule="uniform", il=None)
    unfair = run_of(made, tmp_path / "unfair", pins, rule="uniform", il=None, lr=0.01)
    page = Path(write_report([facts.folder.url, seed, faster], str(tmp_path / "r.html"), against=[fair])).read_text()
    assert page.count('class="verdict ') == 2 and "over 2 runs" in page and "rho, lr 0.001" in page
    assert "Not one setting: rho, lr 0.001 and rho, lr 0.01 (lr 0.001 against 0.01)." in page
    assert "Not compared: rho, lr 0.01 and uniform (lr 0.01 against 0.001)." in page
    page = Path(write_report(facts.folder.url, str(tmp_path / "r.html"), against=[unfair])).read_text()
    assert "Nothing to compare with" in page and "(lr 0.001 against 0.01)" in page
    assert 'class="verdict good"' not in page and "fewer steps to uniform" not in page


def test_sql_tells_runs_of_one_setting_from_others(
    made: World, pins: dict[str, Any], facts: RunFacts, tmp_path: Path
) -> None:
    runs = [facts.folder.url, run_of(made, tmp_path / "seed", pins, seed=1), run_of(made, tmp_path / "lr", pins, lr=1)]
    silent = Path(shutil.copytree(runs[0], tmp_path / "silent"))
    (silent / "run.json").write_text('{"version": 1}')
    with rhostream.open_ledger([*runs, str(silent)]) as ledger:
        assert sorted(
            ledger.sql("select count(*) from runs where setting is not null group by setting")[0].to_pylist()
        ) == [1, 2]
        assert ledger.sql("select setting from runs where run = 'silent'")[0].to_pylist() == [None]
