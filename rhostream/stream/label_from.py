"""Where a sample's label stands: a member or a field of its .json, as a number or as the name of a class.

    default: the .cls, else `label` of the .json       --label category_id | a.b | label.cls | txt
    --class-names FILE: a text that is one of its names is that name's number

A plain value: it goes to the workers, into the IL model and into the table, so that each later verb reads labels alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rhostream import foreign, storage
from rhostream.errors import RhostreamError, UsageError
from rhostream.inert import escape
from rhostream.samples.json_member import BadSample, parse_json, value_of
from rhostream.samples.kind import Kind
from rhostream.storage import redact
from rhostream.stream import examine
from rhostream.stream.batch import MAX_CLS
from rhostream.stream.inflate import plain
from rhostream.stream.tar import TarWalk
from rhostream.tables.class_lists import read_class_list

MAX_NAMED = 4 * foreign.MAX_CLASS_NAME  # bytes of a member that may hold a name
LOOKED_AT, ROWS = 4, 64  # shards, and samples of each, that say whether WHAT is a member or a field
_INTEGER = re.compile(r"-?[0-9]{1,40}\Z")


@dataclass(frozen=True, kw_only=True)
class LabelFrom:
    """The member, the field of the .json (asked where the member isn't there), and the numbers of names."""

    member: str = "cls"  # "" for none
    field: str = "label"  # "" for none; a.b: b of the object a
    names: Mapping[str, int] | None = None

    @property
    def max_bytes(self) -> int:
        """Of a member that is read."""
        return MAX_CLS if self.names is None else MAX_NAMED

    @property
    def classes(self) -> int | None:
        """How many classes have a name, where labels may be names."""
        return max(self.names.values()) + 1 if self.names else None

    @property
    def class_names(self) -> dict[int, str]:
        """{label: name}."""
        return {label: name for name, label in (self.names or {}).items()}

    @property
    def missing(self) -> str:
        """What a sample without a label lacks."""
        lacking = [
            f"no .{self.member} member" if self.member else "",
            f"no {self.field} in a .json" if self.field else "",
        ]
        return " and ".join(filter(None, lacking))

    def require_beside(self, kind: Kind) -> None:
        """Raise UsageError where the label's member is what the samples are, or the target is no label."""
        if kind.target is not None and (self.to_json() or self.names is not None):
            raise UsageError(f"--label and --class-names are for labels, and {kind.target_in_words}")
        if any(self.member in extensions for extensions in kind.members.values()):
            raise UsageError(f"--label {self.member}: .{self.member} is what these samples are ({kind.name})")

    def of_text(self, text: bytes) -> int:
        """The label that a member's bytes mean. Raises BadSample (label:invalid)."""
        if self.names is None:
            return examine.parse_cls(text, f".{self.member}")
        name = text.decode("utf-8", "replace").strip()
        if name in self.names:
            return self.names[name]
        if not _INTEGER.match(name):
            raise BadSample("label:invalid", f".{self.member} holds {name[:80]!r}, expected a number or a class's name")
        return int(name)

    def of_fields(self, fields: Mapping[str, Any]) -> int:
        """The label that a json means. Raises BadSample (label:missing, label:invalid)."""
        value = value_of(fields, self.field) if self.field else None
        if value is None:
            raise BadSample("label:missing", self.missing)
        if isinstance(value, str) and self.names is not None and value in self.names:
            return self.names[value]
        if isinstance(value, bool) or not isinstance(value, int):
            expected = "an integer" if self.names is None else "an integer or a class's name"
            hint = "; --class-names FILE gives names their numbers" if self.names is None and _is_name(value) else ""
            raise BadSample(
                "label:invalid", f"{self.field} is {str(value)[:80]!r} in the .json, expected {expected}{hint}"
            )
        return value

    def to_json(self) -> dict[str, Any]:
        """Plain values for model.json and _table.json; {} for the default."""
        record: dict[str, Any] = {}
        if (self.member, self.field) != ("cls", "label"):
            record["from"] = f"member:{self.member}" if self.member else f"json:{self.field}"
        return record | ({} if self.names is None else {"names": dict(self.names)})

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | None) -> LabelFrom:
        """The inverse. Raises ValueError for what is no such record."""
        record = foreign.checked_label(record or {})
        kind, _, what = record.get("from", "").partition(":")
        names = record.get("names")
        if not kind:
            return cls(names=names)
        return cls(member=what if kind == "member" else "", field=what if kind == "json" else "", names=names)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and not _INTEGER.match(value.strip())


def label_from(
    what: str | None,
    class_names: str | None,
    shards: Iterable[tuple[str, str]],
    *,
    allow_compressed: bool = False,
    accept_missing_eof: bool = False,
) -> LabelFrom:
    """What --label and --class-names ask for; where WHAT may be a member and a field, some of the shards ((URL, name)
    pairs) are looked at.

    Raises UsageError where it is neither or both in them, and for a list of names that can't be used.
    """
    names = None if class_names is None else numbers_of(class_names)
    if what is None:
        return LabelFrom(names=names)
    kind, _, rest = what.partition(":")
    if kind in ("member", "json") and rest:
        is_member = kind == "member"
    else:
        rest = what.removeprefix(".")
        is_member = _is_member(rest, list(shards), allow_compressed, accept_missing_eof)
    member = rest.removeprefix(".").lower() if is_member else ""
    if member in ("json", "npy") or not rest:
        raise UsageError(f"--label {what!r}: expected a field of the .json (category_id), or a member (label.cls, txt)")
    return LabelFrom(member=member, field="" if is_member else rest, names=names)


def numbers_of(place: str) -> dict[str, int]:
    """{name: label} of a list of classes. Raises UsageError where two labels have one name."""
    names: dict[str, int] = {}
    for label, name in read_class_list(place).items():
        if (other := names.setdefault(name, label)) != label:
            raise UsageError(
                f"--class-names {redact(place)}: labels {other} and {label} are both called '{escape(name[:60])}'"
            )
    return names


def _is_member(what: str, shards: list[tuple[str, str]], allow_compressed: bool, accept_missing_eof: bool) -> bool:
    looked, members, fields, error = 0, set[str](), dict[str, None](), None
    as_member = as_field = False
    source = LabelFrom(member=what.lower(), field=what)
    for url, name in sorted(shards, key=lambda shard: shard[1])[:LOOKED_AT]:
        try:
            with storage.open_reader(url) as shard, plain(shard, name) if allow_compressed else shard as reader:
                batches = TarWalk(
                    reader, name, accept_missing_eof=accept_missing_eof, label=what.lower(), label_bytes=MAX_NAMED
                ).batches(ROWS)
                if (batch := next(batches, None)) is None:
                    continue
                for row in range(len(batch)):
                    looked += 1
                    as_member = as_member or batch.cls[row] is not None
                    members |= {extension for extension, _, _ in batch.members(row)} | {*batch.ignored.get(row, ())}
                    if (at := batch.json[row]) >= 0:
                        record = parse_json(examine.read_json(batch.size[at], batch.offset[at], reader))
                        fields |= dict.fromkeys(record)
                        as_field = as_field or value_of(record, source.field) is not None
        except BadSample:
            continue
        except (RhostreamError, OSError) as exc:
            error = error or exc
    if as_member and as_field:
        raise UsageError(
            f"--label {what}: samples have a .{what} and a field of that name; say member:{what} or json:{what}"
        )
    if not looked and isinstance(error, RhostreamError):
        raise error
    if not as_member and not as_field:
        raise UsageError(
            f"--label {what}: of {looked:,} samples looked at none has a .{escape(what)} or that field in its .json "
            f"(members: {_some(members)}; fields: {_some(fields)}); member:{what} and json:{what} are taken as they are"
        )
    return as_member


def _some(names: Any) -> str:
    return escape(", ".join(sorted(names)[:8]))[:160] or "none"
