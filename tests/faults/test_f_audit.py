"""Section F: questions to a run that is being written, empty runs, mistyped names, lost shards, hostile text."""

from __future__ import annotations

import logging
import re
import shutil
from html.parser import HTMLParser
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import rhostream
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.cli import cli
from rhostream.errors import UsageError
from tests.support.audit_fixtures import HOSTILE, World, make_rows, make_run, make_world
from tests.support.command import command
from tests.support.forks import CONTEXT

STEPS = 80


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def run(made: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run over hostile keys."""
    return make_run(made, str(tmp_path_factory.mktemp("runs") / "rho-1"), make_rows(made, 30))


# -- F1 --------------------------------------------------------------------------------------------------------------


def train_on(shards: str, table: str, run: str, answered: Event) -> None:
    """What the trainer's process does: a checkpoint every second step, and no older one kept. At three steps it waits
    for two answers to end, of which the second was asked for at that step."""

    def wait(row: dict[str, Any]) -> None:
        for _ in range(2 if row["step"] in (20, 40, 60) else 0):
            answered.clear()
            assert answered.wait(60)

    rhostream.train(
        [shards],
        table,
        run,
        model="mlp-64",
        buffer_size=20,
        batch_size=4,
        steps=STEPS,
        passes=2,
        checkpoint_every=2,
        keep_checkpoints=1,
        threads=1,
        metrics=wait,
    )


def test_F1_questions_to_a_run_that_is_being_written_see_committed_steps_alone(world: Path, tmp_path: Path) -> None:
    """SQL, verify and status can ask a run while its trainer writes: each answer is of one checkpoint, with whole
    steps, none missing and none twice, and later answers never know less.
    """
    folder = tmp_path / "run"
    answered = CONTEXT.Event()
    trainer = CONTEXT.Process(target=train_on, args=(str(world / "shards"), str(world / "il"), str(folder), answered))
    trainer.start()
    seen: list[int] = []
    try:
        while trainer.is_alive() or not seen or seen[-1] < STEPS:
            if not (folder / "run.json").exists():
                assert trainer.is_alive()
                continue
            with rhostream.open_ledger(str(folder)) as ledger:
                steps = ledger.sql(
                    "SELECT step, count(*) AS n FROM selections WHERE step IS NOT NULL GROUP BY step ORDER BY step"
                ).to_pydict()
                beside = ledger.sql("SELECT step FROM steps ORDER BY step")[0].to_pylist()
                recorded = ledger.sql("SELECT steps FROM runs")[0].to_pylist()[0]
            assert steps["step"] == beside == list(range(recorded)) and set(steps["n"]) <= {20}
            assert recorded % 2 == 0 and recorded >= (seen[-1] if seen else 0)
            seen.append(recorded)
            assert verify(str(folder))["problems"] == []
            assert status_of(str(folder))["step"] >= recorded
            answered.set()
    finally:
        trainer.join(60)
    assert trainer.exitcode == 0 and seen[-1] == STEPS
    assert len(set(seen)) > 2, "the trainer was never seen at work"


# -- F2, F3 ----------------------------------------------------------------------------------------------------------


def test_F2_a_run_without_a_committed_step_answers_with_a_message(made: World, tmp_path: Path, capsys: Any) -> None:
    """A run whose log is empty is no error: SQL, status, verify and the report say so and exit with 0."""
    empty = make_run(made, str(tmp_path / "empty"), [])
    out, err = command(capsys, "sql", empty, "SELECT * FROM selections")
    assert "(0 rows)" in out and "run empty has no committed step yet: its log is empty" in err
    assert "kept" in command(capsys, "sql", empty, "@kept_by_class")[0]
    assert "empty: no step is committed yet" in command(capsys, "status", empty)[0]
    assert "no checkpoint yet" in command(capsys, "verify", empty)[0]
    page = tmp_path / "empty.html"
    command(capsys, "report", empty, "-o", page)
    assert "The log is empty" in page.read_text()


def test_F3_a_run_nobody_knows_is_answered_with_the_nearest_names(run: str, tmp_path: Path, capsys: Any) -> None:
    """A run that isn't there, or whose name was only begun, is refused with exit code 2 and the names that are near,
    by SQL, status, verify and report alike.
    """
    for name in ("rho-1", "rho-2", "rho-3", "rho-4", "uniform"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "rho-notes").mkdir()  # no run
    for verb, *rest in (("sql", "SELECT 1"), ("status",), ("verify",), ("report", "-o", tmp_path / "x.html")):
        for typed, near in (
            ("rh", "did you mean rho-1, rho-2, rho-3 or 1 more?"),
            ("unifrom", "did you mean uniform?"),
            ("rho-2x", "did you mean rho-2, rho-"),
        ):
            _, err = command(capsys, verb, tmp_path / typed, *rest, code=2)
            assert near in err and "neither a run folder" in err and "notes" not in err
    with pytest.raises(UsageError, match=r"neither a run folder \(no run.json\) nor a table \(no _table.json\)\Z"):
        rhostream.open_ledger(str(tmp_path / "nothing-like-it"))


# -- F5, F6: the page ------------------------------------------------------------------------------------------------


def test_F5_pictures_of_shards_that_can_not_be_reached_leave_a_place_and_one_warning(
    made: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the shards can't be reached the report is made all the same, with a placeholder for each picture, and one
    warning that says how many, why, and the option that says where they lie.
    """
    lost = make_run(
        made, str(tmp_path / "lost"), make_rows(made, 30), shard_urls=["/nowhere/a.tar", "/nowhere/b.tar"], roots={}
    )
    with caplog.at_level(logging.WARNING, "rhostream"):
        page = Path(rhostream.write_report(lost, str(tmp_path / "lost.html"))).read_text()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.match(r"\d+ of \d+ pictures could not be read: /nowhere/.* --root NAME=URL", warning)
    assert page.count(">no picture<") == int(warning.split()[0]) > 0 and "data:image/png" not in page.split("<h2")[-1]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rhostream"):
        rhostream.write_report(lost, str(tmp_path / "found.html"), roots={"web": str(made.root / "shards")})
    assert not caplog.records


class _Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_F6_hostile_keys_labels_and_names_are_inert_in_the_report(made: World, tmp_path: Path) -> None:
    """Keys, class names, models, rules and folder names that hold markup, scripts or control characters are text on the
    page: it has no script, no event handler, no form and no address but its own pictures, and a policy (CSP) that
    would forbid them.
    """
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    settings = {"rule": evil, "model": evil, "buffer_size": 12, "batch_size": 3, "seed": 0, "last_step": 30}
    hurt = make_run(
        made,
        str(tmp_path / "a<b onload=1>"),
        make_rows(made, 30),
        settings=settings,
        class_names=[evil, "\x1b[2J\u202e", "{{ 7 * 7 }}"],
    )
    page = _Page(Path(rhostream.write_report(hurt, str(tmp_path / "page.html"))).read_text())
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "embed", "form", "link", "base"})
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv", "").lower() == "content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    text = "".join(page.words)
    assert "<script>alert(1)</script>" in text  # shown, as text
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    shown = [key for key in HOSTILE if key in text or key.encode("unicode_escape").decode() in text]
    assert shown  # hostile keys are among the captions


# -- F7 --------------------------------------------------------------------------------------------------------------


def _long_options() -> list[tuple[str, str]]:
    return [
        (verb, option)
        for verb, made in cli.commands.items()
        for parameter in made.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    ]


def test_F7_every_mistyped_verb_and_option_is_answered_with_the_one_that_was_meant() -> None:
    """Every verb and every option of every verb, with a letter too many, is refused with exit code 2 and "did you mean"
    the one that was meant.
    """
    runner, options = CliRunner(), _long_options()
    assert len(options) > 100
    for verb, option in options:
        for typed in {option + option[-1], option[:4] + option[3:]} - {o for v, o in options if v == verb}:
            found = runner.invoke(cli, [verb, typed, "x"])
            assert found.exit_code == 2 and "id you mean" in found.output and option in found.output, (verb, typed)
    for verb in cli.commands:
        found = runner.invoke(cli, [verb + verb[-1]])
        assert found.exit_code == 2 and f"did you mean {verb!r}" in found.output


MISTYPED = [
    (("train", "--rule", "roh"), "did you mean 'rho'"),
    (("train", "--model", "smal-cnn"), "did you mean 'small-cnn'"),
    (("train", "--missing-il", "skp"), "did you mean 'skip'"),
    (("train", "--batch-norm", "bufer"), "did you mean 'buffer'"),
    (("train", "--augment", "filp"), "did you mean 'flip'"),
    (("train", "--shortlist", "porxy:4"), "did you mean 'proxy'"),
    (("train", "--decoder", "pilow"), "did you mean 'pillow'"),
    (("fit-il", "--model", "mlp-265"), "did you mean 'mlp-256'"),
    (("index", "--keep", "good:bol"), "did you mean 'bool'"),
    (("sql", "SELECT kye FROM selections"), "did you mean 'key'"),
    (("sql", "SELECT * FROM selectoins"), "did you mean 'selections'"),
    (("sql", "@nosy_share"), "did you mean 'noisy_share'"),
    (("sql", "SELECT 1", "--format", "jsn"), "did you mean 'json'"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTYPED, ids=[" ".join(a) for a, _ in MISTYPED])
def test_F7_mistyped_names_are_answered_with_the_nearest(
    world: Path, run: str, tmp_path: Path, capsys: Any, arguments: tuple[str, ...], says: str
) -> None:
    """A mistyped rule, model, policy, type of `--keep`, view, column, question or format is refused with exit code 2,
    before any work, with the nearest name that exists.
    """
    verb, *rest = arguments
    shards = ("--shards", world / "shards")
    given: dict[str, tuple[object, ...]] = {
        "train": (*shards, "--il", world / "il", "--run", tmp_path / "never", "--steps", 1),
        "fit-il": (*shards, "--out", tmp_path / "never"),
        "index": (*shards, "--out", tmp_path / "never"),
        "sql": (run,),
    }
    _, err = command(capsys, verb, *given[verb], *rest, code=2)
    assert says in err and not [f for f in (tmp_path / "never").rglob("*") if f.is_file()]
