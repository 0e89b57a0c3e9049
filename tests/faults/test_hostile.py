"""The hostile corpus through the product: nothing is run, memory and time are bounded, and everything is counted."""

from __future__ import annotations

import shutil
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rhostream
from rhostream.audit.report import write_report
from rhostream.audit.verify import status_of, verify
from rhostream.audit.views import open_ledger
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import RhostreamError
from rhostream.irreducible import Summary, compute_il, index, load_il_model
from rhostream.stream.open import open_stream
from shards.check import check
from tests.faults.children import cpu, in_child, peak, reset_peak
from tests.faults.corpus import Corpus, make
from tests.faults.hostile_artifacts import EVIL_MODULE

MEMORY, SECONDS = 1 << 30, 20  # over the baseline, and of CPU: what one hostile file may take
Told = dict[str, Any]


@dataclass
class Tally:
    """What was tried, for the line that the run prints."""

    outcomes: Counter[str]
    peak_bytes: int = 0
    seconds: float = 0.0
    worst: str = ""
    base_bytes: int = 0

    def says(self, what: str) -> str:
        listed = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        return (f"{what}: {self.outcomes.total()} outcomes ({listed}); at most {self.peak_bytes >> 20} MiB over a "
                f"baseline of {self.base_bytes >> 20} MiB and {self.seconds:.1f} s of CPU a file ({self.worst})")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make(tmp_path_factory.mktemp("hostile"))


def measured(act: Callable[[], Any]) -> Told:
    """What `act` gave or raised, and its peak and CPU seconds; only an error of ours is an outcome."""
    base, began = reset_peak(), cpu()
    told: Told = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            told["gave"] = act()
        except RhostreamError as exc:
            told["refused"] = f"{type(exc).__name__}: {exc}"
        except Exception:
            told["bug"] = traceback.format_exc()
    return told | {"peak": peak() - base, "seconds": cpu() - began, "base": base}


def problems(shard: str) -> dict[str, list[str]]:
    return check([shard]).problems


def examine_shards(shards: list[str], model: str, out: str) -> list[dict[str, Told]]:
    """Each shard through index, compute_il and check."""
    found = []
    for number, shard in enumerate(shards):
        table = f"{out}/{number}"
        found.append({
            "index": measured(partial(index, [shard], f"{table}-index", max_bad_fraction=1.0)),
            "compute_il": measured(partial(compute_il, [shard], model, table, keep={"n": "int"}, max_bad_fraction=1.0)),
            "check": measured(partial(problems, shard)),
        })
        shutil.rmtree(f"{table}-index")
    return found


def count(tally: Tally, name: str, outcome: str, told: Told) -> None:
    assert "bug" not in told, f"{name}: {told['bug']}"
    tally.outcomes[outcome] += 1
    assert told["peak"] < MEMORY, f"{name} took {told['peak'] >> 20} MiB"
    if told["peak"] > tally.peak_bytes:
        tally.peak_bytes, tally.worst, tally.base_bytes = told["peak"], name, told["base"]
    tally.seconds = max(tally.seconds, told["seconds"])
    assert told["seconds"] < SECONDS, f"{name} took {told['seconds']:.1f} s of CPU"


def fits(status: str, expected: str) -> bool:
    """Whether a status is the expected one; "decode:" stands for any of these, "" for those and ok."""
    return status == expected or (expected == "" and status == "ok") or (
        expected in ("", "decode:") and status.startswith("decode:"))


def test_every_hostile_shard_is_counted_in_bounded_memory_and_nothing_in_it_runs(
        corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(corpus.folder.rglob("*"))
    shards = [str(path) for _, path in corpus.shards]
    told = in_child(examine_shards, shards, str(corpus.real / "model"), str(tmp_path), limit=len(shards) * SECONDS)
    tally = Tally(Counter())
    for number, ((hostile, path), ways) in enumerate(zip(corpus.shards, told.result, strict=True)):
        for way in ("index", "compute_il"):
            one, summary = ways[way], ways[way].get("gave")
            assert isinstance(summary, Summary), f"{hostile.name}: {way} {one.get('refused')}"
            assert summary.samples == summary.ok + sum(summary.quarantined.values())
            assert summary.members_seen == summary.members_used + summary.members_ignored
            why = summary.bad_shards.get(str(path), "")
            assert bool(why) == bool(hostile.bad) and hostile.bad in why, f"{hostile.name}: {why}"
            assert not why or path.name in why
            assert summary.made == (0 if why else 1)
            outcome = "bad shard" if why else ", ".join(summary.quarantined) or "ok"
            count(tally, f"{hostile.name} ({way})", f"{way}: {outcome}", one)
        if not hostile.bad:
            part = next((tmp_path / str(number)).rglob("*.parquet"))
            statuses = pq.read_table(part)["status"].to_pylist()
            assert len(statuses) == len(hostile.rows) == ways["compute_il"]["gave"].samples, (hostile.name, statuses)
            for status, expected in zip(statuses, hostile.rows, strict=True):
                assert fits(status, expected), (hostile.name, statuses)
        found = ways["check"].get("gave", {})
        count(tally, f"{hostile.name} (check)", "check: " + (", ".join(found) or "all well"), ways["check"])
    assert not corpus.canary.exists() and set(corpus.folder.rglob("*")) == before
    with capsys.disabled():
        print("\n" + tally.says(f"hostile shards: {len(shards)} files"))


# -- artifacts ---------------------------------------------------------------------------------------------------------


def use_model(path: str, real: str) -> str:
    sys.path.insert(0, path)  # the stranger's code could be imported, if anything asked for it
    try:
        return ", ".join(sorted({type(n).__name__ for n in load_il_model(path).networks}))
    finally:
        sys.path.remove(path)
        assert EVIL_MODULE not in sys.modules


def use_table(path: str, real: str) -> dict[str, int]:
    loader = open_stream(f"{real}/a.tar", path, buffer_size=8, roots={"r": real}, missing_il="skip")
    reasons = [r for buffer in loader for r in buffer.reason.tolist()]
    return dict(Counter("candidate" if r == CANDIDATE else Reason(r).name for r in reasons))


def ask_table(path: str, real: str) -> int:
    with open_ledger(path) as ledger:
        return ledger.sql("SELECT * FROM il").num_rows + ledger.sql("SELECT * FROM quarantine").num_rows


def use_run(path: str, real: str) -> dict[str, Any]:
    return dict(status_of(path))


def ask_run(path: str, real: str) -> int:
    with open_ledger(path, roots={"r": real}) as ledger:
        return ledger.sql("SELECT * FROM selections").num_rows + ledger.sql("SELECT * FROM runs").num_rows


def report_run(path: str, real: str) -> str:
    return Path(write_report([path], f"{path}.html", roots={"r": real})).name


def resume_run(path: str, real: str) -> int:
    return rhostream.train([f"{real}/a.tar"], f"{real}/table", path, model="mlp-64", buffer_size=8, batch_size=2,
                           steps=6, roots={"r": real}).steps


def use_keep_list(path: str, real: str) -> int:
    return len(open_stream(f"{real}/a.tar", f"{real}/table", buffer_size=8, roots={"r": real}, keep_list=path))


def proved(path: str, real: str) -> list[str]:
    return list(verify(path)["problems"])


USES: dict[str, list[Callable[[str, str], Any]]] = {
    "model": [use_model], "table": [use_table, ask_table, proved],
    "run": [use_run, ask_run, proved, report_run, resume_run],
    "keep-list": [use_keep_list],
}  # fmt: skip


def examine_artifacts(artifacts: list[tuple[str, str, str]], real: str) -> list[dict[str, Told]]:
    return [{use.__name__: measured(lambda use=use, path=path: use(path, real)) for use in USES[kind]}
            for kind, _, path in artifacts]  # fmt: skip


def test_every_foreign_artifact_is_read_or_refused_in_words_and_nothing_in_it_runs(
        corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = [(kind, name, str(path)) for kind, name, path in corpus.artifacts]
    told = in_child(examine_artifacts, artifacts, str(corpus.real), limit=len(artifacts) * SECONDS)
    tally = Tally(Counter())
    for (kind, name, path), uses in zip(artifacts, told.result, strict=True):
        for use, one in uses.items():
            refused = one.get("refused", "")
            assert "internal" not in refused and "\n" not in refused
            count(tally, f"{kind} {name} ({use})", f"{use}: {'refused' if refused else 'read'}", one)
        if kind == "model":
            assert "refused" in uses["use_model"], f"{name} was loaded: {uses}"
        if name.startswith(("optimizer", "model-")) and kind == "run":
            assert "refused" in uses["resume_run"], name
            assert uses["proved"]["gave"] or name == "model-other-tensors", name  # true tensors, of another model
        if name.startswith("labels"):
            assert set(uses["use_table"]["gave"]) == {"quarantined"}, name
        if name.startswith(("members", "samples", "rows", "ordinals", "segment", "files")):
            assert any("refused" in one for one in uses.values()), name
        assert Path(path).exists()
    assert not corpus.canary.exists()
    with capsys.disabled():
        print("\n" + tally.says(f"foreign artifacts: {len(artifacts)}"))
