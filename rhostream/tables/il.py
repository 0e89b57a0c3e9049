"""The IL table: `_table.json` and one Parquet part per shard, keyed by (shard, ordinal); also each shard's index.

    key string | ordinal int32 | members list<(ext, offset, size)> | label int32 | il float32 (nats) | predicted int32
    fold int8 | in_holdout bool | status string | error string | il_tokens list<float16> | + the kept fields of the json

One row per sample seen, in the order of the shard. A sample that can't be used is a row whose `status` says why and
whose `il` is null: never a missing row, never il = 0. `rhostream index` writes the same table with every il null.
On request il is stored as float16, which is one of the table's ingredients; whoever reads gets float32.
`il_tokens` is null but where the IL model is a language model: then `il` is the mean of these (decision 013).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhostream import foreign, storage
from rhostream.crashpoints import crash_point
from rhostream.errors import (
    AlreadyExistsError,
    MismatchError,
    MissingPartError,
    NotFoundError,
    StaleShardError,
    TableError,
    UnknownNameError,
    UsageError,
)
from rhostream.inert import one_line
from rhostream.storage import Identity
from rhostream.tables import parquet
from rhostream.tables.classes import ClassNames, as_json, require_same_classes
from rhostream.tables.names import SUFFIX, by_name, file_of, name_of, plain, raw, unshortened
from rhostream.tables.names import checked_roots as checked_roots
from rhostream.tables.names import parse_roots as parse_roots
from rhostream.tables.places import moved_hint, todays_roots, url_below
from rhostream.tables.strings import Strings, StringsBuilder

VERSION = 2
OK = "ok"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CONTENTS = {"image": IMAGE_EXTENSIONS, "text": ("txt",), "tokens": ("npy",)}  # what samples are -> member that holds it
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
LOOKED_FOR = 5  # shards without a part that are looked for before it is said that they have none
SLICE, LOCAL_THREADS, REMOTE_THREADS = 128, 4, 16  # footers read at a time when a table is opened
RESCORE = "re-score what changed: `rhostream verify TABLE --repair --shards URL...`"
IL_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
DETAIL = 400  # characters of a value in a message
FLOAT16_MAX = 65504.0  # nats; what is beyond is stored as this, never as infinity
_MORE_FIELDS = "; for more kept fields without scoring again: --from TABLE --keep FIELD:TYPE,... and a new --out"
KEEP_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}
_ENCODINGS = {
    "key": "DELTA_BYTE_ARRAY",
    "ordinal": "DELTA_BINARY_PACKED",
    "members.list.element.offset": "DELTA_BINARY_PACKED",
    "members.list.element.size": "DELTA_BINARY_PACKED",
    "il": "BYTE_STREAM_SPLIT",
}
_DICTIONARY = ["members.list.element.ext", "label", "predicted", "status", "error"]


def fingerprint(ingredients: Mapping[str, Any]) -> str:
    """16 hex digits that name what made the il; equal for equal ingredients."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- _table.json -----------------------------------------------------------------------------------------------------


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
    content: str = "image"  # what the samples are, of CONTENTS
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
    def label(self) -> dict[str, Any]:
        """Where labels stand, as `stream.label_from` writes it; {} for a .cls, or `label` in a .json."""
        return dict(self.ingredients.get("label") or {})

    @property
    def image_member(self) -> str:
        """Which image of a sample is meant: extensions, the first that is there; "" for the one that lies first."""
        return str((self.preprocess or {}).get("member") or self.ingredients.get("image_member") or "")

    @property
    def resize(self) -> str:
        """How images become squares: crop, squash or pad."""
        return str((self.preprocess or {}).get("resize") or self.ingredients.get("resize") or "crop")

    @property
    def il_dtype(self) -> str:
        """What il is stored as: float32 or float16."""
        return str(self.ingredients.get("il_dtype", "float32"))

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
        return pa.schema([*own, *((name, KEEP_TYPES[kind]) for name, kind in sorted(self.keep.items()))])


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
        return foreign.checked_table(TableInfo(**record), KEEP_TYPES)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc


def make_or_match(table: str, info: TableInfo) -> TableInfo:
    """Create `_table.json`, or check that the one there is of the same making.

    Returns the info in force. Raises MismatchError naming the field, the old value and the new.
    """
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


# -- names -----------------------------------------------------------------------------------------------------------


def shard_name(url: str, roots: Mapping[str, str]) -> str:
    """`<root>/<path below it>`: what identifies a shard in tables and logs, wherever the data lies today.

    Without a matching root: the bucket and path of a remote shard, the absolute path of a local one.
    """
    name = plain(url)  # a name goes into tables and logs, so no user and no query may be in it
    for root, place in sorted(roots.items(), key=lambda item: (-len(item[1]), item[0])):
        folder = plain(storage.resolve(place)).rstrip("/")
        if name.startswith(folder + "/"):
            return root + name[len(folder) :]
    return name if storage.is_local(name) else name.split("://", 1)[1]


def named_shards(urls: Iterable[str], roots: Mapping[str, str]) -> dict[str, str]:
    """{name: URL} of resolved shards, in their order. Raises UsageError when two have the same name."""
    shards = list(urls)
    return by_name(shards, (shard_name(url, roots) for url in shards))


def roots_today(table: str, info: TableInfo, roots: Mapping[str, str] | None) -> dict[str, str]:
    """The roots by which shards of today get the names that they have in the table; see `todays_roots`."""
    return todays_roots(info.roots, roots or {}, lambda: _names_in(table))


def _names_in(table: str) -> Iterator[str]:
    return (shard_of_part(table, part) for part in part_urls(table))


def part_url(table: str, shard: str) -> str:
    """Where the part of a shard lies; the path mirrors the shard's name."""
    file, whole = file_of(shard), unshortened(shard)
    if file != whole and not storage.is_local(table) and _is_there(storage.join(table, "parts", whole)):
        return storage.join(table, "parts", whole)  # stores took longer names before they were shortened
    return storage.join(table, "parts", file)


@lru_cache(maxsize=100_000)
def _is_there(url: str) -> bool:
    return storage.exists(url)


def part_urls(table: str) -> list[str]:
    """Every part there is, each under the name that `part_url` would give it."""
    parts = storage.join(table, "parts")
    found = storage.list_files(parts, ".parquet")
    if storage.is_local(table):
        return found
    # A store lists an object as its client writes it, which may differ in slashes from how the table was named.
    below = parts.split("://", 1)[1].strip("/") + "/"
    return [storage.join(parts, url.split("://", 1)[1].lstrip("/").removeprefix(below)) for url in found]


def shard_of_part(table: str, part: str) -> str:
    """The name of the shard whose part would lie at `part`: the way back of `part_url`.

    Where the file's name was shortened the part itself says it; one that can't be read goes by its file's name.
    """
    file = part[len(storage.join(table, "parts")) + 1 :]
    if (name := name_of(file)) is not None:
        return name
    try:
        return read_part_facts(part).shard
    except (TableError, NotFoundError):
        return file.removesuffix(SUFFIX)


def shard_url(name: str, info: TableInfo, roots: Mapping[str, str] | None = None) -> str:
    """Where a shard of that name lies: below its root as of today, else as `roots` of the table say, else as named."""
    if below := url_below(name, roots or {}, folders=True) or url_below(name, info.roots):
        return raw(below)
    scheme = info.places.get("scheme")
    return raw(name) if name.startswith("/") or not scheme else f"{scheme}://{name}"


# -- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PartFacts:
    """The footer of a part: what it is a part of, which bytes it describes, and its laws."""

    fingerprint: str
    kind: str
    shard: str
    shard_size: int
    shard_tag: str
    samples: int
    statuses: dict[str, int]
    members_seen: int
    members_used: int
    members_ignored: int
    bad_fields: dict[str, int] = field(default_factory=dict)  # kept fields that didn't fit their type, as null
    shard_sha256: str = ""  # tells a copy of the shard from another shard of the same size; "" for ranged reads
    il_rows: int = 0
    in_holdout: int = 0
    compression: str = ""  # "gzip": offsets are those of the inflated shard, which can't be read by offset
    content: str = "image"  # what the samples are, of CONTENTS
    class_names: dict[int, str] = field(default_factory=dict)  # of labels of this shard, beyond those of the table's
    apart: int = 0  # samples whose members don't lie next to each other, of which no one is usable
    version: int = VERSION

    def __repr__(self) -> str:
        return (
            f"<facts of a part of {one_line(self.shard)}: {self.samples:,} samples, {self.quarantined:,} quarantined>"
        )

    @property
    def quarantined(self) -> int:
        return self.samples - self.statuses.get(OK, 0)

    @property
    def shard_identity(self) -> Identity:
        return Identity(self.shard_size, self.shard_tag)


def encode_part(table: pa.Table, facts: PartFacts) -> bytes:
    """The bytes of a part, its laws checked first. Raises TableError when they don't hold (a bug, not bad data)."""
    broken = broken_laws(table, facts)
    if not np.array_equal(table["ordinal"], np.arange(table.num_rows)):
        broken.append("ordinals are 0..n-1")
    if broken:
        raise TableError(f"part of shard {facts.shard} breaks its laws: {'; '.join(broken)}; nothing was committed")
    return parquet.encode(table, as_json(asdict(facts)), _ENCODINGS, _DICTIONARY)


def broken_laws(table: pa.Table, facts: PartFacts) -> list[str]:
    """The laws that the rows of a part and its footer break, in words; the rows' order is no law here."""
    statuses = {v["values"]: v["counts"] for v in pc.value_counts(table["status"]).to_pylist()}
    used = int(pc.sum(pc.list_value_length(table["members"])).as_py() or 0)
    has_il = pc.is_valid(table["il"])
    laws = {
        "samples seen = ok + quarantined": facts.samples == table.num_rows == sum(facts.statuses.values()),
        "statuses counted": statuses == {k: v for k, v in facts.statuses.items() if v},
        "members seen = used + ignored": facts.members_seen == used + facts.members_ignored,
        "members used counted": facts.members_used == used,
        "each ordinal once": np.array_equal(np.sort(table["ordinal"]), np.arange(table.num_rows)),
        "il counted": (pc.sum(has_il).as_py() or 0) == facts.il_rows,
        "float16 il is finite": table["il"].type != pa.float16() or not np.isinf(_il(table["il"])).any(),
        "il is the mean of il_tokens": _is_mean(table),
        "il only where ok": not pc.any(pc.and_(has_il, pc.not_equal(table["status"], OK))).as_py(),
    }
    return [law for law, holds in laws.items() if not holds]


def _is_mean(table: pa.Table) -> bool:
    """Whether the il of rows with losses of tokens is the mean of these, as far as float16 can tell."""
    if "il_tokens" not in table.schema.names or table["il_tokens"].null_count == len(table):
        return True
    tokens = _flat(table["il_tokens"])
    lengths = pc.list_value_length(tokens).fill_null(0).to_numpy(zero_copy_only=False)
    values = tokens.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    il = _flat(table["il"]).fill_null(np.nan).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(row, values, len(lengths)) / lengths
    # Of a token beyond 65,504 nats a float16 knows no more than that.
    told = (lengths > 0) & (np.bincount(row, values >= np.finfo(np.float16).max, len(lengths)) == 0)
    return bool(np.isclose(il[told], mean[told], rtol=2e-3, atol=1e-4).all() and np.isfinite(il[lengths > 0]).all())


def read_part_facts(url: str) -> PartFacts:
    """The footer alone. Raises NotFoundError, TableError."""
    return _part_facts(parquet.read_facts(url), url)


def footer_beginning(info: TableInfo) -> bytes:
    """How the footers of parts with the table's columns begin; for `read_part_footer`."""
    return parquet.footer_beginning(info.schema, _ENCODINGS, _DICTIONARY)


def read_part_footer(url: str, beginning: bytes = b"") -> tuple[PartFacts, list[str] | None]:
    """The footer and the names of the part's columns, None where they are those of `beginning`.

    Raises NotFoundError, TableError.
    """
    record, names = parquet.read_footer(url, beginning)
    return _part_facts(record, url), names


def _part_facts(record: dict[str, Any], url: str) -> PartFacts:
    try:
        if int(record.get("version", 0)) > VERSION:
            raise TableError(
                f"{storage.redact(url)} was written by a newer rhostream (part version "
                f"{record['version']}, this one reads up to {VERSION}); upgrade rhostream"
            )
        return foreign.checked_facts(PartFacts(**record))
    except (TypeError, ValueError, AttributeError) as exc:
        raise TableError(f"{storage.redact(url)}: the footer can't be understood: {exc}") from exc


def facts_of(record: dict[str, Any], url: str) -> PartFacts:
    """The facts of a footer that is at hand. Raises TableError: a newer version, or one that can't be understood."""
    return _part_facts(record, url)


@dataclass(frozen=True, repr=False)
class Part:
    """One part in memory, as the join needs it: arrays of (samples,), indexed by ordinal and not to be written to.

    A stream holds one for each of its lanes, so integers stand in the narrowest signed type that holds them all, and
    flags that are all equal take no memory.
    """

    facts: PartFacts
    usable: npt.NDArray[np.bool_]  # status ok and an image (a text) to read
    label: npt.NDArray[np.signedinteger[Any]]  # -1 where null
    il: npt.NDArray[np.float32]  # nats; NaN where null
    in_holdout: npt.NDArray[np.bool_]
    offset: npt.NDArray[np.signedinteger[Any]]  # of the image (text) member, bytes
    size: npt.NDArray[np.signedinteger[Any]]
    key: pa.StringArray
    fold: npt.NDArray[np.int8] | None = None  # -1 where null; only where it was asked for
    il_tokens: pa.ListArray | None = None  # of float16 nats; None unless asked for

    def __repr__(self) -> str:
        return (
            f"<part of {one_line(self.facts.shard)}: {len(self.usable):,} samples, {int(self.usable.sum()):,} usable>"
        )


def read_part(url: str, *, with_fold: bool = False, tokens: bool = False) -> Part:
    """Load a part, checksums verified; rows stored in another order are put in theirs by ordinal.

    With `tokens` also the il of each token.
    """
    asked = [*(["fold"] if with_fold else []), *(["il_tokens"] if tokens else [])]
    columns = ["key", "ordinal", "members", "label", "il", "in_holdout", "status", *asked]
    table, record = parquet.read(url, columns)
    facts = _part_facts(record, url)
    table = table.combine_chunks()
    ordinal = table["ordinal"].to_numpy()
    if table.schema.names != columns or not all(
        f.type == SCHEMA.field(f.name).type or (f.name == "il" and f.type in IL_TYPES.values()) for f in table.schema
    ):
        raise TableError(f"{storage.redact(url)} has other columns than a part has: it is damaged or forged")
    if table.num_rows != facts.samples:
        raise TableError(f"{storage.redact(url)} has {table.num_rows} rows, its footer says {facts.samples}")
    if not np.array_equal(ordinal, np.arange(len(ordinal))):
        if not np.array_equal(np.sort(ordinal), np.arange(len(ordinal))):
            raise TableError(f"{storage.redact(url)}: ordinals are not 0..{len(ordinal) - 1}, each once")
        table = table.take(np.argsort(ordinal)).combine_chunks()
    offset, size = _content_members(_flat(table["members"]), CONTENTS[facts.content])
    outside = (offset < 0) | (size < 0) | (size > facts.shard_size - offset)
    if outside.any() and not facts.compression:
        raise TableError(
            f"{storage.redact(url)} names bytes outside its shard of {facts.shard_size:,} bytes: it is "
            "damaged or forged"
        )
    ok = pc.equal(_flat(table["status"]), OK).to_numpy(zero_copy_only=False)
    return Part(
        facts=facts,
        usable=_flags(ok & (size > 0)),
        label=_narrow(_flat(table["label"]).fill_null(-1).to_numpy(zero_copy_only=False)),
        il=_il(table["il"]),
        in_holdout=_flags(_flat(table["in_holdout"]).fill_null(False).to_numpy(zero_copy_only=False)),
        offset=_narrow(offset),
        size=_narrow(size),
        key=_apart(_flat(table["key"])),
        fold=_flat(table["fold"]).fill_null(-1).to_numpy(zero_copy_only=False).copy() if with_fold else None,
        il_tokens=_flat(table["il_tokens"]) if tokens else None,
    )


def _flat(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _il(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """As float32, NaN where null."""
    return _flat(column).cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False).astype(np.float32)  # type: ignore[no-any-return]


def _narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy in the narrowest signed type that holds every value."""
    bounds = (values.min(), values.max()) if len(values) else (0, 0)
    kinds = (np.int8, np.int16, np.int32, np.int64)
    return values.astype(next(k for k in kinds if np.iinfo(k).min <= bounds[0] and bounds[1] <= np.iinfo(k).max))


def _apart(strings: pa.StringArray) -> pa.StringArray:
    """A copy outside Arrow's memory pool, where what stays would hold pages of what was only read."""
    _, ends, data = strings.buffers()
    if strings.offset or strings.null_count or data is None:
        return strings
    return pa.StringArray.from_buffers(len(strings), *(pa.py_buffer(b.to_pybytes()) for b in (ends, data)))


def _flags(values: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A copy that takes one byte when all are equal."""
    equal = len(values) > 0 and bool((values == values[0]).all())
    return np.broadcast_to(values[0].copy(), values.shape) if equal else values.copy()


def _content_members(members: Any, extensions: tuple[str, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offset and size of each row's first member of these extensions; size 0 where there is none."""
    rows = len(members)
    offset, size = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    lengths = pc.list_value_length(members).fill_null(0).to_numpy(zero_copy_only=False)
    flat = members.flatten()
    is_image = pc.is_in(flat.field("ext"), pa.array(extensions)).to_numpy(zero_copy_only=False)
    image = np.flatnonzero(is_image)[::-1]  # the first one wins: it is written last
    row = np.repeat(np.arange(rows), lengths)[image]
    offset[row] = flat.field("offset").to_numpy(zero_copy_only=False)[image]
    size[row] = flat.field("size").to_numpy(zero_copy_only=False)[image]
    return offset, size


# -- the table as a whole --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """A table opened for a list of shards: their names and counts, not the rows.

    A few bytes a shard, in arrays: it goes to every loader worker, and a table may have a million parts.
    """

    url: str
    info: TableInfo
    shards: Strings  # URLs as of today
    names: Strings
    counts: npt.NDArray[np.int64]  # samples seen in each shard, (shards,)
    missing: Strings = field(default_factory=Strings)  # names of shards without a part; not among `names`
    il_rows: int = 0  # samples with an il, over all parts
    class_names: dict[int, str] = field(default_factory=dict)  # label -> name, as far as the shards say it

    def __repr__(self) -> str:
        what = f"{len(self.names):,} shards, {int(self.counts.sum()):,} samples"
        return f"<{self.info.kind} table {one_line(storage.redact(self.url))}: {what}>"

    @property
    def facts(self) -> Iterator[PartFacts]:
        """Every part's footer, read again one by one: a stream has no use for them all at once."""
        return (read_part_facts(part_url(self.url, name)) for name in self.names)


def open_table(
    url: str, shards: Iterable[str], roots: Mapping[str, str] | None = None, *, allow_missing: bool = False
) -> Table:
    """Open the table for these shards (resolved URLs), reading every part's footer.

    Raises MissingPartError listing the first five shards without a part (unless `allow_missing`) and those of them that
    don't exist (in any case), MismatchError for a part of another making or a shard that changed after it was indexed,
    TableError for a damaged part.
    """
    url = storage.resolve(url)
    info = open_info(url)
    opened = _Opened(url, info)
    todays, remaining = roots_today(url, info, roots), iter(shards)
    # Slice by slice: a future, a footer and two strings for each of a million shards would never be given back.
    with ThreadPoolExecutor(LOCAL_THREADS if storage.is_local(url) else REMOTE_THREADS) as pool:
        while wanted := list(islice(remaining, SLICE)):
            named = [shard_name(shard, todays) for shard in wanted]
            found = pool.map(_facts_or_none, [part_url(url, name) for name in named])
            opened.add(wanted, named, list(found))
    return opened.table(allow_missing)


class _Opened:
    """A table while it is opened, slice by slice."""

    def __init__(self, url: str, info: TableInfo) -> None:
        self._url, self._info, self._il_rows = url, info, 0
        self._shards, self._names, self._missing = StringsBuilder(), StringsBuilder(), StringsBuilder()
        self._counts = array("q")
        self._lost = list[str]()  # the URLs of the first shards without a part
        self._compressed: str | None = None  # the first shard that can't be read by offset
        self._stranger: tuple[str, str] | None = None  # the first part of another making, and its fingerprint
        self._classes = ClassNames(dict(info.class_names))

    def add(self, shards: list[str], names: list[str], found: list[PartFacts | None]) -> None:
        """The footers of some shards, None where there is no part."""
        for shard, name, facts in zip(shards, names, found, strict=True):
            if facts is None:
                self._missing.extend([name])
                self._lost += [shard] if len(self._lost) < LOOKED_FOR else []
                continue
            require_part_of(name, facts)
            if self._stranger is None and facts.fingerprint != self._info.fingerprint:
                self._stranger = name, facts.fingerprint
            self._compressed = self._compressed or (name if facts.compression else None)
            self._shards.extend([shard])
            self._names.extend([name])
            self._counts.append(facts.samples)
            self._il_rows += facts.il_rows
            self._classes.add(facts.class_names.items(), name)

    def table(self, allow_missing: bool) -> Table:
        """What was opened. Raises MissingPartError, MismatchError."""
        missing, counts = self._missing.build(), np.array(self._counts, np.int64)
        if missing:
            _require_there(self._lost, len(missing))
        if missing and not allow_missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise MissingPartError(
                f"{storage.redact(self._url)} has no part for {len(missing)} of "
                f"{len(counts) + len(missing)} shards: {listed}; "
                f"{moved_hint(self._lost[:1], _names_in(self._url))}run `rhostream compute-il` (or "
                "`index`) on them, or pass --missing-il skip"
            )
        if self._stranger is not None:
            raise MismatchError(
                f"the part of {self._stranger[0]} has fingerprint {self._stranger[1]}, its table has "
                f"{self._info.fingerprint}: `rhostream verify --repair` makes it again"
            )
        if self._compressed is not None:
            raise MismatchError(
                f"shard {self._compressed} is gzip-compressed: its table can be asked, but a stream "
                "reads by offset and needs plain tars: decompress the shards (gunzip) and make a "
                "table of those"
            )
        shards, names = self._shards.build(), self._names.build()
        if int(pc.count_distinct(pa.array(names)).as_py()) < len(names):
            by_name(shards, names)  # which says so
        # Without roots a local shard's name is its path: kept once.
        urls = names if shards == names else shards
        return Table(self._url, self._info, urls, names, counts, missing, self._il_rows, self._classes.names)


def _require_there(shards: Sequence[str], missing: int) -> None:
    """Raise MissingPartError for shards that lack a part because they don't exist: no table would help these."""
    if absent := [shard for shard in shards if not storage.exists(shard)]:
        others = f" ({missing} shards have no part, and {len(shards)} of these were looked for)" if missing > 1 else ""
        raise MissingPartError(
            f"no such shard: {', '.join(map(storage.redact, absent))}{others}; correct the list, or bring the data back"
        )


def _facts_or_none(url: str) -> PartFacts | None:
    try:
        return read_part_facts(url)
    except NotFoundError:
        return None


def require_part_of(name: str, facts: PartFacts) -> None:
    """Raise MismatchError when a part is that of another shard, whose name its file system takes for the same."""
    if facts.shard != name:
        raise MismatchError(
            f"the part of shard {name} is that of {facts.shard}: a file system that doesn't tell case "
            "apart takes the two for one; name their folders with --root NAME=URL, or keep the table "
            "elsewhere"
        )


def require_unchanged(shard: str, name: str, facts: PartFacts) -> None:
    """Raise StaleShardError when the shard's size isn't the one that was indexed."""
    _require_size(storage.identity(shard), name, facts)


def require_same_shard(shard: str, name: str, facts: PartFacts) -> bool | None:
    """Whether a shard is a copy of the one that was indexed: a new time or ETag, and the same bytes.

    Time, ETag and size tell that a look is due; only then it is read, and its sha256 decides. None where none was
    recorded, or the shard is too large for the spool: nobody can tell. Raises StaleShardError for another shard.
    """
    today = storage.identity(shard)
    _require_size(today, name, facts)
    if today == facts.shard_identity:
        return False
    with storage.open_reader(shard) as reader:
        return same_bytes(reader, name, facts)


def same_bytes(reader: storage.Reader, name: str, facts: PartFacts) -> bool | None:
    """True for the bytes that were indexed, None where nobody can tell. Raises StaleShardError for other ones."""
    digest = storage.sha256_of(reader) if facts.shard_sha256 else ""
    if not digest:
        return None
    if digest != facts.shard_sha256:
        raise StaleShardError(
            f"shard {name} changed after it was indexed (sha256 {facts.shard_sha256[:12]} != {digest[:12]}): {RESCORE}"
        )
    return True


def _require_size(today: Identity, name: str, facts: PartFacts) -> None:
    if today.size != facts.shard_size:
        raise StaleShardError(
            f"shard {name} has {today.size:,} bytes, it had {facts.shard_size:,} when it was "
            f"indexed; its offsets are worthless: {RESCORE}"
        )
