"""The ledger as SQL: DuckDB views over verified files only, in a connection that can read nothing else.

    selections   every column of the log + run          steps        one row a step + run
    il           every column of a part + shard         samples      shard, ordinal, key, label, kept fields
    quarantine   shard, ordinal, key, status, error     runs         one row a run

The newest checkpoint's list decides which segments exist, each proved by its sha256; parts are read through pyarrow,
which verifies page checksums (DuckDB never does), and only when a question mentions them.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import duckdb
import pyarrow as pa

from rhostream import checkpoint, storage
from rhostream.errors import UsageError
from rhostream.tables import il as il_table
from rhostream.tables import parquet, selections, steps

VIEWS = ("selections", "steps", "runs", "il", "samples", "quarantine")
_FROM_PARTS = re.compile(r"\b(il|samples|quarantine)\b", re.IGNORECASE)


class Ledger:
    """Runs (and their IL table) opened for questions; use as a context manager."""

    def __init__(self, folders: Sequence[str], roots: Mapping[str, str] | None = None) -> None:
        self.folders = [storage.resolve(folder) for folder in folders]
        self.records = [read_record(f) for f in self.folders if not _is_table(f)]
        self.runs = [f for f in self.folders if not _is_table(f)]
        self._roots = dict(roots or {})
        self._parts_loaded = False
        self._con = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False,
                                                       "autoload_known_extensions": False})
        self._tables: dict[str, pa.Table] = {}
        segments = [self._segments(run) for run in self.runs]
        paths = [url for log, step in segments for url in (*log, *step) if storage.is_local(url)]
        self._con.execute("SET allowed_paths = $paths", {"paths": paths})
        self._view("selections", selections.SCHEMA, [s[0] for s in segments])
        self._view("steps", steps.SCHEMA, [s[1] for s in segments])
        self._register("runs", pa.Table.from_pylist([self._run_row(*pair) for pair in
                                                     zip(self.runs, self.records, strict=True)], RUNS))
        self._con.execute("SET enable_external_access = false")
        self._con.execute("SET lock_configuration = true")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._con.close()

    def sql(self, text: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """The answer to one SELECT. Raises UsageError with DuckDB's reason, for anything else too."""
        try:
            statements = duckdb.extract_statements(text)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError("expected one SELECT: the ledger is for reading")
            if not self._parts_loaded and _FROM_PARTS.search(text):
                self._load_parts()
            return self._con.sql(text, params=dict(parameters or {})).to_arrow_table()
        except duckdb.Error as exc:
            raise UsageError(_explain(str(exc))) from exc

    def kept_fields(self) -> dict[str, str]:
        """Fields of the samples' json that the IL table keeps, with their types."""
        keep: dict[str, str] = {}
        for url in self._table_urls():
            keep |= il_table.open_info(url).keep
        return keep

    def _segments(self, run: str) -> tuple[list[str], list[str]]:
        latest = checkpoint.latest(run)
        if latest is None:
            return [], []
        return (selections.verified_paths(run, latest.log), selections.verified_paths(run, latest.steps))

    def _view(self, name: str, schema: pa.Schema, urls: Sequence[Sequence[str]]) -> None:
        empty = pa.schema([*schema, ("run", pa.string())]).empty_table()
        self._register(f"no_{name}", empty)
        pieces = [f"SELECT * FROM no_{name}"]
        for at, (run, files) in enumerate(zip(self.runs, urls, strict=True)):
            local = [f for f in files if storage.is_local(f)]
            if len(local) == len(files) and files:
                listed = ", ".join("'" + f.replace("'", "''") + "'" for f in files)
                source = f"read_parquet([{listed}], hive_partitioning = false)"
            elif files:
                source = f"{name}_{at}"
                self._register(source, pa.concat_tables([parquet.read(f)[0] for f in files]).unify_dictionaries())
            else:
                continue
            label = os.path.basename(run).replace("'", "''")
            pieces.append(f"SELECT *, '{label}' AS run FROM {source}")
        self._con.execute(f"CREATE VIEW {name} AS " + " UNION ALL BY NAME ".join(pieces))

    def _register(self, name: str, table: pa.Table) -> None:
        self._tables[name] = table
        self._con.register(name, table)

    def _table_urls(self) -> list[str]:
        found = [f for f in self.folders if _is_table(f)] + [r["il"] for r in self.records if r.get("il")]
        return list(dict.fromkeys(found))

    def _load_parts(self) -> None:
        """Read every part of the runs' shards (of the whole table, for a table), checksums verified."""
        pieces = []
        keep: dict[str, str] = {}
        for url in self._table_urls():
            info = il_table.open_info(url)
            keep |= info.keep
            for part in self._part_urls(url):
                table, record = parquet.read(part)
                pieces.append(table.append_column("shard", pa.array([record["shard"]] * len(table), pa.string())))
        schema = pa.schema([*il_table.SCHEMA, *((k, il_table.KEEP_TYPES[v]) for k, v in keep.items()),
                            ("shard", pa.string())])
        whole = pa.concat_tables([schema.empty_table(), *pieces], promote_options="default")
        self._register("il", whole)
        fields = "".join(f', "{name}"' for name in keep)
        self._con.execute(f"CREATE VIEW samples AS SELECT shard, ordinal, key, label{fields} FROM il")
        self._con.execute("CREATE VIEW quarantine AS SELECT shard, ordinal, key, status, error FROM il "
                          "WHERE status <> 'ok'")
        self._parts_loaded = True

    def _part_urls(self, table: str) -> list[str]:
        names = {name for r in self.records if r.get("il") == table for name in r.get("shards", [])}
        if names:
            return [il_table.part_url(table, name) for name in sorted(names)]
        return storage.list_files(storage.join(table, "parts"), ".parquet")

    def _run_row(self, run: str, record: dict[str, Any]) -> dict[str, Any]:
        settings, latest = record["settings"], checkpoint.latest(run)
        cost = latest.cost if latest else {}
        accuracy = None
        if latest and latest.steps:
            tested = parquet.read(storage.join(run, latest.steps[-1]["path"]))[0]["test_accuracy"].drop_null()
            accuracy = tested[-1].as_py() if len(tested) else None
        return {
            "run": os.path.basename(run), **{k: settings.get(k) for k in RUNS.names if k in settings},
            "steps": latest.step if latest else 0, "complete": bool(latest and latest.complete),
            "final_test_accuracy": accuracy, "forward_units": cost.get("forward_units"),
            "il_units": cost.get("il_units"), "macs": cost.get("macs"),
            "il_accuracy": record.get("il_model", {}).get("accuracy"),
        }


RUNS = pa.schema(
    [
        ("run", pa.string()), ("rule", pa.string()), ("model", pa.string()), ("buffer_size", pa.int64()),
        ("batch_size", pa.int64()), ("seed", pa.int64()), ("loss_cap", pa.bool_()), ("steps", pa.int64()),
        ("complete", pa.bool_()), ("final_test_accuracy", pa.float64()), ("forward_units", pa.float64()),
        ("il_units", pa.float64()), ("macs", pa.int64()), ("il_accuracy", pa.float64()),
    ]
)


def open_ledger(folders: str | Iterable[str], *, roots: Mapping[str, str] | None = None) -> Ledger:
    """Open one or several run folders, or an IL table. Raises UsageError, TableError for a damaged file."""
    return Ledger([folders] if isinstance(folders, str) else list(folders), roots)


def read_record(run: str) -> dict[str, Any]:
    """run.json of a run folder. Raises UsageError when it is none."""
    url = storage.join(storage.resolve(run), "run.json")
    if not storage.exists(url):
        near = ""
        folder = os.path.dirname(storage.resolve(run))
        if storage.is_local(url) and os.path.isdir(folder):
            names = difflib.get_close_matches(os.path.basename(run), os.listdir(folder), n=3)
            near = f"; did you mean {', '.join(names)}?" if names else ""
        raise UsageError(f"{storage.redact(run)} is neither a run folder (no run.json) nor a table{near}")
    record: dict[str, Any] = json.loads(storage.read_bytes(url))
    return record


def _is_table(folder: str) -> bool:
    return storage.exists(storage.join(folder, "_table.json"))


def _explain(text: str) -> str:
    first = " ".join(line.strip() for line in text.splitlines() if line.strip() and not set(line) <= set(" ^"))
    missing = re.search(r"Table with name (\w+) does not exist", first)
    if missing:
        near = difflib.get_close_matches(missing[1], VIEWS, n=1)
        return (f"no view {missing[1]!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                + f" (views: {', '.join(VIEWS)})")
    return first[:600]
