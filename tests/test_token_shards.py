"""Token shards as pretraining has them: flat files of ids are read where they lie, as a tar of them would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream import models
from rhostream.audit.report import write_report
from rhostream.audit.verify import verify
from rhostream.errors import BudgetError, MismatchError, ShardError, StaleShardError, UsageError
from rhostream.repair import repair
from rhostream.samples.flat import BadLayout, Flat
from rhostream.samples.tokens import TokensKind
from rhostream.tables import il
from tests.support import own_references
from tests.support.shards import write_shard
from tests.support.text_world import npy

N, T = 40, 8  # ids, and those of a sample
IDS = {"tokenizer": f"ids:{N}", "text_length": T}
REFERENCE = {"reference": "tests.support.own_references:of_language", "task": "language", "device": "cpu", **IDS}
TRAIN: dict[str, Any] = {"model": "text-lm", "buffer_size": 12, "batch_size": 4, "device": "cpu", "threads": 1}


def stream_of(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, N, n)


def llm_c(ids: np.ndarray[Any, Any]) -> bytes:
    return np.array([20240520, 1, len(ids), *[0] * 253], "<i4").tobytes() + ids.astype("<u2").tobytes()


FORMS = {
    "raw.bin": lambda ids: ids.astype("<u2").tobytes(),
    "wide.bin": lambda ids: ids.astype("<u4").tobytes(),
    "widest.bin": lambda ids: ids.astype("<i8").tobytes(),
    "llm_c.bin": llm_c,
    "olmo.npy": lambda ids: ids.astype("<u2").tobytes(),
    "numpy.npy": lambda ids: npy(ids.astype("<u2")),
    "signed.npy": lambda ids: npy(ids.astype("<i4")),
    "packed.npy": lambda ids: npy(ids[: len(ids) // T * T].reshape(-1, T).astype("<i8")),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flat/ with the same 40 samples and 5 ids in every form, tars/ with them as members, il-flat/ and il-tars/."""
    root = tmp_path_factory.mktemp("tokens")
    (root / "flat").mkdir()
    for number, (name, form) in enumerate(FORMS.items()):
        ids = stream_of(40 * T + 5, number)
        (root / "flat" / name).write_bytes(form(ids))
        rows = [{"__key__": f"k{n}", "npy": npy(row)} for n, row in enumerate(ids[: 40 * T].reshape(-1, T))]
        write_shard(root / "tars" / f"{name}.tar", rows)
    for folder, pattern in (("flat", "flat/*"), ("tars", "tars/*.tar")):
        rhostream.compute_il(str(root / pattern), out=str(root / f"il-{folder}"), **REFERENCE)
    return root


def part(table: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(next(table.rglob(f"{name}*.parquet"))).to_pylist()


@pytest.mark.parametrize("name", FORMS)
def test_a_flat_file_has_the_rows_that_a_tar_of_its_samples_has(world: Path, name: str) -> None:
    flat, tar = part(world / "il-flat", name), part(world / "il-tars", name)
    assert len(flat) == len(tar) == 40 and {row["status"] for row in flat} == {"ok"}
    for one, other in zip(flat, tar, strict=True):
        assert one["il_tokens"] == other["il_tokens"] and one["il"] == other["il"]
    assert [row["key"] for row in flat] == [f"{Path(name).stem}:{n}" for n in range(40)]
    facts = il.read_part_facts(str(next((world / "il-flat").rglob(f"{name}.parquet"))))
    rest = int(name != "packed.npy")
    assert (facts.members_seen, facts.members_ignored, facts.samples) == (40 + rest, rest, 40)
    assert verify(str(world / "il-flat"), shards=str(world / "flat/*"))["problems"] == []


def test_a_stream_reads_each_sample_by_its_offset_exactly_once_and_resumes(world: Path) -> None:
    ids = {name: stream_of(40 * T + 5, n)[: 40 * T].reshape(-1, T) for n, name in enumerate(FORMS)}
    how = {"buffer_size": 16, "il_tokens": True}
    loader = rhostream.open_stream(str(world / "flat/*"), str(world / "il-flat"), **how)
    seen, state, names = set(), None, loader.stream.table.names
    for number, candidates in enumerate(loader):
        for row, (shard, ordinal) in enumerate(zip(candidates.shard, candidates.ordinal, strict=True)):
            name = Path(names[shard]).name
            assert candidates.image[row].tolist() == ids[name][ordinal].tolist()
            seen.add((name, int(ordinal)))
        if number == 9:
            state, late = loader.state_dict(), []
        elif number > 9:
            late.append(candidates.key.to_pylist())
    assert len(seen) == 40 * len(FORMS)
    again = rhostream.open_stream(str(world / "flat/*"), str(world / "il-flat"), **how)
    again.load_state_dict(state)
    assert [candidates.key.to_pylist() for candidates in again] == late


@given(
    st.integers(0, 400),
    st.integers(1, 30),
    st.sampled_from(["<u2", "<u4", "<i8", "numpy", "llm.c"]),
    st.integers(2, 70_000),
)
def test_a_layout_takes_every_id_once_and_says_the_rest(n: int, length: int, form: str, ids: int) -> None:
    values = np.random.default_rng(n).integers(1, ids, n)
    if form == "numpy":
        data = npy(values)
    elif form == "llm.c":
        data, ids = llm_c(values % (1 << 16)), min(ids, 1 << 16)
    else:
        values = values if form != "<u2" else values % (1 << 16)
        data = values.astype(form).tobytes()
    least = 2 if ids <= 1 << 16 else 4
    if not data:
        with pytest.raises(BadLayout, match="is empty"):
            Flat(length, ids).layout(data, 0)
        return
    if form.startswith("<") and (n < 64 or np.dtype(form).itemsize < least) and np.dtype(form).itemsize != least:
        return  # too few to tell, or no such file
    layout = Flat(length, ids).layout(data[: 64 << 10], len(data))
    assert layout.samples * length + layout.rest == n and layout.rest < length
    found = np.frombuffer(data, f"<u{layout.width}", n, layout.start)
    assert np.array_equal(found, values if form != "llm.c" else values % (1 << 16))


BAD = {
    "odd.bin": (b"\1\0\2\0\3", "5 bytes, no whole number of ids of 2"),
    "empty.bin": (b"", "is empty"),
    "cut.npy": (npy(np.arange(20, dtype="<u2"))[:-2], "its header says 20 ids of 2 bytes"),
    "grown.npy": (npy(np.arange(20, dtype="<u2")) + b"\0\0", "or has grown"),
    "lying.bin": (llm_c(np.arange(20))[:-4], "its header says 20 ids"),
    "version.bin": (np.array([20240520, 9, 4, *[0] * 300], "<i4").tobytes(), "of version 9, expected 1"),
    "other_way_round.npy": (npy(np.arange(20, dtype=">u2")), "big-endian ids"),
    "floats.npy": (npy(np.arange(20.0)), "no plain array of integers"),
    "objects.npy": (npy(np.array([1, None], dtype=object)), "never opened"),
    "fortran.npy": (npy(np.asfortranarray(np.zeros((4, T), "<u2"))), "no plain array of integers"),
    "wider.npy": (npy(np.zeros((4, T + 1), "<u2")), rf"\(4, {T + 1}\), and a sample is {T} ids"),
    "index.bin": (b"MMIDIDX\0\0" + bytes(99), "the index of a Megatron dataset"),
    "hellaswag.bin": (np.array([20240522, 1, 4, *[0] * 300], "<i4").tobytes(), "an evaluation file of llm.c's"),
    "zipped.npy": (b"\x1f\x8b\x08\0" + bytes(100), "gzip-compressed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_holds_no_ids_is_a_bad_shard_that_is_named(name: str, tmp_path: Path) -> None:
    data, says = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ShardError, match=f"{name} .*{says}"):
        rhostream.compute_il(str(tmp_path / name), out=str(tmp_path / "il"), fail_fast=True, **REFERENCE)
    assert not list(tmp_path.rglob("*.parquet"))


def test_ids_beyond_the_vocabulary_are_rows_with_a_status_and_too_many_stop_the_job(tmp_path: Path) -> None:
    ids = stream_of(30 * T).astype("<i4")
    ids[5 * T + 2], ids[9 * T] = N, -1
    (tmp_path / "a.npy").write_bytes(npy(ids))
    summary = rhostream.compute_il(str(tmp_path / "a.npy"), out=str(tmp_path / "il"), max_bad_fraction=0.1, **REFERENCE)
    assert summary.quarantined == {"tokens:range": 2}
    assert [n for n, row in enumerate(part(tmp_path / "il", "a")) if row["status"] == "tokens:range"] == [5, 9]
    (tmp_path / "b.bin").write_bytes(stream_of(30 * T).astype("<u2").tobytes())
    with pytest.raises(BudgetError, match="tokens:range"):  # of a file of ids of another width than is expected
        rhostream.compute_il(
            str(tmp_path / "b.bin"), out=str(tmp_path / "il-b"), **{**REFERENCE, "tokenizer": "ids:70000"}
        )


def test_a_file_that_is_shorter_than_a_sample_has_a_part_without_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(stream_of(T - 1).astype("<u2").tobytes())
    with pytest.warns(UserWarning, match="holds no sample"):
        rhostream.compute_il(str(tmp_path / "a.bin"), out=str(tmp_path / "il"), **REFERENCE)
    assert part(tmp_path / "il", "a") == []


def test_a_file_that_grew_is_stale_and_repaired_by_its_shard_alone(world: Path, tmp_path: Path) -> None:
    shards, table = tmp_path / "flat", str(tmp_path / "il")
    shards.mkdir()
    for name in ("raw.bin", "wide.bin"):
        (shards / name).write_bytes((world / "flat" / name).read_bytes())
    rhostream.compute_il(str(shards / "*.bin"), out=table, **REFERENCE)
    before = {path.name: path.read_bytes() for path in Path(table).rglob("*.parquet")}
    with open(shards / "raw.bin", "ab") as file:
        file.write(stream_of(T, 3).astype("<u2").tobytes())
    with pytest.raises(StaleShardError, match=r"raw\.bin"):
        list(rhostream.open_stream(str(shards / "*.bin"), table, buffer_size=16))
    assert any("raw.bin" in problem for problem in verify(table, shards=str(shards / "*.bin"))["problems"])
    repair(table, shards=str(shards / "*.bin"), reference=REFERENCE["reference"])
    after = {path.name: path.read_bytes() for path in Path(table).rglob("*.parquet")}
    assert after["wide.bin.parquet"] == before["wide.bin.parquet"] and len(part(Path(table), "raw")) == 41


def test_packed_documents_have_no_il_of_a_first_token_from_the_table_to_the_run(world: Path, tmp_path: Path) -> None:
    end, table = 3, str(tmp_path / "il")
    rhostream.compute_il(str(world / "flat/*"), out=table, end_of_text=end, **REFERENCE)
    ids = stream_of(40 * T + 5, 0)[: 40 * T].reshape(-1, T)
    packed, plain = part(Path(table), "raw.bin"), part(world / "il-flat", "raw.bin")
    first = 0
    for row, one, other in zip(ids.tolist(), packed, plain, strict=True):
        # the list ends with the last token that counts
        counts = [t == 0 or row[t - 1] != end for t in range(T)]
        expected = [il if count else None for il, count in zip(other["il_tokens"], counts, strict=True)]
        while expected[-1] is None:
            expected.pop()
        first += counts.count(False)
        assert one["il_tokens"] == expected
        assert one["il"] == pytest.approx(np.mean([il for il in expected if il is not None]), rel=2e-3)
    assert first > 4 and verify(table)["problems"] == []
    with rhostream.open_ledger(table) as ledger:
        off = ledger.sql("select max(abs(il - list_avg(il_tokens))) as off from il")["off"][0].as_py()
    assert off < 0.01
    loader = rhostream.open_stream(str(world / "flat/*"), table, buffer_size=16, il_tokens=True)
    kind = loader.stream.preprocess
    model = models.of_task(own_references.of_language(vocabulary=N + 1, length=T, padding=N), kind.model_arguments())
    for candidates in loader:
        with torch.no_grad():
            loss = model(candidates.input)
        assert torch.allclose(loss, candidates.il_tokens.float(), rtol=2e-3, atol=1e-3, equal_nan=True)
        assert torch.equal(torch.isnan(loss[:, 1:]), candidates.image[:, :-1] == end)
    with pytest.raises(MismatchError, match="preprocess"):
        rhostream.compute_il(str(world / "flat/*"), out=table, **{**REFERENCE, "end_of_text": 4})
    for value, says in ((N, f"below {N}"), (-1, f"below {N}")):
        with pytest.raises(UsageError, match=f"--end-of-text {value}: expected an id {says}"):
            rhostream.compute_il(str(world / "flat/*"), out=str(tmp_path / "x"), end_of_text=value, **REFERENCE)


@pytest.mark.slow
def test_a_fit_a_table_and_a_run_on_flat_files_alone(world: Path, tmp_path: Path) -> None:
    shards, held = str(world / "flat/*"), tmp_path / "held.bin"
    held.write_bytes(stream_of(100 * T, 99).astype("<u2").tobytes())
    roots = {"d": str(world), "held": str(tmp_path)}  # draws go by names
    rhostream.fit_il(
        shards,
        str(tmp_path / "m"),
        end_of_text=0,
        model="text-lm",
        holdout=str(held),
        epochs=1,
        device="cpu",
        roots=roots,
        **IDS,
    )
    rhostream.compute_il(shards, str(tmp_path / "m"), str(tmp_path / "il"), roots=roots, device="cpu")
    keys = []
    for name, stops in (("whole", (12,)), ("stopped", (5, 12))):
        for steps in stops:
            done = rhostream.train(
                shards, str(tmp_path / "il"), str(tmp_path / name), steps=steps, token_share=0.5,
                test_shards=str(held), **TRAIN,
            )  # fmt: skip
        with rhostream.open_ledger(str(tmp_path / name)) as ledger:
            rows = ledger.sql(
                "select step, key, ordinal, loss, il, kept from selections where step is not null order by all"
            )
            keys.append(rows.to_pylist())
        assert verify(str(tmp_path / name))["problems"] == []
    assert keys[0] == keys[1] and done.steps == 12
    page = Path(write_report(str(tmp_path / "whole"), str(tmp_path / "page.html"))).read_text()
    shown = " ".join(map(str, stream_of(40 * T + 5, 0).tolist()))
    quotes = [text.partition(" …")[0] for text in page.split("<blockquote>")[1:]]
    assert any(quote in shown for quote in quotes) and "no picture" not in page


def test_what_flat_files_cannot_be_is_said(world: Path, tmp_path: Path) -> None:
    flat, tar, out = str(world / "flat/raw.bin"), str(world / "tars/raw.bin.tar"), str(tmp_path / "il")
    for options, says in (
        ({"shards": [flat, tar]}, "not in both"),
        ({"task": "label"}, "which has no labels"),
        ({"tokenizer": "bytes"}, "hold none that can be used"),
        ({"tokenizer": None}, "is not a tar.*--tokenizer ids:N"),
    ):
        with pytest.raises((UsageError, ShardError), match=says):
            rhostream.compute_il(**{"shards": flat, "out": out, "fail_fast": True, **REFERENCE, **options})
    with pytest.raises(ShardError, match="cut from flat files of ids here"):
        rhostream.compute_il(tar, out=str(world / "il-flat"), reference=REFERENCE["reference"], fail_fast=True)
    with pytest.raises(UsageError, match=f"sequences of {T} ids"):
        rhostream.open_stream(str(world / "flat/*"), str(world / "il-flat"), buffer_size=16, text_length=4)
    with pytest.raises(MismatchError, match="preprocess"):
        rhostream.compute_il(flat, out=str(world / "il-flat"), **{**REFERENCE, "text_length": 2 * T})
    with pytest.raises(ValueError, match="stride is 3"):
        TokensKind.check({**TokensKind.of_tokenizer(f"ids:{N}", T, "language").to_json(), "stride": 3})
