"""What run.json and the links of a run's chain claim, checked before anything is made of it (see `foreign`).

Everything here raises ValueError in words; who read the file says which one it was.
"""

from __future__ import annotations

from typing import Any, TypeVar

from rhostream.foreign import checked_count, checked_counts, checked_path, require_type

T = TypeVar("T")


def checked_run(record: dict[str, Any]) -> dict[str, Any]:
    """The same run.json, its fields, where there are any, what they claim to be. Raises ValueError."""
    kinds = {"settings": dict, "fingerprints": dict, "il_model": dict, "roots": dict, "arguments": dict, "shards": list,
             "shard_urls": list, "doubts": list, "il": str, "test_fingerprint": str}  # fmt: skip
    for name, kind in kinds.items():
        if record.get(name) is not None:
            require_type(record[name], kind, name)
    for name in ("shards", "shard_urls", "doubts"):
        for one in record.get(name) or ():
            require_type(one, str, name)
    for root in (record.get("roots") or {}).values():
        require_type(root, str, "a root")
    if record.get("test_set") is not None:
        checked_counts(record["test_set"], "test_set")
    if record.get("class_names") is not None and not isinstance(record["class_names"], list | dict):
        raise ValueError(f"class_names is a {type(record['class_names']).__name__}, expected names by label")
    return record


def checked_link(link: T) -> T:
    """The same link of a run's chain, its paths inside the run and its counts counts. Raises ValueError."""
    saved: Any = link
    _chained(saved)
    for name in ("step", "pass_index", "buffer", "attempt"):
        checked_count(getattr(saved, name), name, 0, 2**62)
    for name in ("cost", "files", "selector"):
        require_type(getattr(saved, name), dict, name)
    checked_counts(saved.counts, "counts")
    for path, digest in saved.files.items():
        checked_path(path)
        require_type(digest, str, "a sha256")
    for name in ("log", "steps", "shadow"):
        _segments(getattr(saved, name), name)
    require_type(saved.changes, list, "changes")
    for change in saved.changes:
        require_type(change, dict, "a change")
        require_type(change.get("field"), str, "field of a change")
        checked_count(change.get("step"), "step of a change", 0, 2**62)
        for name in ("old", "new"):
            if type(change.get(name)) not in (str, int, float, bool, type(None)):
                raise ValueError(f"{name} of a change is a {type(change[name]).__name__}, expected a plain value")
    return link


def checked_place(place: T) -> T:
    """The same name of a commit. Raises ValueError."""
    named: Any = place
    for name, least in (("attempt", 0), ("number", -1), ("step", 0)):
        checked_count(getattr(named, name), f"{name} of a commit", least, 2**62)
    require_type(named.sha256, str, "sha256 of a commit")
    return place


def _chained(link: Any) -> None:
    """Numbers count up by one along a chain, so that who walks it comes to its end."""
    checked_count(link.number, "number", 0, 2**62)
    checked_count(link.first, "first", 0, link.number)
    for name in ("complete", "whole", "handed_out", "held"):
        require_type(getattr(link, name), bool, name)
    before = link.previous
    if (before is None and link.number) or (before is not None and before.number != link.number - 1):
        raise ValueError(f"link {link.number} doesn't name link {link.number - 1} as the one before it")
    if link.number != link.first and before.attempt != link.attempt:
        raise ValueError(f"link {link.number} of attempt {link.attempt} isn't its first, and follows one of another")
    require_type(link.merged, list, "merged")
    for record in link.merged:
        require_type(record, dict, "a merged segment")
        require_type(record.get("of"), list, "of a merged segment")
        for path in (record.get("path"), *record["of"]):
            checked_path(path)


def _segments(records: Any, name: str) -> None:
    require_type(records, list, name)
    for record in records:
        require_type(record, dict, name)
        checked_path(record.get("path"))
        require_type(record.get("sha256"), str, "a sha256")
        for count in ("rows", "bytes"):
            checked_count(record.get(count), count, 0, 2**62)
