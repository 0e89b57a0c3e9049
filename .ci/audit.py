"""`python .ci/audit.py`: no installed package and no lower bound of pyproject.toml has a vulnerability that we know of.

Two looks. pip-audit asks its advisory service about every installed package; where the service can't be had (offline, a
proxy, too slow) that is said with the number of packages, and is no failure. The list below, of advisories that touch
what rhostream does, is always checked. Exit code 1 for a known vulnerability. `--seconds N`: how long the service may
take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
# package: (the first version without it, what it was)
FLOORS = {
    "torch": ("2.10", "files read with weights_only=True could run code"),
    "pillow": ("12.3", "flaws in image decoders"),
    "pyarrow": ("17", "Parquet and IPC files could run code (CVE-2023-47248, before 14.0.1) or read out of bounds"),
    "aiohttp": ("3.12.14", "requests could be smuggled (CVE-2025-53643)"),
    "requests": ("2.32.4", "credentials of .netrc went to other hosts (CVE-2024-47081)"),
    "urllib3": ("2.6.0", "small compressed answers took unbounded memory (CVE-2025-66418, CVE-2025-66471)"),
    "jinja2": ("3.1.6", "the sandbox could be left (CVE-2025-27516)"),
    "tqdm": ("4.66.3", "arguments of its command line were evaluated (CVE-2024-34062)"),
    "setuptools": ("78.1.1", "packages could write outside their folder (CVE-2025-47273)"),
    "fonttools": ("4.60.2", "files could be written anywhere (CVE-2025-66034)"),
    "werkzeug": ("3.0.6", "forms took unbounded memory (CVE-2024-49767)"),
    "transformers": ("4.53", "files of a model could run code (CVE-2024-11392 to -11394) or hang the reader"),
    "ray": ("2.56", "code could be run by others of the cluster (CVE-2026-57516)"),
}


def installed() -> dict[str, Version]:
    """Every distribution of this environment."""
    return {canonicalize_name(d.metadata["Name"]): Version(d.version) for d in metadata.distributions()}


def below_floor(packages: dict[str, Version]) -> list[str]:
    """What is installed and known to be vulnerable."""
    return [f"{name} {packages[name]} is installed; before {floor} {why}" for name, (floor, why) in FLOORS.items()
            if name in packages and packages[name] < Version(floor)]  # fmt: skip


def loose_bounds(project: dict[str, Any]) -> list[str]:
    """Requirements that allow a version known to be vulnerable."""
    table = project["project"]
    lines = [*project["build-system"]["requires"], *table["dependencies"],
             *(line for extra in table["optional-dependencies"].values() for line in extra)]  # fmt: skip
    found = []
    for requirement in map(Requirement, dict.fromkeys(lines)):
        floor, why = FLOORS.get(canonicalize_name(requirement.name), (None, ""))
        lows = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==", "~=", ">")]
        if floor is not None and (not lows or max(lows) < Version(floor)):
            found.append(f"pyproject.toml allows {requirement}; before {floor} {why}")
    return found


def advisories(seconds: float) -> tuple[list[str], int, int]:
    """(vulnerabilities that the service knows of, packages audited, packages that could not be)."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off",
               "--timeout", "3"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return [], 0, len(installed())
    found = [f"{p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version'}"
             for p in packages for v in p.get("vulns", ())]  # fmt: skip
    skipped = sum("skip_reason" in p for p in packages)
    return found, len(packages) - skipped, skipped


def main() -> int:
    """Look, say, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=14.0)
    seconds = parser.parse_args().seconds
    packages = installed()
    problems = below_floor(packages) + loose_bounds(tomllib.loads(PYPROJECT.read_text(encoding="utf-8")))
    known, audited, skipped = advisories(seconds)
    for problem in problems + known:
        print(f"vulnerable: {problem}")
    covered = sum(name in packages for name in FLOORS)
    print(
        f"audit: {len(problems) + len(known)} known vulnerabilities; {audited} packages audited by the advisory "
        f"service, {skipped} could not be; {covered} of the {len(FLOORS)} packages of our own list are installed"
    )
    return 1 if problems or known else 0


if __name__ == "__main__":
    sys.exit(main())
