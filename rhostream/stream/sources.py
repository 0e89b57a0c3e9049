"""Named sources: which root, or which value of a kept field, each planned sample is of, as small numbers with a table.

The names are known before the first buffer, in the order of the shards: those of a field are read from the parts (each
once), no further than to the name that is one too many. So a sample's source depends neither on workers nor on ranks,
nor on where a run goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.inert import one_line
from rhostream.tables import il, parquet

ROOT = "root"
UNKNOWN, OTHER = "unknown", "other"  # no value; one beyond the first `MOST`
MOST = 1000  # names; what comes after them is `OTHER`
LONGEST = 200  # characters of a name that count
TYPES = ("str", "int", "bool")
Codes = npt.NDArray[np.int16]


@dataclass(frozen=True, repr=False)
class Sources:
    """The sources of a table's samples, numbered: `names[code]`."""

    of: str  # "root" or a kept field
    names: tuple[str, ...]
    by_shard: Codes | None = None  # (shards,) of roots

    def __repr__(self) -> str:
        return f"<sources by {one_line(self.of)}: {len(self.names):,}>"

    @property
    def field(self) -> str | None:
        """The column of a part that says it, None where the shard's name does."""
        return self.of if self.by_shard is None else None

    def codes(self, column: Any) -> Codes:
        """(samples,) of the column of a part."""
        coded, code = column.dictionary_encode(), {name: at for at, name in enumerate(self.names)}
        rest = code.get(OTHER, code[UNKNOWN])
        of_value = [code.get(_name(value), rest) for value in coded.dictionary.to_pylist()]
        lookup = np.array([*of_value, code[UNKNOWN]], np.int16)  # null is the last
        codes: Codes = lookup[coded.indices.fill_null(len(of_value)).to_numpy(zero_copy_only=False)]
        return codes


def read_sources(of: str, table: il.Table, roots: Mapping[str, str]) -> Sources:
    """The sources of the samples of these shards: of their `roots`, for "root", else of a kept field of the table.

    Raises UsageError where no root has a name, for a field that the table doesn't keep, and for one of numbers with a
    fraction. Warns once of a field with more than a thousand values.
    """
    if of == ROOT:
        return _of_roots(table, roots)
    kept = table.info.keep
    if kept.get(of) not in TYPES:
        fitting = ", ".join(f"{one_line(name)} ({kind})" for name, kind in sorted(kept.items()) if kind in TYPES)
        raise UsageError(
            f"--sources {one_line(of)}: {storage.redact(table.url)} keeps no such field of text or whole numbers; "
            f"there are {fitting or 'none'} (compute-il or index, --keep FIELD:str), and root, the names of the roots"
        )
    with ThreadPoolExecutor(il.LOCAL_THREADS if storage.is_local(table.url) else il.REMOTE_THREADS) as pool:
        names = list(islice(_names_of(of, table, pool), MOST + 1))
    if len(names) > MOST:
        warnings.warn(
            f"--sources {one_line(of)} has more than {MOST:,} values: the others together are called {OTHER!r}",
            stacklevel=3,
        )
        names[MOST:] = [OTHER]
    return Sources(of, tuple(dict.fromkeys([*names, UNKNOWN])))


def _of_roots(table: il.Table, roots: Mapping[str, str]) -> Sources:
    longest = sorted(roots, key=len, reverse=True)
    root = [next((root for root in longest if name.startswith(root + "/")), UNKNOWN) for name in table.names]
    if {*root} == {UNKNOWN}:
        raise UsageError(
            f"--sources root: no shard of {storage.redact(table.url)} lies below a root that has a name; make the "
            "table with --root NAME=URL, or name a kept field"
        )
    names = tuple(dict.fromkeys(root))
    code = {name: at for at, name in enumerate(names)}
    return Sources(ROOT, names, np.array([code[name] for name in root], np.int16))


def _names_of(field: str, table: il.Table, pool: ThreadPoolExecutor) -> Iterator[str]:
    """Each name once, in the order of the shards and, in one, of the samples; parts are read a few ahead."""
    urls, seen = iter([il.part_url(table.url, name) for name in table.names]), set[str]()
    while batch := list(islice(urls, 64)):
        for values in pool.map(lambda url: _values(url, field), batch):
            for name in values:
                if name not in seen:
                    seen.add(name)
                    yield name


def _values(url: str, field: str) -> list[str]:
    """The first names of a part, each once, as many as there may be and one."""
    column, names = parquet.read(url, [field])[0][field], dict[str, None]()
    for value in pc.unique(column).drop_null().to_pylist():
        names[_name(value)] = None
        if len(names) > MOST + 1:
            break
    names.pop(UNKNOWN, None)
    return list(names)


def _name(value: Any) -> str:
    """What a value of a field is called."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text[:LONGEST] or UNKNOWN
