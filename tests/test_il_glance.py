"""The il of a part alone is what the whole part says, and a damaged or foreign part is refused as by `read_part`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhostream.errors import TableError
from rhostream.irreducible import index
from rhostream.tables import il, parquet
from tests.support.shards import write_shard


@pytest.fixture
def part(tmp_path: Path) -> Path:
    shard = write_shard(tmp_path / "a.tar", [{"__key__": f"{n:03d}", "jpg": b"x" * 9, "cls": b"1"} for n in range(40)])
    index([str(shard)], str(tmp_path / "table"))
    (found,) = (tmp_path / "table").glob("**/a.tar*.parquet")
    return found


def scored(part: Path, kind: pa.DataType) -> None:
    """Give an index's part an il, null in every third row, and a holdout."""
    table, record = parquet.read(str(part))
    values = pa.array([None if n % 3 == 0 else n / 7 for n in range(len(table))], pa.float32()).cast(kind)
    for name, column in (("il", values), ("in_holdout", pa.array([n % 4 == 0 for n in range(len(table))]))):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, pa.field(name, column.type), column)
    part.write_bytes(parquet.encode(table, record, {}, ()))


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
def test_it_is_what_the_whole_part_says(part: Path, kind: pa.DataType) -> None:
    scored(part, kind)
    whole, (values, in_holdout) = il.read_part(str(part)), il.read_il(str(part))
    np.testing.assert_array_equal(values, whole.il)
    np.testing.assert_array_equal(in_holdout, whole.in_holdout)
    assert values.dtype == np.float32 and 0 < np.isnan(values).sum() < len(values) and in_holdout.sum() > 0


def test_every_byte_is_proved(part: Path) -> None:
    data = part.read_bytes()
    for at in range(40, len(data), len(data) // 7):
        part.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(TableError):
            il.read_il(str(part))


def test_columns_of_another_type_are_refused(part: Path) -> None:
    scored(part, pa.float64())
    with pytest.raises(TableError, match="other rows or columns"):
        il.read_il(str(part))
    pq.write_table(pa.table({"il": [1.0]}), part)
    with pytest.raises(TableError):
        il.read_il(str(part))
