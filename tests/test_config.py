"""A setting is told once, and the command line, run.json, resumes, reports and the docs are made of what it says."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import rhostream
from rhostream import config as configs
from rhostream.audit.alike import setting_of
from rhostream.audit.facts import gather_all
from rhostream.audit.report import write_report
from rhostream.audit.runs import read_record
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.cli import cli
from rhostream.config import ComputeILConfig, FitILConfig, IndexConfig, TrainConfig
from rhostream.config.files import MAX_BYTES, VERSION, read_config
from rhostream.config.page import page
from rhostream.config.written import written
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.selection.losses import find_loss
from rhostream.selection.rules import find_rule
from rhostream.setting import ALWAYS, ASKED, RECORDED, RESOLVED, defaults_of, settings_of
from tests.support.older import begun_with
from tests.support.process import run as command
from tests.support.scoring import scored
from tests.support.small_run import go

HERE = Path(__file__).parent
BEFORE: dict[str, list[str]] = json.loads((HERE / "options_of_before.json").read_text())
CONFIGS: list[type[Any]] = [getattr(configs, name) for name in configs.__all__]
PLACES = {"shards": "s", "il": "i", "run": "r"}


# -- one telling -------------------------------------------------------------------------------------------------------


def test_every_field_of_train_is_pinned_or_says_why_not() -> None:
    for name, says in settings_of(TrainConfig).items():
        pinned = says.pin in (ALWAYS, ASKED, RESOLVED)
        assert pinned != bool(says.free), name
        assert (says.pin == RESOLVED) == bool(says.pinned_as), name


def test_what_a_field_says_of_pins_is_what_run_json_holds(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", 2, rule="loss", loss="tests.support.tiny:smooth_loss", gumbel=0.5)
    record = read_record(str(tmp_path / "run"))
    pins, says = record["fingerprints"], settings_of(TrainConfig)
    text = ("kind", "tokenizer", "text_length", "task")  # of other samples than these
    for name, field in says.items():
        if field.pin == ALWAYS or name in ("loss", "gumbel"):
            assert name in pins, name
        elif field.pin == ASKED:
            assert name not in pins, name  # at its default
        elif field.pin == RESOLVED and name not in text and name not in ("il_lr_scale", "schedule_steps"):
            assert {*field.pinned_as} <= {*pins}, name
        elif field.pin == RECORDED:
            assert name in record["settings"] and name not in pins, name
    known = {pin for name, field in says.items() for pin in (field.pinned_as or (name,))}
    assert {pin for pin in pins if not pin.startswith("preprocess_")} - known == {"draws", "selection"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.verb)
def test_a_config_is_frozen_and_keyword_only_and_every_field_explains_itself(config: type[Any]) -> None:
    for name, says in settings_of(config).items():
        assert len(says.help) > 8 and says.help.endswith((".", ")")), name
        assert all(field.kw_only for field in fields(config))
    given = {name: "x" for name in settings_of(config) if name not in defaults_of(config)}
    with pytest.raises(FrozenInstanceError):
        config(**given).workers = 3


# docs/decisions/039 and 076
GONE = {
    "fit-il": {"--checkpoints", "--temperature"},
    "compute-il": {"--il-dtype"},
    "train": {"--selection", "--tensorboard"},
}


def test_every_option_of_before_is_there_under_its_name_but_those_that_a_decision_ended() -> None:
    for verb, options in BEFORE.items():
        now = {opt for p in cli.commands[verb].params if isinstance(p, click.Option) for opt in p.opts}
        assert {*options} - now == GONE.get(verb, set()), verb


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.verb)
def test_the_options_and_the_keywords_of_a_verb_are_the_fields_of_its_config(config: type[Any]) -> None:
    offered = {p.name: p for p in cli.commands[config.verb].params}
    assert {*offered} == {"config", "as_json", "log_format"} | {
        name for name, says in settings_of(config).items() if says.command_line
    }
    python = getattr(rhostream, config.verb.replace("-", "_"), None)
    if python is not None:
        parameters = inspect.signature(python).parameters
        assert {*parameters} == {*settings_of(config), "config"}
        assert all(
            parameters[name].default == value
            for name, value in defaults_of(config).items()
            if parameters[name].default is not inspect.Parameter.empty
        )


def test_the_page_of_settings_is_what_the_fields_say() -> None:
    assert (HERE.parent / "docs" / "settings.md").read_text() == page()


def test_help_takes_no_time_and_no_torch() -> None:
    code = (
        "import sys; from rhostream.cli import main; sys.argv = ['rhostream', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'yaml', 'fsspec'} & set(sys.modules); assert not heavy, heavy"
    )
    for arguments in (["--help"], ["train", "--help"]):
        took = []
        for _ in range(3):
            before = os.times()
            done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
            after = os.times()
            assert done.returncode == 0, done.stderr
            took.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert min(took) < 0.3, took  # seconds of the processor, with room for a busy machine: 0.1 on an idle one


# -- called by a config ------------------------------------------------------------------------------------------------


def test_train_takes_a_config_keywords_or_both_and_what_is_named_wins(world: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        shards=str(world / "shards"),
        il=str(world / "il"),
        run=str(tmp_path / "a"),
        model="mlp-64",
        buffer_size=40,
        batch_size=8,
        steps=2,
        threads=1,
        rule="loss",
    )
    assert rhostream.train(config).steps == 2
    assert rhostream.train(config=config, run=tmp_path / "b", steps=3, rule="uniform").steps == 3
    record = read_record(str(tmp_path / "b"))["config"]
    assert record["rule"] == "uniform" and record["batch_size"] == 8 and record["run"] == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"gumble": 1}, UnknownNameError, "did you mean 'gumbel'"),
        ({"batch_size": "many"}, UsageError, "batch_size: got 'many'"),
        ({"lr": "fast"}, UsageError, "expected a number"),
        ({"clip": 1}, UsageError, "clip: got 1"),
        ({"steps": True}, UsageError, "steps: got True"),
        ({"missing_il": "skp"}, UnknownNameError, "did you mean 'skip'"),
        ({"config": 3}, UsageError, "expected a TrainConfig"),
    ],
)
def test_a_keyword_that_can_not_be_is_named(given: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        rhostream.train("s", "i", "r", **given)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UsageError, match="il is missing"):
        rhostream.train(shards="s", run="r")


def test_numbers_of_numpy_and_paths_are_taken_as_what_they_are() -> None:
    import numpy as np

    config = TrainConfig(
        shards=[Path("a"), "b"],
        il=Path("i"),
        run=Path("r"),
        batch_size=np.int64(8),
        lr=1,
        gumbel=np.float32(0.5),
        clip=np.bool_(True),
    )
    assert config.shards == ("a", "b") and config.il == "i" and type(config.batch_size) is int and config.lr == 1.0
    assert json.dumps(written(config))


# -- --config ----------------------------------------------------------------------------------------------------------


def small(world: Path, run: Path) -> dict[str, Any]:
    return {
        "shards": str(world / "shards"),
        "il": str(world / "il"),
        "run": str(run),
        "model": "mlp-64",
        "buffer_size": 40,
        "batch_size": 8,
        "steps": 2,
        "threads": 1,
        "clip": True,
        "lr": 2e-3,
    }


def test_a_file_of_settings_starts_a_run_and_what_is_typed_wins(world: Path, tmp_path: Path) -> None:
    values = small(world, tmp_path / "run")
    (path := tmp_path / "c.json").write_text(json.dumps(values))
    (tmp_path / "c.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    (tmp_path / "c.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    for form in ("json", "yaml", "toml"):
        assert read_config(str(tmp_path / f"c.{form}"), TrainConfig) == values
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nshards: [a, b]\n")
    assert read_config(str(tmp_path / "c.yaml"), TrainConfig) == {"lr": 1e-3, "shards": ("a", "b")}
    out, _ = command("train", "--config", path, "--batch-size", 4, "--no-clip", "--shards", world / "shards")
    assert json.loads(out)["steps"] == 2
    pins = read_record(values["run"])["fingerprints"]
    assert pins["batch_size"] == 4 and pins["buffer_size"] == 40 and pins["lr"] == 2e-3 and "clip" not in pins


def test_run_json_starts_the_same_run_again(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "old", 4, rule="loss", gumbel=0.5, shadow=("uniform",), class_quota=0.5)
    command("train", "--config", tmp_path / "old" / "run.json", "--run", tmp_path / "new")
    old, new = (read_record(str(tmp_path / name)) for name in ("old", "new"))
    assert old["fingerprints"] == new["fingerprints"]
    assert {**old["config"], "run": ""} == {**new["config"], "run": ""} and old["arguments"] == new["arguments"]
    with rhostream.open_ledger([str(tmp_path / "old"), str(tmp_path / "new")]) as ledger:
        assert ledger.sql("select count(distinct setting) from runs")[0].to_pylist() == [1]


def test_run_json_of_before_it_held_a_config_starts_the_same_run_again(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "old", 2, rule="loss")
    record = read_record(str(tmp_path / "old"))
    del record["config"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    command("train", "--config", tmp_path / "run.json", "--run", tmp_path / "new")
    assert read_record(str(tmp_path / "new"))["fingerprints"] == record["fingerprints"]
    del record["arguments"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "holds no config" in command("train", "--config", tmp_path / "run.json", "--run", "x", code=2)[1]


def test_the_config_in_run_json_is_whole_and_holds_no_secret() -> None:
    config = TrainConfig(
        shards="s3://key:word@bucket/a.tar?X-Amz-Signature=sig",
        il="il",
        run="r",
        roots={"d": "https://user:pw@host/x?token=sig"},
        metrics=print,
        make_model=print,
    )
    text = json.dumps(found := written(config))
    assert not any(secret in text for secret in ("word", "sig", "pw"))
    assert {*found} == {"verb", "version", *settings_of(TrainConfig)} - {
        "metrics",
        "change",
        "from_step",
        "skip_buffers",
        "grow",
        "take_over",
    }
    assert found["make_model"] is True and found["il"] == os.path.abspath("il") and found["version"] == VERSION


BAD: list[tuple[str, str, str]] = [
    ("c.yaml", "shards: a\ngumble: 1\n", "did you mean 'gumbel'"),
    ("c.yaml", "buffer-size: 1\n", "did you mean 'buffer_size'"),
    ("c.yaml", "batch_size: many\n", "batch_size: got 'many' (str), expected a whole number"),
    ("c.yaml", "batch_size: 8.5\n", "expected a whole number"),
    ("c.yaml", "run: 2026-11-28\n", "run: expected a path or URL, got date"),
    ("c.yaml", "band: 20:40\n", "band: got 1240 (int), expected text"),
    ("c.yaml", "shards: 5\n", "shards: expected a path"),
    ("c.yaml", "roots: [a, b]\n", "roots: got a list, expected names with a value each"),
    ("c.yaml", "missing_il: skp\n", "did you mean 'skip'"),
    ("c.yaml", "lr: 1\nlr: 2\n", "lr is given twice"),
    ("c.yaml", "verb: fit-il\n", "of fit-il, not of train"),
    ("c.yaml", "version: 9\n", "version 9"),
    ("c.yaml", "version: new\n", "version: got 'new'"),
    ("c.yaml", "metrics: print\n", "an object of Python"),
    ("c.yaml", "- a\n", "got a list"),
    ("c.yaml", "", "got nothing"),
    ("c.yaml", "a: [1\n", "is no YAML"),
    ("c.yaml", "a: !!python/object:os.system x\n", "is no YAML"),
    ("c.yaml", "[" * 1500, "can't be understood"),
    ("c.toml", "a = \n", "is no TOML"),
    ("c.json", "{", "is no JSON"),
    ("c.json", '{"lr": 1, "lr": 2}', "given twice"),
    ("c.json", "[" * 100_000, "nested too deep"),
    ("run.json", '{"version": 1, "fingerprints": {}}', "holds no config"),
    ("c.txt", "lr: 1", "ends in .json, .yaml"),
]


@pytest.mark.parametrize(("name", "text", "says"), BAD, ids=[f"{name}-{says[:24]}" for name, _, says in BAD])
def test_a_file_that_can_not_be_a_config_is_refused_in_one_sentence(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    done = CliRunner().invoke(cli, ["train", "--config", str(tmp_path / name), "--il", "i", "--shards", "s"])
    assert isinstance(done.exception, UsageError | SystemExit) and says in f"{done.exception} {done.output}"


def test_a_config_that_is_not_there_or_huge_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_config(str(tmp_path / "c.yaml"), TrainConfig)
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no YAML"):
        read_config(str(tmp_path / "c.yaml"), TrainConfig)
    with open(tmp_path / "c.yaml", "wb") as file:
        file.truncate(MAX_BYTES["yaml"] + 1)
    with pytest.raises(UsageError, match="bytes are no config"):
        read_config(str(tmp_path / "c.yaml"), TrainConfig)
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(UsageError, match="a folder"):
        read_config(str(tmp_path / "d.yaml"), TrainConfig)


def test_the_command_line_says_it_in_one_sentence_with_exit_code_two(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("gumble: 1\n")
    _, said = command("train", "--config", tmp_path / "c.yaml", code=2)
    assert said.count("\n") == 1 and "c.yaml" in said and "gumbel" in said
    (tmp_path / "c.yaml").write_text("il: x\n")
    assert "--shards" in command("train", "--config", tmp_path / "c.yaml", code=2)[1]


def test_every_verb_with_a_config_takes_a_file(world: Path, tmp_path: Path) -> None:
    shards = str(world / "shards")
    for config, more in (
        (FitILConfig, {"out": "m", "model": "mlp-64", "epochs": 1, "batch_size": 32}),
        (ComputeILConfig, {"il_model": str(tmp_path / "m"), "out": "t", "keep": {"is_noisy": "bool"}}),
        (IndexConfig, {"out": "x", "content": "image"}),
    ):
        values = {
            name: [str(tmp_path / one) for one in value]
            if isinstance(value, list)
            else str(tmp_path / str(value))
            if name == "out"
            else value
            for name, value in more.items()
        }
        path = tmp_path / f"{config.verb}.json"
        path.write_text(json.dumps({"verb": config.verb, "shards": shards, **values}))
        command(config.verb, "--config", path)
    assert json.loads((tmp_path / "m" / "model.json").read_text())["asked"]["batch_size"] == 32
    assert json.loads((tmp_path / "t" / "_table.json").read_text())["keep"] == {"is_noisy": "bool"}
    assert (tmp_path / "x" / "_table.json").exists()


def test_a_file_does_not_decide_what_code_is_run(world: Path, tmp_path: Path) -> None:
    for name, says in {(name, says) for config in CONFIGS for name, says in settings_of(config).items()}:
        assert says.imports or "module:function" not in says.help, name
    path = tmp_path / "c.json"
    for name, value in (
        ("rule", "mine:rule"),
        ("model", "mine:net"),
        ("loss", "mine:loss"),
        ("shadow", "rho,mine:x"),
        ("adjust", "mine:x"),
        ("il_code", "mine:net"),
        ("proxy_model", "mine:net"),
        ("optimizer", "mine:opt"),
        ("schedule", "mine:curve"),
        ("evaluate", "mine:test"),
    ):
        path.write_text(json.dumps({**small(world, tmp_path / "run"), name: value}))
        says = command("train", "--config", path, code=2)[1]
        assert "mine:" in says and f"--{name.replace('_', '-')} mine:" in says and "a file doesn't decide" in says
    path.write_text(json.dumps({**small(world, tmp_path / "run"), "loss": "mine:loss"}))
    command("train", "--config", path, "--loss", "tests.support.tiny:smooth_loss", "--rule", "loss")
    assert read_record(str(tmp_path / "run"))["fingerprints"]["loss"] == "tests.support.tiny:smooth_loss"


# -- old runs ----------------------------------------------------------------------------------------------------------


def test_a_run_begun_with_a_setting_that_is_gone_is_refused_naming_it(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", 2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["fingerprints"]["sharpness"] = 3
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(MismatchError, match="sharpness 3, a setting that this version doesn't have"):
        go(world, tmp_path / "run", 4)


@pytest.mark.parametrize(
    ("option", "value", "pinned", "instead"),
    [
        ("selection", "rank", "each of 2 ranks", "leave it out"),
        ("missing_il", "uniform", "uniform", "'?error'?, '?skip'?"),
    ],
)
def test_an_option_that_is_gone_is_refused_and_a_run_that_was_begun_with_it_is_read_proved_and_reported(
    world: Path, tmp_path: Path, option: str, value: str, pinned: str, instead: str
) -> None:
    run, typed = tmp_path / "run", f"--{option.replace('_', '-')}"

    def stopped(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(world, run, 6, checkpoint_every=2, metrics=stopped)
    begun_with(run, option, value, pinned)
    with rhostream.open_ledger(str(run)) as ledger:
        assert ledger.sql("SELECT count(*) FILTER (kept) FROM selections WHERE step >= 0")[0].to_pylist() == [16]
    assert verify(str(run))["problems"] == []
    (facts,) = gather_all({"r": str(run)}, None).values()
    assert setting_of(facts.folder)[option] == pinned
    assert Path(write_report(str(run), str(tmp_path / "report.html"))).exists()
    assert f"{option} '{pinned}', which this version doesn't have" in status_of(str(run))["next"]
    with pytest.raises(MismatchError, match=f"{option} '{pinned}', a setting that this version doesn't have"):
        go(world, run, 4)
    with pytest.raises(UnknownNameError, match=instead):
        go(world, run, 4, **{option: value})
    for asked in ((typed, value, "--shards", "s", "--il", "i", "--run", "r"), ("--config", run / "run.json")):
        _, says = command("train", *asked, code=2)
        assert re.search(instead, says) and option in says.replace("-", "_")


def test_a_setting_that_is_gone_may_stand_in_a_file_where_it_says_what_holds_anyway(tmp_path: Path) -> None:
    (path := tmp_path / "c.json").write_text(json.dumps({"lr": 0.5, "selection": "global"}))
    assert read_config(str(path), TrainConfig) == {"lr": 0.5}


def test_a_pinned_field_that_an_old_run_does_not_state_was_at_its_default(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", 2)
    asked = [name for name, says in settings_of(TrainConfig).items() if says.pin == ASKED]
    assert not {*asked} & {*read_record(str(tmp_path / "run"))["fingerprints"]}
    go(world, tmp_path / "run", 4, **{name: defaults_of(TrainConfig)[name] for name in asked})
    with pytest.raises(MismatchError, match=r"gumbel: was None, now 0.5"):
        go(world, tmp_path / "run", 6, gumbel=0.5)


@pytest.mark.parametrize("library", ["hf", "timm", "torchvision"])
def test_a_librarys_name_is_no_code_of_ones_own_which_a_file_could_name(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{library}.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    for what, find in {"loss": find_loss, "rule": find_rule}.items():
        with pytest.raises(UsageError, match=f"{what} '{library}:mine': .* name models alone"):
            find(f"{library}:mine")


# -- adding a setting --------------------------------------------------------------------------------------------------

PATCHES: dict[str, dict[str, tuple[str, str]]] = {
    "an option of train": {
        "config/train.py": (
            "    missing_il: str =",
            '    patience: float = setting(\n        1.0, help="How patient it is.", pin=ASKED, '
            "fixed=CHOICE)\n    missing_il: str =",
        ),
        "training/start.py": (
            "    settings = Settings.of_config(config)\n",
            "    settings = Settings.of_config(config)\n    assert settings.patience > 0\n",
        ),
    },
    "an option of a rule": {
        "selection/options.py": (
            "    clip: bool =",
            '    floor: float | None = option(None, "Scores below F count as F.", metavar="F", '
            "adjust=lambda value: lambda score_B, buffer: score_B.clip(min=value))\n"
            "    clip: bool =",
        ),
    },
    "a rule": {
        "selection/rules.py": (
            '        make_rule("irreducible"',
            '        make_rule("twice", lambda loss_B: 2 * loss_B),\n        make_rule("irreducible"',
        ),
    },
}
PROGRAM = """
import json, sys
import rhostream
from rhostream.audit.alike import setting_of
from rhostream.audit.facts import gather_all
from rhostream.audit.runs import open_runs, read_record
from rhostream.audit.status import status_of
from rhostream.config.page import page
from rhostream.errors import MismatchError
world, run, new, other = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
how = dict(shards=world + "/shards", il=world + "/il", run=run, model="mlp-64", buffer_size=40, batch_size=8, threads=1)
rhostream.train(**how, steps=2, **new)
refused = {}
for name in new:
    try:
        rhostream.train(**how, steps=4, **{**new, name: other[name]})
    except MismatchError as exc:
        refused[name] = str(exc)
record = read_record(run)
print(json.dumps({"file": rhostream.__file__, "config": record["config"], "pinned": record["fingerprints"],
                  "arguments": record["arguments"], "setting": setting_of(open_runs([run])[0]), "refused": refused,
                  "kind": gather_all({"r": run}, None)["r"].kind, "page": page(), "next": status_of(run)["next"]}))
"""


def test_a_new_setting_is_told_in_one_place_and_shows_everywhere(world: Path, tmp_path: Path) -> None:
    assert {what: len(files) for what, files in PATCHES.items()} == {
        "an option of train": 2,
        "an option of a rule": 1,
        "a rule": 1,
    }
    copy = tmp_path / "copy"
    shutil.copytree(HERE.parent / "rhostream", copy / "rhostream")  # compiled too, but for what is changed
    for patch in PATCHES.values():
        for file, (old, new) in patch.items():
            path = copy / "rhostream" / file
            assert path.read_text().count(old) == 1, (file, old)
            path.write_text(path.read_text().replace(old, new))
    given, others = {"patience": 2.0, "floor": 0.25, "rule": "twice"}, {"patience": 3.0, "floor": 0.5, "rule": "loss"}
    env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(world), str(tmp_path / "run"), json.dumps(given), json.dumps(others)],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["file"].startswith(str(copy))
    shown = subprocess.run(
        [sys.executable, "-c", "from rhostream.cli import main; main()", "train", "--help"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    ).stdout
    for name, value in given.items():
        for where in ("config", "pinned", "arguments", "setting"):
            assert found[where][name] == value, (where, name)
        assert f"{name}: was {value!r}, now {others[name]!r}" in found["refused"][name]
        assert f"`{name}`" in found["page"] and f"--{name}" in shown
    assert "twice" in shown and "twice" in found["page"]
    assert "How patient it is." in shown and found["kind"] == "twice, floor 0.25"


def test_an_option_that_adjusts_scores_is_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhostream.selection.options import Options
    from rhostream.selection.rules import find_rule
    from rhostream.setting import Setting

    says = {**settings_of(Options)}
    says["deduplicate"] = Setting(help="", adjust=lambda value: lambda score_B, buffer: score_B * value)
    monkeypatch.setattr("rhostream.selection.options.settings_of", lambda config: says)
    options = Options(deduplicate=0.5)
    assert options.adjusts[0](np.array([1.0, 3.0]), scored([1.0, 3.0], 1)).tolist() == [0.5, 1.5]
    for rule in ("uniform", "grad_norm_is"):
        with pytest.raises(UsageError, match="--deduplicate"):
            options.check(find_rule(rule))
