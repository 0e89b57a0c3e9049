"""`--config FILE`: the run.json of a run, or YAML, TOML or JSON of a config's fields, and nothing else of them.

shards: data/train-{000..059}.tar
il: il
gumbel: 0.5
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

from rhostream import storage
from rhostream.errors import MismatchError, NotFoundError, UsageError
from rhostream.setting import GONE, as_now, checked, kinds_of, require_known, settings_of

VERSION = 1  # of the form in which a config is written down
MAX_BYTES = {"json": 64 << 20, "yaml": 1 << 20, "toml": 1 << 20}  # run.json lists every shard; the others are typed
_FORMS = {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


def read_config(url: str, config: type[Any]) -> dict[str, Any]:
    """{field: value} of the fields that the file gives, in their types. Raises UsageError naming file and field."""
    where = storage.redact(url)
    record = _parsed(url, where)
    if "config" in record or "fingerprints" in record or "settings" in record:  # a run.json
        record = _of_run(record, where)
    version, verb = record.pop("version", VERSION), record.pop("verb", config.verb)
    if type(version) is not int or version < 1:
        raise UsageError(f"{where}: version: got {str(version)[:40]!r}, expected a whole number from 1 on")
    if version > VERSION:
        raise UsageError(
            f"{where} is a config of version {version}, and this rhostream reads up to {VERSION}: it was "
            "written by a newer one"
        )
    if verb != config.verb:
        raise MismatchError(f"{where} is a config of {str(verb)[:40]}, not of {config.verb}")
    says, kinds = settings_of(config), kinds_of(config)
    found = {}
    for name, value in (as_now(*item) for item in record.items()):
        if name in GONE and value == GONE[name][0]:
            continue  # as every run has it now
        require_known(str(name), says, f"{where}: {config.verb}")
        if says[name].code:
            raise UsageError(
                f"{where}: {name} is an object of Python, which no file can give: call rhostream."
                f"{config.verb.replace('-', '_')}(..., {name}=...)"
            )
        try:
            found[name] = checked(name, value, kinds[name], says[name])
        except UsageError as exc:
            raise type(exc)(f"{where}: {exc}") from None
    return found


def _of_run(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The config that a run.json holds; of one of before it held any, the arguments that the run was called with."""
    if isinstance(config := record.get("config"), dict):
        return dict(config)
    arguments, il = record.get("arguments"), record.get("il")
    if not isinstance(arguments, dict) or not isinstance(il, str):
        raise UsageError(
            f"{where} holds no config: the run is one of a loop of your own, or was begun by a version "
            "that didn't write down how it was called; `rhostream status RUN` says what it knows"
        )
    return {"verb": "train", **arguments, "il": il}


def _parsed(url: str, where: str) -> dict[str, Any]:
    form = next((form for suffix, form in _FORMS.items() if url.lower().endswith(suffix)), None)
    if form is None:
        raise UsageError(
            f"--config {where}: expected a file whose name ends in {', '.join(_FORMS)}; of a run its run.json"
        )
    try:
        with storage.open_reader(storage.resolve(url)) as reader:
            if reader.size > MAX_BYTES[form]:
                raise UsageError(
                    f"--config {where}: {reader.size:,} bytes are no config; a file of {form} may have "
                    f"{MAX_BYTES[form]:,}"
                )
            data = reader.pread(reader.size, 0)
    except NotFoundError as exc:
        raise UsageError(f"--config {where}: there is no such file") from exc
    try:
        found = _READERS[form](data.decode("utf-8-sig"))
    except RecursionError:
        raise UsageError(f"--config {where} can't be understood: nested too deep") from None
    except Exception as exc:
        if not isinstance(exc, ValueError) and type(exc).__module__.split(".")[0] != "yaml":
            raise
        raise UsageError(f"--config {where} is no {form.upper()}: {' '.join(str(exc).split())[:200]}") from None
    if not isinstance(found, dict):
        raise UsageError(
            f"--config {where}: expected a setting and its value a line, got "
            f"{'nothing' if found is None else f'a {type(found).__name__}'}"
        )
    return found


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Safe, and without two traps of YAML 1.1: `1e-3` is a number, and a field that is given twice is an error."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
    )

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        return _once(
            [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
        )

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if str(name) in found:
            raise ValueError(f"{name} is given twice")
        found[str(name)] = value
    return found


_READERS: dict[str, Callable[[str], Any]] = {
    "json": lambda text: json.loads(text, object_pairs_hook=_once),
    "yaml": _yaml,
    "toml": tomllib.loads,
}
