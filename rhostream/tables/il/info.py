"""`_table.json`: what holds for a whole IL table (what made the il, classes, kept fields), and a part's columns.

A table's fingerprint names what made its il: two tables of different fingerprints never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream import foreign, storage
from rhostream.crashpoints import crash_point
from rhostream.errors import AlreadyExistsError, MismatchError, TableError, UnknownNameError, UsageError
from rhostream.inert import one_line
from rhostream.samples import registry
from rhostream.samples.kind import Kind
from rhostream.tables.classes import as_json, require_same_classes

VERSION = 2
OK = "ok"
MEMBER = pa.struct([("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("ordinal", pa.int32()),
        ("members", pa.list_(MEMBER)),
        ("label", pa.int32()),
        ("il", pa.float32()),
        ("predicted", pa.int32()),
        ("fold", pa.int8()),
        ("in_holdout", pa.bool_()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("il_tokens", pa.list_(pa.float16())),  # nats, one a predicted token; since version 2
    ]
)
_SINCE_2 = ("il_tokens",)
# Of pairs, beside il: what it is made of against a bank, nats, and the reference's cosine of image and caption.
PAIR_COLUMNS = {"il_own": "float32", "il_image": "float32", "il_text": "float32", "similarity": "float16"}
IL_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
SHOWN = 120  # characters of a name in a sentence
DETAIL = 400  # characters of a value in a message
FLOAT16_MAX = 65504.0  # nats; what is beyond is stored as this, never as infinity
_MORE_FIELDS = "; for more kept fields without scoring again: --from TABLE --keep FIELD:TYPE,... and a new --out"
KEEP_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}


def fingerprint(ingredients: Mapping[str, Any]) -> str:
    """16 hex digits that name what made the il; equal for equal ingredients."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, repr=False)
class TableInfo:
    """What holds for the whole table; fixed when it is made."""

    kind: str  # "il" or "index"
    ingredients: dict[str, Any] = field(default_factory=dict)
    classes: int | None = None
    preprocess: dict[str, Any] | None = None
    keep: dict[str, str] = field(default_factory=dict)  # field of the json -> bool | int | float | str
    roots: dict[str, str] = field(default_factory=dict)  # name -> URL
    model: dict[str, Any] = field(default_factory=dict)  # the IL model's own figures and cost, for the reports
    places: dict[str, str] = field(default_factory=dict)  # "il_model": where it lay, "scheme": of shards; for repairs
    content: str = "image"  # the name of the samples' kind
    class_names: dict[int, str] = field(default_factory=dict)  # label -> name, as the IL model knows them
    version: int = VERSION

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {self.classes:,} classes"
        return f"<info of an {self.kind} table: {self.content}{classes}, fingerprint {self.fingerprint}>"

    @property
    def fingerprint(self) -> str:
        """What made the il, in 16 hex digits."""
        return fingerprint(self.ingredients)

    @property
    def reference(self) -> dict[str, Any]:
        """{"name", "identity", "proved"} of the model that existed and made the il; {} where an IL model was fitted."""
        return dict(self.ingredients.get("reference") or {})

    @property
    def label(self) -> dict[str, Any]:
        """Where labels stand, as `stream.label_from` writes it; {} for a .cls, or `label` in a .json."""
        return dict(self.ingredients.get("label") or {})

    @property
    def bank(self) -> dict[str, Any]:
        """{"sha256": one a network, "batch_size": n of the il} of a table of pairs; {} of any other."""
        return dict(self.ingredients.get("bank") or {})

    @property
    def vectors(self) -> str | None:
        """What the vectors beside the parts are stored as, float16 or int8; None of a table without."""
        return self.ingredients.get("vectors")

    @property
    def target(self) -> str | None:
        """As `Kind.target`: None where the target is the label, a class."""
        return registry.target_of(self.content, self.preprocess)

    @property
    def members(self) -> tuple[tuple[str, ...], ...]:
        """The extensions of each member of a sample."""
        return tuple(self.named_members.values())

    @property
    def named_members(self) -> dict[str, tuple[str, ...]]:
        """That, by the members' names: image, text, caption, or what a kind of a user's own calls them."""
        return registry.named_members(self.content, self.preprocess, self.ingredients)

    def kind_of_samples(self, code: str | None = None, where: str = "the table") -> Kind:
        """What the samples are; of an index of images the fields aren't decided.

        `code`: the user's own kind that may be imported for it; raises as `registry.from_json`.
        """
        return registry.in_table(self.content, self.preprocess, self.ingredients, code, where)

    @property
    def il_dtype(self) -> str:
        """What il is stored as: float32 or float16."""
        return str(self.ingredients.get("il_dtype", "float32"))

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns beside il that a score can be made of: kept fields of numbers, and what pairs have."""
        kept = [name for name, kind in sorted(self.keep.items()) if kind != "str"]
        return (*kept, *(PAIR_COLUMNS if self.bank else ()))

    @property
    def schema(self) -> pa.Schema:
        """The columns of a part as stored, kept fields included."""
        stored = self.read_schema
        return stored.set(stored.get_field_index("il"), pa.field("il", IL_TYPES[self.il_dtype]))

    @property
    def read_schema(self) -> pa.Schema:
        """The columns of a part as it is read: il is float32; kept fields by name, however they were asked for.

        Parts may have their columns in another order, which says nothing: readers go by name.
        """
        own = [column for column in SCHEMA if self.version > 1 or column.name not in _SINCE_2]
        own += [pa.field(name, IL_TYPES[dtype]) for name, dtype in PAIR_COLUMNS.items() if self.bank]
        return pa.schema([*own, *((name, KEEP_TYPES[kind]) for name, kind in sorted(self.keep.items()))])


def reference_doubts(reference: Mapping[str, Any]) -> list[str]:
    """What is doubtful about the il of a reference (`TableInfo.reference`), in sentences; none where there is none."""
    if not reference:
        return []
    name = one_line(str(reference.get("name")), SHOWN)
    says = [
        f"the il are of the reference {name}, and what it learned from is unknown: whether they leak can't be checked. "
        "il of samples that it learned from is too low, and these look worth learning again and again"
    ]
    if reference.get("proved") is not True:
        identity = one_line(str(reference.get("identity")), SHOWN)
        says.append(f"unproved: that the reference {name} is {identity!r} is what --reference-id said")
    return says


def stored_il(il: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.floating[Any]]:
    """il (nats, any shape) as a table of that type stores it: float16 is rounded to nearest, what is finite stays so.

    The relative error of float16 is at most 2^-11 above 6.1e-5 nats, the absolute error at most 3e-8 below. The -0.0
    of a certain prediction is stored as 0.0.
    """
    if dtype == "float32":
        return il.astype(np.float32, copy=False) + np.float32(0)  # -0.0 + 0.0 is 0.0
    clipped = np.where(np.isfinite(il), np.clip(il, -FLOAT16_MAX, FLOAT16_MAX), il)
    return clipped.astype(np.float16) + np.float16(0)


def places_of(shards: Any, il_model: str = "") -> dict[str, str]:
    """Where things lie when a table is made, without secrets: the IL model, and the scheme that shards' names lack."""
    first = str(next(iter(shards), "")) if isinstance(shards, (list, tuple)) else str(shards)
    first = storage.expand(first)[0] if first.startswith("@") else first  # a file of shards may lie elsewhere than they
    places = {"scheme": first.split("://", 1)[0]} if "://" in first and not first.startswith("file:") else {}
    return places | ({"il_model": storage.redact(storage.resolve(il_model))} if il_model else {})


def parse_keep(text: str | None) -> dict[str, str]:
    """`is_noisy:bool,true_label:int` as a dict. Raises UsageError for a type or a name that can't be kept."""
    keep: dict[str, str] = {}
    for entry in filter(None, (text or "").split(",")):
        name, _, kind = entry.strip().partition(":")
        field, kind = _keep_entry(name, kind, entry)
        if keep.setdefault(field, kind) != kind:
            raise UsageError(f"--keep {field} is given as {keep[field]} and as {kind}")
    return keep


def _keep_entry(name: str, kind: object, entry: str) -> tuple[str, str]:
    if kind and name and kind not in KEEP_TYPES and (near := get_close_matches(str(kind), KEEP_TYPES, n=1)):
        raise UnknownNameError(
            f"--keep {entry!r}: unknown type {kind!r}; did you mean {near[0]!r}? (known: {', '.join(KEEP_TYPES)})"
        )
    if not isinstance(kind, str) or kind not in KEEP_TYPES or not name:
        raise UsageError(f"--keep {entry!r}: expected FIELD:TYPE with a type of {', '.join(KEEP_TYPES)}")
    if name in SCHEMA.names or name == "shard":
        raise UsageError(f"--keep {name}: the table has a column of that name already")
    return name, kind


def checked_keep(keep: object) -> dict[str, str]:
    """{field: type} of columns to keep, as a dict or as the command line's text. Raises UsageError for any other."""
    if keep is None or isinstance(keep, str):
        return parse_keep(keep)
    if not isinstance(keep, Mapping) or not all(isinstance(name, str) for name in keep):
        raise UsageError(
            f"keep: expected a dict of fields and types ({', '.join(KEEP_TYPES)}), got {type(keep).__name__}"
        )
    return {field: kind for name, kind in keep.items() for field, kind in [_keep_entry(name, kind, f"{name}:{kind}")]}


def find_info(table: str) -> TableInfo | None:
    """`open_info` of a table that may not be there yet: None without one. Raises TableError."""
    return open_info(table) if storage.exists(storage.join(table, "_table.json")) else None


def open_info(table: str) -> TableInfo:
    """Read `_table.json`. Raises UsageError when there is no table, TableError when it can't be understood."""
    url = storage.join(table, "_table.json")
    if not storage.exists(url):
        raise UsageError(
            f"{storage.redact(table)} is no IL table (no _table.json); make one with `rhostream "
            "compute-il` or, for rules that need no il, `rhostream index`"
        )
    try:
        record = json.loads(storage.read_bytes(url))
        if int(record["version"]) > VERSION:
            raise TableError(
                f"{storage.redact(url)} was written by a newer rhostream (table version "
                f"{record['version']}, this one reads up to {VERSION}); upgrade rhostream"
            )
        info = foreign.checked_table(TableInfo(**record), KEEP_TYPES)
        registry.check(info.content, info.preprocess)
        return info
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def make_or_match(table: str, info: TableInfo) -> TableInfo:
    """Create `_table.json`, or check that the one there is of the same making.

    Returns the info in force. Raises MismatchError naming the field, the old value and the new.
    """
    if info.bank and (taken := sorted(PAIR_COLUMNS.keys() & info.keep.keys())):
        raise UsageError(f"--keep {taken[0]}: a table of pairs has a column of that name already")
    url = storage.join(table, "_table.json")
    shown = {name: storage.redact(root) for name, root in info.roots.items()}
    info = info if shown == info.roots else replace(info, roots=shown)
    data = json.dumps(as_json(asdict(info)), sort_keys=True, indent=1).encode()
    crash_point("table: before _table.json")
    try:
        storage.create(url, data)
        crash_point("table: _table.json made")
        return info
    except AlreadyExistsError:
        there = open_info(table)
    for name in ("kind", "content", "classes", "keep", "roots"):
        old, new = getattr(there, name), getattr(info, name)
        if old != new and not (name == "roots" and not new):
            raise MismatchError(
                f"{storage.redact(table)} has {name} {old!r}, this job has {new!r}; "
                "use the same settings or another --out" + (_MORE_FIELDS if name == "keep" else "")
            )
    require_same_making(there, info.ingredients, storage.redact(table))
    require_same_classes(info.class_names, there.class_names, "this job's IL model", f"table {storage.redact(table)}")
    return there


def require_same_making(there: TableInfo, ingredients: Mapping[str, Any], name: str) -> None:
    """Raise MismatchError unless the table was made of these ingredients; the message names what differs."""
    new = fingerprint(ingredients)
    if there.fingerprint == new:
        return
    fields = [k for k in sorted({*there.ingredients, *ingredients}) if there.ingredients.get(k) != ingredients.get(k)]
    sides = [(k, repr(there.ingredients.get(k)), repr(ingredients.get(k))) for k in fields]
    detail = "; ".join(f"{k}: {old[:DETAIL]} != {new[:DETAIL]}" for k, old, new in sides)  # a list of classes is long
    raise MismatchError(
        f"{name}: fingerprint {there.fingerprint} != {new}: {', '.join(fields)} differ ({detail}); "
        "two irreducible losses never mix: use another --out"
    )
