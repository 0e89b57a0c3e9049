"""Every block of code in README.md and docs/ does what its page says: it runs, or at least every name in it exists.

A fenced block names its language; an indented one is known by its first word. A comment before a block is about it:

    <!-- test: FROM -> TO; ... -->      it runs with these substitutions: small sizes for large ones
    <!-- test: run; FROM -> TO -->      commands, which are really run (else only their names and options are looked up)
    <!-- test: text; FROM -> TO -->     it runs in a folder of texts instead of images
    <!-- test: 6 steps -->              its run has so many steps, not 3
    <!-- run by tests/FILE.py -->       that file runs it
    <!-- not run: WHY -->               it can't be
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from click.testing import CliRunner
from torch.distributed.run import get_args_parser
from torch.nn.functional import cross_entropy

import rhostream
from rhostream.cli import cli
from rhostream.models import build
from shards.recipes import BASES
from tests.support.folders import NAMES, photographs
from tests.support.text_world import make_text_shards

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md",
         *sorted(p for p in (ROOT / "docs").rglob("*.md") if "decisions" not in p.parts)]  # fmt: skip
COMMANDS = {"rhostream", "python", "make", "pip", "torchrun", "export", "npm", "sbatch"}
# What is not code: a picture of the whole, the tree of a run folder, a bar in a terminal, what commands print.
TEXTS = {"docs/architecture.md": 1, "docs/reference.md": 1, "docs/trackers.md": 1, "docs/tutorial-images.md": 4}
# What nothing runs, with the reason in a comment on the page.
NOT_RUN: dict[str, int] = {}

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Block:
    """One block: where it stands, its language, its text, and what the comment before it says."""

    page: str
    line: int
    language: str
    text: str
    comment: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """What `test:` says, item by item."""
        rest = self.comment.removeprefix("test:") if self.comment.startswith("test:") else ""
        return [item.strip() for item in rest.split(";") if item.strip()]

    @property
    def small(self) -> str:
        """The text with the comment's substitutions, each of which must be needed."""
        text = self.text
        for item in self.words:
            if " -> " in item:
                old, new = item.split(" -> ")
                assert old in text, f"{self}: there is no {old!r} to replace"
                text = text.replace(old, new)
        return text


def language(text: str) -> str:
    first = next((line for line in text.splitlines() if not line.startswith("#")), "").split(" ")[0]
    return "sh" if first in COMMANDS else "sql" if first.upper() == "SELECT" else "text"


def blocks(page: Path) -> Iterator[Block]:
    """Every block of a page but the site's own directives (`{toctree}`)."""
    name, lines = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8").splitlines()
    at, comment = 0, ""
    while at < len(lines):
        fence = re.match(r"```(.*)$", lines[at])
        if fence:
            end = lines.index("```", at + 1)
            if not fence[1].startswith("{"):
                yield Block(name, at + 1, fence[1], "\n".join(lines[at + 1 : end]) + "\n", comment)
            at, comment = end, ""
        elif lines[at].startswith("    ") and not lines[at - 1].strip():
            end = next(
                (n for n in range(at, len(lines)) if lines[n].strip() and not lines[n].startswith("    ")), len(lines)
            )
            text = textwrap.dedent("\n".join(lines[at:end])).strip("\n") + "\n"
            yield Block(name, at + 1, language(text), text, comment)
            at, comment = end - 1, ""
        elif lines[at].strip():
            found = re.fullmatch(r"<!-- ((?:test:|run by|not run:).*) -->", lines[at])
            comment = found[1] if found else ""
        at += 1


ALL = [block for page in PAGES for block in blocks(page)]


def elsewhere(block: Block) -> bool:
    return block.comment.startswith("run by") and block.comment != "run by tests/test_docs_blocks.py"


def of(*languages: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in ALL if block.language in languages
            and not elsewhere(block) and not block.comment.startswith("not run:")]  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """The words of every command, comments and continued lines resolved, `a && b` as two."""
    found, pending = [], ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quoted argument that goes on in the next line
            pending += "\n"
            continue
        pending = ""
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found.append(words)
    assert not pending, f"a command that doesn't end: {pending}"
    return [words for words in found if words]


# -- what every block must be ------------------------------------------------------------------------------------------


def test_every_fenced_block_names_a_language_that_is_checked() -> None:
    known = {"python", "sql", "sh", "json", "yaml", "toml", "text", "diff"}  # diffs by the tests of their examples
    assert [str(block) for block in ALL if block.language not in known] == []
    assert len(ALL) > 30


def test_blocks_that_nothing_runs_are_few_and_counted() -> None:
    assert Counter(block.page for block in ALL if block.language == "text") == TEXTS
    assert Counter(block.page for block in ALL if block.comment.startswith("not run:")) == NOT_RUN
    assert all(len(block.comment) > len("not run: why") for block in ALL if block.comment.startswith("not run:"))


@pytest.mark.parametrize("block", [b for b in ALL if elsewhere(b)], ids=str)
def test_a_block_that_another_file_runs_is_read_there(block: Block) -> None:
    text = (ROOT / block.comment.removeprefix("run by ")).read_text(encoding="utf-8")
    named = re.findall(r"^from tests\.support(?:\.(\w+))? import (\w+)", text, re.MULTILINE)
    helpers = [ROOT / "tests" / "support" / f"{module or name}.py" for module, name in named]
    read = [text, *(helper.read_text(encoding="utf-8") for helper in helpers)]
    assert any(f"<!-- {block.comment} -->" in part and Path(block.page).name in part for part in read)


# -- python ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_on_data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, il-model, il and runs/rho, as the pages name them: 1,003 images of 16 pixels."""
    root = tmp_path_factory.mktemp("pages")
    (root / "data").symlink_to(world / "shards")
    shards = [str(root / "data")]
    rhostream.fit_il(shards, str(root / "il-model"), model="mlp-64", epochs=2)
    rhostream.compute_il(shards, str(root / "il-model"), str(root / "il"))
    rhostream.train(
        shards,
        str(root / "il"),
        str(root / "runs" / "rho"),
        model="mlp-64",
        rule="grad_norm_is",
        shadow="loss,uniform",
        buffer_size=40,
        batch_size=8,
        steps=10,
    )
    return root


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data and il: 360 sentences of four classes."""
    root = tmp_path_factory.mktemp("texts")
    make_text_shards(root / "data", [160, 150, 50])
    shards = [str(root / "data")]
    rhostream.fit_il(
        shards, str(root / "il-model"), model="text-bag", epochs=4, lr=2e-2, tokenizer="words:1000", text_length=24
    )
    rhostream.compute_il(shards, str(root / "il-model"), str(root / "il"))
    return root


@pytest.mark.parametrize("block", of("python"))
def test_a_block_of_python_runs(
    block: Block, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, small = "text" in block.words, block.small
    world = request.getfixturevalue("texts" if text else "world")
    size: dict[str, Any] = {"vocabulary": 1002, "length": 24, "padding": 0, "task": "label"}
    model = build("text-bag", classes=4, **size) if text else build("mlp-64", image_size=16, channels=1, classes=4)
    names = {"rhostream": rhostream, "torch": torch, "os": os, "cross_entropy": cross_entropy, "model": model,
             "optimizer": torch.optim.AdamW(model.parameters()), "selector": rhostream.Selector(model, "rho", 32),
             "small_model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))}  # fmt: skip
    monkeypatch.chdir(request.getfixturevalue("trained_on_data") if "open_ledger(" in block.text else world)
    if "rhostream.Run(" in block.text:  # it writes; what it reads was opened before
        names["stream"] = rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=320)
        monkeypatch.chdir(tmp_path)
        for there in ("shards", "il"):  # as the page names them; a link's shards would have other names
            small = small.replace(f'"{there}"', repr(str(world / there)))
    exec(compile(small, str(block), "exec"), names)
    if "kept = " in block.text:
        assert names["kept"].total == 32
    if "rhostream.Run(" in block.text:
        assert names["run"].steps == next((int(word.split()[0]) for word in block.words if word.endswith(" steps")), 3)


# -- sql, and files of settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("sql"))
def test_a_block_of_sql_has_an_answer(block: Block, trained_on_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if ".parquet" in block.text:
        rows = duckdb.sql(block.small).fetchall()
    else:
        with rhostream.open_ledger(str(trained_on_data / "runs" / "rho")) as ledger:
            rows = ledger.sql(block.small).to_pylist()
    assert rows


def test_every_file_of_settings_parses() -> None:
    for block in ALL:
        if block.language in ("json", "toml"):
            assert {"json": json.loads, "toml": tomllib.loads}[block.language](block.text), str(block)
        elif block.language == "yaml":
            assert importlib.import_module("yaml").safe_load(block.text), str(block)


# -- commands ----------------------------------------------------------------------------------------------------------


def rhostream_is_known(words: list[str]) -> None:
    verbs = [word for word in words if not word.startswith("-")]
    if verbs[:1] == ["..."] or not verbs:
        return
    assert verbs[0] in cli.commands, verbs[0]
    shown = CliRunner().invoke(cli, [verbs[0], "--help"]).output
    options_are_known(words, set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown)))


def options_are_known(words: list[str], known: set[str]) -> None:
    assert known
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in known, f"{word} is no option of it"


def python_is_known(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    assert words[0] == "-m"
    path = ROOT / words[1].replace(".", "/")
    if words[1] in ("jobs.reproduce.yours", "pytest"):
        return
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert file.is_file(), f"there is no module {words[1]}"
    family = [file, *file.parent.rglob("*.py")]
    known = {f"--{name}" for p in family for name in re.findall(r"[\"']--([a-z][a-z-]*)", p.read_text("utf-8"))}
    recipes = {f"--{option.name.replace('_', '-')}" for recipe in BASES.values() for option in recipe.options}
    options_are_known(words[2:], known | (recipes if words[1] == "shards.make" else set()) | {"--help"})


def check(words: list[str]) -> None:
    program, rest = words[0], words[1:]
    if program == "rhostream":
        rhostream_is_known(rest)
    elif program == "python":
        python_is_known(rest)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "torchrun":
        options, command = (rest[: rest.index("--")], rest[rest.index("--") + 1 :])
        options_are_known(options, set(get_args_parser()._option_string_actions))
        check(command)
    elif program == "pip":
        assert rest[0] in ("install", "download")
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in re.findall(r"(?:rhostream|\.)\[([\w,]+)\]", " ".join(rest)):
            assert set(word.split(",")) <= set(extras)
    elif program == "export":
        name, value = rest[0].split("=", 1)
        assert any(name in p.read_text(encoding="utf-8") for p in (ROOT / "rhostream").rglob("*.py"))
        assert not value.startswith("{") or json.loads(value)
    elif program == "sbatch":
        assert (ROOT / rest[0]).is_file()
    else:
        assert program in ("npm", "tar", "unzip", "embedding-atlas"), f"{program} is a program that no test knows"


@pytest.mark.parametrize("block", of("sh"))
def test_every_command_and_option_of_a_block_exists(block: Block) -> None:
    for words in commands(block.text):
        check(words)


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "sh" and "run" in b.words], ids=str)
def test_commands_that_are_marked_run_one_after_the_other(
    block: Block, request: pytest.FixtureRequest, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "rhostream shards" in block.text:  # what makes everything begins with nothing but pictures
        photographs(tmp_path / "photos", NAMES, 12, seed=0)
        monkeypatch.chdir(tmp_path)
    elif "rhostream fit-il" in block.text:  # or with shards
        (tmp_path / "data").symlink_to(world / "shards")
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.chdir(request.getfixturevalue("trained_on_data"))
    for words in commands(block.small):
        if words[0] == "rhostream":
            done = CliRunner().invoke(cli, words[1:])
            assert done.exit_code == 0, f"{shlex.join(words)}: {done.output}"


def test_unknown_verbs_options_modules_and_targets_are_found_out() -> None:
    for line in (
        "rhostream trian --shards x",
        "rhostream train --shard x",
        "python -m jobs.nothing",
        "python -m jobs.svp --nothing",
        "make nothing",
        "torchrun --nothing 2 -- rhostream train",
        "pip install '.[nothing]'",
        "export RHOSTREAM_NOTHING=1",
        "curl x",
    ):
        with pytest.raises(AssertionError):
            check(commands(line)[0])
