"""The ledger as SQL: DuckDB views over verified files only, in a connection that can reach nothing else.

    selections   every column of the log + run          steps        one row a step + seconds + run
    il           every column of a part + shard         samples      shard, ordinal, key, label, kept fields
    quarantine   shard, ordinal, key, status, error     runs         one row a run
    shadow       run, pass, step, shard, ordinal, rule, score, kept: what another rule would have kept
    classes      label, name: what the classes are called, as far as the shards say it
    sources      one row a run and source, where sources were asked for: planned, kept, shares, mean il and loss

The newest checkpoint's list decides which segments exist, each proved by its sha256 when the ledger is opened; parts
are opened only when a question mentions them. DuckDB gets Arrow datasets, never a path.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

import duckdb
import pyarrow as pa

from rhostream import storage
from rhostream.audit import sources
from rhostream.audit.definitions import VIEWS, definitions_of
from rhostream.audit.part_files import PartFiles, part_files
from rhostream.audit.render import escape
from rhostream.audit.run_rows import RUNS, run_row
from rhostream.audit.runs import RunFolder, is_table, open_runs, read_record
from rhostream.errors import MismatchError, RhostreamError, TableError, UnknownNameError, UsageError
from rhostream.runs.chain import newest_place
from rhostream.tables import il as il_table
from rhostream.tables import selections, shadow, steps
from rhostream.tables.class_lists import table_names
from rhostream.tables.classes import no_class
from rhostream.tables.names import checked_roots

T = TypeVar("T")
__all__ = ["VIEWS", "Ledger", "is_table", "open_ledger", "read_record"]

# Parts are opened before a question that holds these words; a column may have the same name, which costs time only.
_FROM_PARTS = re.compile(r"\b(il|samples|quarantine)\b", re.IGNORECASE)
_OF_CLASSES = re.compile(r"\bclasses\b", re.IGNORECASE)
_ASKS_FOR_CLASSES = re.compile(r"\b(label|classes|correct|predicted|\w*accuracy\w*|effective_\w+)\b", re.IGNORECASE)
_CLASSES = pa.schema([("label", pa.int32()), ("name", pa.string())])
_SEGMENTS = (("log", selections.WITH_SOURCE), ("steps", steps.SCHEMA))
_SCAN_FAILED = (duckdb.InvalidInputException, duckdb.IOException, duckdb.InternalException, pa.ArrowException)
_RACES = 20  # a trainer that runs on may commit while we read: look for its newest again
_OF_PARTS = ("il", "samples", "quarantine")


class Ledger:
    """Runs (and their IL table) opened for questions; use as a context manager. `limits`: settings of DuckDB's."""

    def __init__(self, folders: Sequence[str], roots: Mapping[str, str] | None = None, **limits: str) -> None:
        urls = [storage.resolve(folder) for folder in folders]
        tables = [url for url in urls if is_table(url)]
        self._folders = [url for url in urls if url not in tables]
        self._places: list[Any] = []  # of the runs, as they were when a segment was last found gone
        self.runs: list[RunFolder] = []
        self.roots = dict(roots or {})
        self._whole_table = bool(tables)
        self._parts_open = self._classes_open = False
        self._parts: PartFiles | None = None
        self._no_parts: RhostreamError | None = None
        # A sort larger than memory spills there; DuckDB's default is the user's working folder.
        spill = os.path.join(tempfile.gettempdir(), f"rhostream-sql-{uuid.uuid4().hex}")
        self._con = duckdb.connect(":memory:", config={
            "autoinstall_known_extensions": False, "autoload_known_extensions": False,
            "python_enable_replacements": False, "temp_directory": spill, **limits,
        })  # fmt: skip
        self._open_runs()
        self._tables = tables or list(dict.fromkeys(run.il_url for run in self.runs if run.il_url))
        self._con.register("_classes", _CLASSES.empty_table())
        self._con.register("_parts", sources.dataset([], "shard", self._part_schema()))
        definitions = definitions_of(self._part_schema())
        for name in VIEWS:
            self._con.execute(f"CREATE VIEW {name} AS {definitions[name]}")
        # A bar would stand among the answers on stdout. In a notebook without ipywidgets it is off, and can't be set.
        if self._con.sql("SELECT current_setting('enable_progress_bar')").fetchall() != [(False,)]:
            self._con.execute("SET enable_progress_bar = false")
        self._con.execute("SET enable_external_access = false")
        self._con.execute("SET lock_configuration = true")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the views and what DuckDB holds."""
        self._con.close()

    def without_classes(self, text: str) -> list[str]:
        """What to know of a question that asks for classes where there are none, a sentence each."""
        if not _ASKS_FOR_CLASSES.search(text):
            return []
        whole = no_class(il_table.open_info(self.table_url).target) if self._whole_table else ""
        return [f"run {run.name}: {run.no_class}" for run in self.runs if run.no_class] + [whole] * bool(whole)

    def sql(self, text: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> pa.Table:
        """The answer to one SELECT, with `$name` or `?` bound from `parameters`.

        Raises UsageError with the reason (anything but one SELECT is refused), UnknownNameError with the nearest view
        or column, TableError naming a damaged file.
        """
        return self.read(text, lambda answer: answer.to_arrow_table(), parameters)

    def read(self, text: str, take: Callable[[Any], T], parameters: Any = None) -> T:
        """What `take` makes of an answer of any size, DuckDB's relation; raises as `sql`. It is called again, with
        another answer, where a run's files were merged while it read them."""
        for _ in range(_RACES):
            try:
                return self._asked(text, take, parameters)
            except TableError:
                if not self._moved_on():
                    raise
                self._open_runs()
        return self._asked(text, take, parameters)

    def _asked(self, text: str, take: Callable[[Any], T], parameters: Any) -> T:
        try:
            statements = duckdb.extract_statements(text)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError("expected one SELECT: the ledger is for reading")
            if not self._parts_open and _FROM_PARTS.search(text):
                self._open_parts()
            if not self._classes_open and _OF_CLASSES.search(text):
                self._open_classes()
            return take(self._con.sql(text, params=parameters) if parameters else self._con.sql(text))
        except (duckdb.Error, pa.ArrowException) as exc:
            raise self._translated(exc, text) from exc

    def _moved_on(self) -> bool:
        """Whether a run may have been committed to since the last look: a trainer that runs on merges segments and
        removes the small ones, which we may be reading."""
        places, self._places = self._places, [newest_place(url) for url in self._folders]
        return places != self._places

    def kept_fields(self) -> dict[str, str]:
        """Fields of the samples' json that the IL table keeps, with their types; {} without a table."""
        return dict(il_table.open_info(self.table_url).keep) if self._tables else {}

    @property
    def table_url(self) -> str:
        """The IL table behind `il`: the one that was opened, else that of the runs. Raises UsageError for two."""
        if len(self._tables) > 1:
            # An index beside an il table knows nothing that the table doesn't.
            with_il = [url for url in self._tables if il_table.open_info(url).kind == "il"]
            if len(with_il) != 1:
                named = " and ".join(storage.redact(url) for url in self._tables[:2])
                raise UsageError(f"these runs use several IL tables ({named}); open one run at a time to ask of il")
            return with_il[0]
        if not self._tables:
            raise UsageError("these runs name no IL table, so there is no il, samples or quarantine")
        return self._tables[0]

    def _open_runs(self) -> None:
        """The runs as they stand, their segments proved."""
        for races in range(_RACES, -1, -1):
            try:
                self.runs = open_runs(self._folders)
                self._con.register("_runs", pa.Table.from_pylist([run_row(run) for run in self.runs], RUNS))
                for what, schema in _SEGMENTS:
                    self._register_segments(what, schema)
                self._register_shadow()
                return
            except TableError:
                if not races or not self._moved_on():
                    raise

    def _register_segments(self, what: str, schema: pa.Schema) -> None:
        """One relation a run below `_log` (`_steps`): to group by a constant costs nothing, by a column of it a lot."""
        if not self.runs:
            self._con.register(f"_{what}", schema.append(pa.field("run", pa.string())).empty_table())
            return
        for number, run in enumerate(self.runs):
            self._con.register(f"_{what}_{number}", sources.segments(run, what, schema))
        each = [f"SELECT *, {_quoted(run.name)} AS run FROM _{what}_{number}" for number, run in enumerate(self.runs)]
        self._con.execute(f"CREATE OR REPLACE VIEW _{what} AS " + " UNION ALL ".join(each))

    def _register_shadow(self) -> None:
        """`_shadow`: one row for each shadow rule and sample, made of files that have a column for each rule."""
        each = list[str]()
        for number, run in enumerate(self.runs):
            rules = shadow.rules_of(run.settings)
            if rules:
                self._con.register(f"_shadow_{number}", sources.segments(run, "shadow", shadow.schema_of(len(rules))))
            name = _quoted(run.name)
            each += [
                f"SELECT {name} AS run, pass, step, shard, ordinal, {_quoted(rule)} AS rule, score_{at} AS score, "
                f"kept_{at} AS kept FROM _shadow_{number}"
                for at, rule in enumerate(rules)
            ]
        none = (
            "SELECT ''::VARCHAR AS run, 0::INTEGER AS pass, 0::BIGINT AS step, ''::VARCHAR AS shard, 0::INTEGER AS "
            "ordinal, ''::VARCHAR AS rule, 0::FLOAT AS score, false AS kept WHERE false"
        )
        self._con.execute("CREATE OR REPLACE VIEW _shadow AS " + " UNION ALL ".join(each or [none]))

    def _part_schema(self) -> pa.Schema:
        try:
            return il_table.open_info(self.table_url).read_schema
        except RhostreamError:
            return il_table.SCHEMA  # said when a question needs it

    def _open_parts(self) -> None:
        """Open the parts of the runs' shards (of the whole table, for a table).

        `il` may just be the column of `selections`, so a table that can't be opened takes its views away, and is an
        error only for a question that needed them.
        """
        try:
            table = self.table_url
            info = il_table.open_info(table)
            self._parts = part_files(table, [] if self._whole_table else self._shards_of(table, info))
            self._con.register("_parts", self._parts.dataset(info.read_schema))
            definitions = definitions_of(info.read_schema)
            for name in _OF_PARTS:
                self._con.execute(f"CREATE OR REPLACE VIEW {name} AS {definitions[name]}")
            self._parts_open, self._no_parts = True, None
        except RhostreamError as exc:
            self._no_parts = exc
            for name in _OF_PARTS:
                self._con.execute(f"DROP VIEW IF EXISTS {name}")

    def _open_classes(self) -> None:
        """The names as the runs recorded them, the first run's where they differ; of a table, as its parts say."""
        names: dict[int, str] = {}
        for url in self._tables if self._whole_table else ():
            names = {**table_names(url), **names}
        for run in self.runs:
            names = {**run.class_names, **names}
        rows = {"label": sorted(names), "name": [names[label] for label in sorted(names)]}
        self._con.register("_classes", pa.table(rows, _CLASSES))
        self._con.execute("CREATE OR REPLACE VIEW classes AS SELECT * FROM _classes")
        self._classes_open = True

    def _shards_of(self, table: str, info: il_table.TableInfo) -> list[str]:
        mine = [run for run in self.runs if run.il_url == table]
        for run in mine:
            pinned = (run.record.get("fingerprints") or {}).get("il")
            if pinned not in (None, info.fingerprint):
                raise MismatchError(f"run {run.name} was trained with il of fingerprint {pinned}, "
                                    f"{storage.redact(table)} has {info.fingerprint} today: another table has taken "
                                    "its place")  # fmt: skip
        return sorted({str(name) for run in mine for name in run.shards})

    def _translated(self, error: Exception, query: str) -> RhostreamError:
        """DuckDB's error as one of ours, in one sentence."""
        lines = str(error).partition("\n\nLINE ")[0].splitlines()
        words = " ".join(line.strip() for line in lines if line.strip())
        if found := re.search(r'Table with name "?(.+?)"? does not exist', words):
            if self._no_parts is not None and found[1].lower() in _OF_PARTS:
                return self._no_parts
            return UnknownNameError.of("view", escape(found[1]), VIEWS)
        column = re.search(r'(?:column "(.+?)" not found|have a column named "(.+?)"|Column "(.+?)" in)', words)
        if column:
            return UnknownNameError.of("column", escape(next(filter(None, column.groups()))), self._columns(query))
        if isinstance(error, _SCAN_FAILED) and (damage := self._damage(query)):
            return damage
        return UsageError(escape(words)[:600])

    def _damage(self, query: str) -> RhostreamError | None:
        """What a scan that failed without naming a file ran into: files can go bad after they were opened."""
        try:
            for run in self.runs:
                own = ("shadow", shadow.schema_of(len(shadow.rules_of(run.settings))))
                for what, schema in (*_SEGMENTS, own):
                    sources.segments(run, what, schema)
        except RhostreamError as exc:
            return exc
        return self._parts.first_damage() if self._parts and _FROM_PARTS.search(query) else None

    def _columns(self, query: str) -> set[str]:
        named = [name for name in VIEWS if re.search(rf"\b{name}\b", query, re.IGNORECASE)]
        views = [row[0] for row in self._con.sql("SHOW TABLES").fetchall() if row[0] in (named or VIEWS)]
        return {row[0] for view in views for row in self._con.sql(f"DESCRIBE {view}").fetchall()}


def open_ledger(folders: str | Iterable[str], *, roots: Mapping[str, str] | None = None) -> Ledger:
    """Open one or several run folders, or an IL table, for questions in SQL.

    `roots` (name: URL) says where shards lie today, for those who read pictures. Raises UsageError for a folder that
    is neither, TableError naming a segment that is damaged or gone.
    """
    named = storage.listed(folders, "run folders")
    if not named:
        raise UsageError("no run folder and no table was given")
    return Ledger(named, checked_roots(roots))


def _quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"
