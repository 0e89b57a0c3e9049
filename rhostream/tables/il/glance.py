"""The il of a part alone: a quarter of the work that all of its columns are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhostream.errors import TableError
from rhostream.storage import redact
from rhostream.tables import parquet
from rhostream.tables.il.info import IL_TYPES
from rhostream.tables.il.part import facts_of

COLUMNS = ("il", "in_holdout")


def read_il(url: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """il in nats, NaN where null, and whether a row is in the holdout; (samples,) each, as they stand.

    Every byte of the part is proved, as `read_part` does it. Raises NotFoundError, TableError.
    """
    table, record = parquet.read(url, COLUMNS)
    facts, types = facts_of(record, url), [field.type for field in table.schema]
    if table.num_rows != facts.samples or types[0] not in IL_TYPES.values() or types[1] != pa.bool_():
        raise TableError(f"{redact(url)} has other rows or columns than a part has: it is damaged or forged")
    il, in_holdout = (column.combine_chunks() for column in table.columns)
    return (
        il.cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False),
        in_holdout.fill_null(False).to_numpy(zero_copy_only=False),
    )
