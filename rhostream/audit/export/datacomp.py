"""A list of uids as DataComp's tools take it: numpy's .npy of pairs of 64-bit integers, sorted, each once.

A uid is 32 hex digits that stand in the json of each sample; the table must have kept that field.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream.audit.export.account import Unread
from rhostream.audit.export.selection import Selection
from rhostream.errors import UsageError
from rhostream.inert import one_line

DTYPE = np.dtype("u8,u8")
_GOOD = "coalesce(regexp_full_match(uid, '[0-9a-fA-F]{32}'), false)"


def uids_of(chosen: Selection) -> str:
    """The SELECT of the samples' uids with what names each sample. Raises UsageError where none was kept."""
    kept = chosen.ledger.kept_fields()
    if "uid" not in kept:
        has = f"it kept {', '.join(sorted(kept))}" if kept else "it kept no field"
        raise UsageError(
            f"the IL table has no field uid ({has}), and DataComp's lists are made of these: `rhostream compute-il "
            "--from TABLE --keep uid:str --out NEW` reads them, beside the other fields of --keep"
        )
    named = chosen.samples(least=True)
    return f"SELECT named.shard, named.ordinal, il.uid FROM ({named}) AS named LEFT JOIN il USING (shard, ordinal)"


def count_bad(chosen: Selection, uids: str, unread: Unread) -> None:
    """Count samples whose uid is missing or no uid."""
    asked = f"SELECT count(*) AS n, first(shard) AS shard, first(ordinal) AS ordinal, first(uid) AS uid FROM ({uids}) "
    row = chosen.ledger.sql(asked + f"WHERE NOT {_GOOD}").to_pylist()[0]
    if row["n"]:
        uid = "no uid" if row["uid"] is None else f"the uid {one_line(str(row['uid']))!r}"
        unread.add(f"shard {row['shard']}, ordinal {row['ordinal']}: {uid}, expected 32 hex digits", row["n"])


def good(uids: str) -> str:
    """The SELECT of the uids alone, in the order of the numbers."""
    return f"SELECT DISTINCT lower(uid) AS uid FROM ({uids}) WHERE {_GOOD} ORDER BY uid"


def write_uids(batches: pa.RecordBatchReader, file: BinaryIO) -> int:
    """Write them; returns how many. The header, whose length doesn't depend on that number, is written again."""
    header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(DTYPE), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
    rows = 0
    for batch in batches:
        file.write(as_pairs(batch["uid"].to_pylist()).tobytes())
        rows += len(batch)
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows,)})
    return rows


def as_pairs(uids: list[str]) -> npt.NDArray[np.void]:
    """(n,) of DTYPE of n uids in hex."""
    words = np.frombuffer(bytes.fromhex("".join(uids)), ">u8").reshape(-1, 2)
    pairs = np.empty(len(uids), DTYPE)
    pairs["f0"], pairs["f1"] = words[:, 0], words[:, 1]
    return pairs
