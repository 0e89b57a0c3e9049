"""run.sh and a config file for each command, written into a folder where none of them is: all or none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhostream import storage
from rhostream.errors import NotWritableError, UsageError
from rhostream.guide.facts import Facts
from rhostream.guide.plan import Plan
from rhostream.guide.text import script, size
from rhostream.storage import is_local, redact

SCRIPT = "run.sh"


def folder_of(out: str) -> Path:
    """Where files are to go. Raises UsageError for a place where they can't."""
    url = storage.resolve(out)
    if not is_local(url):
        raise UsageError(f"--out {redact(out)}: a script is written on this machine; shards and runs may go elsewhere")
    folder = Path(url)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file, expected a folder")
    if folder.is_dir() and (taken := sorted(path.name for path in folder.iterdir() if _ours(path.name))):
        raise UsageError(f"--out {folder} has {taken[0]} already, and nothing is replaced: name another folder")
    return folder


def _ours(name: str) -> bool:
    return name == SCRIPT or name in {
        f"{verb}.toml" for verb in ("shards", "shards-test", "fit-il", "compute-il", "train")
    }


def write_files(folder: Path, facts: Facts, plan: Plan) -> list[str]:
    """Write them. Returns their paths. Raises UsageError where the disk has too little room for what they start."""
    disk = plan.disk
    if disk.needed > disk.free:
        raise UsageError(
            f"{disk.where} has {size(disk.free)} free, and shards, table and runs need {size(disk.needed)}: name a "
            "folder of a larger disk with --out"
        )
    files = {f"{command.name}.toml": toml(command.verb, command.config) for command in plan.commands if command.name}
    files[SCRIPT] = script(facts, plan)
    written = list[str]()
    try:
        for name, text in files.items():
            storage.create(str(folder / name), text.encode())
            written.append(str(folder / name))
        os.chmod(folder / SCRIPT, 0o755)
    except UnicodeEncodeError:
        _remove(written)
        raise UsageError(
            f"{facts.where!r} has a name that is no UTF-8, which no config file can hold: rename it"
        ) from None
    except NotWritableError:
        _remove(written)
        raise
    return written


def _remove(written: list[str]) -> None:
    for path in written:
        os.unlink(path)


def toml(verb: str, config: Mapping[str, Any]) -> str:
    """A config as `--config` reads it."""
    lines = [f"# rhostream {verb} --config {verb}.toml; what is typed beside it wins", f'verb = "{verb}"']
    return "\n".join([*lines, *(f"{name} = {_value(value)}" for name, value in config.items())]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # TOML's strings are JSON's, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
