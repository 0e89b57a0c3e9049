"""`rhostream export`: from a selection of the ledger to one form at one place, and an account of it.

What is a file appears whole, in one act, and fails where something has its name; a folder of shards appears shard by
shard, so that a stopped export goes on; a folder for FiftyOne gets its name when all of it is there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rhostream import storage
from rhostream.audit.export import datacomp, fiftyone, files
from rhostream.audit.export.account import Exported as Exported
from rhostream.audit.export.account import Unread
from rhostream.audit.export.selection import Selection, selection
from rhostream.audit.export.shards import BYTES, ROWS, SAMPLES, ShardFolder, Written
from rhostream.audit.export_forms import FORMS as FORMS
from rhostream.audit.sample_bytes import SampleBytes
from rhostream.audit.views import Ledger, open_ledger
from rhostream.errors import StorageError, UnknownNameError, UsageError
from rhostream.inert import shell_words
from rhostream.tables.class_lists import table_names

LOG = logging.getLogger("rhostream")
_ENDINGS = {".parquet": "parquet", ".csv": "csv", ".npy": "datacomp"}
_NEEDS = {"datacomp": (".npy",), "embedding-atlas": (".parquet",), "keep-list": (".parquet", ".csv"),
          "parquet": (".parquet",), "csv": (".csv",)}  # fmt: skip


def export(
    runs: str | Iterable[str],
    out: str,
    *,
    form: str | None = None,
    where: str | None = None,
    sql: str | None = None,
    with_samples: bool = False,
    samples_per_shard: int = SAMPLES,
    shard_bytes: int = BYTES,
    roots: Mapping[str, str] | None = None,
) -> Exported:
    """Write a selection of the ledger of `runs` (run folders, or an IL table) to `out`, in one of `FORMS`.

    The form is told by the ending of `out` unless given. The selection is the kept rows, or those of the log for which
    `where` holds, or the answer of `sql` (a SELECT, or `@question`). `with_samples`: Parquet of one row a sample, with
    its bytes. Shards end at `samples_per_shard` or before `shard_bytes`. `roots` (name: URL) says where shards lie
    today. Raises UsageError, with nothing written, for a place that is taken and a selection that can't be;
    StorageError where no sample could be read.
    """
    url = storage.resolve(out)
    form = _form_of(url, form, with_samples)
    folder = ShardFolder(url, samples_per_shard, shard_bytes) if form == "shards" else None
    if folder is None and storage.exists(url):
        raise UsageError(f"{storage.redact(url)} exists already, and nothing is overwritten: choose another place")
    if folder is None and not storage.is_local(url):
        storage.probe_writable(url.rpartition("/")[0])
    with open_ledger(runs, roots=roots) as ledger:
        for run in ledger.runs:
            if caution := run.caution:
                LOG.warning("%s", caution)
        work = _Export(ledger, selection(ledger, where, sql), url, form, with_samples)
        return work.made() if folder is None else work.shards(folder)


def _form_of(url: str, form: str | None, with_samples: bool) -> str:
    ending = next((end for end in _ENDINGS if url.endswith(end)), "")
    if form is None and not ending:
        raise UsageError(
            f"the name {url.rsplit('/', 1)[-1]!r} doesn't say what to write: end it in {', '.join(_ENDINGS)}, or name "
            f"the form with --as: {', '.join(FORMS)}"
        )
    form = form or _ENDINGS[ending]
    if form not in FORMS:
        raise UnknownNameError.of("form", form, FORMS)
    if form in _NEEDS and ending not in _NEEDS[form]:
        raise UsageError(f"{form} is a file whose name ends in {' or '.join(_NEEDS[form])}, and {url!r} doesn't")
    if form == "fiftyone" and not storage.is_local(url):
        raise UsageError("FiftyOne imports folders of this machine: name a local path")
    if with_samples and form not in ("parquet", "embedding-atlas"):
        raise UsageError(f"--with-samples puts samples into Parquet; {form} has none, or has them anyway")
    return form


class _Export:
    """One export: what is known of it while it goes on."""

    def __init__(self, ledger: Ledger, chosen: Selection, url: str, form: str, with_samples: bool) -> None:
        self.ledger, self.chosen, self.url, self.form = ledger, chosen, url, form
        self.with_samples, self.unread = with_samples, Unread()

    @property
    def record(self) -> dict[str, Any]:
        """What the file says of itself."""
        return {"runs": [run.name for run in self.ledger.runs], "selection": self.chosen.sql.strip()}

    def made(self) -> Exported:
        """Do it."""
        match self.form:
            case "datacomp":
                return self._datacomp()
            case "keep-list":
                return self._keep_list()
            case "embedding-atlas":
                return self._atlas()
            case "fiftyone":
                return self._fiftyone()
        return self._samples() if self.with_samples else self._rows()

    def _rows(self) -> Exported:
        return self._account(rows=self._written(self.chosen.sql), samples=None)

    def _keep_list(self) -> Exported:
        self._count_strangers()
        samples = self._written(self.chosen.samples(least=True), _spent([run.cost for run in self.ledger.runs]))
        return self._account(rows=samples, samples=samples, next=f"rhostream train ... --keep-list {self._shown}")

    def shards(self, folder: ShardFolder) -> Exported:
        """Copy the samples into new shards."""
        self._count_strangers()

        def take(answer: Any) -> Written:
            with SampleBytes(self.ledger) as reading:
                return folder.fill(answer.to_arrow_reader(ROWS), reading)

        written = self.ledger.read(self.chosen.samples(), take)
        names = {**table_names(self.ledger.table_url), **(self.ledger.runs[0].class_names if self.ledger.runs else {})}
        folder.finish(written, names)
        counts = {name: getattr(written, name) for name in ("samples", "bytes", "shards", "there", "renamed")}
        return self._account(rows=written.samples, **counts, next=f"rhostream index --shards {self._shown} --out TABLE")

    def _datacomp(self) -> Exported:
        self._count_strangers()
        uids = datacomp.uids_of(self.chosen)
        datacomp.count_bad(self.chosen, uids, self.unread)

        def take(answer: Any) -> int:
            with storage.writing(self.url) as file:
                return datacomp.write_uids(answer.to_arrow_reader(files.BATCH), file)

        samples = self.ledger.read(datacomp.good(uids), take)
        return self._account(rows=samples, samples=samples)

    def _samples(self) -> Exported:
        self._count_strangers()
        samples = self._written_with_samples(self._with_classes(self.chosen))
        return self._account(rows=samples, samples=samples)

    def _atlas(self) -> Exported:
        if missing := [name for name in ("il", "loss", "shard") if name not in self.chosen.columns]:
            raise UsageError(f"a picture of il and loss needs them, and the selection has no column {missing[0]}")
        finite = "coalesce(isfinite(il::DOUBLE) AND isfinite(loss::DOUBLE), false)"
        count = f"SELECT count(*) AS n FROM ({self.chosen.sql}) WHERE "
        out, n = (self.ledger.sql(count + test)["n"][0].as_py() for test in (f"NOT {finite}", finite))
        if not n:
            raise UsageError(
                "no row of the selection has an il and a loss that are finite numbers: was anything scored?"
            )
        shown = Selection(self.ledger, f"SELECT * FROM ({self.chosen.sql}) WHERE {finite}", self.chosen.columns)
        samples = self._written_with_samples(self._with_classes(shown))
        left = f"{out:,} rows without a finite il and loss" if out else ""
        return self._account(rows=n, samples=samples, left_out=left, next=self._atlas_command())

    def _atlas_command(self) -> str:
        with SampleBytes(self.ledger) as reading:
            columns = files.member_columns(reading, list(self.chosen.columns))
        shown = [f"--{'text' if files.TEXTS.issuperset(of) else 'image'}" for of in columns.values()]
        options = [word for pair in zip(shown, columns, strict=True) for word in pair]
        return shell_words("embedding-atlas", storage.redact(self.url), "--x", "il", "--y", "loss", *options)

    def _fiftyone(self) -> Exported:
        self._count_strangers()

        def take(answer: Any) -> tuple[int, int, dict[str, str]]:
            batches, unread = answer.to_arrow_reader(files.ROWS_WITH_SAMPLES), Unread()
            columns = {column.name: str(column.type) for column in batches.schema}
            with SampleBytes(self.ledger) as reading:
                done = fiftyone.write_folder(batches, self.url, reading, unread)
                members = files.member_columns(reading, [*columns])
                columns |= {name: "string" for name, of in members.items() if files.TEXTS.issuperset(of)}
            self.unread.merge(unread)
            return *done, columns

        samples, size, columns = self.ledger.read(self._with_classes(self.chosen), take)
        return self._account(rows=samples, samples=samples, bytes=size, next=fiftyone.command(self.url, columns))

    def _with_classes(self, chosen: Selection) -> str:
        """The samples of a selection, with the name of each label where there are names."""
        if "label" not in chosen.columns or "class" in chosen.columns or not self._has_names():
            return chosen.samples()
        return chosen.samples(", classes.name AS class", "LEFT JOIN classes ON classes.label = looked.label")

    def _has_names(self) -> bool:
        return bool(self.ledger.sql("SELECT count(*) AS n FROM classes")["n"][0].as_py())

    def _count_strangers(self) -> None:
        count, first = self.chosen.strangers()
        if count:
            self.unread.add(f"the first row that names no sample has {first}", count)

    def _written(self, sql: str, cost: Mapping[str, int] | None = None) -> int:
        def take(answer: Any) -> int:
            batches = answer.to_arrow_reader(files.BATCH)
            with storage.writing(self.url) as file:
                if self.url.endswith(".csv"):
                    return files.write_csv(batches, file)
                return files.write_parquet(batches, file, self.record, cost)

        return self.ledger.read(sql, take)

    def _written_with_samples(self, sql: str) -> int:
        def take(answer: Any) -> int:
            batches, unread = answer.to_arrow_reader(files.ROWS_WITH_SAMPLES), Unread()
            with SampleBytes(self.ledger) as reading, storage.writing(self.url) as file:
                rows = files.write_samples(batches, file, self.record, reading, unread)
                if unread.count == rows > 0:
                    raise StorageError(f"none of {rows:,} samples could be read, and nothing was written: "
                                       f"{unread.first[0]}")  # fmt: skip
            self.unread.merge(unread)
            return rows

        return self.ledger.read(sql, take)

    @property
    def _shown(self) -> str:
        return shell_words(storage.redact(self.url))

    def _account(self, **counts: Any) -> Exported:
        given = counts if "bytes" in counts else {"bytes": storage.identity(self.url).size, **counts}
        return Exported(out=storage.redact(self.url), form=self.form, unread=self.unread.count,
                        first_unread=self.unread.first, **given)  # fmt: skip


def _spent(costs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What was spent on a list that was made of the logs of runs with these costs, as the account of a run that uses
    the list reads it; {} where nothing is known."""
    macs = max((int(cost.get("macs") or 0) for cost in costs), default=0)
    if not macs:
        return {}
    spent = {
        name: sum(math.ceil(int(cost.get(of) or 0) * int(cost.get("macs") or 0) / macs) for cost in costs)
        for name, of in (("fit_samples", "trained"), ("scored_samples", "scored"))
    }
    return {**spent, "macs": macs}
