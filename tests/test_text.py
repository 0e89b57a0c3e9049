"""Text goes the whole way that images go: streamed, joined, selected, logged; what is no text is a row that says so."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tracemalloc
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream import models
from rhostream.advisor.estimate import estimate
from rhostream.advisor.scoring import scoring_report
from rhostream.audit.verify import verify
from rhostream.candidates import Reason
from rhostream.cli import cli
from rhostream.errors import MismatchError, MissingExtraError, TableError, UnknownNameError, UsageError
from rhostream.repair import repair
from rhostream.samples.registry import BUILT_IN, from_json
from rhostream.samples.statuses import STATUSES
from rhostream.samples.text import TextKind
from rhostream.samples.tokenizers import find_tokenizer
from rhostream.samples.tokens import BadTokens, TokensKind, token_ids
from rhostream.stream.look import look
from rhostream.stream.scan import Chunk, ScanSettings, scan
from rhostream.tables import il, parquet
from rhostream.tables.il.part import DICTIONARY, ENCODINGS
from tests.support.shards import png, write_shard
from tests.support.text_world import CLASSES, make_text_shards, npy, sentence, text_sample

WORDS = "words:1000"
TRAIN = {"buffer_size": 40, "batch_size": 8, "model": "text-cnn", "lr": 3e-3, "device": "cpu", "threads": 1}


def made(tokenizer: str, length: int) -> TextKind:
    """The kind of that tokenizer."""
    return (TokensKind if tokenizer.startswith("ids:") else TextKind).of_tokenizer(tokenizer, length)


@pytest.fixture(scope="module")
def text_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ (5 of unequal size, 503 samples), test/, il-model/, il/, index/."""
    root = tmp_path_factory.mktemp("text")
    make_text_shards(root / "shards", [160, 150, 97, 1, 95])
    make_text_shards(root / "test", [80], seed=1, noise=0)
    shards = [str(root / "shards")]
    rhostream.fit_il(
        shards,
        str(root / "il-model"),
        model="text-bag",
        epochs=16,
        lr=2e-2,
        tokenizer=WORDS,
        text_length=24,
        holdout=[str(root / "test")],
    )
    rhostream.compute_il(shards, str(root / "il-model"), str(root / "il"), keep={"is_noisy": "bool"})
    rhostream.index(shards, str(root / "index"))
    return root


@pytest.fixture(scope="module")
def text_run(text_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("text-run") / "rho"
    rhostream.train(
        [str(text_world / "shards")],
        str(text_world / "il"),
        str(run),
        passes=4,
        test_shards=[str(text_world / "test")],
        **TRAIN,
    )
    return run


def open_world(world: Path, **options: Any) -> Any:
    return rhostream.open_stream(
        str(world / "shards"), str(world / options.pop("il", "il")), **{"buffer_size": 40, **options}
    )


# -- the stream --------------------------------------------------------------------------------------------------------


def content(candidates: Any) -> tuple[object, ...]:
    rows = candidates.candidate_rows
    return (
        candidates.index,
        candidates.shard.tolist(),
        candidates.ordinal.tolist(),
        candidates.key.to_pylist(),
        candidates.label.tolist(),
        candidates.il.numpy().tobytes(),
        candidates.image.numpy()[rows].tobytes(),
    )


def test_text_comes_exactly_once_in_the_same_order_for_any_workers_and_resumes_exactly(text_world: Path) -> None:
    expected = [content(c) for c in open_world(text_world, seed=3)]
    assert len(expected) == 12
    assert [content(c) for c in open_world(text_world, seed=3, workers=2)] == expected
    loader = open_world(text_world, seed=3)
    loader.load_state_dict({"pass": 0, "buffer": 7})
    assert [content(c) for c in loader] == expected[7:]
    seen = Counter((s, o) for _, shard, ordinal, *_ in expected for s, o in zip(shard, ordinal, strict=True))
    assert set(seen.values()) == {1} and len(seen) == 480


def oracle(text: str, vocabulary: int, length: int) -> list[int]:
    """`words:N` again, from its description."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    ids = [
        int.from_bytes(hashlib.blake2b(w.encode(), digest_size=8).digest(), "big") % (vocabulary - 2) + 2 for w in words
    ]
    return [*ids, 1, *[0] * length][:length]


def test_rows_hold_the_ids_of_the_text_that_the_shard_holds(text_world: Path) -> None:
    loader = open_world(text_world)
    candidates = next(iter(loader))
    assert candidates.image.dtype == torch.int32 and candidates.image.shape == (40, 24)
    assert candidates.input.dtype == torch.int64 and torch.equal(candidates.input, candidates.image.long())
    names = loader.stream.table.names
    for row in range(0, 40, 3):
        part = il.read_part(il.part_url(str(text_world / "il"), names[candidates.shard[row]]))
        ordinal = int(candidates.ordinal[row])
        shard = Path(loader.stream.table.shards[candidates.shard[row]]).read_bytes()
        text = shard[int(part.offset[0, ordinal]) :][: int(part.size[0, ordinal])].decode()
        assert candidates.image[row].tolist() == oracle(text, 1000, 24)
        assert candidates.label[row] == part.label[ordinal] and candidates.il[row] == part.il[ordinal]


def test_the_target_may_read_other_tokens_and_another_length_than_the_il_model(text_world: Path) -> None:
    own = open_world(text_world, tokenizer="bytes", text_length=50)
    candidates, same = next(iter(own)), next(iter(open_world(text_world)))
    assert candidates.image.shape == (40, 50) and candidates.key.equals(same.key)
    assert torch.equal(candidates.il, same.il)
    cut = next(iter(open_world(text_world, text_length=5)))
    assert torch.equal(cut.image, same.image[:, :5])
    indexed = next(iter(open_world(text_world, il="index", needs_il=False)))
    assert indexed.image.shape == (40, 128) and indexed.key.equals(same.key)


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_rho_on_text_learns_skips_noise_and_leaves_a_ledger_that_holds(text_run: Path, text_world: Path) -> None:
    with rhostream.open_ledger(str(text_run)) as ledger:
        by = {
            row["kept"]: row
            for row in ledger.sql(
                "select kept, count(*) as n, avg(is_noisy::int) as noisy from selections join samples "
                "using (shard, ordinal) where reason in ('kept', 'below') group by kept"
            ).to_pylist()
        }
        final = ledger.sql("select final_test_accuracy from runs").to_pylist()[0]["final_test_accuracy"]
        tokens = ledger.sql("select count(*) as n, count(il_tokens) as filled from il").to_pylist()[0]
    assert by[True]["n"] == 48 * 8 and by[True]["noisy"] < 0.5 * by[False]["noisy"] and final > 0.85
    assert tokens == {"n": 503, "filled": 0}
    for folder in (text_run, text_world / "il", text_world / "index", text_world / "il-model"):
        assert verify(str(folder))["problems"] == [], folder


def test_a_users_own_loop_learns_from_text(text_world: Path) -> None:
    torch.manual_seed(0)
    model = models.build("text-bag", classes=CLASSES, vocabulary=1000, length=24, padding=0, task="label")
    optimizer, selector = torch.optim.AdamW(model.parameters(), lr=2e-2), rhostream.Selector(model, "rho", 8)
    first: list[float] = []
    for candidates in open_world(text_world, passes=3):
        kept = selector(candidates)
        assert kept.input.dtype == torch.int64 and kept.input.shape == (8, 24)
        assert torch.equal(kept.input, candidates.input[kept.rows])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(kept.input), kept.label).backward()
        optimizer.step()
        first.append(float(np.sort(kept.loss)[:20].mean()))  # a wrong label isn't learned
    assert len(first) == 36 and np.mean(first[-5:]) < 0.5 * np.mean(first[:5])


def test_a_run_on_text_that_was_stopped_ends_with_the_same_log(
    text_run: Path, text_world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "again"
    for steps in (20, 48):
        rhostream.train([str(text_world / "shards")], str(text_world / "il"), str(run), steps=steps, **TRAIN)
    rows = []
    for folder in (run, text_run):
        with rhostream.open_ledger(str(folder)) as ledger:
            rows.append(
                ledger.sql(
                    "select step, shard, ordinal, kept from selections where step is not null order by all"
                ).to_pylist()
            )
    assert rows[0] == rows[1]


def test_a_run_is_pinned_to_its_tokenizer(text_world: Path, tmp_path: Path) -> None:
    first = {**TRAIN, "model": "text-bag", "rule": "uniform", "steps": 1}
    shards, index = [str(text_world / "shards")], str(text_world / "index")
    rhostream.train(shards, index, str(tmp_path / "run"), tokenizer=WORDS, text_length=24, **first)
    with pytest.raises(MismatchError, match=r"preprocess_(length|tokenizer)"):
        rhostream.train(shards, index, str(tmp_path / "run"), tokenizer="bytes", text_length=24, **first)


def test_a_table_that_another_tokenizer_made_is_never_mixed(text_world: Path, tmp_path: Path) -> None:
    shards = [str(text_world / "shards")]
    rhostream.fit_il(
        shards, str(tmp_path / "m"), model="text-bag", epochs=1, tokenizer="words:999", text_length=24, fit_samples=100
    )
    with pytest.raises(MismatchError, match=r"preprocess.*words:1000.*words:999"):
        rhostream.compute_il(shards, str(tmp_path / "m"), str(text_world / "il"), keep={"is_noisy": "bool"})


def test_the_report_shows_the_beginning_of_a_text_and_escapes_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {**text_sample(n, rng), "txt": f"<script>alert({n})</script> \x1b[31m {sentence(n % 4, rng)}".encode()}
        for n in range(60)
    ]
    write_shard(tmp_path / "a.tar", rows)
    rhostream.index([str(tmp_path / "a.tar")], str(tmp_path / "index"))
    rhostream.train(
        [str(tmp_path / "a.tar")],
        str(tmp_path / "index"),
        str(tmp_path / "run"),
        rule="loss",
        steps=4,
        tokenizer=WORDS,
        **{**TRAIN, "buffer_size": 12, "batch_size": 4},
    )
    page = Path(rhostream.write_report(str(tmp_path / "run"), str(tmp_path / "page.html"))).read_text()
    assert "<blockquote>&lt;script&gt;alert(" in page and "<script>" not in page and "\x1b" not in page
    assert "no picture" not in page


def test_estimate_and_doctor_measure_text(text_world: Path, text_run: Path) -> None:
    found = estimate(
        [str(text_world / "shards")],
        il=str(text_world / "il"),
        model="text-bag",
        buffer_size=32,
        batch_size=8,
        seconds=1,
    )
    assert (found.input, found.decoder, found.il_model, found.image_size) == (
        "24 tokens of words:1000",
        "text",
        "text-bag",
        0,
    )
    assert found.measured.decode > 0 and not found.measured.view_decode
    report = scoring_report(run=str(text_run), buffers=1, proxy_batches=1)
    assert {way.way for way in report.ways} >= {"il alone", "proxy text-bag"}
    with pytest.raises(UsageError, match="no smaller view"):
        scoring_report(run=str(text_run), buffers=1, view_sizes=[8])


def test_the_command_line_takes_text(text_world: Path, tmp_path: Path) -> None:
    def run(*args: str) -> str:
        done = CliRunner().invoke(cli, args, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    shards = ["--shards", str(text_world / "shards")]
    run(
        "fit-il",
        *shards,
        "--out",
        str(tmp_path / "m"),
        "--model",
        "text-bag",
        "--tokenizer",
        "bytes",
        "--text-length",
        "40",
        "--epochs",
        "1",
        "--fit-samples",
        "64",
    )
    assert json.loads((tmp_path / "m" / "model.json").read_text())["preprocess"]["tokenizer"] == "bytes"
    summary = json.loads(run("index", *shards, "--out", str(tmp_path / "index"), "--content", "text"))
    assert summary["ok"] == 503
    told = json.loads(
        run(
            "train",
            *shards,
            "--il",
            str(tmp_path / "index"),
            "--run",
            str(tmp_path / "run"),
            "--rule",
            "loss",
            "--model",
            "text-bag",
            "--tokenizer",
            WORDS,
            "--text-length",
            "16",
            "--steps",
            "2",
            "--buffer-size",
            "40",
            "--batch-size",
            "8",
        )
    )
    assert told["kept"] == 16


# -- what is no text ---------------------------------------------------------------------------------------------------


def bad_texts() -> dict[str, tuple[dict[str, object], str]]:
    picture = png(np.zeros((16, 16), np.uint8))
    return {
        "good": ({"txt": b"a plum"}, "ok"),
        "no-text": ({"json": {"a": 1}}, "text:missing"),
        "picture": ({"png": picture}, "text:missing"),
        "array": ({"npy": npy([1, 2])}, "text:missing"),
        "zero": ({"txt": b""}, "text:empty"),
        "spaces": ({"txt": " \n\t\u2003".encode()}, "text:empty"),
        "only-a-mark": ({"txt": "\ufeff".encode()}, "text:empty"),
        "latin-1": ({"txt": "caf\xe9".encode("latin-1")}, "text:encoding"),
        "utf-16": ({"txt": "plum".encode("utf-16")}, "text:encoding"),
        "surrogate": ({"txt": b"\xed\xa0\x80"}, "text:encoding"),
        "picture-named-txt": ({"txt": picture}, "text:encoding"),
        "long": ({"txt": b"a " * (1 << 19) + b"b"}, "text:too_large"),
        "longest": ({"txt": b"a " * (1 << 19)}, "ok"),
        "signs": ({"txt": "…!?".encode()}, "ok"),
        "nul": ({"txt": b"\0\0"}, "ok"),
        "caption": ({"txt": b"a pear", "png": picture}, "ok"),
    }


def bad_arrays() -> dict[str, tuple[dict[str, object], str]]:
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object))  # what must never be opened
    whole = npy(np.arange(5, dtype=np.int32))
    return {
        "good": ({"npy": whole}, "ok"),
        "uint16": ({"npy": npy(np.arange(5, dtype=np.uint16))}, "ok"),
        "big-endian": ({"npy": npy(np.arange(5, dtype=">i8"))}, "ok"),
        "text": ({"txt": b"a plum"}, "tokens:missing"),
        "zero": ({"npy": b""}, "tokens:empty"),
        "none": ({"npy": npy(np.zeros(0, np.int32))}, "tokens:empty"),
        "objects": ({"npy": objects.getvalue()}, "tokens:type"),
        "floats": ({"npy": npy(np.ones(3))}, "tokens:type"),
        "two-dimensional": ({"npy": npy(np.ones((3, 3), np.int32))}, "tokens:type"),
        "scalar": ({"npy": npy(np.int64(3))}, "tokens:type"),
        "records": ({"npy": npy(np.zeros(2, [("a", "i4"), ("b", "i4")]))}, "tokens:broken"),
        "cut": ({"npy": whole[:-1]}, "tokens:broken"),
        "longer": ({"npy": whole + b"\0"}, "tokens:broken"),
        "negative": ({"npy": npy([1, -1])}, "tokens:range"),
        "beyond": ({"npy": npy([1, 64])}, "tokens:range"),
        "huge": ({"npy": npy(np.array([2**64 - 1], np.uint64))}, "tokens:range"),
        "billions": ({"npy": whole.replace(b"(5,)", b"(5000000000,)")[: len(whole)]}, "tokens:broken"),
        "no-array": ({"npy": b"PK\x03\x04 an archive, which numpy would open"}, "tokens:broken"),
    }


@pytest.mark.parametrize(("bad", "tokenizer"), [(bad_texts, WORDS), (bad_arrays, "ids:64")])
def test_what_is_no_text_is_a_row_of_its_own_status(bad: Any, tokenizer: str, tmp_path: Path) -> None:
    samples = bad()
    path = write_shard(
        tmp_path / "a.tar", [{"__key__": key, "cls": "1", **members} for key, (members, _) in samples.items()]
    )
    settings = ScanSettings(kind=made(tokenizer, 8), classes=4)
    chunks = [m for m in scan([(str(path), "a")], settings) if isinstance(m, Chunk)]
    found = dict(
        zip(chunks[0].rows.column("key").to_pylist(), chunks[0].rows.column("status").to_pylist(), strict=True)
    )
    assert found == {key: status for key, (_, status) in samples.items()}
    assert set(found.values()) <= set(STATUSES)
    # Unread, `index` can tell what is missing, empty or too large; the trainer drops the rest as unreadable.
    rhostream.index([str(path)], str(tmp_path / "index"), max_bad_samples=99)
    row = pq.read_table(next((tmp_path / "index").rglob("*.parquet"))).to_pydict()
    seen = dict(zip(row["key"], row["status"], strict=True))
    told = {key: status for key, status in found.items() if re.search("^ok$|missing|too_large|empty", status)}
    unread = {"spaces", "only-a-mark", "none"}
    assert {k: v for k, v in seen.items() if k not in unread and k in told} == {
        k: v for k, v in told.items() if k not in unread
    }
    loader = rhostream.open_stream(
        str(path),
        str(tmp_path / "index"),
        buffer_size=len(samples),
        needs_il=False,
        tokenizer=tokenizer,
        text_length=8,
        lanes=1,
    )
    candidates = next(iter(loader))
    usable = {candidates.key[r].as_py() for r in candidates.candidate_rows}
    assert usable == {key for key, status in found.items() if status == "ok"}
    first = candidates.image[candidates.key.to_pylist().index("good")].tolist()
    assert first == ([0, 1, 2, 3, 4, 64, 64, 64] if tokenizer == "ids:64" else oracle("a plum", 1000, 8))
    assert set(candidates.reason[candidates.reason != 255].tolist()) == {Reason.quarantined, Reason.unreadable}


def test_a_text_of_a_hundred_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    samples = [{"__key__": "a", "txt": b"a plum", "cls": "1"}, {"__key__": "b", "cls": "1"}]
    path = write_shard(tmp_path / "a.tar", samples)
    whole = path.read_bytes()
    at = whole.rindex(b"b.cls") // 512 * 512
    header = bytearray(whole[at : at + 512])
    header[:5], header[124:136] = b"b.txt", b"%011o\0" % (100 << 20)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with path.open("r+b") as file:
        file.seek(at + 1024)
        file.write(header)
        file.truncate(at + 1536 + (100 << 20) + 1024)  # a hole, then the end marker
    tracemalloc.start()
    preprocess = made(WORDS, 8)
    messages = scan([(str(path), "a")], ScanSettings(kind=preprocess))
    rows = next(messages).rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    messages.close()
    assert rows.column("status").to_pylist() == ["ok", "text:too_large"] and peak < 32 << 20


@pytest.mark.parametrize(
    ("first", "content", "odd"),
    [("txt", "text", "text:missing"), ("png", "image", "image:missing"), ("npy", "tokens", "tokens:missing")],
)
def test_the_first_usable_sample_says_what_a_shard_holds_and_the_odd_ones_are_quarantined(
    first: str, content: str, odd: str, tmp_path: Path
) -> None:
    members: dict[str, object] = {"txt": b"a plum", "png": png(np.zeros((16, 16), np.uint8)), "npy": npy([1, 2])}
    order = [first, *[m for m in members if m != first]]
    samples = [{"__key__": "s0", "json": {}, "cls": "0"}, {"__key__": "s1", first: b"", "cls": "0"}]
    samples += [{"__key__": f"s{n + 2}", kind: members[kind], "cls": "0"} for n, kind in enumerate(order)]
    path = write_shard(tmp_path / "a.tar", samples)
    assert look([(str(path), "a")]).content == content
    for _ in range(2):  # and again, from the table
        rhostream.index([str(path)], str(tmp_path / "index"))
    assert il.open_info(str(tmp_path / "index")).content == content
    status = pq.read_table(next((tmp_path / "index").rglob("*.parquet")))["status"].to_pylist()
    assert status == [odd, BUILT_IN[content].verdicts[1], "ok", odd, odd]


def test_an_image_with_a_caption_is_an_image_unless_text_is_asked_for(tmp_path: Path) -> None:
    picture = png(np.zeros((16, 16), np.uint8))
    path = write_shard(
        tmp_path / "a.tar",
        [{"__key__": f"s{n}", "png": picture, "txt": b"a plum", "cls": str(n % 2)} for n in range(40)],
    )
    rhostream.index([str(path)], str(tmp_path / "image"))
    rhostream.index([str(path)], str(tmp_path / "text"), content="text")
    shapes = [
        next(iter(rhostream.open_stream(str(path), str(tmp_path / kind), buffer_size=40, needs_il=False))).image
        for kind in ("image", "text")
    ]
    assert [s.shape for s in shapes] == [(40, 16, 16, 1), (40, 128)]
    assert (shapes[1][:, 0] == oracle("a", 30_000, 1)[0]).all()
    info = rhostream.fit_il([str(path)], str(tmp_path / "m"), model="text-bag", tokenizer="bytes", epochs=1)
    assert info.preprocess["kind"] == "text"
    with pytest.raises(MismatchError, match=r"content 'image'.*'text'"):
        rhostream.index([str(path)], str(tmp_path / "image"), content="text")


# -- usage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "mlp"}, r"'mlp' takes images, and these samples are text; built in for text: text-bag"),
        ({"model": "text-bga"}, r"did you mean 'text-bag'"),
        ({"image_size": 32}, r"--image-size 32 is for images"),
        ({"view_size": 8}, r"holds text, which has no smaller view"),
        ({"augment": "flip"}, r"--augment flip is for images"),
        ({"tokenizer": "wrods:100"}, r"unknown tokenizer 'wrods:100'; did you mean"),
        ({"tokenizer": "words:many"}, r"expected a number of ids from 16"),
        ({"tokenizer": "words:5"}, r"expected a number of ids from 16"),
        ({"tokenizer": "ids:100"}, r"holds text \(\.txt\), which --tokenizer ids:100 doesn't read"),
        ({"text_length": 0}, r"--text-length 0: expected 1 to 65,536"),
        ({"text_length": 10**9}, r"--text-length 1000000000: expected 1 to 65,536"),
        ({"shortlist": "proxy:2"}, r"'mlp-64' takes images"),
    ],
)
def test_an_option_that_text_cannot_have_is_refused_before_any_work(
    options: dict[str, Any], says: str, text_world: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        rhostream.train(
            [str(text_world / "shards")],
            str(text_world / "il"),
            str(tmp_path / "run"),
            **{**TRAIN, "steps": 1, **options},
        )
    assert not (tmp_path / "run" / "run.json").exists()


def test_what_fit_il_cannot_do_with_text_is_refused(text_world: Path, world: Path, tmp_path: Path) -> None:
    text, images, out = [str(text_world / "shards")], [str(world / "shards")], str(tmp_path / "m")
    arrays = write_shard(tmp_path / "ids.tar", [{"__key__": "a", "npy": npy([1, 2]), "cls": "0"}])
    for shards, options, says in (
        (text, {"model": "small-cnn"}, "'small-cnn' takes images, and these samples are text"),
        (images, {"model": "text-bag"}, "'text-bag' takes text, and these samples are images"),
        (images, {"model": "text-bag", "tokenizer": "bytes"}, "reads .txt members, and the first samples"),
        (images, {"model": "mlp", "text_length": 5}, "--text-length 5 is for text"),
        (text, {"model": "text-bag", "tokenizer": "bytes", "image_size": 32}, "give one of them"),
        (text, {"model": "text-bag", "augment": "shift"}, "is for images"),
        ([str(arrays)], {"model": "text-bag"}, r"say how many ids there are with --tokenizer ids:N"),
    ):
        with pytest.raises(UsageError, match=says):
            rhostream.fit_il(shards, out, **options)
    with pytest.raises(UnknownNameError, match="did you mean 'text'"):
        rhostream.index(text, str(tmp_path / "i"), content="txt")
    with pytest.raises(UsageError, match=r"--text-length 5 is for text, and .* holds images"):
        rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=40, text_length=5)


# -- old tables, and forged ones ---------------------------------------------------------------------------------------


def test_a_table_of_the_first_version_stays_readable_and_is_filled_as_it_was_made(world: Path, tmp_path: Path) -> None:
    old = tmp_path / "il"
    record = json.loads((world / "il" / "_table.json").read_text())
    del record["content"]
    (old / "parts").mkdir(parents=True)
    (old / "_table.json").write_text(json.dumps({**record, "version": 1}))
    parts = sorted((world / "il" / "parts").rglob("*.parquet"))
    for part in parts[:-1]:
        rows, facts = parquet.read(str(part))
        facts = {k: v for k, v in facts.items() if k != "content"} | {"version": 1}
        (new := old / part.relative_to(world / "il")).parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(parquet.encode(rows.drop_columns("il_tokens"), facts, ENCODINGS, DICTIONARY))
    shards = [str(world / "shards")]
    summary = rhostream.compute_il(
        shards, str(world / "il-model"), str(old), keep={"is_noisy": "bool", "true_label": "int"}
    )
    assert (summary.made, summary.present) == (1, 6) and verify(str(old), shards=shards)["problems"] == []
    made = pq.read_schema(old / parts[-1].relative_to(world / "il"))
    assert "il_tokens" not in made.names
    with rhostream.open_ledger(str(old)) as ledger:
        assert ledger.sql("select count(*) as n, sum(is_noisy::int) as noisy from samples").to_pylist()[0]["n"] == 1003
    first = [content(c) for c in rhostream.open_stream(shards, str(old), buffer_size=40)]
    assert first == [content(c) for c in rhostream.open_stream(shards, str(world / "il"), buffer_size=40)]


def test_a_repair_makes_parts_as_the_table_has_them(plain_world: Path, text_world: Path, tmp_path: Path) -> None:
    old, text = tmp_path / "old", tmp_path / "text"
    rhostream.compute_il([str(plain_world / "shards")], str(plain_world / "il-model"), str(old))
    record = json.loads((old / "_table.json").read_text())
    (old / "_table.json").write_text(json.dumps({**record, "version": 1}))
    for part in old.rglob("*.parquet"):
        rows, facts = parquet.read(str(part))
        part.write_bytes(parquet.encode(rows.drop_columns("il_tokens"), {**facts, "version": 1}, ENCODINGS, DICTIONARY))
    picture = png(np.zeros((16, 16), np.uint8))
    write_shard(
        tmp_path / "a.tar", [{"__key__": f"s{n}", "png": picture, "txt": b"a plum", "cls": "0"} for n in range(5)]
    )
    rhostream.index([str(tmp_path / "a.tar")], str(text), content="text")
    for table in (old, text):
        part = max(table.rglob("*.parquet"))
        rows, facts = parquet.read(str(part))
        part.write_bytes(part.read_bytes()[:-50])
        assert repair(str(table))["problems"] == []
        again, made = parquet.read(str(part))
        assert again.equals(rows) and made == facts


@pytest.mark.parametrize(
    "change",
    [
        {"length": 0},
        {"length": 10**9},
        {"vocabulary": 10**12},
        {"vocabulary": 1},
        {"padding": -1},
        {"padding": 1000},
        {"tokenizer": 5},
        {"tokenizer": "x" * 10_000},
        {"digest": None},
        {"task": 7},
        {"kind": "image"},
        {"tokenizer": "ids:1000"},
    ],
)
def test_a_forged_preprocess_is_refused(change: dict[str, Any], text_world: Path, tmp_path: Path) -> None:
    info = il.open_info(str(text_world / "il"))
    forged = replace(info, preprocess={**(info.preprocess or {}), **change})
    (tmp_path / "_table.json").write_text(json.dumps(asdict(forged)))
    with pytest.raises(TableError, match=r"_table\.json can't be understood"):
        il.open_info(str(tmp_path))


def test_a_tokenizer_that_is_not_the_one_it_was_is_refused() -> None:
    with pytest.raises(MismatchError, match="is not the one of the table or model"):
        replace(made(WORDS, 8), vocabulary=999).with_decoder("auto")


# -- tokenizers and arrays ---------------------------------------------------------------------------------------------


def test_the_ids_of_words_are_the_same_on_every_machine_for_ever() -> None:
    row = np.zeros(10, np.int32)
    assert made("words:30000", 10).decode({"text": "Ça va, the Plum?".encode()}, {"tokens": row}) == "ok"
    assert row.tolist() == [7724, 9785, 21749, 6342, 25200, 15185, 1, 0, 0, 0]
    assert made("bytes", 10).decode({"text": b"plum"}, {"tokens": row}) == "ok"
    assert row.tolist() == [114, 110, 119, 111, 1, 0, 0, 0, 0, 0]


@given(st.text(max_size=200), st.sampled_from(["bytes", "words:100"]), st.integers(1, 40))
def test_any_text_becomes_ids_of_the_vocabulary_or_a_status(text: str, name: str, length: int) -> None:
    preprocess, row = made(name, length), np.full(length, -7, np.int32)
    status = preprocess.decode({"text": text.encode("utf-8", "surrogatepass")}, {"tokens": row})
    if status == "ok":
        assert row.min() >= 0 and row.max() < preprocess.vocabulary
        filled = row != 0
        assert not (~filled[:-1] & filled[1:]).any()  # padding stands at the end
        if name == "bytes" and (row == 1).any():
            kept = bytes(int(i) - 2 for i in row if i > 1)
            assert kept.decode() == text.encode().decode("utf-8-sig")
    else:
        assert status in ("text:empty", "text:encoding")


@given(st.lists(st.integers(-100, 100), max_size=20), st.sampled_from(["<i2", ">i4", "<i8", "|i1"]), st.integers(1, 30))
def test_arrays_are_read_as_numpy_reads_them(values: list[int], kind: str, most: int) -> None:
    data = npy(np.array(values, kind))
    if not values:
        with pytest.raises(BadTokens, match="tokens:empty"):
            token_ids(data, most)
        return
    assert token_ids(data, most).tolist() == np.load(io.BytesIO(data)).tolist()[:most]


@given(st.integers(0, 140), st.integers(1, 255))
def test_a_flipped_byte_of_an_array_is_a_status_or_other_ids(at: int, bits: int) -> None:
    data = bytearray(npy(np.arange(9, dtype=np.int32)))
    data[at % len(data)] ^= bits
    try:
        assert len(token_ids(bytes(data), 100)) <= 18
    except BadTokens as bad:
        assert str(bad) in STATUSES


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text-bag", "text-cnn"])
@pytest.mark.parametrize("length", [1, 24])
def test_a_model_of_text_ignores_padding_and_learns_in_every_weight(name: str, length: int) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=3, vocabulary=50, length=length, padding=0, task="label").eval()
    x = torch.randint(1, 50, (6, length))
    assert model(x).shape == (6, 3)
    if name == "text-bag":
        assert torch.allclose(model(x), model(torch.cat([x, torch.zeros(6, 9, dtype=torch.int64)], 1)), atol=1e-6)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def bag_of_ids(*, vocabulary: int, classes: int) -> torch.nn.Module:
    """A user's own model: it takes what it asks for."""
    return torch.nn.EmbeddingBag(vocabulary, classes)


def test_a_users_own_model_gets_what_it_asks_for(text_world: Path, tmp_path: Path) -> None:
    name = f"{__name__}:bag_of_ids"
    done = rhostream.train(
        [str(text_world / "shards")],
        str(text_world / "il"),
        str(tmp_path / "run"),
        **{**TRAIN, "model": name, "steps": 2},
    )
    assert done.steps == 2 and done.reasons["kept"] == 16


def test_without_its_extra_hugging_face_is_refused_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for act in (
        lambda: find_tokenizer("hf:albert-base-v2"),
        lambda: models.build("hf:albert-base-v2", classes=2, vocabulary=9, length=9, padding=0, task="label"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'rhostream\[hf\]'"):
            act()


def test_a_proxy_of_text_makes_a_shortlist(text_world: Path, tmp_path: Path) -> None:
    done = rhostream.train(
        [str(text_world / "shards")],
        str(text_world / "il"),
        str(tmp_path / "run"),
        steps=3,
        shortlist="proxy:2",
        proxy_model="text-bag",
        band="5%:95%",
        **TRAIN,
    )
    assert done.reasons["kept"] == 24 and done.reasons["shortlist"] > 0 and done.cost["proxy_trained"] == 24


def test_the_names_of_tokenizers_are_of_five_kinds() -> None:
    assert find_tokenizer("ids:50257").encode is None and find_tokenizer("bytes").vocabulary == 259
    assert from_json(made(WORDS, 9).to_json()) == made(WORDS, 9)
    for name in ("", "bytes:5", "hf:", "gpt2"):
        with pytest.raises(UnknownNameError, match="known: bytes, hf:NAME, ids:N, open_clip:NAME, words:N"):
            find_tokenizer(name)
    assert CLASSES == 4
