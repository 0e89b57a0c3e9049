"""A user's own kind by name, `package.module:name`: theirs does the work, and what it does wrong is a status of a row.

The name stands in the table, with the members, the fields and what `to_json()` says; the code itself is imported only
where a user names it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from rhostream import foreign
from rhostream.errors import MismatchError, UntrustedCodeError, UsageError, users_code
from rhostream.own_code import own_function
from rhostream.samples.fields import Fields
from rhostream.samples.kind import NO_TARGET, OK, FieldSpec, Kind, Row, View

if TYPE_CHECKING:
    from torch import Tensor

MOST_FIELDS, MOST_MEMBERS, MOST_BYTES = 64, 64, 1 << 30  # of a kind; bytes of a sample
_DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")


class Refused(Exception):
    """What a kind's decode gave can't stand in the slot: a status, and why."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(status, why)
        self.status, self.why = status, why


class Slot(dict[str, Row]):
    """The rows of one sample: what is put under a field's name is checked against it and copied into the slot.

    Who writes into a row itself (`out["x"][:n] = ...`) finds zeros there.
    """

    def __init__(self, rows: Mapping[str, Row]) -> None:
        super().__init__(rows)
        for row in rows.values():
            row.fill(0)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self:
            raise Refused("kind:shape", f"there is no field {name!r}, expected {', '.join(self)}")
        row, array = self[name], np.asarray(value)
        if array.shape != row.shape:
            raise Refused("kind:shape", f"{name} has the shape {array.shape}, expected {row.shape}")
        if array.dtype != row.dtype:
            raise Refused("kind:dtype", f"{name} is of {array.dtype}, expected {row.dtype}")
        row[...] = array


class OwnKind(Kind):
    """The kind of that name, as its user wrote it. Raises UsageError for what is no kind."""

    def __init__(self, name: str) -> None:
        self.name, self._code = name, _load(name)
        self.holds, self.max_bytes = f"samples of {name}", self._code.max_bytes
        with users_code(f"kind {name!r}"):
            self.members = _checked_members(name, self._code.members)
            self._fields = _checked_fields(name, self._code.fields(None))
            self._made_of = foreign.plain_json(self._code.to_json())
            self.pictures = bool(self._code.pictures)
            self.augments = bool(self._code.augments)
            self.target = _checked_target(name, self._code.target, self._fields)
            self._arguments = dict(self._code.model_arguments())

    def __reduce__(self) -> tuple[type[OwnKind], tuple[str]]:
        return OwnKind, (self.name,)  # a worker imports it as this process did

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnKind) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.name)

    def fields(self, view: View = None) -> Mapping[str, FieldSpec]:
        """As the user's kind says."""
        return self._fields

    @property
    def examines(self) -> bool:
        """Whether the user's kind does."""
        return type(self._code).examine is not Kind.examine

    def examine(self, sizes: Mapping[str, int]) -> str:
        """What every kind examines, then what the user's does; a status of theirs is `kind:refused`."""
        if (status := super().examine(sizes)) != OK or not self.examines:
            return status
        return self._judged(lambda: self._code.examine(sizes))

    def decode(self, members: Mapping[str, bytes], out: dict[str, Row], view: View = None,
               rng: np.random.Generator | None = None) -> str:  # fmt: skip
        """By the user's code: whatever it raises or writes is a status, and `why` says what it was.

        So is a target that isn't finite: in a batch it would be the loss of all.
        """
        verdict = self._judged(lambda: self._code.decode(members, Slot(out), view, rng))
        if verdict == OK and self.target and not np.isfinite(out[self.target]).all():
            self.why = f"{self.name}: the target {self.target} holds {_first_nonfinite(out[self.target])}"
            return "kind:target"
        return verdict

    def _judged(self, work: Any) -> str:
        try:
            verdict = work()
        except Refused as refused:
            self.why = f"{self.name}: {refused.why}"
            return refused.status
        except MemoryError:
            raise
        except Exception as exc:
            at = traceback.extract_tb(exc.__traceback__)[-1]
            text = " ".join(str(exc).split())[:200]
            self.why = f"{self.name} raised {type(exc).__name__}{': ' if text else ''}{text} " \
                       f"({os.path.basename(at.filename)}, line {at.lineno})"  # fmt: skip
            return "kind:raised"
        if verdict == OK:
            return OK
        self.why = f"{self.name}: {' '.join(str(verdict).split())[:200]}"
        return "kind:refused"

    def inputs(self, fields: Fields) -> Tensor:
        """By the user's code. Raises UsageError for what is no tensor of as many rows."""
        from torch import Tensor

        with users_code(f"inputs of kind {self.name!r}"):
            made: object = self._code.inputs(fields)
        rows = len(fields)
        if not isinstance(made, Tensor) or made.ndim < 1 or len(made) != rows:
            what = f"a tensor of shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
            raise UsageError(f"inputs of kind {self.name!r} gave {what}, expected a tensor of {rows:,} rows")
        return made

    def to_json(self) -> dict[str, Any]:
        """The name, and all that it says of itself."""
        return {
            "kind": self.name,
            "members": [[name, list(extensions)] for name, extensions in self.members.items()],  # their order counts
            "fields": {name: [list(spec.shape), spec.dtype] for name, spec in self._fields.items()},
            **({} if self.target is None else {"target": self.target}),
            **({"made_of": self._made_of} if self._made_of else {}),
        }

    @classmethod
    def stored(cls, record: Mapping[str, Any], code: str | None, where: str) -> OwnKind:
        """The inverse of `to_json`, where the user named the code.

        Raises UntrustedCodeError where they didn't, UsageError where it isn't installed here, MismatchError where it
        is another one now.
        """
        name = str(record["kind"])
        UntrustedCodeError.unless_named(name, code, where, "--kind")
        kind, now = cls(name), None
        now = kind.to_json()
        if differ := [key for key in sorted({*record, *now}) if record.get(key) != now.get(key)]:
            key = differ[0]
            raise MismatchError(
                f"kind {name!r} isn't what {where} was made with: {key} was {str(record.get(key))[:200]}, "
                f"now {str(now.get(key))[:200]}"
            )
        return kind

    @classmethod
    def check(cls, record: Mapping[str, Any]) -> None:
        """Raise ValueError for a stranger's record that can't be; nothing is imported."""
        foreign.require_type(record.get("members"), list, "members")
        foreign.require_type(record.get("fields"), dict, "fields")
        try:
            _checked_members("", dict(record["members"]))
            fields = _checked_fields("", {name: FieldSpec(tuple(shape), dtype) for name, (shape, dtype) in
                                          record["fields"].items()})  # fmt: skip
            _checked_target("", record.get("target"), fields)
        except (UsageError, TypeError) as exc:
            raise ValueError(str(exc)) from exc

    def ingredients(self) -> dict[str, Any]:
        """All of it."""
        return {"kind": self.to_json()}

    def model_arguments(self, view: View = None) -> dict[str, Any]:
        """As the user's kind says."""
        return dict(self._arguments)


def is_own(name: str) -> bool:
    """Whether the name is that of a user's kind."""
    return ":" in name


def _load(name: str) -> Kind:
    made: Any = own_function("kind", name)
    if not isinstance(made, Kind):
        with users_code(f"kind {name!r}"):
            made = made()
    if not isinstance(made, Kind):
        raise UsageError(f"kind {name!r} is a {type(made).__name__}, expected a rhostream.Kind")
    return made


def _checked_members(name: str, members: Any) -> dict[str, tuple[str, ...]]:
    checked: dict[str, tuple[str, ...]] = {}
    if not isinstance(members, Mapping) or not 0 < len(members) <= MOST_MEMBERS:
        raise UsageError(f"kind {name!r}: members are {str(members)[:80]}, expected {{name: (extension, ...)}}")
    for member, extensions in members.items():
        if not isinstance(member, str) or not _texts(extensions):
            raise UsageError(f"kind {name!r}: member {str(member)[:40]!r} has the extensions {str(extensions)[:80]}, "
                             "expected a tuple of small letters without a leading dot")  # fmt: skip
        checked[member] = tuple(extensions)
    return checked


def _checked_target(name: str, target: Any, fields: Mapping[str, FieldSpec]) -> str | None:
    if target is None or target == NO_TARGET or (isinstance(target, str) and target in fields):
        return target if target is None else str(target)
    raise UsageError(f"kind {name!r}: target is {str(target)[:40]!r}, expected a field ({', '.join(fields)}), "
                     "'' for none at all, or None for the label")  # fmt: skip


def _first_nonfinite(values: Row) -> Any:
    return values[~np.isfinite(values)][0]


def _texts(extensions: Any) -> TypeGuard[Iterable[str]]:
    return isinstance(extensions, (tuple, list)) and 0 < len(extensions) <= MOST_MEMBERS and all(
        isinstance(e, str) and 0 < len(e) <= 40 and e == e.lower() and not e.startswith(".") and "/" not in e
        for e in extensions
    )  # fmt: skip


def _checked_fields(name: str, fields: Any) -> dict[str, FieldSpec]:
    checked: dict[str, FieldSpec] = {}
    if not isinstance(fields, Mapping) or not 0 < len(fields) <= MOST_FIELDS:
        raise UsageError(f"kind {name!r}: fields are {str(fields)[:80]}, expected {{name: FieldSpec(shape, dtype)}}")
    for field, spec in fields.items():
        if not isinstance(spec, FieldSpec):
            raise UsageError(f"kind {name!r}: field {field!r} is a {type(spec).__name__}, expected a FieldSpec")
        dtype, shape = str(np.dtype(spec.dtype)), tuple(spec.shape)
        if dtype not in _DTYPES or not all(type(side) is int and 0 < side <= MOST_BYTES for side in shape):
            raise UsageError(f"kind {name!r}: field {field!r} is {shape} of {dtype}, expected whole sides and one of "
                             f"{', '.join(_DTYPES)}")  # fmt: skip
        checked[str(field)] = FieldSpec(shape, dtype)
    if sum(spec.nbytes for spec in checked.values()) > MOST_BYTES:
        raise UsageError(f"kind {name!r}: a sample would take more than {MOST_BYTES >> 20:,} MiB")
    return checked
