"""Pairs of image and caption: both members of a sample, by name alone; a bad one of either is a row that says so."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream.audit.report import write_report
from rhostream.candidates import Reason
from rhostream.errors import BudgetError, MismatchError, UnknownNameError, UsageError
from rhostream.samples import registry
from rhostream.samples.image import ImageKind
from rhostream.samples.pair import PairKind
from rhostream.samples.statuses import STATUSES
from rhostream.samples.text import TextKind
from rhostream.stream.scan import Chunk, ScanSettings, scan
from rhostream.tables import il
from tests.support.hostile_members import BIDI, HOSTILE_PAIRS, JPEG, JPG, hostile_pairs, image_bytes
from tests.support.shards import write_shard

WORDS, LENGTH, SIDE = "words:1000", 12, 24
COUNTS = (30, 41, 1, 28)


def pair(shard: int, n: int) -> dict[str, object]:
    """A sample as img2dataset writes it: the caption is the .txt, and a field of the .json."""
    facts = {"caption": f"field {n} of shard {shard}", "url": "https://example.com/a.jpg", "status": "success"}
    return {"__key__": f"{shard:05d}{n:04d}", "jpg": image_bytes(100 * shard + n, JPEG, SIDE + n % 3),
            "txt": f"picture {n} of shard {shard}", "json": json.dumps(facts)}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ (4 of unequal size, 100 pairs), index/ (captions are the .txt) and field/ (those of the .json)."""
    root = tmp_path_factory.mktemp("pairs")
    for shard, count in enumerate(COUNTS):
        write_shard(root / "shards" / f"{shard:05d}.tar", [pair(shard, n) for n in range(count)])
        for beside in (f"{shard:05d}.parquet", f"{shard:05d}_stats.json"):  # as img2dataset leaves them
            (root / "shards" / beside).write_bytes(b"{}")
    shards, roots = [str(root / "shards")], {"pairs": str(root)}  # the size is that of some, which are drawn by names
    rhostream.index(shards, str(root / "index"), content="pair", roots=roots)
    rhostream.index(shards, str(root / "field"), content="pair", caption="caption", roots=roots)
    return root


def open_pairs(root: Path, table: str = "index", **options: Any) -> Any:
    given = {"buffer_size": 20, "needs_il": False, "tokenizer": WORDS, "text_length": LENGTH, "seed": 3, **options}
    return rhostream.open_stream([str(root / "shards")], str(root / table), **given)


def content(candidates: Any) -> tuple[object, ...]:
    rows = candidates.candidate_rows
    fields = [(name, array.numpy()[rows].tobytes()) for name, array in candidates.fields.items()]
    return candidates.index, candidates.shard.tolist(), candidates.ordinal.tolist(), candidates.reason.tolist(), fields


def samples(loader: Any) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """(shard, ordinal) -> the bytes of its pixels and of its tokens."""
    return {
        (int(c.shard[row]), int(c.ordinal[row])): (
            c.fields["pixels"][int(row)].numpy().tobytes(), c.fields["tokens"][int(row)].numpy().tobytes(),
        )
        for c in loader for row in c.candidate_rows
    }  # fmt: skip


# -- the stream --------------------------------------------------------------------------------------------------------


def test_pairs_come_exactly_once_in_the_same_bytes_for_any_workers_and_resume_exactly(pairs: Path) -> None:
    expected = [content(c) for c in open_pairs(pairs)]
    assert len(expected) == 5
    assert [content(c) for c in open_pairs(pairs, workers=2)] == expected
    loader = open_pairs(pairs)
    loader.load_state_dict({"pass": 0, "buffer": 3})
    assert [content(c) for c in loader] == expected[3:]
    seen = Counter((s, o) for _, shards, ordinals, *_ in expected for s, o in zip(shards, ordinals, strict=True))
    assert set(seen.values()) == {1} and len(seen) == sum(COUNTS)


def test_a_pair_is_the_same_bytes_in_any_order(pairs: Path) -> None:
    assert samples(open_pairs(pairs, seed=4, lanes=4)) == samples(open_pairs(pairs))


def test_fields_and_inputs_are_those_of_an_image_and_of_its_caption(pairs: Path) -> None:
    kind = open_pairs(pairs).preprocess
    image, text = ImageKind(image_size=25), TextKind.of_tokenizer(WORDS, LENGTH)
    for table, caption in (("index", "picture {} of shard {}"), ("field", "field {} of shard {}")):
        candidates = next(iter(open_pairs(pairs, table)))
        inputs = candidates.inputs(candidates.candidate_rows)
        assert inputs.names == ("pixels", "tokens") and len(inputs) == 20
        assert inputs["pixels"].dtype == torch.float32 and inputs["pixels"].shape == (20, 3, 25, 25)
        assert inputs["tokens"].dtype == torch.int64 and inputs["tokens"].shape == (20, LENGTH)
        for row in range(0, 20, 7):
            shard, n = int(candidates.shard[row]), int(candidates.ordinal[row])
            pixels, tokens = np.empty((25, 25, 3), np.uint8), np.empty(LENGTH, np.int32)
            image.decode({"image": pair(shard, n)["jpg"]}, {"pixels": pixels})
            text.decode({"text": caption.format(n, shard).encode()}, {"tokens": tokens})
            assert np.array_equal(candidates.fields["pixels"][row], pixels)
            assert np.array_equal(candidates.fields["tokens"][row], tokens)
            assert torch.equal(inputs["pixels"][row], image.normalize(torch.from_numpy(pixels)[None])[0])
            assert inputs["tokens"][row].tolist() == tokens.tolist()
    assert candidates.label.tolist() == [-1] * 20 and kind.task == "pairs" and kind.target == ""


def test_options_of_images_and_of_text_hold_and_stand_in_the_record(pairs: Path) -> None:
    loader = open_pairs(pairs, image_size=16, channels=1, resize="pad", tokenizer="bytes", text_length=40)
    candidates = next(iter(loader))
    assert candidates.fields["pixels"].shape == (20, 16, 16, 1) and candidates.fields["tokens"].shape == (20, 40)
    record = loader.preprocess.record()
    assert record | {"image_size": 16, "channels": 1, "resize": "pad", "tokenizer": "bytes", "length": 40} == record
    registry.check("pair", record)
    assert registry.from_json(record).record() == record and registry.from_json(record).fields().keys() == {
        "pixels", "tokens"
    }  # fmt: skip
    assert loader.preprocess.pins().keys() >= {"preprocess_image_size", "preprocess_length", "preprocess_target"}
    small = next(iter(open_pairs(pairs, view_size=8)))
    assert small.fields["pixels"].shape == (20, 8, 8, 3) and small.fields["tokens"].shape == (20, LENGTH)


def test_kept_pairs_are_decoded_again_with_their_image_augmented_and_their_caption_as_it_is(pairs: Path) -> None:
    plain, again = next(iter(open_pairs(pairs))), next(iter(open_pairs(pairs, augment="random_resized_crop-flip")))
    rows = np.arange(8)
    fields, ok = again.again(rows)
    same, _ = next(iter(open_pairs(pairs, augment="random_resized_crop-flip"))).again(rows)
    assert ok.all() and torch.equal(fields["tokens"], plain.fields["tokens"][:8])
    assert torch.equal(fields["pixels"], same["pixels"]) and not torch.equal(
        fields["pixels"], plain.fields["pixels"][:8]
    )


def test_the_page_of_pairs_is_right(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "pairs.md").read_text()
    block = page.split("<!-- run by tests/test_pairs_kind.py -->\n```python\n")[1].split("```")[0]
    monkeypatch.chdir(pairs)
    names: dict[str, Any] = {"rhostream": rhostream}
    exec(block.replace("320, needs", f"20, tokenizer={WORDS!r}, text_length={LENGTH}, needs"), names)
    assert names["x"]["pixels"].shape == (20, 3, 25, 25) and names["x"]["tokens"].shape == (20, LENGTH)
    listed = {status for status in STATUSES if status.startswith("text:")}
    assert listed == set(re.findall(r"`(text:[a-z_]+)`", page))


# -- what can't be used ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["", "caption"])
def test_every_bad_pair_gets_its_status_and_the_member_that_is_meant(tmp_path: Path, field: str) -> None:
    shard, expected = hostile_pairs(tmp_path / "x.tar", field)
    kind = PairKind(image=ImageKind(image_size=16), text=TextKind.of_tokenizer(WORDS, LENGTH), caption=field)
    rows = [
        row
        for chunk in scan([(str(shard), "x.tar")], ScanSettings(kind=kind))
        if isinstance(chunk, Chunk)
        for row in chunk.rows.to_pylist()
    ]
    assert {row["key"]: row["status"] for row in rows} == expected
    for row in rows:
        status, error = row["status"], row["error"]
        assert (error is None) == (status == "ok")
        if status in ("image:missing", "text:missing") and row["key"] not in ("no-field", "null"):
            wanted = "jpg, jpeg, png, webp" if status == "image:missing" else "json" if field else "txt"
            assert f"no member is one of {wanted}; members: " in error
        elif error is not None:
            caption = status.startswith(("text", "json", "size"))
            assert error.startswith((".json" if field else ".txt") if caption else (".jpg", ".png")), row


@given(
    st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
    st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda value: st.lists(value, max_size=3)),
)
def test_whatever_a_caption_is_it_gets_a_status_and_tokens_that_its_vocabulary_has(data: bytes, value: Any) -> None:
    text, out = TextKind.of_tokenizer("bytes", 16), {"pixels": np.empty((4, 4, 3), np.uint8)}
    for field, caption in (("", data), ("a.b", data), ("a.b", json.dumps({"a": {"b": value}}).encode())):
        kind, out["tokens"] = (
            PairKind(image=ImageKind(image_size=4), text=text, caption=field),
            np.full(16, -7, np.int32),
        )
        status = kind.examine({"image": len(JPG), "caption": len(caption)})
        if status == "ok":
            status = kind.decode({"image": JPG, "caption": caption}, out)
        assert status == "ok" or (status in STATUSES and kind.blamed(status) == "caption")
        if status == "ok":
            assert ((out["tokens"] >= 0) & (out["tokens"] < text.vocabulary)).all()
        if not field and status == "ok":
            assert data.decode("utf-8-sig").strip() and b"\0" not in data


def test_of_several_images_the_one_that_is_asked_for_is_paired(tmp_path: Path) -> None:
    rows = [{"__key__": f"{n}", "jpg": image_bytes(n, JPEG, 8), "png": image_bytes(n, size=12), "txt": "a"}
            for n in range(20)]  # fmt: skip
    write_shard(tmp_path / "shards" / "a.tar", rows)
    for member, size in (("png,jpg", 12), ("jpg", 8)):
        rhostream.index([str(tmp_path / "shards")], str(tmp_path / member), content="pair", image_member=member)
        loader = open_pairs(tmp_path, member)
        assert next(iter(loader)).fields["pixels"].shape[1:3] == (size, size)
        assert loader.preprocess.image.member == member


def test_a_bad_pair_is_unreadable_in_a_stream_over_an_index_and_counted(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    shard, expected = hostile_pairs(tmp_path / "shards" / "x.tar")
    summary = rhostream.index([str(shard)], str(tmp_path / "index"), content="pair", max_bad_fraction=1.0)
    by_size = {"image:missing", "text:missing", "decode:empty", "text:empty", "text:too_large"}
    table = pq.read_table(next((tmp_path / "index").rglob("*.parquet"))).to_pylist()
    seen = {row["key"]: row["status"] for row in table}
    assert all(seen[key] in (status, "ok") for key, status in expected.items())
    assert {status for key, status in seen.items()} == by_size | {"ok"}
    assert summary.quarantined == Counter(status for status in seen.values() if status != "ok")
    buffer = next(iter(open_pairs(tmp_path, buffer_size=len(expected), image_size=16, channels=3)))
    reasons = dict(zip(buffer.key.to_pylist(), buffer.reason.tolist(), strict=True))
    for key, status in expected.items():
        dropped = Reason.quarantined if seen[key] != "ok" else Reason.unreadable
        assert (reasons[key] == dropped) == (status != "ok"), key


# -- what is meant -----------------------------------------------------------------------------------------------------


def test_nothing_is_a_pair_that_was_not_said_to_be_one(pairs: Path, tmp_path: Path) -> None:
    rhostream.index([str(pairs / "shards")], str(tmp_path / "said"), content="image", max_bad_fraction=1.0)
    for options, content in (({}, "image"), ({"content": "text"}, "text")):
        rhostream.index([str(pairs / "shards")], str(tmp_path / content), max_bad_fraction=1.0, **options)
        assert il.open_info(str(tmp_path / content)).content == content
    assert il.open_info(str(pairs / "index")).content == il.open_info(str(pairs / "field")).content == "pair"


def test_the_option_that_is_meant_is_named(pairs: Path, tmp_path: Path) -> None:
    shards, out = [str(pairs / "shards")], str(tmp_path / "out")
    plain = [{"__key__": f"{n}", "jpg": image_bytes(n, JPEG), "json": '{"caption": "a cat"}'} for n in range(20)]
    write_shard(tmp_path / "plain.tar", plain)
    for options, error, said in (
        ({"shards": [str(tmp_path / "plain.tar")], "content": "pair"}, UsageError, "--caption"),
        ({"content": "pair", "caption": "alt"}, UsageError, "none has"),
        ({"caption": "caption"}, UsageError, "--content pair"),
        ({"content": "image", "caption": "caption"}, UsageError, "--content image"),
        ({"content": "pairs"}, UnknownNameError, "did you mean 'pair'"),
        ({"content": "pair", "kind": "tests.support.own_kinds:Vectors"}, UsageError, "--kind"),
    ):
        with pytest.raises(error, match=said):
            rhostream.index(**{"shards": shards, "out": out, **options})
    for options, said in (({"content": "pair", "caption": "alt"}, "none has"), ({"caption": "caption"}, "--content")):
        with pytest.raises(UsageError, match=said):
            rhostream.fit_il(shards, out, model="pair-small", loss="siglip", **options)
        with pytest.raises(UsageError, match=said):
            rhostream.compute_il(shards, out=out, reference="tests.support.tiny:smooth_loss", **options)
    with pytest.raises(UsageError, match="language"):
        rhostream.fit_il(shards, out, model="text-lm", content="pair")
    with pytest.raises(MismatchError, match="--content image"):
        open_pairs(pairs, kind="image")
    with pytest.raises(UnknownNameError, match="pair"):
        open_pairs(pairs, kind="pairs")
    assert len(open_pairs(pairs, kind="pair")) == 5
    with pytest.raises(UsageError, match="--label"):
        rhostream.index(shards, out, content="pair", label="json:status")


def test_captioned_images_without_a_class_are_told_of_pairs(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as told:
        rhostream.index([str(pairs / "shards")], str(tmp_path / "txt"))
    assert any("--content pair" in note for note in told.value.__notes__)
    plain = [{"__key__": f"{n}", "jpg": image_bytes(n, JPEG), "json": '{"caption": "a cat"}'} for n in range(20)]
    with pytest.raises(BudgetError) as told:
        rhostream.index([str(write_shard(tmp_path / "plain.tar", plain))], str(tmp_path / "json"))
    assert any("--content pair --caption caption" in note for note in told.value.__notes__)


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_over_bad_pairs_counts_them_and_its_report_shows_pictures_above_escaped_captions(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    hostile_pairs(tmp_path / "shards" / "x.tar")
    written = f"{BIDI.decode()} <script>alert(1)</script> \x1b[31m cat \u2067 {{{{ 7 * 7 }}}} {'words ' * 400}"
    for shard in range(2):
        write_shard(tmp_path / "shards" / f"{shard:05d}.tar", [{**pair(shard, n), "txt": written} for n in range(40)])
    shards, table, run = [str(tmp_path / "shards")], str(tmp_path / "index"), str(tmp_path / "run")
    rhostream.index(shards, table, content="pair", max_bad_fraction=1.0)
    with pytest.raises(MismatchError, match="--content image"):
        rhostream.train(shards, table, run, model="pair-small", loss="siglip", rule="loss", content="image")
    rhostream.train(
        shards, table, run, model="pair-small", loss="siglip", rule="loss", content="pair", passes=1, batch_size=8,
        buffer_size=38, image_size=16, channels=3, tokenizer=WORDS, text_length=LENGTH, augment="random_resized_crop",
        threads=1,
    )  # fmt: skip
    with rhostream.open_ledger(run) as ledger:
        counted = ledger.sql("SELECT reason, count(*) AS n FROM selections WHERE NOT kept GROUP BY 1").to_pylist()
    expected = Counter(status for _, status, _ in HOSTILE_PAIRS.values())
    del expected["ok"]
    dropped = {row["reason"]: row["n"] for row in counted if row["reason"] in ("quarantined", "unreadable")}
    assert sum(dropped.values()) == sum(expected.values()) and min(dropped.values()) > 5
    page = Path(write_report([run], str(tmp_path / "page.html"))).read_text("utf-8")
    figures = re.findall(r"<figure><img.*?</figure>", page, re.DOTALL)
    assert len(figures) >= 8 and all("<blockquote>" in figure for figure in figures)
    assert "a \\u202ecat" in page and "&lt;b&gt;a dog" in page and "&lt;script&gt;" in page and "\\x1b[31m" in page
    assert "<script" not in page and not re.search("[\x1b\u202a-\u202e\u2066-\u2069]", page)
    assert all(len(text) < 1000 for text in re.findall(r"<blockquote>(.*?)</blockquote>", page))
