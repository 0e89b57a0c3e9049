"""Tables read whole; and as accidents leave them, made from good ones by the product's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from rhostream.tables import il as il_table
from rhostream.tables import parquet


def parts(table: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(table.rglob("*.parquet"))}


def rows(place: Path) -> list[dict[str, Any]]:
    """Of a part, or of all parts of a table."""
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    return [row for path in files for row in parquet.read(str(path))[0].to_pylist()]


def without_il(table: Path, out: Path, shards: set[int]) -> Path:
    """A copy of a table in which every il of some of its parts is null, as a computation that failed leaves them."""
    (out / "parts").mkdir(parents=True)
    (out / "_table.json").write_bytes((table / "_table.json").read_bytes())
    for at, part in enumerate(sorted((table / "parts").rglob("*.parquet"))):
        rows, record = parquet.read(str(part))
        if at in shards:
            column = rows.schema.get_field_index("il")
            rows = rows.set_column(column, rows.schema.field(column), pa.nulls(len(rows), pa.float32()))
            record = {**record, "il_rows": 0}
        (new := out / part.relative_to(table)).parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(il_table.encode_part(rows, il_table.PartFacts(**record)))
    return out
