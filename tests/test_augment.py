"""What is kept is augmented by draws of (seed, pass, shard, ordinal) alone; what is scored stays plain."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

import rhostream
from rhostream import storage
from rhostream.candidates import Reason
from rhostream.errors import MismatchError, RhostreamError, UnknownNameError, UntrustedCodeError, UsageError
from rhostream.randomness import generator
from rhostream.samples.decoders import DECODERS
from rhostream.samples.distortions import NAMES, SIGNED, distort, jittered, operated, randaugmented
from rhostream.samples.image import ImageKind
from rhostream.samples.random_crop import RandomCrop
from rhostream.selection.deal import batch_of
from rhostream.selection.ranks import Ranks
from rhostream.selection.selector import Selector
from rhostream.selection.stages import Stage
from rhostream.stream.augment import augment_of, check_name
from rhostream.tables.il import open_table
from tests.support import own_kinds
from tests.support.logs import ask, log_of, same
from tests.support.photographs import jpeg, photograph
from tests.support.ranks import train_killed_at
from tests.support.shards import write_shard
from tests.support.small_run import go
from tests.support.streams import open_world
from tests.support.text_world import npy

CROP, OWN = "random_resized_crop", "tests.support.own_augments"


def png(image: Image.Image, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG", **options)
    return sink.getvalue()


def decoded(data: bytes, seed: int, size: int = 24, flip: bool = False, decoder: str = "pillow") -> np.ndarray:
    row = np.zeros((size, size, 3), np.uint8)
    assert DECODERS[decoder](data, row, RandomCrop(generator(seed), flip)) == "ok"
    return row


# -- the crop ---


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 99))
def test_a_part_lies_inside_and_is_as_large_and_wide_as_it_may_be(width: int, height: int, seed: int) -> None:
    cut = RandomCrop(generator(seed), flip=True).of(width, height)
    assert 0 <= cut.left <= width - cut.wide and 0 <= cut.top <= height - cut.high and cut.wide > 0 < cut.high
    if min(width, height) > 40:
        assert 0.7 < cut.wide / cut.high < 1.4
        assert cut.wide * cut.high > 0.07 * width * height or max(width, height) > 1.3 * min(width, height)
    assert cut == RandomCrop(generator(seed), flip=True).of(width, height)


@pytest.mark.parametrize("seed", range(8))
def test_a_png_is_cut_as_pillow_cuts_it(seed: int) -> None:
    image, _ = photograph(seed)
    cut = RandomCrop(generator(seed), flip=True).of(*image.size)
    box = (cut.left, cut.top, cut.left + cut.wide, cut.top + cut.high)
    expected = image.crop(box).resize((24, 24), Image.Resampling.BILINEAR)
    expected = ImageOps.mirror(expected) if cut.mirrored else expected
    assert np.array_equal(decoded(png(image), seed, flip=True), np.asarray(expected))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_large_jpeg_is_scaled_while_it_is_decoded_and_looks_as_if_it_was_not(decoder: str) -> None:
    image, _ = photograph(5)
    image = image.resize((320, 480))
    for seed in range(4):
        whole, scaled = decoded(png(image), seed, 12), decoded(jpeg(image), seed, 12, decoder=decoder)
        assert np.abs(whole.astype(int) - scaled).mean() < 3


@pytest.mark.parametrize("form", [jpeg, png])
def test_a_part_is_one_of_the_picture_upright(form: Any) -> None:
    image, _ = photograph(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # it lies on its side
    turned = image.transpose(Image.Transpose.ROTATE_90)
    for seed in range(4):
        upright, on_its_side = decoded(form(image), seed), decoded(form(turned, exif=exif), seed)
        assert np.abs(upright.astype(int) - on_its_side).mean() < 3


def test_how_it_is_decoded_again_is_no_part_of_what_a_sample_is() -> None:
    kind = ImageKind(image_size=24, channels=3)
    again = kind.augmented(f"{CROP}-flip")
    assert again == kind and again.to_json() == kind.to_json() and again.augment != kind.augment
    data, (plain, cut) = {"image": png(photograph(1)[0])}, np.zeros((2, 24, 24, 3), np.uint8)
    kind.decode(data, {"pixels": plain})
    again.decode(data, {"pixels": cut})
    assert np.array_equal(plain, cut)
    again.decode(data, {"pixels": cut}, None, generator(1))
    assert not np.array_equal(plain, cut)


# -- colours and operations ---


def bytes_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float64)


def grey_of(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_colours_are_moved_as_the_formulas_say(mode: str) -> None:
    image = photograph(2)[0].convert(mode)
    x = bytes_of(image)
    grey = grey_of(x) if mode == "RGB" else x
    away = {
        "brightness": np.zeros_like(x),
        "contrast": np.full_like(x, grey.mean()),
        "saturation": np.broadcast_to(grey[..., None], x.shape) if mode == "RGB" else x,
    }
    for name, end in away.items():
        for sign in (1, -1):
            factor = 1 + sign * 0.9 * 0.4
            expected = np.clip(end + factor * (x - end), 0, 255)
            assert np.abs(bytes_of(operated(image, name, 0.4, sign)) - expected).max() <= 1.5
    draws = generator(4)
    factors, order = draws.uniform(0.6, 1.4, 3), draws.permutation(3)
    for which in order:
        grey = grey_of(x) if mode == "RGB" else x
        end = [0 * x, 0 * x + grey.mean(), grey[..., None] + 0 * x if mode == "RGB" else x][which]
        x = np.clip(end + factors[which] * (x - end), 0, 255)
    assert np.abs(bytes_of(jittered(image, generator(4))) - x).max() <= 3.5


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_operations_are_those_of_pixels_by_hand(mode: str) -> None:
    image = photograph(1)[0].convert(mode).resize((40, 30))
    x = bytes_of(image)

    def moved(name: str, sign: int) -> np.ndarray:
        """Each pixel from where it was, black from beyond the border."""
        row, column = np.mgrid[:30, :40] + 0.5
        if name.startswith("shear"):
            row, column = (row + sign * 0.09 * column, column) if name[-1] == "y" else (row, column + sign * 0.09 * row)
        else:
            share = 0.3 * 150 / 331
            row, column = (
                (row - sign * int(share * 30), column) if name[-1] == "y" else (row, column - sign * int(share * 40))
            )
        row, column = np.floor(row).astype(int), np.floor(column).astype(int)
        inside = (row >= 0) & (row < 30) & (column >= 0) & (column < 40)
        out = x[row.clip(0, 29), column.clip(0, 39)]
        return np.where(inside[..., None] if x.ndim == 3 else inside, out, 0)

    for name in ("shear_x", "shear_y", "shift_x", "shift_y"):
        for sign in (1, -1):
            assert (bytes_of(operated(image, name, 0.3, sign)) != moved(name, sign)).mean() < 0.01
    turned = bytes_of(operated(image.resize((30, 30)), "rotate", 3.0))  # three times the largest: 90 degrees
    assert np.array_equal(turned, np.rot90(bytes_of(image.resize((30, 30)))))
    assert np.array_equal(bytes_of(operated(image, "posterize", 0.3)), x // 2 * 2)
    for share, threshold in ((0.3, 178.5), (0.8, 51)):
        assert np.array_equal(bytes_of(operated(image, "solarize", share)), np.where(x < threshold, x, 255 - x))
    low, high = x.min((0, 1)), x.max((0, 1))
    assert np.abs(bytes_of(operated(image, "autocontrast", 0.3)) - (x - low) * 255 / (high - low)).max() <= 1
    even = bytes_of(operated(image, "equalize", 0.3)).reshape(1200, -1)
    for channel, column in enumerate(x.reshape(1200, -1).T.astype(int)):  # the share of pixels that are darker, in 255
        step = (1200 - (column == column.max()).sum()) // 255
        darker = np.array([(column < value).sum() for value in range(256)])
        assert np.array_equal(even[:, channel], np.minimum((darker + step // 2) // step, 255)[column])
    assert np.array_equal(operated(image, "identity", 0.3), image)
    for name in SIGNED:
        assert np.array_equal(operated(image, name, 0.0), image), name
    unchanged = {name for name in NAMES if np.array_equal(operated(image, name, 0.8), image)}
    assert unchanged == ({"identity"} if mode == "RGB" else {"identity", "saturation"})
    assert len(NAMES) == 14


def test_all_operations_are_drawn_and_a_draw_is_that_of_its_generator() -> None:
    image = photograph(1)[0].resize((16, 16))
    results = [np.asarray(randaugmented(image, generator(seed))).tobytes() for seed in range(60)]
    assert results == [np.asarray(randaugmented(image, generator(seed))).tobytes() for seed in range(60)]
    assert len(set(results)) > 50
    seen = set()
    for seed in range(60):
        seen |= {NAMES[number] for number in generator(seed).integers(len(NAMES), size=2)}
    assert seen == set(NAMES)


@pytest.mark.parametrize("channels", [1, 3])
def test_parts_are_done_in_their_order_and_leave_the_crop_as_it_was(channels: int) -> None:
    data, kind = {"image": png(photograph(6)[0])}, ImageKind(image_size=24, channels=channels)

    def again(name: str) -> np.ndarray:
        row = np.zeros((24, 24, channels), np.uint8)
        assert kind.augmented(name).decode(data, {"pixels": row}, None, generator(7)) == "ok"
        return row

    plain = np.zeros((24, 24, channels), np.uint8)
    kind.decode(data, {"pixels": plain})
    rng = generator(7)
    RandomCrop(rng, flip=True).of(*photograph(6)[0].size)
    expected = again(f"{CROP}-flip")
    distort(expected, ("colour", "randaugment"), rng)
    assert np.array_equal(again(f"{CROP}-flip-colour-randaugment"), expected)
    for name in ("colour", "randaugment", "flip-randaugment", "flip-colour"):
        expected = plain.copy()
        distort(expected, tuple(name.split("-")), generator(7))
        assert np.array_equal(again(name), expected)
    assert not np.array_equal(again("colour"), plain)


@pytest.mark.parametrize(
    ("name", "message"),
    [("colour-flip", "'flip-colour'"), (f"randaugment+{CROP}", f"'{CROP}-randaugment'"),
     ("color", "did you mean 'colour'"), ("shift-colour", "unknown"), ("colour-colour", "'colour'")],
)  # fmt: skip
def test_parts_have_one_spelling(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        check_name(name, ("none", "flip", "shift", "flip-shift"))


# -- the draws ---


def kept_inputs(world: Path, rule: str = "irreducible", **options: Any) -> dict[tuple[int, str, int], torch.Tensor]:
    """Of each kept sample, by (pass, shard, ordinal), its input."""
    found, selector = {}, Selector(nn.Flatten(), rule, 8)
    for candidates in open_world(world, **options):
        kept = selector(candidates)
        for row, x in zip(kept.rows, kept.input, strict=True):
            name = candidates.shard_names[int(candidates.shard[row])].as_py()
            found[candidates.pass_index, name, int(candidates.ordinal[row])] = x
    return found


@pytest.mark.parametrize("augment", [f"{CROP}-flip-colour-randaugment", f"{OWN}:noise"])
def test_draws_go_by_pass_and_sample_and_by_nothing_else(world: Path, augment: str) -> None:
    one = kept_inputs(world, augment=augment, passes=2)
    # Other places, other buffers, other workers and lanes: a sample that both keep is the same.
    other = kept_inputs(world, augment=augment, passes=2, buffer_size=30, lanes=3, workers=1)
    both = one.keys() & other.keys()
    assert len(both) > 50 and all(torch.equal(one[key], other[key]) for key in both)
    again = [(one[key], one[1, *key[1:]]) for key in one if key[0] == 0 and (1, *key[1:]) in one]
    assert len(again) > 20 and sum(torch.equal(a, b) for a, b in again) < len(again) / 8
    seeded = kept_inputs(world, augment=augment, seed=5)
    common = [key for key in seeded if key in one]
    assert common and not all(torch.equal(seeded[key], one[key]) for key in common)


def test_a_crop_in_the_stream_is_that_of_the_bytes(world: Path) -> None:
    loader = open_world(world, augment=CROP, seed=3)
    candidates, table = next(iter(loader)), open_table(str(world / "il"), storage.expand(str(world / "shards")))
    kept = Selector(nn.Flatten(), "irreducible", 8)(candidates)
    kind = loader.preprocess.augmented(CROP)
    for row, x in zip(kept.rows, kept.input, strict=True):
        shard, ordinal = int(candidates.shard[row]), int(candidates.ordinal[row])
        name = candidates.shard_names[shard].as_py()
        rng, out = generator(3, "augment", 0, name, ordinal), np.zeros((1, 16, 16, 1), np.uint8)
        with storage.open_reader(table.shards[shard]) as reader:
            part = rhostream.tables.il.read_part(rhostream.tables.il.part_url(table.url, name))  # type: ignore[attr-defined]
            data = reader.pread(int(part.size[0, ordinal]), int(part.offset[0, ordinal]))
        assert kind.decode({"image": data}, {"pixels": out[0]}, None, rng) == "ok"
        assert torch.equal(kind.normalize(torch.from_numpy(out))[0], x)


def test_what_is_scored_stays_plain_and_only_what_is_kept_is_read_again(world: Path, tmp_path: Path) -> None:
    for name, augment in (("plain", "none"), ("cut", CROP), ("own", f"{OWN}:noise")):
        go(world, tmp_path / name, steps=3, augment=augment)
    columns = "SELECT shard, ordinal, loss, il, score, kept, reason FROM selections WHERE step = 0 ORDER BY ALL"
    first = {name: ask(tmp_path / name, columns) for name in ("plain", "cut", "own")}
    assert first["plain"] == first["cut"] == first["own"] and len(first["plain"]) == 40
    trained = {name: ask(tmp_path / name, "SELECT loss_kept FROM steps ORDER BY step")[0] for name in first}
    assert len({str(row) for row in trained.values()}) == 3
    costs = {name: json.loads((tmp_path / name / "cost.json").read_text()) for name in first}
    assert [costs[name]["reread"] for name in ("plain", "cut", "own")] == [0, 24, 0]


@pytest.mark.parametrize(
    ("options", "reread"),
    [({"view_size": 8}, 8), ({"view_size": 8, "shortlist": 2}, 24), ({"rule": "uniform"}, 8)],
)
def test_a_kept_sample_is_read_once_more_and_not_twice(world: Path, options: dict[str, Any], reread: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 4))
    rule, view = options.pop("rule", "loss"), options.pop("view_size", None)
    plain, cut = (next(iter(open_world(world, view_size=view, augment=name))) for name in ("none", f"{CROP}-flip"))
    one, two = (Selector(model, rule, 8, **options)(c) for c in (plain, cut))
    assert one.rows.tolist() == two.rows.tolist() and np.array_equal(one.loss, two.loss, equal_nan=True)
    assert two.reread == reread and one.input.shape == two.input.shape == (8, 1, 16, 16)
    assert not torch.equal(one.input, two.input)


def test_what_can_not_be_decoded_again_is_unreadable_and_not_kept(world: Path) -> None:
    candidates = next(iter(open_world(world, augment=CROP)))
    read = candidates.again

    def some(rows: np.ndarray) -> Any:
        fields, ok = read(rows)
        return fields, ok & (np.arange(len(rows)) > 2)

    object.__setattr__(candidates, "again", some)
    for rule in ("uniform", "irreducible"):
        kept = Selector(nn.Flatten(), rule, 8)(candidates)
        assert len(kept.input) == len(kept) == kept.total == 5 and (kept.reason == Reason.unreadable).sum() == 3


@pytest.mark.parametrize("augment", [f"{CROP}-flip", pytest.param(f"{OWN}:noise", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_as_in_one_piece(world: Path, tmp_path: Path, augment: str) -> None:
    options = {
        "shards": [str(world / "shards")], "il": str(world / "il"), "model": "mlp-64", "buffer_size": 40, "threads": 1,
        "batch_size": 8, "steps": 30, "checkpoint_every": 4, "augment": augment, "accumulate": 2,
    }  # fmt: skip
    rhostream.train(**options, run=str(tmp_path / "whole"))
    train_killed_at(9, {**options, "run": str(tmp_path / "killed")})
    rhostream.train(**options, run=str(tmp_path / "killed"))
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_a_loop_of_ones_own_learns_from_what_train_learns_from(world: Path, tmp_path: Path) -> None:
    seen = {}
    for name in (CROP, f"{CROP}-flip"):
        stream = open_world(world, augment=name)
        selector = Selector(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), "irreducible", 8)
        run = rhostream.Run(str(tmp_path / "run"), stream, selector, state={"model": selector.model}, steps=2)
        if seen:
            with pytest.raises(MismatchError, match="augment"):
                next(iter(run))
            break
        for kept in run:
            seen[run.steps] = kept.input
            run.step(torch.zeros(len(kept)))
    want = list(kept_inputs(world, augment=CROP).values())[:8]
    assert len(seen) == 2 and torch.equal(seen[0], torch.stack(want))


# -- code of one's own ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fewer", r"fewer.* returned shape \(7, 1, 16, 16\).*expected a tensor of 8 rows"),
        ("listed", "listed.* returned a list"),
        ("raising", "raising.* raised KeyError: 'colour' .own_augments"),
        ("nobody", "nobody"),
    ],
)
def test_a_transform_that_is_none_is_named(world: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        go(world, tmp_path / "run", steps=1, augment=f"{OWN}:{name}")


def test_a_transform_gets_inputs_that_it_may_write_into(world: Path) -> None:
    candidates = next(iter(open_world(world, augment=f"{OWN}:noise")))
    before = candidates.image.clone()
    x = candidates.input
    assert Selector(nn.Flatten(), "uniform", 40)(candidates).input.shape == x.shape
    assert torch.equal(candidates.image, before)


def test_a_change_that_a_file_names_runs_no_code_that_nobody_named(world: Path, tmp_path: Path) -> None:
    go(world, tmp_path / "run", steps=3)
    go(world, tmp_path / "run", steps=6, change=f"augment={OWN}:noise")
    with pytest.raises(UntrustedCodeError, match="noise"):
        go(world, tmp_path / "run", steps=9)
    go(world, tmp_path / "run", steps=9, augment=f"{OWN}:noise")
    assert len(log_of(tmp_path / "run")) == 9 * 40


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("louder"), np.random.default_rng(0)
    rows = [
        {"__key__": f"v{n}", "npy": npy(rng.normal(size=own_kinds.SIZE).astype(np.float32)), "gain": b"1", "cls": "0"}
        for n in range(20)
    ]
    write_shard(root / "shards" / "a.tar", rows)
    for kind in ("Louder", "Vectors"):
        module = "own_augments" if kind == "Louder" else "own_kinds"
        rhostream.index([str(root / "shards")], str(root / kind), kind=f"tests.support.{module}:{kind}")
    return root


def test_a_kind_of_ones_own_decodes_what_is_kept_with_a_generator(vectors: Path) -> None:
    stream = rhostream.open_stream(
        str(vectors / "shards"), str(vectors / "Louder"), needs_il=False, buffer_size=20, augment="decode",
        kind=f"{OWN}:Louder",
    )  # fmt: skip
    candidates = next(iter(stream))
    kept = Selector(nn.Identity(), "uniform", 5)(candidates)
    assert (candidates.fields["gain"] == 1).all() and ((kept.fields["gain"] > 2) & (kept.fields["gain"] < 3)).all()
    assert len(set(kept.fields["gain"].tolist())) == 5
    assert torch.equal(kept.input, kept.fields["vector"] * kept.fields["gain"][:, None])


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [("decode", UsageError, "no second decode"), (CROP, UsageError, "no second decode"),
     ("flip", UnknownNameError, "augmentation")],
)  # fmt: skip
def test_an_augmentation_that_a_kind_has_not_is_refused(
    vectors: Path, augment: str, error: type[RhostreamError], message: str
) -> None:
    with pytest.raises(error, match=message):
        rhostream.open_stream(
            str(vectors / "shards"), str(vectors / "Vectors"), needs_il=False, buffer_size=20, augment=augment,
            kind="tests.support.own_kinds:Vectors",
        )  # fmt: skip
    with pytest.raises(UsageError, match="has random_resized_crop"):
        augment_of("decode", ImageKind(image_size=8), 0)


def test_a_proxy_learns_from_what_was_scored_and_from_its_target(vectors: Path) -> None:
    stream = rhostream.open_stream(
        str(vectors / "shards"), str(vectors / "Louder"), needs_il=False, buffer_size=20, augment="decode",
        kind=f"{OWN}:Louder",
    )  # fmt: skip
    candidates, rows = replace(next(iter(stream)), target_field="gain"), np.arange(3)
    stage, _ = Stage.of(candidates, rows).decoded_again(candidates, candidates.again, rows)
    batch = batch_of(
        candidates, rows, stage.x_m, stage.label_m, np.ones(3, np.float32), Ranks(), again=stage.fields_m, proxy=True
    )
    assert (batch.seen_target == 1).all() and torch.equal(batch.seen, candidates.inputs(rows))
    assert torch.equal(batch.target, stage.target_m) and (batch.target > 2).all()
