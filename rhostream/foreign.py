"""JSON from a stranger, checked before anything is made of it: right types, bounds that memory can hold, no way out.

Checksums find damage; a table, a model or a run that somebody else made may be consistent and still lie. Everything
here raises ValueError in words; who read the file says which one it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeGuard, TypeVar

MAX_SIDE, MAX_CHANNELS, MAX_CLASSES = 8192, 4, 10_000_000
MAX_LENGTH, MAX_VOCABULARY, MAX_NAME = 65_536, 10_000_000, 4096  # of text: tokens a sample, ids, characters of a name
MAX_CLASS_NAME = 1024  # characters
MAX_SAMPLES = 100_000_000  # of a shard, which takes 50 GB of headers alone; a plan is made of what a part claims
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*\Z")
_KINDS = {"il", "index"}
RESIZES = ("crop", "squash", "pad")  # how a picture becomes a square
DECODERS = ("pillow", "simplejpeg", "turbo", "text", "own")  # what an IL model's pixels, ids or fields were made by
T = TypeVar("T")


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object that the bytes hold. Raises ValueError."""
    try:
        record = json.loads(data)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc
    require_type(record, dict, "the file")
    return dict(record)


def checked_path(path: Any) -> str:
    """A path that stays below its folder: plain names between slashes. Raises ValueError."""
    if not isinstance(path, str) or not all(_PLAIN_NAME.match(name) for name in path.split("/")):
        raise ValueError(f"{str(path)[:80]!r} is no path below its folder")
    return path


def checked_numbers(values: Any, name: str, length: int, *, nonzero: bool = False) -> None:
    """A list of 1 or `length` finite numbers. Raises ValueError."""
    if (
        not isinstance(values, (list, tuple))
        or len(values) not in (1, length)
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
        or (nonzero and not all(values))
    ):
        raise ValueError(f"{name} is {str(values)[:80]}, expected 1 or {length} numbers")


def checked_text(value: Any, name: str) -> str:
    """A text that isn't too long to be a name. Raises ValueError."""
    require_type(value, str, name)
    if len(value) > MAX_NAME:
        raise ValueError(f"{name} is {len(value):,} characters long")
    return str(value)


def plain_json(record: Any) -> dict[str, Any]:
    """The record as JSON gives it back. Raises ValueError, TypeError for what JSON hasn't."""
    plain = json.loads(json.dumps(record, allow_nan=False))
    require_type(plain, dict, "what it is made of")
    return dict(plain)


def checked_resize(record: Mapping[str, Any]) -> None:
    """How a picture becomes a square, where the record says so. Raises ValueError."""
    if record.get("resize", "crop") not in RESIZES:
        raise ValueError(f"resize is {str(record['resize'])[:40]!r}, expected {' or '.join(RESIZES)}")


def checked_decoder(name: Any) -> None:
    """The name of a decoder. Raises ValueError."""
    if name not in DECODERS:
        raise ValueError(f"decoder is {str(name)[:40]!r}, expected one of {', '.join(DECODERS)}")


def checked_classes(classes: Any) -> None:
    """A number of classes that a layer can have. Raises ValueError."""
    checked_count(classes, "classes", 1, MAX_CLASSES)


def is_class_name(name: Any) -> TypeGuard[str]:
    """Whether it can be the name of a class: some text of at most 1,024 characters that is UTF-8."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_CLASS_NAME:
        return False
    return not any("\ud800" <= c <= "\udfff" for c in name) if not name.isascii() else True


def as_label(text: Any) -> int | None:
    """The label that a key of a JSON object means: a number from 0 below 2^31; None for any other."""
    text = str(text)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 11 and int(text) < 2**31 else None


def checked_class_names(names: Any) -> dict[int, str]:
    """{label: name} of JSON's {"label": name}. Raises ValueError."""
    require_type(names, dict, "class_names")
    found: dict[int, str] = {}
    for key, name in names.items():
        if (label := as_label(key)) is None:
            raise ValueError(f"class_names has the label {str(key)[:40]!r}, expected a number from 0 on")
        if not is_class_name(name):
            raise ValueError(f"class_names[{label}] is {str(name)[:40]!r}, expected a name of 1 to 1,024 characters")
        found[label] = name
    return found


def checked_label(record: Any) -> dict[str, Any]:
    """{"from": "member:EXT" | "json:FIELD", "names": {name: label}}, each of which may be absent. Raises ValueError."""
    require_type(record, dict, "label")
    if strange := sorted(set(record) - {"from", "names"}):
        raise ValueError(f"label has {str(strange[0])[:40]!r}, expected from and names")
    kind, _, what = str(record.get("from", "json:label")).partition(":")
    if kind not in ("member", "json") or not what:
        raise ValueError(f"label is from {str(record['from'])[:40]!r}, expected member:EXTENSION or json:FIELD")
    names = record.get("names", {})
    require_type(names, dict, "names of label")
    for name, label in names.items():
        if type(label) is not int or not 0 <= label < 2**31:
            raise ValueError(f"names[{str(name)[:40]!r}] is {str(label)[:40]}, expected a label from 0 on")
    return dict(record)


def checked_class_list(record: Any) -> dict[int, str]:
    """{label: name} of an array of names (null: a label without one), of {"label": name} or {name: label}, or of a file
    of ours that says `class_names`. Raises ValueError."""
    if isinstance(record, dict) and "version" not in record and _numbers_names(record):
        if twice := len(record) - len({*record.values()}):
            raise ValueError(f"{twice:,} names have a label that another one has")
        return checked_class_names({str(label): name for name, label in record.items()})
    if isinstance(record, dict):
        return checked_class_names(record.get("class_names", {}) if "version" in record else record)
    require_type(record, list, "the list")
    return checked_class_names({str(label): name for label, name in enumerate(record) if name is not None})


def _numbers_names(record: dict[str, Any]) -> bool:
    """Whether it is {name: label}; where all names are digits it is taken for {"label": name}."""
    return all(type(label) is int for label in record.values()) and not all(name.isdecimal() for name in record)


def checked_versions(shards: Any) -> None:
    """Raise ValueError for anything but {name: [bytes, tag, sha256]}."""
    if not isinstance(shards, dict):
        raise ValueError(f"shards is a {type(shards).__name__}, expected an object")
    for name, of in shards.items():
        if not (
            isinstance(of, list)
            and len(of) == 3
            and isinstance(of[0], int)
            and of[0] >= 0
            and all(isinstance(text, str) for text in of[1:])
        ):
            raise ValueError(f"shards[{str(name)[:40]!r}] is {str(of)[:60]}, expected [bytes, tag, sha256]")


def checked_temperature(values: Any, folds: int) -> None:
    """Temperatures that logits can be divided by: none, or one for each fold. Raises ValueError."""
    require_type(values, list, "temperature")
    if values and (len(values) != folds or not all(type(v) in (int, float) and 1e-3 <= v <= 1e3 for v in values)):
        raise ValueError(f"temperature is {str(values)[:80]}, expected {folds} numbers from 0.001 to 1,000")


def checked_quality(record: Any) -> None:
    """What an IL model says of its quality: numbers where there are to be numbers. Raises ValueError."""
    require_type(record, dict, "quality")
    for name in ("samples", "accuracy", "loss", "train_loss", "balanced_accuracy"):
        _number(record.get(name), name)
    _number(record.get("loss_error", 0.0), "loss_error")
    for name, numbers in (("largest_class", ("class", "share")), ("worst_class", ("class", "accuracy", "samples"))):
        require_type(record.get(name), dict, name)
        for one in numbers:
            _number(record[name].get(one), f"{one} of {name}")
    for name in ("doubts", "empty_classes"):
        require_type(record.get(name), list, name)
        for text in record[name]:
            require_type(text, str, f"one of {name}")
    for name in ("reliability", *({"reliability_tempered"} & record.keys())):  # an older one's, at a temperature
        require_type(record.get(name), dict, name)
        _number(record[name].get("ece"), "ece")
        count = record[name].get("count")
        for part in ("count", "confidence", "accuracy"):
            values = record[name].get(part)
            require_type(values, list, f"{part} of {name}")
            if len(values) != len(count) or len(values) > 1000 or not any(count):
                raise ValueError(f"{name} has {len(values)} bins of {part}, expected as many as there are counts")
            for value, n in zip(values, count, strict=True):
                if value is not None or n:
                    _number(value, f"{part} of {name}")


def checked_judges(judged: Any, on_d: Any) -> None:
    """What an IL model was judged on, and its figures on D; {} of models of before. Raises ValueError."""
    require_type(judged, dict, "judged")
    require_type(on_d, dict, "on_d")
    if judged:
        require_type(judged.get("on"), str, "on of judged")
        _number(judged.get("samples"), "samples of judged")
    there = ("samples", "left_out", *(("loss", "loss_error") if on_d.get("samples") else ()))
    for name in (*there, *(("accuracy",) if "accuracy" in on_d else ())) if on_d else ():  # of a target, none
        _number(on_d.get(name), f"{name} of on_d")


def checked_bank(bank: Any) -> None:
    """What il of pairs was taken against: digests, one a network, and n. Raises ValueError."""
    if bank is None:
        return
    require_type(bank, dict, "bank")
    digests = bank.get("sha256")
    if not isinstance(digests, list) or not all(isinstance(one, str) for one in digests):
        raise ValueError("bank names no digests of its files")
    _number(bank.get("batch_size"), "batch_size of the bank")


def _number(value: Any, name: str) -> None:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} is {str(value)[:40]}, expected a number")


def checked_table(info: T, kinds: Container[str]) -> T:
    """The TableInfo of these fields, each what it claims to be; names of classes by labels. Raises ValueError."""
    table: Any = info
    if table.kind not in _KINDS:
        raise ValueError(f"kind is {str(table.kind)[:40]!r}, expected il or index")
    for name in ("ingredients", "keep", "roots", "model"):
        require_type(getattr(table, name), dict, name)
    if table.ingredients.get("il_dtype", "float32") not in ("float32", "float16"):
        raise ValueError(f"il_dtype is {str(table.ingredients['il_dtype'])[:40]!r}, expected float32 or float16")
    checked_resize(table.ingredients)
    checked_reference(table.ingredients.get("reference"))
    checked_bank(table.ingredients.get("bank"))
    if (vectors := table.ingredients.get("vectors")) not in (None, "float16", "int8"):
        raise ValueError(f"vectors is {str(vectors)[:40]!r}, expected float16 or int8")
    if strange := [k for k, v in table.keep.items() if not isinstance(v, str) or v not in kinds]:
        raise ValueError(f"keep has the field {strange[0][:40]!r} of an unknown type")
    if not all(isinstance(v, str) for v in table.roots.values()):
        raise ValueError("a root is no URL")
    if table.classes is not None:
        checked_classes(table.classes)
    names = checked_class_names(table.class_names)
    checked_label(table.ingredients.get("label") or {})
    return replace(table, class_names=names) if names else info


def checked_reference(reference: Any) -> None:
    """What a table says of the reference that made its il; None: there was none. Raises ValueError."""
    if reference is None:
        return
    require_type(reference, dict, "reference")
    for name in ("name", "identity"):
        checked_text(reference.get(name), name)
    require_type(reference.get("proved"), bool, "proved")
    prompts = reference.get("prompts", [])
    require_type(prompts, list, "prompts")
    for prompt in prompts:
        checked_text(prompt, "a prompt")


def checked_facts(facts: T) -> T:
    """The PartFacts of these fields, its counts counts; names of classes by labels. Raises ValueError."""
    part: Any = facts
    checked_count(part.samples, "samples", 0, MAX_SAMPLES)
    for name in ("shard_size", "members_seen", "members_used", "members_ignored", "il_rows", "in_holdout", "apart"):
        checked_count(getattr(part, name), name, 0, 2**62)
    for name in ("fingerprint", "kind", "shard", "shard_tag", "shard_sha256", "compression", "vectors"):
        require_type(getattr(part, name), str, name)
    for name in ("statuses", "bad_fields"):
        checked_counts(getattr(part, name), name)
    names = checked_class_names(part.class_names)
    return replace(part, class_names=names) if names else facts


def require_type(value: Any, kind: type, name: str) -> None:
    """Raise ValueError for a value of another type."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is a {type(value).__name__}, expected {kind.__name__}")


def checked_count(value: Any, name: str, least: int, most: int) -> int:
    """A whole number of that range. Raises ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]}, expected a number from {least} to {most:,}")
    return value


def checked_counts(record: Any, name: str) -> None:
    """{name: whole number from 0 on}. Raises ValueError."""
    require_type(record, dict, name)
    values: Iterable[Any] = record.values() if isinstance(record, Mapping) else ()
    for value in values:
        checked_count(value, name, 0, 2**62)
