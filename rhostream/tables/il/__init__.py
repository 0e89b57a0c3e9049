"""The IL table: `_table.json` and one Parquet part per shard, keyed by (shard, ordinal); also each shard's index.

    key string | ordinal int32 | members list<(ext, offset, size)> | label int32 | il float32 (nats) | predicted int32
    fold int8 | in_holdout bool | status string | error string | il_tokens list<float16> | + the kept fields of the json

One row per sample seen, in the order of the shard. A sample that can't be used is a row whose `status` says why and
whose `il` is null: never a missing row, never il = 0. `rhostream index` writes the same table with every il null.
On request il is stored as float16, which is one of the table's ingredients; whoever reads gets float32.
Of pairs il_own, il_image, il_text float32 (nats) and similarity float16 stand beside: what il is made of against the
bank of the reference (selection/contrastive.py), and its cosine of image and caption.
`il_tokens` is null but where the IL model is a language model: then `il` is the mean of these (decision 013).
"""

from __future__ import annotations

from rhostream.tables.il.catalogue import (
    LEAST,
    LOCAL_THREADS,
    REMOTE_THREADS,
    Catalogue,
    catalogues,
    facts_of_parts,
    file_below,
    find_catalogue,
    listed_parts,
    open_catalogue,
    write_catalogue,
)
from rhostream.tables.il.glance import read_il
from rhostream.tables.il.info import (
    IL_TYPES,
    KEEP_TYPES,
    MEMBER,
    OK,
    PAIR_COLUMNS,
    SCHEMA,
    VERSION,
    TableInfo,
    checked_keep,
    find_info,
    fingerprint,
    make_or_match,
    open_info,
    places_of,
    reference_doubts,
    require_same_making,
    stored_il,
)
from rhostream.tables.il.names import (
    named_shards,
    part_url,
    part_urls,
    roots_today,
    shard_name,
    shard_of_part,
    shard_url,
)
from rhostream.tables.il.pairs import bank_doubts, bank_file, broken_terms
from rhostream.tables.il.part import (
    Part,
    PartFacts,
    broken_laws,
    encode_part,
    facts_of,
    footer_beginning,
    read_part,
    read_part_facts,
    read_part_footer,
)
from rhostream.tables.il.table import (
    RESCORE,
    Table,
    open_table,
    require_part_of,
    require_same_shard,
    require_unchanged,
    same_bytes,
)

__all__ = [
    "IL_TYPES",
    "KEEP_TYPES",
    "LEAST",
    "LOCAL_THREADS",
    "MEMBER",
    "OK",
    "PAIR_COLUMNS",
    "REMOTE_THREADS",
    "RESCORE",
    "SCHEMA",
    "VERSION",
    "Catalogue",
    "Part",
    "PartFacts",
    "Table",
    "TableInfo",
    "bank_doubts",
    "bank_file",
    "broken_laws",
    "broken_terms",
    "catalogues",
    "checked_keep",
    "encode_part",
    "facts_of",
    "facts_of_parts",
    "file_below",
    "find_catalogue",
    "find_info",
    "fingerprint",
    "footer_beginning",
    "listed_parts",
    "make_or_match",
    "named_shards",
    "open_catalogue",
    "open_info",
    "open_table",
    "part_url",
    "part_urls",
    "places_of",
    "read_il",
    "read_part",
    "read_part_facts",
    "read_part_footer",
    "reference_doubts",
    "require_part_of",
    "require_same_making",
    "require_same_shard",
    "require_unchanged",
    "roots_today",
    "same_bytes",
    "shard_name",
    "shard_of_part",
    "shard_url",
    "stored_il",
    "write_catalogue",
]
