"""What the classes of a set are called, {label: name}: gathered shard by shard, and held against those of another set.

A sample says the name of its label in the field `label_name` of its json. Two sets whose classes were numbered apart
agree in every number and in no meaning, so they are compared by name, wherever two of them meet, before any work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rhostream import storage
from rhostream.errors import MismatchError
from rhostream.inert import escape, one_line

FIELD = "label_name"  # of a sample's json
NEWER = ("class_names", "label", "apart")  # fields of files of ours
MOST = 1 << 20  # names of a set that are remembered
SHOWN = 60  # characters of a name
ADVICE = (
    "label both sets by one list (`rhostream shards FOLDER --classes-from SET`, where SET is the shards' folder, "
    "the table or the IL model whose numbers hold)"
)


def shown(name: str) -> str:
    """A name in a message: quoted, on one line, and not too long."""
    return f"'{escape(name[:SHOWN])}{'…' if len(name) > SHOWN else ''}'"


def named(names: Mapping[int, str], label: int) -> str:
    """A label for people, with its class's name where that is known: `3 sandal`, on one line and not too long."""
    return f"{label} {one_line(names.get(label, ''), SHOWN)}".strip()


def require_same_classes(one: Mapping[int, str], other: Mapping[int, str], of_one: str, of_other: str) -> None:
    """Raise MismatchError where two sets give a label different names, naming the first such label and both names.

    A label that only one of them names is no difference: sets that are numbered apart, each from 0 on, differ in a
    label that both have, or the one list begins with the other. Two classes of a set may have the same name.
    """
    labels = sorted(label for label in one.keys() & other.keys() if one[label] != other[label])
    if not labels:
        return
    more = f" ({len(labels) - 1:,} more labels differ)" if len(labels) > 1 else ""
    raise MismatchError(
        f"label {labels[0]} is {shown(one[labels[0]])} in {of_one} and {shown(other[labels[0]])} in {of_other}{more}: "
        f"{ADVICE}"
    )


@dataclass
class ClassNames:
    """The names of one set, as its shards say them."""

    names: dict[int, str] = field(default_factory=dict)
    of: str = "the table"  # what said the names that it began with
    _said_by: dict[int, str] = field(default_factory=dict)  # label -> the shard that first named it

    def add(self, names: Iterable[tuple[int, str]], shard: str) -> None:
        """The names that a shard says. Raises MismatchError where another shard calls the label otherwise."""
        for label, name in names:
            if label not in self.names and len(self.names) >= MOST:
                continue
            if (known := self.names.setdefault(label, name)) != name:
                raise MismatchError(
                    f"label {label} is {shown(known)} in {storage.redact(self._said_by.get(label, self.of))}, "
                    f"{shown(name)} in {storage.redact(shard)}: {ADVICE}"
                )
            self._said_by.setdefault(label, shard)


def as_json(record: dict[str, Any]) -> dict[str, Any]:
    """The same record of a file of ours, without what is newer and says nothing there: as files of before had it."""
    return {name: value for name, value in record.items() if name not in NEWER or value}


def no_class(target: Any) -> str:
    """Why there are no classes, as a table or a run says of `Kind.target`: a sentence, "" where the target is one."""
    if not isinstance(target, str):
        return ""
    what = f"is the field {one_line(target, 60)!r}" if target else "is none"
    return f"the target {what} and no class: label, correct, predicted and accuracy are unknown"
