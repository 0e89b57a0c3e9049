"""The command line as a user meets it: help, one-line errors, documented exit codes, results on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import process, run

VERBS = ("fit-il", "compute-il", "index", "train", "verify", "status", "sql", "report")


READERS = """
import json, sys
from rhostream.cli import cli
heavy = {"torch", "matplotlib", "PIL", "duckdb", "fsspec", "asyncio"}
for verb in json.loads(sys.argv[1]):
    cli.main(verb, standalone_mode=False)
    print(json.dumps(sorted(heavy & {*sys.modules})), file=sys.stderr)
"""


def test_help_names_every_verb_and_every_verb_explains_itself() -> None:
    from click.testing import CliRunner

    from rhostream.cli import cli

    shown = CliRunner().invoke(cli, ["--help"]).output
    for verb in VERBS:
        assert verb in shown
        text = CliRunner().invoke(cli, [verb, "--help"]).output
        assert "Usage:" in text and len(text) > 200
    assert "Exit codes" in shown


def test_the_whole_journey_from_shards_to_a_report(world: Path, tmp_path: Path) -> None:
    shards = sorted((world / "shards").iterdir())
    model, il, folder = tmp_path / "il-model", tmp_path / "il", tmp_path / "runs" / "rho"
    process("fit-il", "--shards", *shards, "--out", model, "--model", "mlp-64", "--epochs", 1)
    out, _ = run("compute-il", "--shards", *shards, "--il-model", model, "--out", il, "--keep", "is_noisy:bool")
    assert json.loads(out)["samples"] == 1003
    train = (
        "train",
        "--shards",
        world / "shards",
        "--il",
        il,
        "--run",
        folder,
        "--model",
        "mlp-64",
        "--buffer-size",
        40,
        "--batch-size",
        8,
        "--test-shards",
        world / "test",
        "--eval-every",
        10,
    )
    out, _ = run(*train)
    assert json.loads(out)["reasons"] == {"kept": 200, "below": 800, "tail": 3}
    assert run(*train)[0]  # again: complete, nothing to do
    out, _ = run(
        "sql", folder, "SELECT reason, count(*) AS n FROM selections GROUP BY ALL ORDER BY n", "--format", "csv"
    )
    assert out == "reason,n\ntail,3\nkept,200\nbelow,800\n"
    assert "noisy_share" in run("sql", folder, "@")[0] and "noisy_share" in run("sql", folder, "@noisy_share")[0]
    assert json.loads(run("status", folder, "--json")[0])["complete"] is True
    assert json.loads(run("verify", il, "--json")[0])["problems"] == []
    # What is read afterwards is read without torch, in one fresh process; each verb imports what it needs.
    page, il_page = tmp_path / "r.html", tmp_path / "il.html"
    verbs = [["status", folder], ["status", il], ["verify", il], ["verify", folder], ["sql", folder, "select 1"],
             ["sql", il, "select count(*) from il"], ["report", folder, "-o", page],
             ["report", il, "-o", il_page]]  # fmt: skip
    asked = json.dumps([[str(word) for word in verb] for verb in verbs])
    done = subprocess.run([sys.executable, "-c", READERS, asked], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    reports = ["PIL", "duckdb", "matplotlib"]
    assert [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")] == [
        *([], []), *([["duckdb"]] * 4), reports, reports,
    ]  # fmt: skip
    assert "<h1>" in page.read_text() and "<h1>" in il_page.read_text()
    assert page.read_text().count("data:image/png") > 3  # with pictures


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trian",), "did you mean 'train'"),
        (("train", "--shards", "/nowhere", "--il", "/nowhere", "--run", "/tmp/never"), "no IL table"),
        (("train", "--shards", "pipe:rm x", "--il", "x", "--run", "y"), "shell command"),
        (("fit-il", "--shards", "/nowhere/*.tar", "--out", "/tmp/never"), "no file matches"),
        (("sql", "/nowhere/run", "select 1"), "neither a run folder"),
        (("compute-il", "--shards", "x.tar", "--il-model", "/nowhere", "--out", "y"), "/nowhere"),
        (("index", "--shards", "x.tar", "--out", "/proc/never"), "can't write"),
        (("index", "--shards", "x.tar", "--out", "y", "--keep", "a:complex"), "expected FIELD:TYPE"),
        (("train", "--shardz", "x"), "--shards"),
        (("fit-il", "--shards", "x.tar", "--out", "y", "--balance", "wieght"), "did you mean 'weight'"),
        (("fit-il", "--shards", "x.tar", "--out", "y", "--min-accuracy", "70"), "between 0 and 1"),
        (("compute-il", "--shards", "x.tar", "--il-model", "a", "b", "--out", "y"), "b"),
        (("train", "--shards", "x", "--il", "x", "--run", "y", "--rule", "grad_nrm"), "did you mean 'grad_norm'"),
        (("train", "--shards", "x", "--il", "x", "--run", "y", "--ratio", "1.5"), "at most 1"),
        (("train", "--shards", "x", "--il", "x", "--run", "y", "--gumbell", "1"), "--gumbel"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_two(arguments: tuple[str, ...], says: str) -> None:
    _, err = run(*arguments, code=2)
    assert says in err


def test_a_bad_shard_is_named_the_others_go_on_and_the_exit_code_is_three(world: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes((world / "shards" / "train-000.tar").read_bytes()[:50_000])
    good = world / "shards" / "train-006.tar"
    out, err = run(
        "compute-il", "--shards", cut, good, "--il-model", world / "il-model", "--out", tmp_path / "il", code=3
    )
    assert "cut.tar incomplete" in err and json.loads(out)["made"] == 1
    assert len(list((tmp_path / "il").rglob("*.parquet"))) == 1


def test_variants_of_the_il_from_the_command_line(world: Path, tmp_path: Path) -> None:
    shards, model = world / "shards", tmp_path / "m"
    fit = ("fit-il", "--shards", shards, "--out", model, "--model", "mlp-64", "--epochs", 1, "--lr", 0.003)
    out, _ = run(*fit, "--balance", "sample")
    said = json.loads(out)
    assert 0 <= said["ece"] <= 1 and "worst_class" in said
    _, err = run(*fit, "--balance", "sample", "--min-accuracy", 0.9999, code=3)
    assert "at least 0.9999 was asked for" in err
    assert json.loads(run("verify", model, "--json")[0])["files"] == 2
    tables = [tmp_path / "a", tmp_path / "b"]
    for table in tables:
        scoring = ("compute-il", "--shards", shards, "--il-model", model, "--out", table, "--keep", "is_noisy:bool")
        assert json.loads(run(*scoring)[0])["made"] == 7
    for gone in (["--il-dtype", "float16"], ["--checkpoints", 2], ["--temperature"]):
        assert f"No such option {str(gone[0])!r}" in run(*(scoring if "dtype" in gone[0] else fit), *gone, code=2)[1]
    assert 0 <= json.loads(run("report", tables[0], "--json")[0])["noise"]["auroc"] <= 1
    run("report", tables[1], "-o", tmp_path / "il.html")
    assert "Irreducible loss" in (tmp_path / "il.html").read_text()
    (model / "fold-0.safetensors").write_bytes(b"")
    assert "fold-0" in json.loads(run("verify", model, "--json", code=3)[0])["problems"][0]
    assert "--against compares runs" in run("report", tables[0], "--against", tables[1], code=2)[1]


def test_an_error_nobody_foresaw_is_exit_code_1_and_one_line_without_its_text() -> None:
    broken = (
        "import rhostream.audit.status as s, rhostream.cli as cli, sys\n"
        "def fails(*a, **k): raise RuntimeError('text that may hold a secret')\n"
        "s.status_of = fails; sys.argv = ['rhostream', 'status', 'x']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True)
    assert done.returncode == 1 and "internal error: RuntimeError" in done.stderr
    assert "secret, t" not in done.stderr and "text that may" not in done.stderr and "Traceback" not in done.stderr
