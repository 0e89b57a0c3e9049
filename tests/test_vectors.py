"""Vectors of a table: what is written is read by ordinal, and what is damaged, shifted or foreign is never taken."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rhostream
from rhostream.audit.verify import verify
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import MismatchError, TableError, UnknownNameError, UsageError
from rhostream.il_model.bank import Bank, read_bank
from rhostream.irreducible.score import il_of_vectors
from rhostream.models.pairs import TwoTowers
from rhostream.repair import repair
from rhostream.selection.contrastive import CONTRASTIVE, Pairs, bank_terms, il_of
from rhostream.selection.selector import Selector
from rhostream.tables import il, parquet
from rhostream.tables.vectors import HEADER, SEAL, VectorsInfo, VectorsReader, checksums, decoded, proved, vectors_url
from rhostream.tables.vectors_writer import VectorsWriter
from tests.support.logs import rows_of
from tests.support.pair_tables import BIAS, COUNTS, SCALE, WIDTH, make_pairs, make_table, output_of
from tests.support.shards import png, write_shard
from tests.support.vectors import Towers


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/, and the tables float16/ and int8/ of them."""
    root = tmp_path_factory.mktemp("vectors")
    shards = make_pairs(root / "shards")
    for dtype in ("float16", "int8"):
        make_table(shards, root / dtype, dtype)
    return root


def first_part(table: Path) -> tuple[str, il.PartFacts]:
    url = il.part_urls(str(table))[0]
    return url, il.read_part_facts(url)


@given(st.integers(0, 40), st.integers(1, 9), st.sampled_from(["float16", "int8"]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_again_up_to_rounding(samples: int, width: int, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    output, there = output_of(samples, seed, width), rng.random(samples) < 0.8
    output[~there] = np.nan
    writer = VectorsWriter(fingerprint="f", shard="a/b.tar", shard_size=9, dtype=dtype)
    for some in np.array_split(np.arange(samples), 3):
        writer.add(output[some], there[some])
    info, data = writer.encode()
    assert proved(data, "it") == (info, data[-SEAL:].hex()) and VectorsInfo.parse(data[:HEADER], "it") == info
    rows = np.frombuffer(data[HEADER:-SEAL], info.row)
    assert info.stride == (4 + 4 * info.width if dtype == "float16" else 12 + 2 * info.width)
    ordinal = rng.permutation(samples)
    read = decoded(rows[ordinal], ordinal, info, "it")
    assert (np.isnan(read).all(1) == ~there[ordinal]).all()
    if there.any():
        there = there[ordinal]
        error = {"float16": 1e-3, "int8": 1e-2}[dtype]
        np.testing.assert_allclose(read[there], output[ordinal][there], atol=error)
        lengths = np.linalg.norm(read[there][:, :-2].reshape(-1, 2, width), axis=2)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)
        assert (read[there][:, -2:] == [SCALE, BIAS]).all()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_candidates_bring_the_vectors_of_their_own_pairs(made: Path, dtype: str) -> None:
    stream = rhostream.open_stream(
        str(made / "shards"), str(made / dtype), buffer_size=40, vectors=True, needs_il=False,
        image_size=16, tokenizer="bytes", text_length=12,
    )  # fmt: skip
    whole, seen = [output_of(count, seed) for seed, count in enumerate(COUNTS)], 0
    for buffer in stream:
        assert buffer.reference is not None and buffer.reference.dtype == torch.float32
        assert buffer.fields is not None and buffer.fields.names == ("pixels", "tokens")
        reached = buffer.reason == CANDIDATE
        expected = np.stack([whole[s][o] for s, o in zip(buffer.shard, buffer.ordinal, strict=True)])
        np.testing.assert_allclose(buffer.reference.numpy()[reached], expected[reached], atol=1e-2)
        assert np.isnan(buffer.reference.numpy()[~reached]).all()
        seen += int(reached.sum())
        kept = Selector(TwoTowers(Towers()), "jest", 8, loss="siglip")(buffer)
        assert kept.total == 8 and (kept.reason[kept.rows] == Reason.kept).all()
    assert seen in (119, 120)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_another_il_is_made_of_the_vectors_without_an_image(made: Path, tmp_path: Path, loss: str) -> None:
    shutil.copytree(made / "float16", tmp_path / "il")  # and no shard
    _, facts = first_part(tmp_path / "il")
    output = torch.from_numpy(output_of(COUNTS[0], 0))
    bank = Bank.of(output[5:20], [facts.shard] * 15, [*range(5, 20)])
    found = il_of_vectors(str(tmp_path / "il"), facts, bank, loss, 32, rows=7)
    place = torch.tensor([row - 5 if 5 <= row < 20 else -1 for row in range(COUNTS[0])])
    own, image, text = bank_terms(Pairs.of(output), bank.pairs(torch.device("cpu")), loss, place)
    there = np.arange(COUNTS[0]) != 3
    for name, right in {"il_own": own, "il_image": image, "il": il_of(own, image, text, 32, loss)}.items():
        assert np.isnan(found[name][3])
        np.testing.assert_allclose(found[name][there], right.numpy()[there], rtol=5e-3, atol=5e-3)


# -- what must not be taken ------------------------------------------------------------------------------------------


def resealed(data: bytes) -> bytes:
    return data[:-SEAL] + hashlib.sha256(data[:-SEAL]).digest()


def shifted(data: bytes, info: VectorsInfo) -> bytes:
    """Every row where the one before it should lie, and the last twice: a file of the right size and a right seal."""
    rows = data[HEADER:-SEAL]
    return resealed(data[:HEADER] + rows[info.stride :] + rows[-info.stride :] + data[-SEAL:])


def with_nan(data: bytes, info: VectorsInfo) -> bytes:
    """NaN in the first row, with a checksum and a seal that fit."""
    rows = np.frombuffer(data[HEADER:-SEAL], info.row).copy()
    rows["vectors"][0, 0, 0] = np.nan
    rows["crc"] = checksums(rows, range(len(rows)))
    return resealed(data[:HEADER] + rows.tobytes() + data[-SEAL:])


def of_another_making(data: bytes, info: VectorsInfo) -> bytes:
    return resealed(replace(info, fingerprint="0" * 16).header() + data[HEADER:])


def flipped(data: bytes, info: VectorsInfo) -> bytes:
    place = HEADER + 2 * info.stride + 9
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "cut in the middle": (lambda data, info: data[: len(data) // 2], "bytes"),
    "cut in its header": (lambda data, info: data[:100], "cut"),
    "longer by a row": (lambda data, info: data[:-SEAL] + b"\0" * info.stride + data[-SEAL:], "longer"),
    "shifted by a row": (shifted, "another checksum|isn't what its part"),
    "of another making": (of_another_making, "another making.*fingerprint"),
    "with NaN": (with_nan, "NaN|isn't what its part"),
    "with a bit that fell over": (flipped, "another checksum|sha256"),
    "something else": (lambda data, info: b"x" * len(data), "no file of vectors"),
    "of a newer version": (lambda data, info: resealed(replace(info, version=9).header() + data[HEADER:]), "newer"),
}


@pytest.mark.parametrize("named", [True, False], ids=["as the part names it", "behind the part's back"])
@pytest.mark.parametrize("how", DAMAGE)
def test_bad_vectors_are_found_by_who_reads_them_and_by_verify(
    made: Path, tmp_path: Path, how: str, named: bool
) -> None:
    """Also where somebody wrote the seal of the bad file into the part: rows prove themselves."""
    table = tmp_path / "il"
    shutil.copytree(made / "float16", table)
    url, facts = first_part(table)
    place = Path(vectors_url(str(table), facts.shard))
    damage, says = DAMAGE[how]
    data = damage(place.read_bytes(), VectorsInfo.parse(place.read_bytes()[:HEADER], ""))
    place.write_bytes(data)
    if named:
        rows, _ = parquet.read(url)
        facts = replace(facts, vectors=data[-SEAL:].hex())
        Path(url).write_bytes(il.encode_part(rows.replace_schema_metadata(None), facts))
    with pytest.raises(TableError, match=says), VectorsReader(str(table), facts) as reader:
        reader.read(np.arange(facts.samples))
    found = verify(str(table))
    assert len(found["problems"]) == 1 and facts.shard.rpartition("/")[2] in found["problems"][0]


def test_verify_holds_vectors_against_their_part(made: Path, tmp_path: Path) -> None:
    assert not verify(str(made / "float16"))["problems"] and not verify(str(made / "int8"))["problems"]
    table = tmp_path / "il"
    shutil.copytree(made / "float16", table)
    url, facts = first_part(table)
    place = Path(vectors_url(str(table), facts.shard))
    place.unlink()
    assert "gone" in verify(str(table))["problems"][0]
    writer = VectorsWriter(fingerprint=facts.fingerprint, shard=facts.shard, shard_size=facts.shard_size)
    writer.add(output_of(facts.samples, 0), np.ones(facts.samples, bool))  # one of them has no il
    rows, _ = parquet.read(url)
    facts = replace(facts, vectors=writer.commit(str(table)))
    Path(url).write_bytes(il.encode_part(rows.replace_schema_metadata(None), facts))
    assert "vectors and no il" in verify(str(table))["problems"][0]


def test_a_table_without_vectors_or_a_rule_without_them_is_told_what_is_missing(made: Path, tmp_path: Path) -> None:
    rhostream.index([str(made / "shards")], str(tmp_path / "il"), content="pair")
    with pytest.raises(UsageError, match=r"no vectors.*--vectors"):
        rhostream.open_stream(
            str(made / "shards"), str(tmp_path / "il"), buffer_size=40, vectors=True, needs_il=False, image_size=16,
            tokenizer="bytes", text_length=12,
        )  # fmt: skip
    url, facts = first_part(tmp_path / "il")
    assert "vectors" not in parquet.read_facts(url)  # as parts were before there were any
    with pytest.raises(TableError, match="no vectors"):
        VectorsReader(str(tmp_path / "il"), facts)


def test_a_writer_refuses_nan_other_lengths_and_several_networks_before_anything_is_written(tmp_path: Path) -> None:
    def writer() -> VectorsWriter:
        return VectorsWriter(fingerprint="f", shard="a.tar", shard_size=9)

    there = np.ones(4, bool)
    for value in (np.nan, 3.0):
        output = output_of(4, 0)
        output[2, 1] = value
        with pytest.raises(TableError, match="sample 2"):
            writer().add(output, there)
    several = writer()
    several.add(output_of(4, 0), there)
    other = output_of(4, 0)
    other[:, -2] += 1
    with pytest.raises(MismatchError, match="cross-fit"):
        several.add(other, there)
    with pytest.raises(UnknownNameError, match="float16"):
        VectorsWriter(fingerprint="f", shard="a.tar", shard_size=9, dtype="float8")
    several.commit(str(tmp_path))
    again = writer()
    again.add(output_of(4, 0), there)
    assert again.commit(str(tmp_path)) == several.encode()[1][-SEAL:].hex()  # of a job that died before its part
    stranger = VectorsWriter(fingerprint="g", shard="a.tar", shard_size=9)
    stranger.add(output_of(4, 0), there)
    with pytest.raises(MismatchError, match="another making"):
        stranger.commit(str(tmp_path))
    assert asdict(several.encode()[0])["width"] == WIDTH


# -- from shards to a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def referenced(made: Path) -> Path:
    """The shards, and one of which no caption can be used, scored by a reference that keeps what it saw: il/."""
    pixels = png(np.zeros((16, 16, 3), np.uint8))
    bad = [{"__key__": f"bad{n}", "png": pixels, "txt": ""} for n in range(5)]
    write_shard(made / "all" / "bad.tar", bad)
    for shard in (made / "shards").iterdir():
        shutil.copy2(shard, made / "all")
    rhostream.compute_il(
        [str(made / "all")], out=str(made / "il"), reference="tests.support.vectors:towers", content="pair",
        loss="siglip", batch_size=16, vectors="int8", image_size=16, tokenizer="bytes", text_length=12,
        max_bad_fraction=0.2,
    )  # fmt: skip
    return made


def test_what_compute_il_keeps_gives_its_own_il_again_and_is_proved_and_repaired(
    referenced: Path, tmp_path: Path
) -> None:
    table = tmp_path / "il"
    shutil.copytree(referenced / "il", table)
    assert verify(str(table))["problems"] == []
    info, urls = il.open_info(str(table)), il.part_urls(str(table))
    bank = read_bank(str(table), next(p.name for p in table.glob("*.safetensors")), info.bank["sha256"][0])
    for url in urls:
        facts, rows = il.read_part_facts(url), parquet.read(url)[0]
        made = il_of_vectors(str(table), facts, bank, "siglip", 16)
        stored = np.array([np.nan if v is None else v for v in rows["il"].to_pylist()], np.float32)
        np.testing.assert_allclose(made["il"], stored, rtol=0.02, atol=0.02)
    before = {place: place.read_bytes() for place in table.rglob("*.bin")}
    assert len(before) == 4
    facts = il.read_part_facts(urls[1])
    place = Path(vectors_url(str(table), facts.shard))
    place.write_bytes(before[place][:-1])
    assert len(verify(str(table))["problems"]) == 1
    found = repair(str(table), reference="tests.support.vectors:towers", max_bad_fraction=0.2)
    assert found["repaired"] == [facts.shard] and found["problems"] == []
    assert {place: place.read_bytes() for place in table.rglob("*.bin")} == before


def test_a_run_chooses_pairs_together_by_the_vectors_of_its_table(referenced: Path, tmp_path: Path) -> None:
    settings = {"model": "pair-small", "loss": "siglip", "buffer_size": 40, "batch_size": 8, "threads": 1}
    place = [str(referenced / "all")], str(referenced / "il")
    for rule, more in (("jest", {"joint_chunks": 4}), ("column", {"column": "similarity"})):
        rhostream.train(*place, str(tmp_path / rule), rule=rule, steps=3, **settings, **more)
        rows = [row for row in rows_of(tmp_path / rule).to_pylist() if row["step"] is not None]
        assert sum(row["kept"] for row in rows) == 24 and verify(str(tmp_path / rule))["problems"] == []
        assert all(row["score"] is not None for row in rows if row["kept"])
