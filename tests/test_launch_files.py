"""The launch files of examples/launch: options that exist, counts that agree, no secret, and valid by schemas.

That those of Slurm run is shown by test_slurm.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from torch.distributed.run import get_args_parser

from rhostream import errors
from rhostream.cli import cli
from tests.support import environments

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "examples" / "launch"
FILES = sorted(path.name for path in LAUNCH.iterdir())
YAML = [name for name in FILES if name.endswith(".yaml")]
SCRIPTS = [name for name in FILES if not name.endswith(".yaml")]
CALL = re.compile(r"\brhostream[\"}]* (compute-il|train)\b")
# What a slip of the pen would make of each file, and what the schema says of it.
SLIPS = {
    "offline-kubernetes.yaml": ("completionMode", "completionMod"),
    "train-jobset.yaml": ("maxRestarts", "maxRestart"),
    "train-pytorchjob.yaml": ("nprocPerNode", "nprocsPerNode"),
    "offline-sky.yaml": ("max_restarts_on_errors", "max_restarts"),
    "pool-sky.yaml": ("workers", "worker"),
    "train-sky.yaml": ("num_nodes", "nodes"),
}


def commands(name: str) -> list[list[str]]:
    """The words of every command of a file that starts rhostream, from `rhostream` or torchrun on."""
    text = (LAUNCH / name).read_text(encoding="utf-8")
    if name.endswith(".yaml"):
        data = yaml.safe_load(text)
        if "kind" in data:
            return [container["args"] for container in containers(data)]
        text = data.get("run", "")
    lines = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [shlex.split(line.strip().removesuffix("&")) for line in lines if CALL.search(line)]


def containers(data: Any) -> list[dict[str, Any]]:
    """Every container of a manifest."""
    if isinstance(data, dict):
        own = data.get("containers", [])
        return [*own, *(found for name, value in data.items() if name != "containers" for found in containers(value))]
    return [found for value in data for found in containers(value)] if isinstance(data, list) else []


def options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}


def test_every_scheduler_has_a_file_for_the_offline_job_and_one_for_training() -> None:
    assert {*FILES} == {
        "clothing1m.slurm", "offline.slurm", "train.slurm", "offline-kubernetes.yaml", "train-jobset.yaml",
        "train-pytorchjob.yaml", "offline-sky.yaml", "pool-sky.yaml", "train-sky.yaml", "offline-ray.sh",
    }  # fmt: skip
    assert {*YAML} == {*SLIPS}
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert [name for name in FILES if f"`{name}`" not in page and f"{name} " not in page] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_of_the_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True, timeout=20)


@pytest.mark.parametrize("name", ["offline-sky.yaml", "pool-sky.yaml", "train-sky.yaml"])
def test_the_shell_parts_of_skypilot_are_of_the_shell(name: str) -> None:
    data = yaml.safe_load((LAUNCH / name).read_text())
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=data.get(part, ""), text=True, check=True, timeout=20)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("clothing1m.slurm", "pool-sky.yaml")])
def test_a_launch_file_gives_options_that_exist(name: str) -> None:
    (words,) = commands(name)
    at = next(n for n, word in enumerate(words) if word in ("compute-il", "train"))
    shown = CliRunner().invoke(cli, [words[at], "--help"]).output
    unknown = options(words[at:]) - {*re.findall(r"--[a-z][a-z-]*", shown)}
    if unknown == {"--engine", "--ray-address"}:
        pytest.skip("this version has no --engine")
    assert unknown == set()
    if words[at] == "train":
        assert options(words[:at]) <= {*get_args_parser()._option_string_actions}
        assert "--no-python" in words[:at] and words[words.index("--") + 1].endswith(("rhostream", "rhostream}"))
    else:
        assert ("--index" in words[at:]) != ("--engine" in words[at:])


def test_the_indexed_job_counts_itself_and_maps_every_exit_code() -> None:
    job = yaml.safe_load((LAUNCH / "offline-kubernetes.yaml").read_text())["spec"]
    (container,) = containers(job)
    assert {"name": "RHOSTREAM_JOBS", "value": str(job["completions"])} in container["env"]
    rules = {code: rule["action"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
             for code in rule["onExitCodes"]["values"]}  # fmt: skip
    assert rules == {errors.UsageError.exit_code: "FailJob", errors.BudgetError.exit_code: "FailIndex"}
    assert job["podFailurePolicy"]["rules"][0]["action"] == "Ignore"  # the first that matches counts
    assert job["completionMode"] == "Indexed" and job["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", [name for name in YAML if "sky" not in name])
def test_a_pod_has_shared_memory_a_spool_and_no_secret_of_its_own(name: str) -> None:
    data = yaml.safe_load((LAUNCH / name).read_text())
    (container,) = containers(data)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"name": "RHOSTREAM_SPOOL", "value": "/spool"} in container["env"]
    text = (LAUNCH / name).read_text()
    assert f"- name: {mounts['/dev/shm']}\n" in text and "medium: Memory" in text and mounts["/spool"] == "spool"
    assert [one for one in container["envFrom"] if "secretRef" in one]


@pytest.mark.parametrize("name", FILES)
def test_no_launch_file_holds_a_secret(name: str) -> None:
    text = (LAUNCH / name).read_text(encoding="utf-8")
    for found in re.findall(r"(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY\w*)[A-Z_]*[:=]\s*(\S+)", text):
        assert found in ("null", "..."), found


# -- slow --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_launch_files_are_valid_by_the_schemas_of_their_systems_which_find_a_slip(tmp_path: Path) -> None:
    if why := environments.make("launch"):
        pytest.skip(why)
    script, python = ROOT / "tests" / "support" / "launch_schemas.py", environments.python("launch")
    wrong = []
    for name, (word, slip) in SLIPS.items():
        text = (LAUNCH / name).read_text()
        assert word in text
        wrong.append(tmp_path / name)
        wrong[-1].write_text(text.replace(word, slip))
    files = [*(LAUNCH / name for name in YAML), *wrong]
    done = subprocess.run([python, script, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[: len(YAML)] == [f"{name}: valid" for name in YAML]
    for line, (name, (_, slip)) in zip(lines[len(YAML) :], SLIPS.items(), strict=True):
        assert line.startswith(f"{name}: ") and slip in line
