"""The stream: exactly once, the same for any workers, resumable, and honest about what can't be read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rhostream
from rhostream import storage
from rhostream.audit.verify import verify
from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.errors import MismatchError, MissingPartError, TableError, UsageError
from rhostream.stream.uniform_choice import UniformChoice
from rhostream.tables import il, parquet
from tests.support.shards import make_shards
from tests.support.streams import content, open_world


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """The world under a place of its own, for damage; the table is found again by --root-like names."""
    shutil.copytree(world, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_sample_comes_exactly_once_a_pass(world: Path) -> None:
    loader = open_world(world, passes=2)
    for pass_index in range(2):
        seen = []
        for candidates in loader:
            seen += list(zip(candidates.shard.tolist(), candidates.ordinal.tolist(), strict=True))
            if candidates.index + 1 == loader.stream.buffers_per_pass:
                break
        loader.consumed()
        tail = loader.stream.tail(pass_index)
        assert (tail.reason == Reason.tail).all()
        seen += list(zip(tail.shard.tolist(), tail.ordinal.tolist(), strict=True))
        counts = loader.stream.table.counts
        assert sorted(seen) == [(s, o) for s, n in enumerate(counts.tolist()) for o in range(n)]


def test_a_shard_that_gave_the_tail_alone_must_be_unchanged_too(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", [30, 30, 1])
    rhostream.index([str(tmp_path / "shards")], str(tmp_path / "il"))

    def tail_of(seed: int) -> Candidates:
        return rhostream.open_stream(
            str(tmp_path / "shards"), str(tmp_path / "il"), buffer_size=40, lanes=4, needs_il=False, seed=seed
        ).stream.tail(0)

    seed = next(seed for seed in range(100) if 2 in tail_of(seed).shard)
    (other,) = make_shards(tmp_path / "other", [9], seed=1)
    other.replace(shards[2])
    with pytest.raises(MismatchError, match=f"{shards[2].name} has .* bytes, it had"):
        tail_of(seed)


def test_workers_change_nothing_and_resume_with_another_number_goes_on_exactly(world: Path) -> None:
    expected = [content(c) for c in open_world(world, passes=1, seed=5)]
    assert len(expected) == 25
    for workers in (1, 2):
        assert [content(c) for c in open_world(world, passes=1, seed=5, workers=workers)] == expected
    position, found = {"pass": 0, "buffer": 0}, []
    for workers, take in ((2, 7), (0, 9), (1, 99)):
        loader = open_world(world, passes=1, seed=5, workers=workers)
        loader.load_state_dict(position)
        for number, candidates in enumerate(loader, 1):
            found.append(content(candidates))
            if number == take:
                loader.consumed()
                break
        position = loader.state_dict()
    assert found == expected


def test_rows_carry_what_the_shard_holds(world: Path) -> None:
    loader = open_world(world)
    candidates = next(iter(loader))
    name = loader.stream.table.names
    for row in range(0, 40, 7):
        part = il.read_part(il.part_url(str(world / "il"), name[candidates.shard[row]]))
        ordinal = int(candidates.ordinal[row])
        assert part.key[ordinal].as_py() == candidates.key[row].as_py()
        assert part.label[ordinal] == candidates.label[row] and part.il[ordinal] == candidates.il[row]
    bright = candidates.image.float().reshape(40, 2, 8, 2, 8).mean((2, 4)).flatten(1).argmax(1)
    assert (bright == candidates.label).float().mean() > 0.6  # labels belong to their images (a fifth is noisy)
    assert candidates.input.shape == (40, 1, 16, 16) and candidates.input.abs().max() <= 1


def test_a_shard_without_a_part_stops_before_any_work_or_is_left_out_and_counted(world: Path, copy: Path) -> None:
    extra = make_shards(copy / "more", [50])[0]
    shards = [str(world / "shards"), str(extra)]
    with pytest.raises(MissingPartError, match=r"no part for 1 of 8 shards.*train-000.*compute-il"):
        rhostream.open_stream(shards, str(world / "il"), buffer_size=40)
    with pytest.warns(UserWarning, match="left out"):
        loader = rhostream.open_stream(shards, str(world / "il"), buffer_size=40, missing_il="skip")
    assert loader.stream.table.counts.sum() == 1003 and len(loader.stream.table.missing) == 1


def table_of(copy: Path) -> list[Path]:
    return sorted((copy / "il" / "parts").rglob("*.parquet"))


def test_a_flipped_bit_in_a_part_is_found_or_changed_nothing(world: Path, copy: Path) -> None:
    rng, found = np.random.default_rng(0), 0
    expected = [content(c) for c in open_world(world)]
    for part in table_of(copy)[:4]:
        whole, untouched = part.read_bytes(), parquet.read(str(part))[0]
        for at in rng.integers(4, len(whole) - 8, 10).tolist():
            damaged = bytearray(whole)
            damaged[at] ^= 0x40
            part.write_bytes(damaged)
            if verify(str(copy / "il"))["problems"]:
                found += 1
            else:  # Parquet's own metadata has no checksum; what isn't found there must have changed nothing
                assert parquet.read(str(part))[0].equals(untouched)
            try:
                with_damage = [content(c) for c in open_world(world, il=str(copy / "il"))]
            except (TableError, MismatchError, UsageError):
                continue
            assert with_damage == expected  # the flip was in a column that the join doesn't read
        part.write_bytes(whole)
    assert found > 0


def test_a_part_of_another_model_is_refused(world: Path, copy: Path) -> None:
    shards, roots = [str(world / "shards")], {"world": str(world)}
    rhostream.fit_il(shards, str(copy / "other"), model="mlp-64", epochs=1, seed=9, roots=roots)
    rhostream.compute_il(shards, str(copy / "other"), str(copy / "il2"), roots=roots)
    target = table_of(copy)[0]
    target.write_bytes((copy / "il2" / target.relative_to(copy / "il")).read_bytes())
    with pytest.raises(MismatchError, match="fingerprint"):
        rhostream.open_stream(str(world / "shards"), str(copy / "il"), buffer_size=40)
    with pytest.raises(MismatchError, match="weights"):
        rhostream.compute_il(
            [str(world / "shards")],
            str(copy / "other"),
            str(world / "il"),
            keep={"is_noisy": "bool", "true_label": "int"},
        )


def test_a_changed_shard_is_an_error_and_a_copy_only_a_warning(world: Path, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", [60, 60])
    rhostream.index([str(tmp_path / "shards")], str(tmp_path / "index"))

    def run() -> int:
        loader = rhostream.open_stream(
            str(tmp_path / "shards"), str(tmp_path / "index"), buffer_size=20, needs_il=False
        )
        return sum((c.reason == CANDIDATE).sum() for c in loader)

    assert run() == 120
    data = shards[0].read_bytes()
    shards[0].write_bytes(data)  # a new mtime
    with pytest.warns(UserWarning, match="taken for a copy"):
        assert run() == 120
    shards[0].write_bytes(data + bytes(512))
    with pytest.raises(MismatchError, match="when it was indexed"):
        run()
    make_shards(tmp_path / "other", [60], seed=4)[0].rename(shards[0])
    if shards[0].stat().st_size == len(data):
        with pytest.raises(MismatchError, match="changed after"):
            run()


def test_an_image_that_broke_after_indexing_is_unreadable_and_counted(world: Path, tmp_path: Path) -> None:
    shard = make_shards(tmp_path / "shards", [40])[0]
    rhostream.index([str(shard)], str(tmp_path / "index"))
    before, data = shard.stat(), bytearray(shard.read_bytes())
    at = data.index(b"\x89PNG")
    data[at : at + 8] = b"<html>!!"
    shard.write_bytes(data)
    import os

    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    loader = rhostream.open_stream(str(shard), str(tmp_path / "index"), buffer_size=40, needs_il=False)
    candidates = next(iter(loader))
    assert (candidates.reason == Reason.unreadable).sum() == 1 and (candidates.reason == CANDIDATE).sum() == 39


def test_uniform_is_drawn_before_decoding(world: Path) -> None:
    candidates = next(iter(open_world(world, prefilter=UniformChoice(8, 0), needs_il=False)))
    assert (candidates.reason == CANDIDATE).sum() == 8 and (candidates.reason == Reason.below).sum() == 32


def test_slices_of_ranks_make_up_the_buffer(world: Path) -> None:
    whole = next(iter(open_world(world)))
    parts = [next(iter(open_world(world, rank=r, ranks=2))) for r in range(2)]
    assert whole.key.to_pylist() == [k for p in parts for k in p.key.to_pylist()]


def test_kept_rows_outlive_their_slot(world: Path) -> None:
    loader = open_world(world)
    stream = iter(loader)
    first = next(stream)
    taken, before = first.take(np.arange(5)), first.image[:5].clone()
    for _ in range(6):
        next(stream)
    assert torch.equal(taken.image, before)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("pipe:cat x", "shell"),
        ("ftp://x/y.tar", "not allowed"),
        ("a.tar::b.tar", "two meanings"),
        ("/nowhere/*.tar", "no file matches"),
    ],
)
def test_urls_that_can_not_be_are_refused(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        storage.expand([url])


def test_secrets_in_urls_are_not_shown() -> None:
    assert storage.redact("https://user:pw@host/a.tar?X-Amz-Signature=abc") == "https://host/a.tar"


def test_a_commit_is_whole_or_nothing_and_never_twice(tmp_path: Path) -> None:
    for url in (str(tmp_path / "deep" / "x"), "memory://bucket/x"):
        storage.create(url, b"one")
        with pytest.raises(rhostream.errors.AlreadyExistsError):
            storage.create(url, b"two")
        assert storage.read_bytes(url) == b"one"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x"]


NO_GUARD = """
import sys, rhostream
shards, table, out = sys.argv[1:]
{}
"""


@pytest.mark.parametrize(
    "job",
    [
        "print(sum(map(len, rhostream.open_stream(shards, table, buffer_size=40, workers=1))))",
        pytest.param(
            "rhostream.index([shards], out, workers=1, content='image', resize='crop')", marks=pytest.mark.slow
        ),
    ],
)
def test_a_script_that_starts_workers_without_a_guard_is_told_what_it_lacks(
    world: Path, tmp_path: Path, job: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(NO_GUARD.format(job))
    command = [sys.executable, str(script), str(world / "shards"), str(world / "il"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.count("Traceback") == 1
    assert "UsageError: workers import the script that starts them" in ended.stderr and "__main__" in ended.stderr
    assert "memory" not in ended.stderr


def test_a_shard_that_is_not_there_is_called_so_and_not_one_without_a_part(world: Path, tmp_path: Path) -> None:
    there, absent = str(sorted((world / "shards").iterdir())[0]), str(world / "shards" / "gone.tar")
    with pytest.raises(MissingPartError, match=r"no such shard: .*gone\.tar"):
        rhostream.train([there, absent], str(world / "il"), str(tmp_path / "run"), model="mlp-64")
    with pytest.raises(MissingPartError, match=r"no such shard: .*gone\.tar"):  # which can do without the part only
        rhostream.open_stream([there, absent], str(world / "il"), missing_il="skip")
    found = verify(str(world / "il"), shards=[there, absent])
    assert any("no such shard" in problem and "gone.tar" in problem for problem in found["problems"])
    (other,) = make_shards(tmp_path / "other", [5])
    with pytest.raises(MissingPartError, match="has no part for 1 of 2 shards"):
        rhostream.open_stream([there, str(other)], str(world / "il"))
