"""Which names the samples of a shard give their labels: the field `label_name` of the json.

A label's json is read once a shard, for its first sample, where nobody asks for the json of all; then all of them
count. So a set of a thousand samples and ten classes costs ten small reads, and one without names sixteen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rhostream.foreign import is_class_name
from rhostream.samples.json_member import BadSample, parse_json
from rhostream.tables.classes import FIELD

MOST = 1 << 16  # names that are remembered of a shard
SILENT = 16  # labels of a shard without a name, after which no other is asked for


class LabelsNamed:
    """The (label, name) pairs of a shard; a label with two names is in two of them."""

    def __init__(self) -> None:
        self.pairs: set[tuple[int, str]] = set()
        self._asked: set[int | None] = {None, -1}

    def of_fields(self, labels: Sequence[int | None], fields: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
        """Take the json of some samples, labels -1 or None where they have none. Returns the pairs that are new."""
        pairs = set[tuple[int, str]]()
        for label, one in zip(labels, fields, strict=True):
            if label is not None and label >= 0 and is_class_name(name := one.get(FIELD)):
                pairs.add((label, name))
        return self._new(pairs)

    def of_first(self, labels: Sequence[int | None], read: Callable[[int], bytes]) -> set[tuple[int, str]]:
        """Ask the first sample of each label that none was asked of; `read` gives a row's json. Returns new pairs."""
        if not self.pairs and len(self._asked) - 2 >= SILENT:
            return set()
        pairs, unasked = set[tuple[int, str]](), set(labels) - self._asked
        first = {label: row for row, label in reversed(list(enumerate(labels)))} if unasked else {}
        for label in unasked:
            assert label is not None
            self._asked.add(label)
            if is_class_name(name := _name(read, first[label])):
                pairs.add((label, name))
            elif not self.pairs and not pairs and len(self._asked) - 2 >= SILENT:
                break
        return self._new(pairs)

    def _new(self, pairs: set[tuple[int, str]]) -> set[tuple[int, str]]:
        new = pairs - self.pairs if len(self.pairs) < MOST else set()
        self.pairs |= new
        return new


def _name(read: Callable[[int], bytes], row: int) -> Any:
    try:
        return parse_json(read(row)).get(FIELD)
    except BadSample:
        return None
