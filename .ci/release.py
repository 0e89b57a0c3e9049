"""`python .ci/release.py [TAG]`: the version, its tag and its section of CHANGELOG.md agree; prints that section.

Without a tag: whether the next release, whose version is that of pyproject.toml, could be made. Exit code 1 for what
doesn't agree.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)


def version(root: Path = ROOT) -> str:
    """That of pyproject.toml."""
    return str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def sections(root: Path = ROOT) -> dict[str, tuple[str, str]]:
    """{version, or "Unreleased": (its date, its text)}, as they stand in CHANGELOG.md."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = [*HEADING.finditer(text)]
    ends = [*(match.start() for match in found[1:]), len(text)]
    return {match[1]: (match[2] or "", text[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)}


def problems(tag: str | None, root: Path = ROOT) -> list[str]:
    """What doesn't agree."""
    now, written = version(root), sections(root)
    found = []
    if "Unreleased" not in written:
        found.append("CHANGELOG.md has no section [Unreleased]")
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1] != now:
        found.append(f"CITATION.cff says version {cited and cited[1]}, pyproject.toml {now}")
    found += [
        f"[{name}] of CHANGELOG.md has no date"
        for name, (date, _) in written.items()
        if not date and name != "Unreleased"
    ]
    if tag is None:
        if now not in written and not written.get("Unreleased", ("", ""))[1]:
            found.append(f"CHANGELOG.md says nothing of {now}: no section of its own, and nothing in [Unreleased]")
        return found
    if tag != f"v{now}":
        found.append(f"the tag is {tag}, and pyproject.toml says {now}: expected v{now}")
    if not written.get(now, ("", ""))[1]:
        found.append(f"CHANGELOG.md has no section [{now}]")
    if written.get("Unreleased", ("", ""))[1]:
        found.append("CHANGELOG.md has lines in [Unreleased] that belong to this release")
    return found


def main() -> int:
    """Check, print the notes of a release, and return the exit code."""
    tag = sys.argv[1] if len(sys.argv) > 1 else None
    if found := problems(tag):
        print("\n".join(found), file=sys.stderr)
        return 1
    print(sections()[version()][1] if tag else f"{version()}: CHANGELOG.md, CITATION.cff and pyproject.toml agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
