"""il of a model that exists: no fit, and nothing that isn't known is left unsaid."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import rhostream
from rhostream import crashpoints
from rhostream.advisor.estimate import estimate
from rhostream.advisor.render import render
from rhostream.audit.il_quality import il_quality, section, write_il_report
from rhostream.audit.report import write_report
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.audit.views import open_ledger
from rhostream.errors import MismatchError, TableError, UsageError
from rhostream.il_model.reference import load_reference
from rhostream.irreducible.compute import compute_il
from rhostream.repair import repair
from rhostream.samples.image import ImageKind
from rhostream.tables import il
from tests.support import own_kinds, own_references
from tests.support.command import command
from tests.support.forks import CONTEXT
from tests.support.shards import write_shard
from tests.support.tables import parts, rows
from tests.support.text_world import npy

OWN = "tests.support.own_references:"
NETWORK, BRIGHT = OWN + "network", OWN + "bright"
RUN = "<!-- run by tests/test_references.py -->\n```python\n"
KIND = ImageKind(image_size=16, channels=1)


def by_hand(shards: Path) -> dict[tuple[str, int], float]:
    """il of every sample by its shard and number: the brightness of the quarters, in NumPy, straight from the tars."""
    found = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        for ordinal, key in enumerate(name[:-4] for name in members if name.endswith(".png")):
            pixels = np.asarray(Image.open(io.BytesIO(members[f"{key}.png"])), np.float64) / 255
            z = 8 * pixels.reshape(2, 8, 2, 8).mean((1, 3)).ravel()
            found[path.name, ordinal] = float(np.log(np.exp(z).sum()) - z[int(members[f"{key}.cls"])])
    return found


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a function of losses."""
    out = tmp_path_factory.mktemp("references") / "il"
    compute_il([str(world / "shards")], out=str(out), reference=BRIGHT)
    return out


def test_il_is_what_the_function_gives_and_a_row_says_nothing_that_is_not_known(world: Path, made: Path) -> None:
    expected = by_hand(world / "shards")
    found = {(path.name[:-8], row["ordinal"]): row for path in made.rglob("*.parquet") for row in rows(path)}
    assert found.keys() == expected.keys() and len(found) == 1003
    assert all(row["il"] == pytest.approx(expected[sample], abs=1e-5) for sample, row in found.items())
    assert {(row["fold"], row["in_holdout"], row["predicted"]) for row in found.values()} == {(0, False, None)}
    info = il.open_info(str(made))
    assert info.reference == {"name": BRIGHT, "identity": "bright v1 8.0", "proved": True}
    assert info.model["learned_from"] == "unknown" and "macs" not in info.model


def test_a_network_is_scored_by_the_loss_with_a_digest_of_its_weights_and_called_once(
    world: Path, tmp_path: Path
) -> None:
    own_references.CALLS.clear()
    compute_il([str(world / "shards")], out=str(tmp_path), reference=NETWORK, channels=1)
    assert own_references.CALLS == [{"image_size": 16, "channels": 1, "classes": 4}]
    net = own_references.network(image_size=16, channels=1)
    info, found = il.open_info(str(tmp_path)), rows(tmp_path)
    assert info.classes == 4 and info.model["macs"] == 16 and info.reference["proved"]
    assert {row["predicted"] for row in found} == {0, 1, 2, 3}
    # The network sees pixels in [-1, 1], twice as far apart as the function does.
    loss = own_references.Bright(16.0)
    stream = rhostream.open_stream([str(world / "shards")], str(tmp_path), buffer_size=40)
    one = next(iter(stream))
    assert torch.allclose(one.il, loss(one.fields, one.label), atol=1e-4)
    one_more = load_reference(net, KIND, 4, torch.device("cpu"))
    assert one_more.identity == info.reference["identity"]
    with torch.no_grad():
        net[2].bias[0] += 1e-6
    other = load_reference(net, KIND, 4, torch.device("cpu"))
    seen_otherwise = load_reference(net, ImageKind(image_size=16, channels=1, mean=(0.4,)), 4, torch.device("cpu"))
    assert len({one_more.identity, other.identity, seen_otherwise.identity}) == 3


def test_a_python_object_is_taken_as_its_name_is(world: Path, made: Path, tmp_path: Path) -> None:
    shards = [str(world / "shards")]
    compute_il(shards, out=str(tmp_path / "function"), reference=own_references.bright)
    assert parts(tmp_path / "function") == parts(made)
    net = own_references.network(image_size=16, channels=1)
    compute_il(shards, out=str(tmp_path / "net"), reference=net, channels=1)
    assert il.open_info(str(tmp_path / "net")).reference["name"] == "torch.nn.modules.container:Sequential"


def die(shards: str, out: str, point: str) -> None:
    crashpoints.arm(point)
    compute_il([shards], out=out, reference=BRIGHT)


def test_a_job_killed_midway_and_run_again_leaves_the_same_bytes(world: Path, made: Path, tmp_path: Path) -> None:
    shards, out = str(world / "shards"), str(tmp_path / "il")
    child = CONTEXT.Process(target=die, args=(shards, out, "compute-il: part committed@3"))
    child.start()
    child.join()
    assert child.exitcode == -9 and len(parts(tmp_path / "il")) == 3
    compute_il([shards], out=out, reference=BRIGHT)
    assert parts(tmp_path / "il") == parts(made)
    assert (tmp_path / "il" / "_table.json").read_bytes() == (made / "_table.json").read_bytes()


def test_another_identity_another_name_and_other_pixels_are_refused_naming_what_differs(
    world: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"shards": [str(world / "shards")], "out": str(made)}
    before = parts(made)
    assert compute_il(**asked, reference=BRIGHT).present == 7
    monkeypatch.setattr(own_references, "weights", "v2")
    with pytest.raises(MismatchError, match=r"reference differ.*bright v1.*bright v2"):
        compute_il(**asked, reference=BRIGHT)
    monkeypatch.undo()
    with pytest.raises(MismatchError, match="reference differ"):
        compute_il(**asked, reference=OWN + "silent", reference_id="x")
    with pytest.raises(MismatchError, match="preprocess differ"):
        compute_il(**asked, reference=BRIGHT, channels=3)
    with pytest.raises(MismatchError, match="reference"):
        compute_il([str(world / "shards")], str(world / "il-model"), str(made))
    assert parts(made) == before


def test_without_an_identity_one_is_given_and_stays_unproved(world: Path, tmp_path: Path, capsys: Any) -> None:
    shards, table = str(world / "shards"), tmp_path / "il"
    with pytest.raises(UsageError, match=r"silent.*--reference-id TEXT"):
        compute_il([shards], out=str(table), reference=OWN + "silent")
    with pytest.raises(UsageError, match=r"empty.*--reference-id TEXT"):
        compute_il([shards], out=str(table), reference=OWN + "empty", channels=1)
    with pytest.raises(UsageError, match=r"'x': reference .*bright.* proves its own"):
        compute_il([shards], out=str(table), reference=BRIGHT, reference_id="x")
    assert not table.exists()
    asked = ["--shards", shards, "--out", table, "--reference", OWN + "silent", "--reference-id", "of March"]
    command(capsys, "compute-il", *asked)
    assert not il.open_info(str(table)).reference["proved"]
    said = command(capsys, "verify", table)[0]
    assert "unproved" in said and "of March" in said and "unknown" in said and "nothing is wrong" in said
    next(table.rglob("train-003*.parquet")).unlink()
    status = status_of(str(table), [shards])
    assert "unproved" in render_status(status) and status["next"].count("--reference-id 'of March'") == 1
    words = status["next"].split(" ", 2)[2]
    assert f"--reference {OWN}silent" in words
    write_il_report(str(table), str(tmp_path / "il.html"))
    assert "unproved" in (tmp_path / "il.html").read_text()


def test_bad_parts_are_made_again_by_the_reference_named_again(world: Path, made: Path, tmp_path: Path) -> None:
    table = tmp_path / "il"
    shutil.copytree(made, table)
    bad = sorted(table.rglob("*.parquet"))[2]
    bad.write_bytes(b"")
    with pytest.raises(UsageError, match=f"pass --reference {BRIGHT}.*nothing was changed"):
        repair(str(table), shards=[str(world / "shards")])
    with pytest.raises(MismatchError, match="reference differ"):
        repair(str(table), shards=[str(world / "shards")], reference=OWN + "silent", reference_id="x")
    assert bad.read_bytes() == b""
    assert repair(str(table), shards=[str(world / "shards")], reference=BRIGHT)["problems"] == []
    assert parts(table) == parts(made)


def test_rho_trains_on_it_and_what_is_not_known_is_said(world: Path, made: Path, tmp_path: Path) -> None:
    shards, run = [str(world / "shards")], tmp_path / "run"
    sizes: dict[str, Any] = {"buffer_size": 40, "batch_size": 8, "model": "mlp-64", "steps": 4, "threads": 1}
    rhostream.train(shards, str(made), str(run), test_shards=[str(world / "test")], **sizes)
    with open_ledger(run) as ledger:
        (row,) = ledger.sql("SELECT count(*) AS n, count(il) AS il FROM selections WHERE reason = 'kept'").to_pylist()
        assert row == {"n": 32, "il": 32}
    assert verify(str(run))["problems"] == []
    write_report([str(run)], str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "what it learned from is unknown" in page and "How much the irreducible loss cost is not known" in page
    with pytest.raises(UsageError, match=f"rho_updated.*{BRIGHT}"):
        rhostream.train(shards, str(made), str(tmp_path / "live"), rule="rho_updated", **sizes)
    with open_ledger(str(made)) as ledger:
        found = il_quality(ledger)
    assert found["rows"] == 1003 and any("unknown" in says for says in section(found)["says"])


def test_the_advisor_charges_no_fit_for_it(world: Path, made: Path) -> None:
    found = estimate(shards=[str(world / "shards")], model="mlp-64", il=str(made), seconds=0.5)
    assert (found.il.trained, found.il.checked, found.il.pooled) == (0, 0, 0) and found.il.scored == 1003
    assert f"of the reference {BRIGHT}" in " ".join(render(found).split())


def test_nan_counts_as_missing(world: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"shards": [str(world / "shards")], "out": str(tmp_path / "nan"), "max_bad_fraction": 1.0}
    account = compute_il(**asked, reference=OWN + "nan_for_class_three", reference_id="1")
    assert 200 < account.quarantined["nonfinite"] < 300
    assert {r["il"] is None for r in rows(tmp_path / "nan") if r["label"] == 3} == {True}


def test_a_target_that_is_no_class_is_what_the_function_is_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors, heights = rng.normal(size=(20, own_kinds.SIZE)).astype(np.float32), rng.normal(size=20)
    samples = [
        {"__key__": f"h{n:02d}", "npy": npy(vector), "json": {"height": float(height)}}
        for n, (vector, height) in enumerate(zip(vectors, heights, strict=True))
    ]
    shard = write_shard(tmp_path / "a.tar", samples)
    asked: dict[str, Any] = {"kind": "tests.support.own_kinds:Heights", "reference": OWN + "heights"}
    with pytest.raises(UsageError, match="--loss squared_error"):
        compute_il([str(shard)], out=str(tmp_path / "il"), reference_id="1", **asked)
    compute_il([str(shard)], out=str(tmp_path / "il"), reference_id="1", loss="squared_error", **asked)
    expected = (heights.astype(np.float32) - vectors.mean(1)) ** 2
    assert [row["il"] for row in rows(tmp_path / "il")] == pytest.approx(expected.tolist(), rel=1e-4)
    assert il.open_info(str(tmp_path / "il")).classes is None
    net = nn.Linear(own_kinds.SIZE, 3)
    with pytest.raises(UsageError, match=r"Linear.*squared_error"):
        compute_il([str(shard)], out=str(tmp_path / "no"), kind=asked["kind"], reference=net, loss="squared_error")


def test_the_blocks_of_the_page_are_references(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "own-reference.md").read_text()
    (tmp_path / "mine.py").write_text("\n".join(block.split("```")[0] for block in text.split(RUN)[1:]))
    monkeypatch.chdir(tmp_path)
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)).state_dict(), "last-year.safetensors")
    for name in ("last_year", "quarters"):
        compute_il([str(world / "shards")], out=name, reference=f"mine:{name}", channels=1)
        assert il.open_info(name).reference["proved"] and np.isfinite([row["il"] for row in rows(Path(name))]).all()


REFUSED = {
    "raising": "raising.*KeyError.*no such text",
    "scalar": r"scalar.*returned \(\) of float32",
    "double": r"double.*of float64",
    "elsewhere": "elsewhere.*on meta",
    "listed": "listed.*a list of",
    "unmade": "unmade.*OSError.*no checkpoint there",
    "nothing": "nothing.*gave a NoneType",
    "numbered": "identity of reference.*numbered.*is 7",
    "missing": "missing.*no attribute",
    "asking": "asking.*--classes N",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_reference_that_can_not_be_is_refused_by_its_name(name: str, world: Path, tmp_path: Path) -> None:
    given = {} if name in ("numbered", "asking") else {"reference_id": "x"}
    with pytest.raises(UsageError, match=REFUSED[name]):
        compute_il([str(world / "shards" / "train-004.tar")], out=str(tmp_path / "il"), reference=OWN + name, **given)
    assert not parts(tmp_path / "il")


def test_logits_and_classes_that_differ_are_refused_and_a_label_beyond_them_has_no_il(
    world: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"shards": [str(world / "shards")], "channels": 1, "out": str(tmp_path)}
    with pytest.raises(UsageError, match=r"Sequential.* gives 4 logits, and there are 5 classes"):
        compute_il(**asked, reference=nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), classes=5)
    with pytest.raises(UsageError, match=r"Sequential.*256"):
        compute_il(**asked, reference=nn.Sequential(nn.Flatten(), nn.Linear(7, 4)))
    account = compute_il(**asked, reference=OWN + "network", classes=3, max_bad_fraction=1.0)
    assert account.quarantined["label:range"] > 200 and "the reference knows 3 classes" in account.doubts[0]


def test_a_reference_of_other_classes_than_the_shards_or_the_table_say_is_refused_with_both_numbers(
    world: Path, tmp_path: Path
) -> None:
    shards = shutil.copytree(world / "shards", tmp_path / "listed")
    (shards / "classes.json").write_text('["a", "b", "c", "d", "e", "f"]')
    says = r"four_classes.* gives 4 logits, and there are 6 classes.*--classes"
    asked: dict[str, Any] = {"shards": [str(shards)], "reference": OWN + "four_classes", "channels": 1}
    with pytest.raises(UsageError, match=says):
        compute_il(**asked, out=str(tmp_path / "il"))
    assert not parts(tmp_path / "il")
    assert compute_il(**asked, out=str(tmp_path / "il"), classes=4).scored == 1003  # whoever says so knows better
    with pytest.raises(UsageError, match="gives 4 logits, and there are 5 classes"):
        estimate([str(world / "shards")], model="mlp-64", reference=OWN + "four_classes", classes=5, seconds=1)
    with pytest.raises(UsageError, match=r"fold \d has \d samples to learn from and \d to check on.*--fit-samples"):
        rhostream.fit_il(
            [str(world / "shards")],
            str(tmp_path / "m"),
            model="mlp-64",
            fit_samples=1,
            seed=1,
            roots={"r": str(world / "shards")},
        )


def test_there_is_one_source_of_il_and_options_of_the_other_are_refused(
    world: Path, tmp_path: Path, capsys: Any
) -> None:
    shards, out, model = [str(world / "shards")], str(tmp_path / "il"), str(world / "il-model")
    for given, says in (
        ({}, "--il-model.*--reference"),
        ({"il_model": model, "reference": BRIGHT}, "not both"),
        ({"il_model": model, "classes": 4}, "--classes goes with --reference"),
        ({"reference": BRIGHT, "min_accuracy": 0.5}, "--min-accuracy goes with --il-model"),
        ({"reference": BRIGHT, "model": "mlp"}, "--model goes with --il-model"),
    ):
        with pytest.raises(UsageError, match=says):
            compute_il(shards, out=out, **given)
    (tmp_path / "asked.json").write_text(f'{{"reference": "{BRIGHT}"}}')
    said = command(capsys, "compute-il", "--config", tmp_path / "asked.json", "--shards", *shards, "--out", out, code=2)
    assert "--reference" in said[1] and not Path(out).exists()
    (tmp_path / "asked.json").write_text('{"reference": "hf:./loads"}')  # hf.py of the current folder is never imported
    said = command(capsys, "compute-il", "--config", tmp_path / "asked.json", "--shards", *shards, "--out", out, code=2)
    assert "'hf:./loads'" in said[1] and "no such folder" in said[1]


def test_what_a_strangers_table_says_of_a_reference_is_checked(made: Path, tmp_path: Path) -> None:
    text = (made / "_table.json").read_text()
    (tmp_path / "_table.json").write_text(text.replace('"proved": true', '"proved": "yes"'))
    with pytest.raises(TableError, match="proved is a str"):
        il.open_info(str(tmp_path))
