"""Bad samples, one by one, through compute-il and train: each is a row that says why, and none is ever learned from."""

from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

import rhostream
from rhostream.audit.views import open_ledger
from rhostream.candidates import CANDIDATE, Reason
from rhostream.errors import MismatchError
from rhostream.irreducible import compute_il, index
from rhostream.samples import decoders as decode
from rhostream.samples.image import ImageKind
from rhostream.stream.open import open_stream
from rhostream.stream.scan import Chunk, ScanSettings, scan
from tests.faults.hostile_samples import evil, npy_of_objects, photo, png_of, saved, torch_zip
from tests.faults.hostile_tars import END, GOOD_PNG, Members, block, member, tar_of

SIDE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IL model of 14 classes."""
    folder = tmp_path_factory.mktemp("il")
    members = [(f"{i:03d}.{e}", d) for i in range(60) for e, d in (("png", GOOD_PNG), ("cls", b"%d" % (i % 14)))]
    (folder / "x.tar").write_bytes(tar_of(members))
    rhostream.fit_il(
        [str(folder / "x.tar")], str(folder / "model"), model="mlp-64", epochs=1, classes=14, roots={"x": str(folder)}
    )
    return folder / "model"


def statuses(
    tmp_path: Path, model: Path, members: Members, tail: bytes = END, hole: int = 0
) -> list[tuple[str, str, Any]]:
    """(key, status, il) of every row that compute-il makes of these members; bad rows have no il."""
    shard, table = tmp_path / "x.tar", tmp_path / "table"
    shutil.rmtree(table, ignore_errors=True)
    with open(shard, "wb") as file:
        file.write(tar_of(members)[: -len(END)] + tail)
        file.truncate(file.tell() + hole)
    summary = compute_il([str(shard)], str(model), str(table), roots={"x": str(tmp_path)})
    assert not summary.bad_shards and summary.samples == summary.ok + sum(summary.quarantined.values())
    rows = pq.read_table(next(table.rglob("*.parquet"))).to_pylist()
    assert all(
        (row["il"] is None) == (row["status"] != "ok") and (row["error"] is None) == (row["status"] == "ok")
        for row in rows
    )
    assert not summary.quarantined or dict(summary.quarantined) == {
        s: sum(r["status"] == s for r in rows) for s in {r["status"] for r in rows} - {"ok"}
    }
    return [(row["key"], row["status"], row["il"]) for row in rows]


def bad(tmp_path: Path, model: Path, image: bytes, extension: str = "jpg") -> str:
    """The status of an image between two good ones."""
    found = statuses(
        tmp_path,
        model,
        [
            ("a.png", GOOD_PNG),
            ("a.cls", b"1"),
            (f"b.{extension}", image),
            ("b.cls", b"1"),
            ("c.png", GOOD_PNG),
            ("c.cls", b"1"),
        ],
    )
    assert [found[0][1], found[2][1]] == ["ok", "ok"]
    return found[1][1]


# -- images ------------------------------------------------------------------------------------------------------------


def test_B1_an_image_of_zero_bytes_is_quarantined_as_empty(tmp_path: Path, model: Path) -> None:
    """An image member of zero bytes is a row with the status `decode:empty`; its neighbours are scored."""
    assert bad(tmp_path, model, b"") == "decode:empty"


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_B2_a_truncated_jpeg_is_quarantined_wherever_it_was_cut(
    tmp_path: Path, model: Path, options: dict[str, Any]
) -> None:
    """A JPEG that ends early is `decode:truncated`, wherever it was cut; half a picture is never scored."""
    whole, out = saved("JPEG", photo(100), quality=90, **options), np.empty((SIDE, SIDE, 3), np.uint8)
    assert bad(tmp_path, model, whole[: len(whole) // 2]) == "decode:truncated"
    for name in decode.DECODERS:
        told = {decode.DECODERS[name](whole[:cut], out) for cut in range(2, len(whole) - 2, 7)}
        assert told == {"decode:truncated"}
        assert decode.DECODERS[name](whole, out) == "ok"


def test_B3_a_page_of_html_named_jpg_is_quarantined_as_no_image(tmp_path: Path, model: Path) -> None:
    """A page, a GIF, a TIFF, a PostScript file or a pickle named .jpg is `decode:not_an_image`: only JPEG, PNG and WebP
    are tried."""
    page = b"<!doctype html><html><body>429 Too Many Requests</body></html>"
    assert bad(tmp_path, model, page) == "decode:not_an_image"
    for other in (saved("GIF"), saved("TIFF"), b"%!PS-Adobe-3.0 EPSF-3.0\n", evil("x")):
        assert bad(tmp_path, model, other) == "decode:not_an_image"


def odd_images() -> dict[str, tuple[str, bytes]]:
    """Every way of storing a picture that is not plain RGB."""
    rgb = photo(48)
    grey = rgb.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(grey)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90)]}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = Image.fromarray((np.asarray(grey, np.uint16) << 8) + 77)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    return {
        "CMYK": ("jpg", saved("JPEG", rgb.convert("CMYK"))), "L jpeg": ("jpg", saved("JPEG", grey)),
        "RGB jpeg": ("jpg", saved("JPEG", rgb, subsampling=0)), "ICC": ("jpg", saved("JPEG", rgb, icc_profile=profile)),
        "EXIF jpeg": ("jpg", saved("JPEG", rgb, exif=turned)), "XMP jpeg": ("jpg", saved("JPEG", rgb, xmp=xmp)),
        "EXIF behind ICC": ("jpg", saved("JPEG", rgb, exif=turned, icc_profile=profile * 30)),
        "progressive": ("jpg", saved("JPEG", rgb, progressive=True)),
        "L": ("png", saved("PNG", grey)), "P": ("png", saved("PNG", rgb.quantize(32))),
        "1": ("png", saved("PNG", grey.convert("1"))),
        "P transparent": ("png", saved("PNG", rgb.quantize(32), transparency=bytes(range(32)))),
        "LA": ("png", saved("PNG", alpha.convert("LA"))), "I;16": ("png", saved("PNG", wide)),
        "RGBA": ("png", saved("PNG", alpha)), "EXIF png": ("png", saved("PNG", rgb, exif=turned)),
        "APNG": ("png", saved("PNG", rgb, **frames)), "RGB png": ("png", saved("PNG", rgb)),
        "webp": ("webp", saved("WEBP", rgb, lossless=True)), "RGBA webp": ("webp", saved("WEBP", alpha, lossless=True)),
        "animated webp": ("webp", saved("WEBP", rgb, lossless=True, **frames)),
        "EXIF webp": ("webp", saved("WEBP", rgb, lossless=True, exif=turned)),
    }  # fmt: skip


# Pillow says that a palette's transparency is lost; it is meant to be.
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("decoder", sorted(decode.DECODERS))
@pytest.mark.parametrize("channels", [1, 3])
def test_B5_every_kind_of_picture_has_the_same_pixels_in_the_scorer_and_in_the_trainer(
    tmp_path: Path, channels: int, decoder: str
) -> None:
    """CMYK, grey, palette, alpha, 16-bit, rotated (EXIF or XMP) and animated pictures become plain RGB (or grey) by one
    function, with the same pixels in the scorer and in the trainer, and at the full size behind a cheap view."""
    pictures = odd_images()
    members = [(f"{i:02d}.{e}", d) for i, (ext, data) in enumerate(pictures.values())
               for e, d in ((ext, data), ("cls", b"1"))]  # fmt: skip
    shard, table = tmp_path / "a.tar", tmp_path / "table"
    shard.write_bytes(tar_of(members))
    index([str(shard)], str(table))
    full = ImageKind(image_size=SIDE, channels=channels)
    scanned: dict[int, Any] = {}
    for message in scan([(str(shard), "a")], ScanSettings(kind=full.with_decoder(decoder))):
        if isinstance(message, Chunk):
            assert message.ok.all()
            scanned |= {int(o): message.fields["pixels"][i].numpy().copy() for i, o in enumerate(message.ordinal)}
    trained: dict[int, Any] = {}
    viewed: dict[int, Any] = {}
    options: dict[str, Any] = {
        "buffer_size": len(pictures),
        "image_size": SIDE,
        "channels": channels,
        "decoder": decoder,
        "needs_il": False,
    }
    for buffer in open_stream(str(shard), str(table), **options):
        assert (buffer.reason == CANDIDATE).all() and buffer.image is not None
        trained |= {int(o): buffer.image[i].numpy().copy() for i, o in enumerate(buffer.ordinal)}
    for buffer in open_stream(str(shard), str(table), view_size=8, **options):
        assert buffer.full is not None
        image, ok = buffer.full(np.arange(len(buffer)))
        assert ok.all()
        viewed |= {int(o): image["pixels"][i].numpy() for i, o in enumerate(buffer.ordinal)}
    assert len(scanned) == len(trained) == len(viewed) == len(pictures)
    upright = {name: scanned[i] for i, name in enumerate(pictures)}
    for i, name in enumerate(pictures):
        np.testing.assert_array_equal(scanned[i], trained[i], name)
        np.testing.assert_array_equal(scanned[i], viewed[i], name)
    # What is lossless and has no alpha is the picture itself; what is turned is the picture turned.
    for name in ("APNG", "webp", "animated webp"):
        np.testing.assert_array_equal(upright[name], upright["RGB png"], name)
    for name in ("EXIF png", "EXIF webp", "EXIF jpeg", "XMP jpeg", "EXIF behind ICC"):
        near = np.abs(np.rot90(upright["RGB png"], -1).astype(int) - upright[name].astype(int))
        assert near.mean() < 4, name
    for name in ("L", "I;16", "LA"):
        np.testing.assert_array_equal(upright[name], upright["L"], name)


def test_B6_a_png_of_90_megapixels_in_11_kb_is_quarantined_unread(tmp_path: Path, model: Path) -> None:
    """A picture of more than 50 megapixels or a JPEG of more than 100 scans is `image:too_large` and never decoded."""
    bomb = png_of(9500, 9500, (b"\0" + bytes(1188)) * 9500, depth=1, colour=0)
    assert len(bomb) < 12_000 and bad(tmp_path, model, bomb, "png") == "image:too_large"


def test_B7_a_flipped_bit_in_a_jpeg_is_found_by_the_checksum_of_its_shard(tmp_path: Path, model: Path) -> None:
    """A flipped bit in a picture can look like another picture, so shards are told by sha256: one that was changed at
    the same size after it was indexed is refused by the trainer."""
    shard, table = tmp_path / "x.tar", tmp_path / "table"
    jpeg = saved("JPEG", photo(100), quality=90)
    shard.write_bytes(tar_of([(f"{i}.{e}", d) for i in range(8) for e, d in (("jpg", jpeg), ("cls", b"1"))]))
    compute_il([str(shard)], str(model), str(table), roots={"x": str(tmp_path)})
    data = bytearray(shard.read_bytes())
    data[512 + len(jpeg) - 40] ^= 4
    shard.write_bytes(data)
    with pytest.raises(MismatchError, match="changed after it was indexed"):
        list(open_stream(str(shard), str(table), buffer_size=8, roots={"x": str(tmp_path)}))


# -- labels ------------------------------------------------------------------------------------------------------------


def test_B8_a_sample_without_a_label_is_quarantined(tmp_path: Path, model: Path) -> None:
    """Without a .cls and without `label` in a .json a sample is `label:missing`."""
    found = statuses(
        tmp_path,
        model,
        [
            ("a.png", GOOD_PNG),
            ("b.png", GOOD_PNG),
            ("b.json", b'{"label": null}'),
            ("c.png", GOOD_PNG),
            ("c.cls", b"1"),
        ],
    )
    assert [status for _, status, _ in found] == ["label:missing", "label:missing", "ok"]


@pytest.mark.parametrize("label", [-100, -1, 14, 2**31, 2**63])
def test_B10_a_label_outside_the_classes_is_quarantined_and_never_has_a_loss(
    tmp_path: Path, model: Path, label: int
) -> None:
    """A label below 0 or beyond the classes is `label:range`, in a .cls and in a .json; it never has a loss of 0.0, and
    the trainer takes none however a table may call it."""
    text = str(label).encode()
    found = statuses(
        tmp_path,
        model,
        [
            ("a.png", GOOD_PNG),
            ("a.cls", text),
            ("b.png", GOOD_PNG),
            ("b.json", b'{"label": ' + text + b"}"),
            ("c.png", GOOD_PNG),
            ("c.cls", b"13"),
        ],
    )
    assert [(status, il is None) for _, status, il in found] == [("label:range", True)] * 2 + [("ok", False)]


def test_B10_the_trainer_takes_no_label_beyond_its_own_classes(tmp_path: Path) -> None:
    """With fewer `--classes` than the table's labels, samples beyond are logged as quarantined."""
    shard, table = tmp_path / "x.tar", tmp_path / "table"
    members = [(f"{i:02d}.{e}", d) for i in range(16) for e, d in (("png", GOOD_PNG), ("cls", b"%d" % i))]
    shard.write_bytes(tar_of(members))
    index([str(shard)], str(table))
    rhostream.train(
        [str(shard)],
        str(table),
        str(tmp_path / "run"),
        model="mlp-64",
        rule="loss",
        classes=10,
        buffer_size=8,
        batch_size=2,
    )
    with open_ledger(str(tmp_path / "run")) as ledger:
        rows = ledger.sql("SELECT label, reason, loss FROM selections ORDER BY label").to_pylist()
    assert {r["reason"] for r in rows[10:]} == {Reason.quarantined.name} and {r["loss"] for r in rows[10:]} == {None}
    assert {r["reason"] for r in rows[:10]} == {"kept", "below"} and all(r["loss"] > 0 for r in rows[:10])


# -- other members -----------------------------------------------------------------------------------------------------


def test_B17_pickles_beside_a_good_image_are_never_opened_and_said_once(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Members that other readers unpickle (.pkl, .pth, .pyd, ...) are ignored and counted, with one warning; nothing in
    them runs."""
    canary = tmp_path / "canary"
    members = [("a.png", GOOD_PNG), ("a.cls", b"1"), ("a.npy", npy_of_objects(str(canary)))]
    members += [("a.x.pkl", evil(str(canary)))]
    members += [(f"a.{e}", evil(str(canary))) for e in ("pkl", "pickle", "pyd")] + [("a.pth", torch_zip(str(canary)))]
    with caplog.at_level(logging.WARNING, "rhostream"):
        found = statuses(tmp_path, model, members)
        list(
            open_stream(
                str(tmp_path / "x.tar"),
                str(tmp_path / "table"),
                buffer_size=1,
                roots={"x": str(tmp_path)},
                keep_holdout=True,
                lanes=1,
            )
        )
    said = [r.message for r in caplog.records if "unpickle" in r.message]
    assert [s for _, s, _ in found] == ["ok"] and not canary.exists()
    assert len(said) == 1 and "has 5 members" in said[0]


def test_B18_a_json_that_is_huge_or_deep_is_quarantined_without_being_loaded(tmp_path: Path, model: Path) -> None:
    """A .json of more than 1 MiB is `size` and never read; one nested too deep or that can't be parsed is `json`."""
    deep = b"[" * 100_000
    tail = member("a.png", GOOD_PNG) + block("a.json", size=500 << 20)
    first = [("d.png", GOOD_PNG), ("d.json", deep), ("e.png", GOOD_PNG), ("e.json", b"{")]
    found = statuses(tmp_path, model, first, tail, hole=(500 << 20) + len(END))
    assert [status for _, status, _ in found] == ["json", "json", "size"]


def test_the_pictures_of_these_tests_are_what_they_say() -> None:
    kinds = {name: Image.open(io.BytesIO(data)) for name, (_, data) in odd_images().items()}
    assert {name: kinds[name].mode for name in ("CMYK", "L", "P", "1", "LA", "I;16", "RGBA")} == {
        name: name for name in ("CMYK", "L", "P", "1", "LA", "I;16", "RGBA")
    }
    assert all(getattr(kinds[name], "n_frames", 1) == 2 for name in ("APNG", "animated webp"))
