"""What D is, is chosen from a look at a sample of it, said, and the same for the same D; never by its first sample."""

from __future__ import annotations

import io
import json
import logging
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rhostream
from rhostream import storage
from rhostream.advisor.samples import draw, preprocess_for
from rhostream.cli import cli
from rhostream.errors import BudgetError, UsageError
from rhostream.samples.image import ImageKind
from rhostream.samples.image_size import MOST_PIXELS, choose
from rhostream.stream.look import look
from rhostream.stream.open import open_stream, preprocess_of
from rhostream.tables import il
from tests.faults.hostile_tars import Members, tar_of

FIT = {"model": "mlp-64", "epochs": 1, "classes": 2}


def picture(size: int, mode: str = "RGB", form: str = "PNG") -> bytes:
    """Noise."""
    pixels = np.random.default_rng(size).integers(0, 255, (size, size, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(sink, form)
    return sink.getvalue()


def shard(path: Path, members: Members) -> str:
    path.write_bytes(tar_of(members))
    return str(path)


def labelled(images: list[bytes], start: int = 0) -> Members:
    return [
        (f"{start + i:04d}.{e}", d)
        for i, image in enumerate(images)
        for e, d in (("png", image), ("cls", b"%d" % (i % 2)))
    ]


def fitted(tmp_path: Path, shards: str, **options: object) -> dict[str, object]:
    info = rhostream.fit_il([shards], str(tmp_path / "model"), **{**FIT, **options})
    return info.preprocess


@pytest.mark.parametrize(
    "first",
    [
        picture(20, "L"),
        picture(20, "L", "JPEG"),
        picture(20, "LA"),
        picture(20, "1"),
        picture(20, "I;16"),
        b"<html>",
        b"",
    ],
)
def test_a_small_grey_or_broken_first_image_decides_nothing(
    first: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shard(tmp_path / "a.tar", labelled([first] + [picture(48)] * 30))
    with caplog.at_level(logging.INFO, "rhostream"):
        known = fitted(tmp_path, path)
    assert (known["image_size"], known["channels"]) == (48, 3)
    assert "images: 48 px (median of the shorter sides of" in caplog.text and "RGB" in caplog.text


def test_one_coloured_image_makes_all_of_D_coloured_and_none_grey(tmp_path: Path) -> None:
    grey, mixed = [picture(16, "L")] * 20, [picture(16, "L")] * 19 + [picture(16)]
    assert fitted(tmp_path, shard(tmp_path / "a.tar", labelled(grey)))["channels"] == 1
    (tmp_path / "other").mkdir()
    assert fitted(tmp_path / "other", shard(tmp_path / "b.tar", labelled(mixed)))["channels"] == 3


def test_an_index_and_the_run_on_it_see_the_size_of_most_images_too(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", labelled([picture(20, "L")] + [picture(48)] * 30))
    rhostream.index([path], str(tmp_path / "index"))
    table = il.open_table(str(tmp_path / "index"), [path])
    assert preprocess_of(table) == ImageKind(image_size=48, channels=3)
    assert preprocess_of(table, 24, 1) == ImageKind(image_size=24, channels=1)
    found = preprocess_for(draw([path], 31, table), table, None)
    assert isinstance(found, ImageKind) and (found.image_size, found.channels) == (48, 3)


def test_a_run_that_goes_on_keeps_the_size_that_it_began_with(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", labelled([picture(20)] + [picture(32)] * 39))
    rhostream.index([path], str(tmp_path / "index"))
    how = {"rule": "uniform", "model": "mlp-64", "buffer_size": 10, "batch_size": 5, "classes": 2}
    run = str(tmp_path / "run")
    rhostream.train([path], str(tmp_path / "index"), run, steps=1, image_size=20, channels=1, **how)
    assert rhostream.train([path], str(tmp_path / "index"), run, steps=2, **how).steps == 2
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["fingerprints"]["preprocess_image_size"] == 20


def test_large_images_are_bounded_unless_more_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert choose([(4000, 4000, 3)] * 3) == (MOST_PIXELS, 3, "crop")
    assert caplog.records[-1].levelno == logging.WARNING and "at most 256" in caplog.text
    assert choose([(4000, 4000, 3)] * 3, 1024) == (1024, 3, "crop")
    assert choose([], 1024, 1, "pad") == (1024, 1, "pad")


SEEN = st.tuples(st.integers(1, 5000), st.integers(0, 5000), st.sampled_from([1, 3]))


@given(st.lists(SEEN, min_size=1, max_size=64), st.randoms())
def test_the_choice_is_one_of_the_sizes_seen_and_no_order_changes_it(
    drawn: list[tuple[int, int, int]], chance: random.Random
) -> None:
    sizes = [(shorter, shorter + more, channels) for shorter, more, channels in drawn]
    other = list(sizes)
    chance.shuffle(other)
    size, channels, resize = choose(sizes)
    assert (size, channels, resize) == choose(other) and channels == max(planes for _, _, planes in sizes)
    assert size == MOST_PIXELS or size in {side for side, _, _ in sizes}
    assert sum(side < size for side, _, _ in sizes) <= len(sizes) / 2
    cut = np.mean([1 - shorter / longer for shorter, longer, _ in sizes])
    assert resize == ("crop" if cut <= 0.1 else "squash") or abs(cut - 0.1) < 1e-9


def test_sizes_that_differ_much_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rhostream"):
        choose([(100, 100, 3)] * 10)
        choose([(100, 100, 3)] * 10 + [(20, 20, 3)] * 4)
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
    assert "20 to 100; 4 of 14 differ" in caplog.text.replace(")", "").replace(", RGB (14 of 14 have colour", "")


def test_the_kind_is_that_of_most_samples_and_a_mixture_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [
        (f"{i:04d}.{e}", d)
        for i in range(30)
        for e, d in (*([("jpg", picture(16, form="JPEG"))] if i else []), ("txt", b"a caption"), ("cls", b"0"))
    ]
    path = shard(tmp_path / "a.tar", members)
    rhostream.index([path], str(tmp_path / "index"))
    assert il.open_info(str(tmp_path / "index")).content == "image"
    assert fitted(tmp_path, path)["image_size"] == 16
    assert "30 looked at: 29 image, 1 text" in caplog.text and "--content" in caplog.text


def test_the_same_D_is_seen_alike_in_any_order_and_any_place(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(16, 90, 12)
    shards = []
    for number, size in enumerate(sizes.tolist()):
        data = tar_of(labelled([picture(size)] * 4))
        (tmp_path / f"{number}.tar").write_bytes(data)
        storage.create(f"memory://look/{number}.tar", data)
        shards.append((str(tmp_path / f"{number}.tar"), f"root/{number}.tar"))
    here = look(shards)
    assert here.shards == 8 and here.looked == 32
    assert look(shards[::-1]) == here
    assert look([(f"memory://look/{n}.tar", f"root/{n}.tar") for n in range(12)]) == here


def test_a_shard_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    good = shard(tmp_path / "b.tar", labelled([picture(16)] * 4))
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    found = look([(str(tmp_path / "a.tar"), "a"), (good, "b"), (shard(tmp_path / "c.tar", []), "c")])
    assert found.kinds == {"image": 4} and found.shards == 1 and "a" in str(found.error)


def test_a_look_reads_the_beginning_of_a_shard_in_a_store_and_no_more(tmp_path: Path) -> None:
    data = tar_of(labelled([picture(300)] * 120))
    storage.create("memory://look/large.tar", data)
    asked = list[int]()
    sound = storage.RangeReader.pread

    def counted(self: storage.RangeReader, n: int, offset: int) -> bytes:
        asked.append(n)
        return sound(self, n, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.RangeReader, "pread", counted)
        assert look([("memory://look/large.tar", "large")]).looked > 40
    assert sum(asked) < 24 << 20 < len(data) and len(asked) < 150


def test_an_option_for_images_is_refused_for_text(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [(f"{i}.{e}", b"1") for i in range(20) for e in ("txt", "cls")])
    with pytest.raises(UsageError, match="hold text"):
        fitted(tmp_path, path, channels=3)
    with pytest.raises(UsageError, match="--channels 2"):
        fitted(tmp_path, path, channels=2)


# -- several images in a sample ----------------------------------------------------------------------------------------


def masked(n: int, size: int = 16) -> Members:
    """A photo in colour and a grey mask in each sample, in either order."""
    members: Members = []
    for i in range(n):
        both = [(f"{i:04d}.jpg", picture(size, form="JPEG")), (f"{i:04d}.png", picture(size + 8, "L"))]
        members += [*(both if i % 2 else both[::-1]), (f"{i:04d}.cls", b"%d" % (i // 2 % 2)), (f"{i:04d}.json", b"{}")]
    return members


@pytest.mark.parametrize(("asked", "meant", "size"), [(None, "jpg", 16), ("png", "png", 24), ("png,jpg", "png", 24)])
def test_of_several_images_the_same_one_is_taken_in_every_sample(
    asked: str | None, meant: str, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shard(tmp_path / "a.tar", masked(40))
    model, table, index = (str(tmp_path / name) for name in ("model", "table", "index"))
    rhostream.fit_il([path], model, image_size=16, image_member=asked, **FIT)
    summary = rhostream.compute_il([path], model, table)
    assert summary.several_images == rhostream.index([path], index, image_member=asked).several_images == 40
    assert "40 of its samples have several images" in caplog.text
    for url in (table, index):
        for row in pq.read_table(il.part_url(url, path)).to_pylist():
            first = next(m for m in row["members"] if m["ext"] in ("jpg", "png"))
            assert first["ext"] == meant and len(row["members"]) == 4
            assert {m["ext"]: (m["offset"], m["size"]) for m in row["members"]}.keys() == {"jpg", "png", "cls", "json"}
        opened = open_stream(path, url, buffer_size=40, needs_il=False, image_size=None if url == table else size)
        assert next(iter(opened)).candidate_rows.size == 40
        assert opened.stream.preprocess.member == il.open_info(url).kind_of_samples().member  # type: ignore[union-attr]
    assert summary.ok == 40


def test_a_sample_without_the_image_that_is_meant_has_none(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [*masked(20), ("x.png", picture(16)), ("x.cls", b"1")])
    summary = rhostream.index([path], str(tmp_path / "index"), image_member="jpg")
    assert summary.quarantined == {"image:missing": 1} and "members: png, cls" in summary.first_bad[0]
    assert rhostream.index([path], str(tmp_path / "index")).ok == 20  # the table knows
    with pytest.raises(UsageError, match="image_member"):
        rhostream.index([path], str(tmp_path / "index"), image_member="png")
    with pytest.raises(UsageError, match="'gif'"):
        rhostream.index([path], str(tmp_path / "other"), image_member="jpg,gif")


def test_a_table_that_does_not_say_which_image_is_meant_goes_on_with_the_first(tmp_path: Path) -> None:
    first = shard(tmp_path / "a.tar", labelled([picture(16)] * 20))
    rhostream.index([first], str(tmp_path / "index"))
    second = shard(tmp_path / "b.tar", masked(20))
    rhostream.index([first, second], str(tmp_path / "index"))
    rows = pq.read_table(il.part_url(str(tmp_path / "index"), second)).to_pylist()
    assert [row["members"][0]["ext"] for row in rows] == ["png", "jpg"] * 10


# -- nothing usable ----------------------------------------------------------------------------------------------------


def test_nothing_usable_is_exit_code_3_for_every_verb(tmp_path: Path) -> None:
    strings = shard(
        tmp_path / "a.tar", [(n, b"cat" if n.endswith("cls") else d) for n, d in labelled([picture(16)] * 8)]
    )
    index, out = str(tmp_path / "index"), str(tmp_path / "out")
    run = CliRunner().invoke
    assert run(cli, ["index", "--shards", strings, "--out", index]).exit_code == 3
    assert run(cli, ["index", "--shards", strings, "--out", index]).exit_code == 3  # all parts are there
    with pytest.raises(BudgetError, match=r"no sample of 8.*label:invalid 8"):
        rhostream.fit_il([strings], out, **FIT)
    good = shard(tmp_path / "b.tar", labelled([picture(16)] * 8))
    rhostream.fit_il([good], out, image_size=16, holdout=[good], **FIT)
    assert run(cli, ["compute-il", "--shards", strings, "--il-model", out, "--out", out + "-il"]).exit_code == 3
    assert run(cli, ["index", "--shards", good, "--out", index + "2"]).exit_code == 0
    with pytest.raises(BudgetError, match="no sample"):
        rhostream.train(
            [strings],
            index,
            str(tmp_path / "run"),
            rule="uniform",
            model="mlp-64",
            buffer_size=4,
            batch_size=2,
            classes=2,
            image_size=16,
        )
    with pytest.raises(BudgetError, match="no sample"):
        rhostream.train(
            [strings],
            out + "-il",
            str(tmp_path / "run2"),
            model="mlp-64",
            buffer_size=4,
            batch_size=2,
            missing_il="skip",
        )


def test_a_look_that_finds_nothing_says_what_it_saw(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [(f"{i}.{e}", b"1") for i in range(20) for e in ("flac", "cls")])
    with pytest.raises(BudgetError, match="20 samples of 1 shards, whose members are cls"):
        rhostream.fit_il([path], str(tmp_path / "m"), model="mlp-64")
