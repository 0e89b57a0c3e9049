"""What leaves the house: distributions, image, workflows, forms, citation, and what the policy says of versions."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import environments

ROOT = Path(__file__).resolve().parents[1]


def _program(name: str) -> Any:
    """A program of .ci, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- versions ----------------------------------------------------------------------------------------------------------


def test_the_version_has_a_section_of_the_changelog_or_is_unreleased_and_the_citation_says_it_too() -> None:
    assert _program("release").problems(None) == []


def test_a_release_whose_tag_version_and_changelog_do_not_agree_is_refused(tmp_path: Path) -> None:
    release = _program("release")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 0.2.0\n")
    whole = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-31\n\n### Added\n- a thing\n"
    (tmp_path / "CHANGELOG.md").write_text(whole)
    assert release.problems("v0.2.0", tmp_path) == []
    assert "expected v0.2.0" in release.problems("v0.3.0", tmp_path)[0]
    (tmp_path / "CHANGELOG.md").write_text(whole.replace("## [0.2.0]", "- late\n\n## [0.2.0]"))
    assert "belong to this release" in release.problems("v0.2.0", tmp_path)[0]
    (tmp_path / "CHANGELOG.md").write_text(whole.replace("0.2.0", "0.1.0"))
    assert "no section [0.2.0]" in release.problems("v0.2.0", tmp_path)[0]


def test_the_policys_table_is_what_the_modules_write_and_read() -> None:
    rows = re.findall(r"^\| [^|]+ \| (\w+) \| ([\d to]+) \| `(rhostream/[\w/]+)\.py` \|$",
                      (ROOT / "docs" / "policy.md").read_text(), re.MULTILINE)  # fmt: skip
    owners = {owner for _, _, owner in rows}
    having = {
        str(path.relative_to(ROOT).with_suffix(""))
        for path in (ROOT / "rhostream").rglob("*.py")
        if re.search(r"^(STATE_)?VERSION = \d", path.read_text(), re.MULTILINE)
    }
    assert owners == having
    for written, read, owner in rows:
        module = importlib.import_module(owner.replace("/", "."))
        number = str(getattr(module, "STATE_VERSION", None) or module.VERSION)
        assert read.split(" to ")[-1] == number and written in (number, "none"), owner


# -- files that only a host reads --------------------------------------------------------------------------------------


def test_workflows_use_the_repositorys_own_commands() -> None:
    targets = {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                words = shlex.split(step.get("run", ""))
                if words[:1] == ["make"]:
                    called.add(words[1])
                if words[:1] == ["python"]:
                    assert (ROOT / words[1]).exists()
    assert called <= targets and {"lint", "test", "test-slow", "docs", "dist-check"} <= called


def test_the_matrix_is_what_the_package_says_of_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    assert all(jobs[name]["strategy"]["matrix"]["python"] == said for name in ("test", "dist"))
    assert project["requires-python"] == f">={said[0]}"


def test_the_peers_of_the_benchmark_are_pinned_as_the_constraints_are_or_pip_refuses_both_together() -> None:
    constraints, peers = (
        dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text().lower().replace("_", "-"), re.MULTILINE))
        for name in ("constraints.txt", "benchmarks/peers/requirements.txt")
    )
    both = constraints.keys() & peers.keys()
    assert {"torch", "botocore"} <= both
    assert {name: peers[name] for name in both} == {name: constraints[name] for name in both}


def test_the_image_copies_all_that_an_installation_needs_and_nothing_that_is_left_out_of_its_context() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    context = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {*copied} == context and all((ROOT / name).exists() for name in copied)
    assert lines[-2:] == ['ENTRYPOINT ["rhostream"]', 'CMD ["--help"]'] and "USER 1000" in lines
    assert any(line.startswith("ARG BASE=") for line in lines) and "FROM ${BASE}" in lines


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_workflows_forms_citation_and_image_are_what_their_schemas_and_linters_take() -> None:
    if why := environments.make("ship"):
        pytest.skip(f"the schemas can't be had here: {why}")
    bin_folder = Path(environments.python("ship")).parent
    checks = {
        "vendor.github-workflows": [*ROOT.glob(".github/workflows/*.yml")],
        "custom.github-workflows-require-timeout": [*ROOT.glob(".github/workflows/*.yml")],
        "vendor.github-issue-forms": [ROOT / ".github/ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "feature")],
        "vendor.github-issue-config": [ROOT / ".github/ISSUE_TEMPLATE/config.yml"],
        "vendor.citation-file-format": [ROOT / "CITATION.cff"],
    }
    for schema, paths in checks.items():
        subprocess.run([bin_folder / "check-jsonschema", "--builtin-schema", schema, *paths], check=True, timeout=120)
    subprocess.run([bin_folder / "hadolint", ROOT / "Dockerfile"], check=True, timeout=120)


# -- distributions -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_both_distributions_are_whole_install_into_a_bare_environment_and_work(tmp_path: Path) -> None:
    copy = tmp_path / "clone"
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout: what belongs into a distribution is what git knows")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True, timeout=120)
    done = subprocess.run([sys.executable, copy / ".ci" / "dist.py"], capture_output=True, text=True, timeout=2800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("smoke: ") == 2
