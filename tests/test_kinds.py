"""A kind of samples of one's own goes through every verb, and what its code does wrong is told, never a traceback."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import rhostream
from rhostream.audit.report import write_report
from rhostream.cli import cli
from rhostream.errors import MismatchError, RhostreamError, TableError, UntrustedCodeError, UsageError
from rhostream.samples import registry
from rhostream.samples.own import OwnKind
from rhostream.tables import il
from tests.support import own_kinds
from tests.support.shards import write_shard
from tests.support.text_world import npy

NAME, CLASSES, GOOD = "tests.support.own_kinds:Vectors", 3, 40  # samples of a shard
NET = "tests.support.own_kinds:net"
BAD = {
    "shape": ({"npy": npy(np.zeros(7, np.float32)), "gain": b"1"}, "kind:shape", r"vector has the shape \(7,\)"),
    "dtype": ({"npy": npy(np.zeros(8)), "gain": b"1"}, "kind:dtype", "vector is of float64, expected float32"),
    "raises": ({"npy": npy(np.zeros(8, np.float32)), "gain": b"loud"}, "kind:raised", "raised ValueError.*own_kinds"),
    "pickled": ({"npy": b"\x80\x04K\x01.", "gain": b"1"}, "kind:raised", "raised"),
    "refused": ({"npy": npy(np.zeros(8, np.float32)), "gain": b"0"}, "kind:refused", "a gain of 0"),
    "missing": ({"npy": npy(np.zeros(8, np.float32))}, "kind:missing", r"no member is one of gain"),
    "empty": ({"npy": b"", "gain": b"1"}, "kind:empty", r"\.npy of 0 bytes"),
}


def rows(shard: int, bad: bool) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(shard)
    for n in range(GOOD):
        label = n % CLASSES
        vector = (rng.normal(size=own_kinds.SIZE) + 3 * label).astype(np.float32)
        yield {"__key__": f"v{shard}-{n:03d}", "npy": npy(vector), "gain": b"0.5", "cls": str(label)}
    for key, (members, _, _) in BAD.items() if bad else ():
        yield {"__key__": f"x-{key}", **members, "cls": "0"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of vectors, an IL model and a table of them, by the command line."""
    root = tmp_path_factory.mktemp("vectors")
    for shard in range(3):
        write_shard(root / "shards" / f"train-{shard}.tar", list(rows(shard, bad=shard == 1)))
    for verb, out, *more in (
        ("fit-il", "model", "--model", NET, "--epochs", "2"),
        ("compute-il", "il", "--il-model", str(root / "model"), "--model", NET),
        ("index", "index"),
    ):
        run(verb, "--shards", str(root / "shards"), "--out", str(root / out), "--kind", NAME, *more)
    return root


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, arguments)
    error = done.exception if isinstance(done.exception, RhostreamError) else None
    assert (done.exit_code if error is None else error.exit_code) == code, done.output + repr(done.exception)
    return done.output + str(error or "")


def train(made: Path, out: Path, **more: Any) -> None:
    options: dict[str, Any] = {"model": NET, "kind": NAME, "batch_size": 8, "buffer_size": 32, "steps": 6, **more}
    rhostream.train([str(made / "shards")], str(made / "il"), str(out), **options)


def test_a_kind_of_ones_own_goes_through_every_verb(made: Path, tmp_path: Path) -> None:
    args = ["--shards", str(made / "shards"), "--il", str(made / "il"), "--run", str(tmp_path / "run"), "--kind", NAME]
    args += [
        "--model",
        NET,
        "--steps",
        "6",
        "--batch-size",
        "8",
        "--buffer-size",
        "32",
        "--workers",
        "1",
        "--eval-every",
        "3",
    ]
    run("train", *args, "--test-shards", str(made / "shards" / "train-0.tar"))
    assert "192" in run("sql", str(tmp_path / "run"), "select count(*) as n from selections where step < 6")
    run("verify", str(made / "il"))
    run("verify", str(tmp_path / "run"))
    run("status", str(made / "il"))
    page = Path(write_report([str(tmp_path / "run")], str(tmp_path / "page.html"))).read_text()
    assert "no picture" in page or "could not be read" in page
    pins = json.loads((tmp_path / "run" / "run.json").read_text())["fingerprints"]
    assert pins["preprocess_kind"] == NAME and pins["decoder"] == "own"


def test_the_table_says_the_kind_and_what_was_wrong_with_each_sample(made: Path) -> None:
    info = il.open_info(str(made / "il"))
    assert info.content == NAME and info.members == (("npy",), ("gain",)) and info.preprocess is not None
    assert info.preprocess["fields"] == {"vector": [[8], "float32"], "gain": [[], "float32"]}
    with rhostream.open_ledger(str(made / "il")) as ledger:
        for key, (_, status, why) in BAD.items():
            found = ledger.sql(f"SELECT status, error, il FROM il WHERE key = 'x-{key}'").to_pylist()
            assert [row["status"] for row in found] == [status] and found[0]["il"] is None, key
            assert re.search(why, found[0]["error"]), found[0]["error"]


def test_the_stream_gives_the_fields_and_their_input(made: Path) -> None:
    for workers in (0, 1):
        stream = rhostream.open_stream(
            [str(made / "shards")], str(made / "il"), kind=NAME, buffer_size=20, workers=workers
        )
        seen = 0
        for buffer in stream:
            assert buffer.fields is not None and buffer.fields["vector"].shape == (20, 8)
            rows = buffer.candidate_rows
            expected = buffer.fields["vector"] * buffer.fields["gain"][:, None]
            assert torch.equal(buffer.inputs(rows), expected[torch.from_numpy(rows)])
            assert (buffer.fields["gain"][torch.from_numpy(rows)] == 0.5).all()
            seen += len(rows)
        assert seen >= 100
    with pytest.raises(ValueError, match="name one of vector, gain"):
        _ = buffer.image


def test_an_index_knows_the_kind_and_finds_what_is_missing_without_decoding(made: Path) -> None:
    url = next(str(p) for p in (made / "index").rglob("train-1*.parquet"))
    part = il.read_part(url, members=(("npy",), ("gain",)))
    assert part.facts.statuses == {"ok": GOOD + 5, "kind:missing": 1, "kind:empty": 1}
    assert part.offset.shape == (2, GOOD + len(BAD)) and (part.size[:, part.usable] > 0).all()
    stream = rhostream.open_stream(
        [str(made / "shards")], str(made / "index"), kind=NAME, needs_il=False, buffer_size=20
    )
    assert isinstance(stream.stream.preprocess, OwnKind)


def test_kept_samples_give_their_fields_in_a_loop_of_ones_own(made: Path) -> None:
    loader = rhostream.open_stream([str(made / "shards")], str(made / "il"), kind=NAME, buffer_size=20)
    model = own_kinds.net(size=8, classes=CLASSES)
    kept = rhostream.Selector(model, "rho", 5)(next(iter(loader)))
    assert kept.fields is not None and kept.input is not None
    assert torch.equal(kept.fields["vector"] * kept.fields["gain"][:, None], kept.input) and len(kept) == 5


# -- code that is not named, not there or another one


def test_a_table_does_not_choose_what_is_imported(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UntrustedCodeError, match=r"--kind tests\.support\.own_kinds:Vectors"):
        rhostream.open_stream([str(made / "shards")], str(made / "il"))
    with pytest.raises(UntrustedCodeError, match="--kind"):
        rhostream.compute_il([str(made / "shards")], str(made / "model"), str(tmp_path / "il"), model=NET)
    with pytest.raises(MismatchError, match=f"{NAME}, not tests.support.own_kinds:Flat"):
        rhostream.open_stream([str(made / "shards")], str(made / "il"), kind="tests.support.own_kinds:Flat")


def test_a_kind_that_is_not_installed_here_is_one_clear_error(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, shards, table = "gone_kinds:Audio", str(made / "shards"), str(tmp_path / "index")
    (tmp_path / "gone_kinds.py").write_text("from tests.support.own_kinds import Vectors as Audio\n")
    with monkeypatch.context() as installed:
        installed.syspath_prepend(tmp_path)
        run("index", "--shards", shards, "--out", table, "--kind", name)
    del sys.modules["gone_kinds"]
    asked = ["--il", table, "--run", str(tmp_path / "run"), "--rule", "uniform", "--model", NET, "--kind", name]
    said = run("train", "--shards", shards, *asked, code=2)
    assert name in said and "No module named 'gone_kinds'" in said
    run("status", table)  # who only reads needs no code
    run("verify", table)


def test_a_kind_that_became_another_is_refused_naming_what_differs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_kinds, "Vectors", own_kinds.Wider)
    with pytest.raises(MismatchError, match=r"fields was .*\[8\].* now .*\[9\]"):
        train(made, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tests.support.own_kinds:Unnamed", "members"),
        ("tests.support.own_kinds:broken", "raised FileNotFoundError"),
        ("tests.support.own_kinds:nothing", "is a int"),
        ("tests.support.own_kinds:Absent", "has no attribute 'Absent'"),
        ("tests.support.own_kinds:net", "raised TypeError"),
    ],
)
def test_what_is_no_kind_is_refused_before_any_work(name: str, says: str, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        rhostream.fit_il([str(made / "shards")], str(tmp_path / "m"), model=NET, kind=name)
    assert not (tmp_path / "m" / "model.json").exists()


def test_inputs_that_are_no_tensor_and_models_of_another_kind_are_refused(made: Path, tmp_path: Path) -> None:
    shards = [str(made / "shards")]
    with pytest.raises(UsageError, match=r"inputs of kind 'tests\.support\.own_kinds:Flat' gave a list"):
        rhostream.fit_il(
            shards, str(tmp_path / "m"), model="tests.support.own_kinds:net", kind="tests.support.own_kinds:Flat"
        )
    with pytest.raises(UsageError, match="'small-cnn' takes images, and these samples are of a kind of their own"):
        rhostream.fit_il(shards, str(tmp_path / "m"), model="small-cnn", kind=NAME)
    with pytest.raises(UsageError, match=f"--image-size 8 isn't for samples of {NAME}"):
        rhostream.fit_il(shards, str(tmp_path / "m"), model=NET, kind=NAME, image_size=8)
    for options in ({"augment": "flip"}, {"deduplicate": 0.9}):
        with pytest.raises(UsageError, match=f"these samples are samples of {NAME}|samples of {NAME}"):
            train(made, tmp_path / "run", **options)


def test_a_row_that_decode_leaves_unwritten_is_zeros() -> None:
    row = {"vector": np.full(8, 7, np.float32)}
    assert OwnKind("tests.support.own_kinds:Flat").decode({"vector": b""}, row) == "ok"
    assert row["vector"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("folder", ["il", "index"])
def test_a_damaged_part_is_made_again_where_the_kind_is_named(folder: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / folder, tmp_path / "t")
    part = next((tmp_path / "t").rglob("train-1*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    table, repair = str(tmp_path / "t"), ["--repair", *(["--model", NET] if folder == "il" else [])]
    assert "--kind" in run("verify", table, *repair, code=2)
    run("verify", table, *repair, "--kind", NAME, "--max-bad-fraction", "0.5")
    assert part.read_bytes() == whole


def test_an_estimate_knows_built_in_kinds_alone(made: Path) -> None:
    said = run("estimate", "--shards", str(made / "shards"), "--il", str(made / "il"), "--model", NET, code=2)
    assert f"samples of {NAME}" in said


@pytest.mark.parametrize(
    "change",
    [
        {"members": [["vector", []]]},
        {"members": [["vector", ["../npy"]]]},
        {"members": ["vector"]},
        {"members": []},
        {"fields": {"vector": [[-1], "float32"]}},
        {"fields": {"vector": [[2**40], "float32"]}},
        {"fields": {"vector": [[8], "object"]}},
        {"fields": {}},
        {"kind": "gone"},
        {"kind": 5},
    ],
)
def test_a_forged_kind_of_a_table_is_refused(change: dict[str, Any], made: Path, tmp_path: Path) -> None:
    record = json.loads((made / "il" / "_table.json").read_text())
    record["preprocess"] |= change
    (tmp_path / "il").mkdir()
    (tmp_path / "il" / "_table.json").write_text(json.dumps(record))
    with pytest.raises(TableError, match="can't be understood"):
        il.open_info(str(tmp_path / "il"))


def test_the_sounds_of_the_page_are_indexed_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "kinds.md").read_text(encoding="utf-8")
    code = page.split("<!-- run by tests/test_kinds.py -->\n```python\n")[1].split("```")[0]
    (tmp_path / "sounds.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    samples = []
    for number in range(8):
        sink = io.BytesIO()
        with wave.open(sink, "wb") as sound:
            sound.setparams((1, 2, 8000 if number else 16000, 0, "NONE", ""))
            sound.writeframes(np.full(100 + number, 1000 * number, "<i2").tobytes())
        samples.append({"__key__": f"s{number}", "wav": sink.getvalue(), "cls": str(number % 2)})
    write_shard(tmp_path / "a.tar", samples)
    rhostream.index([str(tmp_path / "a.tar")], str(tmp_path / "index"), kind="sounds:Sounds")
    (buffer,) = rhostream.open_stream(
        [str(tmp_path / "a.tar")], str(tmp_path / "index"), kind="sounds:Sounds", needs_il=False, buffer_size=8
    )
    assert buffer.image is not None and buffer.image.shape == (8, 8000)
    for row, ordinal in enumerate(buffer.ordinal.tolist()):
        if ordinal == 0:
            assert rhostream.Reason(buffer.reason[row]) is rhostream.Reason.unreadable
        else:
            assert (buffer.input[row] != 0).sum() == 100 + ordinal
            assert buffer.input[row].max() == np.float32(1000 * ordinal / 32768)


def test_every_built_in_kind_is_what_its_record_says() -> None:
    for name, kind in registry.BUILT_IN.items():
        assert kind.name == name and kind.members and not kind().fields()
        assert registry.members_of(name) == tuple(kind.members.values())
