"""How pictures of many sizes become squares: exactly, in every decoder, said, and alike for all that a model sees."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageOps

import rhostream
from rhostream.audit.report import write_report
from rhostream.cli import cli
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.models import build
from rhostream.samples import decoders as decode
from rhostream.samples import geometry, registry
from rhostream.samples.geometry import BACKGROUND, RESIZES, choose_resize, content_of
from rhostream.samples.image import ImageKind
from rhostream.stream.open import open_stream
from rhostream.tables import il
from tests.support import photographs
from tests.support.photographs import jpeg, photograph, sides_of
from tests.support.shards import write_shard

DECODERS = [name for name in decode.DECODERS if name == "pillow" or pytest.importorskip("simplejpeg")]
EXTREMES = [(1, 5000), (5000, 1), (1, 1), (2, 3), (3, 1000), (1000, 7), (63, 64)]


def png(image: Image.Image, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG", **options)
    return sink.getvalue()


def row(data: bytes, size: int, resize: str, name: str = "pillow", channels: int = 3) -> np.ndarray[Any, Any]:
    out = np.full((size, size, channels), 7, np.uint8)
    assert decode.DECODERS[name](data, out, resize) == "ok"
    return out


def quarters(width: int, height: int) -> Image.Image:
    """Four corners of four colours."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left], pixels[:top, left:] = (250, 0, 0), (0, 250, 0)
    pixels[top:, :left], pixels[top:, left:] = (0, 0, 250), (250, 250, 0)
    return Image.fromarray(pixels)


def corners(pixels: np.ndarray[Any, Any]) -> list[list[int]]:
    return [[round(float(v) / 250) for v in pixels[y, x]] for y in (1, -2) for x in (1, -2)]


# -- the laws of the three ---------------------------------------------------------------------------------------------


def test_crop_is_what_it_always_was() -> None:
    for number in range(48):
        image, _ = photograph(number)
        (width, height), side = image.size, min(image.size)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        expected = np.asarray(image.resize((33, 33), Image.Resampling.BILINEAR, box))
        np.testing.assert_array_equal(row(png(image), 33, "crop"), expected)
        drafted = Image.open(io.BytesIO(jpeg(image)))
        drafted.draft("RGB", (30, 30))
        drafted.load()
        (width, height), side = drafted.size, min(drafted.size)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        expected = np.asarray(drafted.resize((15, 15), Image.Resampling.BILINEAR, box))
        np.testing.assert_array_equal(row(jpeg(image), 15, "crop"), expected)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("turn", range(1, 9))
def test_corners_of_the_picture_land_in_corners_of_a_squashed_row(name: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = corners(np.asarray(ImageOps.exif_transpose(_turned(quarters(96, 40), turn))))
    for size in (16, 64):
        assert corners(row(jpeg(quarters(96, 40), exif=exif, subsampling=0), size, "squash", name)) == upright
        assert corners(row(png(quarters(96, 40), exif=exif), size, "squash", name)) == upright


def _turned(image: Image.Image, turn: int) -> Image.Image:
    image.getexif()[0x0112] = turn
    return image


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("turn", [1, 6])
def test_pad_keeps_the_aspect_and_centres_the_picture_on_grey(name: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    white = Image.new("RGB", (90, 30), (255, 255, 255))
    for data in (jpeg(white, exif=exif), png(white, exif=exif)):
        for size in (12, 45, 120):
            pixels = row(data, size, "pad", name)
            wide, high = content_of(*((90, 30) if turn == 1 else (30, 90)), size)
            assert sorted((wide, high)) == [size // 3, size]
            left, top = (size - wide) // 2, (size - high) // 2
            assert (pixels[top : top + high, left : left + wide] >= 254).all()
            pixels[top : top + high, left : left + wide] = BACKGROUND
            assert (pixels == BACKGROUND).all()


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_a_lossless_picture_is_resampled_once(resize: str) -> None:
    for number in range(0, 48, 5):
        image, _ = photograph(number)
        size = (40, 40) if resize == "squash" else content_of(*image.size, 40)
        expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        top, left = (40 - size[1]) // 2, (40 - size[0]) // 2
        pixels = row(png(image), 40, resize)
        np.testing.assert_array_equal(pixels[top : top + size[1], left : left + size[0]], expected)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_no_aspect_ratio_raises_or_gives_an_empty_picture(resize: str, name: str, channels: int) -> None:
    for width, height in EXTREMES:
        white = Image.new("RGB", (width, height), (255, 255, 255))
        for data in (png(white), jpeg(white)):
            pixels = row(data, 24, resize, name, channels)
            assert (pixels >= 250).any() and (resize == "pad" or (pixels >= 250).all()), (width, height)


@pytest.mark.parametrize("resize", RESIZES)
def test_decoders_that_scale_leave_enough_pixels_on_both_sides(resize: str) -> None:
    """A row of a JPEG is that of its pixels, whichever decoder made it: no side was scaled below what is needed."""
    bands = np.zeros((8, 1200, 3), np.uint8)
    bands[::2] = 255  # nearly even grey where the shorter side is scaled as much as the longer one bears
    thin = Image.fromarray(np.repeat(bands, 12, 0))
    for image in (thin, thin.transpose(Image.Transpose.TRANSPOSE), *(photograph(n)[0] for n in range(0, 48, 7))):
        data = jpeg(image, subsampling=0)
        for size in (16, 48):
            expected = row(png(Image.open(io.BytesIO(data))), size, resize).astype(int)
            for name in DECODERS:
                off = np.abs(row(data, size, resize, name).astype(int) - expected)
                assert off.mean() < 16, (image.size, size, name)


def test_of_a_picture_that_is_very_long_the_rows_are_resampled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(3)[0].resize((5, 900))
    one_way = row(png(image), 64, "squash").astype(int)
    monkeypatch.setattr(geometry, "MOST_BETWEEN", 1000)
    assert np.abs(row(png(image), 64, "squash") - one_way).max() <= 2


def test_crop_is_chosen_where_it_loses_next_to_nothing() -> None:
    assert choose_resize([(64, 64)] * 9) == ("crop", 0.0) and choose_resize([]) == ("crop", 0.0)
    assert choose_resize([(64, 64)] * 9 + [(64, 640)])[0] == "crop"  # 9 % of the pixels
    assert choose_resize([(48, 64)] * 9) == ("squash", 0.25)
    assert choose_resize(sorted(sides_of(n)) and (min(sides_of(n)), max(sides_of(n))) for n in range(48))[0] == "squash"


# -- what a model saw, all its life ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, an IL model, its table, and an index, as the verbs choose."""
    root = tmp_path_factory.mktemp("album")
    shards = photographs.shards(root / "shards", 72)
    rhostream.fit_il([shards], str(root / "model"), model="mlp-64", epochs=1)
    rhostream.compute_il([shards], str(root / "model"), str(root / "il"))
    rhostream.index([shards], str(root / "index"))
    return root


def flat(path: Path, sizes: list[tuple[int, int]]) -> str:
    """Pictures of one colour each, the same ones whatever their sizes: so are their rows, by any size of the square."""
    rows = []
    for number in range(40):
        colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
        image = Image.new("RGB", sizes[number % len(sizes)], colour)
        rows.append({"__key__": f"{number:03d}", "png": png(image), "cls": str(number % 2)})
    write_shard(path, rows)
    return str(path)


def options(album: Path, run: Path, **more: Any) -> dict[str, Any]:
    how = {"rule": "rho", "model": "mlp-64", "buffer_size": 24, "batch_size": 8, "steps": 2, "threads": 1}
    return {"shards": [str(album / "shards")], "il": str(album / "il"), "run": str(run), **how, **more}


def pins(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text())["fingerprints"])


def test_the_geometry_of_many_sizes_is_chosen_stored_and_said(
    album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rhostream"):
        shards = photographs.shards(tmp_path / "shards", 48)
        rhostream.fit_il([shards], str(tmp_path / "model"), model="mlp-64", epochs=1)
        rhostream.compute_il([shards], str(tmp_path / "model"), str(tmp_path / "il"))
        rhostream.index([shards], str(tmp_path / "index"))
        rhostream.train(**options(tmp_path, tmp_path / "run", rule="uniform", il=str(tmp_path / "index")))
    said = [record.message for record in caplog.records if record.message.startswith("images")]
    assert "squash (crop would cut off" in said[0] and "median of the shorter sides" in said[0]
    assert "squash" in said[1] and "squash (crop would cut off" in said[2] and "squash" in said[3]
    assert json.loads((tmp_path / "model" / "model.json").read_text())["preprocess"]["resize"] == "squash"
    assert (
        il.open_info(str(tmp_path / "il")).kind_of_samples().resize
        == il.open_info(str(tmp_path / "index")).kind_of_samples().resize
        == "squash"
    )
    assert pins(tmp_path / "run")["preprocess_resize"] == "squash"
    page = Path(write_report([str(tmp_path / "run")], str(tmp_path / "page.html"))).read_text()
    assert "px, RGB, squash" in page


def test_a_square_D_is_cropped_and_its_artifacts_are_as_before(world: Path) -> None:
    info = il.open_info(str(world / "il"))
    assert info.preprocess is not None and "resize" not in info.preprocess and info.kind_of_samples().resize == "crop"
    assert "resize" not in info.ingredients["preprocess"]
    assert ImageKind(image_size=8, resize="crop").to_json() == ImageKind(image_size=8).to_json()
    padded = ImageKind(image_size=8, resize="pad")
    assert ImageKind.from_json(padded.to_json()) == padded


def test_a_second_set_of_other_sizes_changes_nothing(album: Path, tmp_path: Path) -> None:
    """The model's size and geometry are taken, never those of a holdout, of D under a table, or of a test set."""
    small = flat(tmp_path / "small" / "set" / "t.tar", [(18, 18), (18, 25)])
    large = flat(tmp_path / "large" / "set" / "t.tar", [(200, 90), (31, 300), (5, 64)])
    found = []
    for name, there in (("small", small), ("large", large)):
        own = tmp_path / name
        fit = {"model": "mlp-64", "epochs": 1, "resize": "squash", "roots": {"set": str(own / "set")}}
        rhostream.fit_il([str(album / "shards")], str(own / "model"), holdout=[there], **fit)
        rhostream.compute_il([there], str(tmp_path / "small" / "model"), str(own / "il"))
        table = il.read_part(next((own / "il").glob("**/*.parquet")).as_posix())
        result = rhostream.train(**options(album, own / "run", test_shards=[there], eval_every=1))
        evaluated = rhostream.open_ledger(str(own / "run")).sql("SELECT test_accuracy, class_accuracy FROM steps")
        state = json.loads((own / "model" / "model.json").read_text())
        found.append((
            [fold["sha256"] for fold in state["folds"]], state["preprocess"],
            table.il.tolist(), result.test_accuracy, evaluated.to_pylist(),
            {k: v for k, v in pins(own / "run").items() if k.startswith("preprocess")},
        ))  # fmt: skip
    assert found[0] == found[1]


def test_a_run_may_take_another_geometry_than_its_table_and_keeps_it(album: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rhostream.train(**options(album, run, resize="pad"))
    assert pins(run)["preprocess_resize"] == "pad"
    assert rhostream.train(**options(album, run, steps=3)).steps == 3
    with pytest.raises(MismatchError, match="preprocess_resize"):
        rhostream.train(**options(album, run, steps=4, resize="squash"))
    with pytest.raises(UnknownNameError, match="zoom"):
        rhostream.train(**options(album, tmp_path / "other", resize="zoom"))
    with pytest.raises(UsageError, match=r"squash, and this run decodes .* pad"):
        rhostream.train(**options(album, tmp_path / "live", rule="rho_updated", resize="pad"))


def test_a_run_of_before_there_were_geometries_goes_on_with_the_centre(album: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = options(album, run, rule="uniform", il=str(album / "index"))
    rhostream.train(**{**how, "resize": "crop"})
    record = json.loads((run / "run.json").read_text())
    for part in ("fingerprints", "settings"):
        record[part].pop("preprocess_resize", None)
    record["config"].pop("resize", None)
    (run / "run.json").write_text(json.dumps(record))
    assert rhostream.train(**{**how, "steps": 3}).steps == 3  # over an index that says squash


def test_an_index_keeps_its_geometry_and_takes_one_that_is_asked_for(
    album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = str(tmp_path / "index")
    arguments = ["index", "--shards", str(album / "shards"), "--out", out]
    with caplog.at_level(logging.INFO, "rhostream"):
        rhostream.index([str(album / "shards")], out, resize="pad")
    assert "images: pad (crop would cut off" in caplog.text
    assert il.open_info(out).ingredients == {"resize": "pad"}
    assert CliRunner().invoke(cli, arguments).exit_code == 0 and il.open_info(out).kind_of_samples().resize == "pad"
    assert CliRunner().invoke(cli, [*arguments, "--resize", "crop"]).exit_code != 0
    loader = open_stream(str(album / "shards"), out, needs_il=False, buffer_size=24)
    assert loader.stream.preprocess.resize == "pad"  # type: ignore[union-attr]


def test_views_and_full_size_reads_have_the_geometry_of_the_stream(album: Path) -> None:
    loader = open_stream(str(album / "shards"), str(album / "index"), needs_il=False, buffer_size=24, view_size=20,
                         image_size=48, resize="pad")  # fmt: skip
    buffer = next(iter(loader))
    fields, ok = buffer.full(np.arange(5))  # type: ignore[misc]
    image = fields["pixels"]
    view = buffer.image
    assert ok.all() and image.shape == (5, 48, 48, 3) and view is not None and view.shape[1:] == (20, 20, 3)
    for pixels in (*image.numpy(), *view[:5].numpy()):
        assert (pixels[0] == BACKGROUND).all() or (pixels[:, 0] == BACKGROUND).all()


def test_a_stranger_s_geometry_is_checked() -> None:
    record = ImageKind(image_size=8).to_json()
    registry.check_record({**record, "resize": "pad"})
    with pytest.raises(ValueError, match="'zoom'"):
        registry.check_record({**record, "resize": "zoom"})


def test_the_gallery_shows_the_whole_picture_and_what_the_model_saw() -> None:
    wide, square = png(quarters(90, 40)), png(quarters(40, 40))
    squashed, cropped, padded = (
        ImageKind().preview({"image": wide}, {"preprocess_resize": how}) for how in ("squash", "crop", "pad")
    )
    assert squashed.image == cropped.image != squashed.seen != cropped.seen
    same = ImageKind().preview({"image": square}, {"preprocess_resize": "crop"})
    assert padded.seen is None and same.seen is None and same.image is not None


# -- what it is worth --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_model_learns_what_crop_cuts_off_from_a_squashed_or_padded_picture(tmp_path: Path) -> None:
    """Three seeds of a small plain training; the figures stand in decision 033."""
    where = {name: photographs.shards(tmp_path / name, n, seed) for name, n, seed in (("d", 960, 1), ("t", 480, 2))}
    for name, shards in where.items():
        rhostream.index([shards], str(tmp_path / f"{name}-index"))
    means = {}
    for resize in RESIZES:
        data = {}
        for name, shards in where.items():
            kept = [(b.input.clone(), b.label.clone()) for b in open_stream(
                shards, str(tmp_path / f"{name}-index"), needs_il=False, buffer_size=96, image_size=32, channels=3,
                resize=resize)]  # fmt: skip
            data[name] = torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])
        found = [_accuracy(*data["d"], *data["t"], seed) for seed in range(3)]
        means[resize] = float(np.mean(found))
        print(resize, [round(value, 4) for value in found])
    assert min(means["squash"], means["pad"]) > means["crop"] + 0.1


def _accuracy(x: torch.Tensor, y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor, seed: int) -> float:
    torch.manual_seed(seed)
    model, order = build("small-cnn", classes=2, image_size=32, channels=3), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(8):
        for rows in torch.from_numpy(order.permutation(len(x))).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return float((model(test_x).argmax(1) == test_y).float().mean())
