"""What each view of the ledger is made of, in SQL."""

from __future__ import annotations

import pyarrow as pa

from rhostream.tables import il as il_table

VIEWS = ("selections", "steps", "runs", "il", "samples", "quarantine", "shadow", "classes", "sources")
_DEFINITIONS = {
    "selections": "SELECT * FROM _log",
    "steps": "SELECT *, coalesce(seconds_wait, 0) + coalesce(seconds_score, 0) + coalesce(seconds_train, 0) "
             "+ coalesce(seconds_log, 0) AS seconds FROM _steps",
    "runs": "SELECT _runs.*, tested.final_test_accuracy FROM _runs LEFT JOIN (SELECT run, "
            "arg_max(test_accuracy, step)::DOUBLE AS final_test_accuracy FROM _steps WHERE isfinite(test_accuracy) "
            "GROUP BY run) AS tested USING (run)",
    "il": "SELECT * FROM _parts",
    "samples": "",  # by the columns of the table at hand: `_definitions`
    "quarantine": "SELECT shard, ordinal, key, status, error FROM _parts WHERE status <> 'ok'",
    "shadow": "SELECT * FROM _shadow",
    "classes": "SELECT * FROM _classes",
    # Shares are of what had a buffer; `candidates` are the rows that the choice was made of.
    "sources": "SELECT run, source, count(*) AS planned, count(*) FILTER (reason IN ('kept', 'below', 'shortlist', "
               "'nonfinite', 'duplicate', 'unapplied')) AS candidates, count(*) FILTER (kept) AS kept, "
               "count(*) FILTER (kept) / count(*) AS kept_rate, "
               "count(*) / sum(count(*)) OVER (PARTITION BY run) AS share_planned, "
               "count(*) FILTER (kept) / nullif(sum(count(*) FILTER (kept)) OVER (PARTITION BY run), 0) AS share_kept, "
               "avg(il::DOUBLE) AS mean_il, avg(loss::DOUBLE) AS mean_loss FROM _log "
               "WHERE source IS NOT NULL AND step IS NOT NULL GROUP BY run, source",
}  # fmt: skip


def definitions_of(parts: pa.Schema) -> dict[str, str]:
    """The views over parts of these columns; an old table lacks a column of today's."""
    own = ", ".join(name for name in il_table.SCHEMA.names if name in parts.names)
    return {**_DEFINITIONS, "samples": f"SELECT shard, ordinal, key, label, * EXCLUDE (shard, {own}) FROM _parts"}
