"""The hostile corpus through the product: nothing is run, memory and time are bounded, and everything is counted."""

from __future__ import annotations

import shutil
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rhostream
from rhostream.advisor.estimate import estimate
from rhostream.advisor.scoring import scoring_report
from rhostream.audit.report import write_report
from rhostream.audit.verify import status_of, verify
from rhostream.audit.views import open_ledger
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import RhostreamError, UntrustedCodeError, UsageError
from rhostream.il_model.networks import load_il_model
from rhostream.irreducible import Summary, compute_il, index
from rhostream.stream.open import open_stream
from rhostream.tables.il import part_url
from shards.check import check
from tests.faults.children import cpu, in_child, in_memory, peak, reset_peak
from tests.faults.corpus import Corpus, Hostile, make
from tests.faults.hostile_artifacts import EVIL_MODULE
from tests.faults.tally import say
from tests.support.shards import make_shards

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
        return (
            f"{what}: {self.outcomes.total()} outcomes ({listed}); at most {self.peak_bytes >> 20} MiB over a "
            f"baseline of {self.base_bytes >> 20} MiB and {self.seconds:.1f} s of CPU a file ({self.worst})"
        )


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    with in_memory() as folder:
        yield make(folder)


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
        found.append(
            {
                "index": measured(
                    partial(index, [shard], f"{table}-index", max_bad_fraction=1.0, max_bad_shards=1_000)
                ),
                "compute_il": measured(
                    partial(
                        compute_il, [shard], model, table, keep={"n": "int"}, max_bad_fraction=1.0, max_bad_shards=1_000
                    )
                ),
                "check": measured(partial(problems, shard)),
            }
        )
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
    return (
        status == expected
        or (expected == "" and status == "ok")
        or (expected in ("", "decode:") and status.startswith("decode:"))
    )


def judge(corpus: Corpus, hostile: Hostile, path: Path, why: str, table: Path) -> None:
    """A bad shard is named with the right words and has no part; any other has a part of the right statuses."""
    assert bool(why) == bool(hostile.bad) and hostile.bad in why, f"{hostile.name}: {why}"
    part = Path(part_url(str(table), str(path)))
    assert not why or path.name in why
    assert part.exists() != bool(why)
    if not why:
        statuses = pq.read_table(part)["status"].to_pylist()
        assert len(statuses) == len(hostile.rows), (hostile.name, statuses)
        for status, expected in zip(statuses, hostile.rows, strict=True):
            assert fits(status, expected), (hostile.name, statuses)


def lawful(summary: Summary) -> None:
    assert summary.samples == summary.ok + sum(summary.quarantined.values())
    assert summary.members_seen == summary.members_used + summary.members_ignored
    assert summary.made + len(summary.bad_shards) == summary.shards


def examine_together(shards: list[str], model: str, out: str) -> list[Told]:
    """All shards through one index, one compute_il and one check."""
    return [measured(partial(index, shards, f"{out}/index", max_bad_fraction=1.0,
                            max_bad_shards=1_000)),
            measured(partial(compute_il, shards, model, f"{out}/il", keep={"n": "int"}, max_bad_fraction=1.0,
                            max_bad_shards=1_000)),
            measured(lambda: check(shards).problems)]  # fmt: skip


def test_the_hostile_corpus_is_counted_in_bounded_memory_and_nothing_in_it_runs(corpus: Corpus) -> None:
    before = set(corpus.folder.rglob("*"))
    shards = [str(path) for _, path in corpus.shards]
    with in_memory() as out:
        told = in_child(examine_together, shards, str(corpus.real / "model"), str(out), limit=120).result
        for one in told[:2]:
            lawful(one["gave"])
        for hostile, path in corpus.shards:
            judge(corpus, hostile, path, told[1]["gave"].bad_shards.get(str(path), ""), out / "il")
    assert set(told[0]["gave"].bad_shards) == set(told[1]["gave"].bad_shards)
    assert {"unreadable shards", "bad images", "bad labels", "bad json", "duplicate keys"} <= set(told[2]["gave"])
    assert max(one["peak"] for one in told) < MEMORY
    assert not corpus.canary.exists() and set(corpus.folder.rglob("*")) == before
    made = told[1]["gave"]
    say(
        f"hostile corpus: {len(shards)} shards: {len(made.bad_shards)} bad ones named; {made.samples} samples "
        f"= {made.ok} ok + {sum(made.quarantined.values())} quarantined ({made.quarantined}); "
        f"{made.members_seen} members = {made.members_used} used + {made.members_ignored} ignored; at most "
        f"{max(one['peak'] for one in told) >> 20} MiB"
    )


@pytest.mark.slow
def test_every_hostile_shard_alone_takes_bounded_memory_and_seconds(corpus: Corpus) -> None:
    shards = [str(path) for _, path in corpus.shards]
    tally = Tally(Counter())
    with in_memory() as out:
        told = in_child(examine_shards, shards, str(corpus.real / "model"), str(out), limit=len(shards) * SECONDS)
        for number, ((hostile, path), ways) in enumerate(zip(corpus.shards, told.result, strict=True)):
            for way, one in ways.items():
                found = one.get("gave")
                if isinstance(found, Summary):
                    found = found.quarantined or (found.bad_shards and ["bad shard"])
                count(tally, f"{hostile.name} ({way})", f"{way}: {', '.join(found or ()) or 'ok'}", one)
            for way in ("index", "compute_il"):
                lawful(ways[way]["gave"])
            judge(corpus, hostile, path, ways["compute_il"]["gave"].bad_shards.get(str(path), ""), out / str(number))
    assert not corpus.canary.exists()
    say(tally.says(f"hostile shards: {len(shards)} files"))


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
    return rhostream.train(
        [f"{real}/a.tar"],
        f"{real}/table",
        path,
        model="mlp-64",
        buffer_size=8,
        batch_size=2,
        steps=6,
        roots={"r": real},
    ).steps


def use_keep_list(path: str, real: str) -> int:
    return len(open_stream(f"{real}/a.tar", f"{real}/table", buffer_size=8, roots={"r": real}, keep_list=path))


def proved(path: str, real: str) -> list[str]:
    return list(verify(path)["problems"])


USES: dict[str, list[Callable[[str, str], Any]]] = {
    "model": [use_model], "table": [use_table, ask_table, proved],
    "run": [use_run, ask_run, proved, resume_run],
    "keep-list": [use_keep_list],
}  # fmt: skip


def examine_artifacts(
    artifacts: list[tuple[str, str, str]], real: str, only: list[Callable[[str, str], Any]]
) -> list[dict[str, Told]]:
    return [{use.__name__: measured(partial(use, path, real)) for use in only or USES[kind]}
            for kind, _, path in artifacts]  # fmt: skip


def test_every_foreign_artifact_is_read_or_refused_in_words_and_nothing_in_it_runs(corpus: Corpus) -> None:
    judge_artifacts(corpus, [])


@pytest.mark.slow
def test_every_foreign_run_is_reported_on_or_refused_in_words(corpus: Corpus) -> None:
    judge_artifacts(corpus, [report_run])


def judge_artifacts(corpus: Corpus, more: list[Callable[[str, str], Any]]) -> None:
    artifacts = [(kind, name, str(path)) for kind, name, path in corpus.artifacts if not more or kind == "run"]
    told = in_child(examine_artifacts, artifacts, str(corpus.real), more, limit=len(artifacts) * SECONDS)
    tally = Tally(Counter())
    for (kind, name, path), uses in zip(artifacts, told.result, strict=True):
        for use, one in uses.items():
            refused = one.get("refused", "")
            assert "internal" not in refused and "\n" not in refused
            count(tally, f"{kind} {name} ({use})", f"{use}: {'refused' if refused else 'read'}", one)
        if more:
            continue
        if kind == "model":
            assert "refused" in uses["use_model"], f"{name} was loaded: {uses}"
            assert name not in ("names-code", "names-os-system") or "UntrustedCodeError" in uses["use_model"]["refused"]
        if name.startswith(("optimizer", "model-")) and kind == "run":
            assert "refused" in uses["resume_run"], name
            assert uses["proved"]["gave"] or name == "model-other-tensors", name  # true tensors, of another model
        if name.startswith("labels"):
            assert set(uses["use_table"]["gave"]) == {"quarantined"}, name
        if name.startswith(("members", "samples", "rows", "ordinals", "segment", "files")):
            assert any("refused" in one for one in uses.values()), name
        assert Path(path).exists()
    assert not corpus.canary.exists()
    say(tally.says(f"foreign artifacts: {len(artifacts)}"))


def test_your_own_model_is_loaded_when_you_name_it_and_from_a_run_too(tmp_path: Path) -> None:
    make_shards(tmp_path, [60])
    shards, model, own = [str(tmp_path / "train-000.tar")], str(tmp_path / "model"), "tests.support.tiny:linear"
    rhostream.fit_il(shards, model, model=own, epochs=1)
    with pytest.raises(UntrustedCodeError, match=f"--model {own}"):
        compute_il(shards, model, str(tmp_path / "il"))
    with pytest.raises(UsageError, match=f"was made with --model {own}, not mlp-64"):
        compute_il(shards, model, str(tmp_path / "il"), model="mlp-64")
    assert compute_il(shards, model, str(tmp_path / "il"), model=own).ok == 60
    settings = {"buffer_size": 20, "batch_size": 4, "steps": 2, "model": own}
    rhostream.train(shards, str(tmp_path / "il"), str(tmp_path / "run"), **settings)
    with pytest.raises(UntrustedCodeError, match=f"--model {own}"):
        scoring_report(run=str(tmp_path / "run"), buffers=1, proxy_batches=0)
    with pytest.raises(UntrustedCodeError, match=f"--il-model {own}"):
        estimate(shards, model="mlp-64", il=str(tmp_path / "il"), seconds=1.0)
