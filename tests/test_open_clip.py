"""open_clip's own loop on selected pairs: the ledger is what its weights saw, and its checkpoints bring both back."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rhostream
from rhostream.audit.report import write_report
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, UsageError
from rhostream.integrations.open_clip import OpenClipData
from rhostream.runs import checkpoint
from tests.support.libraries import NAMES
from tests.support.libraries import libraries as libraries
from tests.support.logs import ask, log_of, reasons, rows_of
from tests.support.open_clip_loop import arguments, made, resumed, save, train_one_epoch
from tests.support.shards import png, write_shard

pytestmark = pytest.mark.usefixtures("libraries")
COUNTS = (61, 40, 90, 52)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ (4, 243 pairs) and their index."""
    root, rng = tmp_path_factory.mktemp("open-clip"), np.random.default_rng(0)
    for shard, count in enumerate(COUNTS):
        rows = []
        for n in range(count):
            which, pixels = n % len(NAMES), rng.integers(0, 90, (20, 20, 3)).astype(np.uint8)
            pixels[5 * which : 5 * which + 5] += 120
            facts = {"uid": f"{shard:016x}{n:016x}"}
            caption = f"a photo of the {NAMES[which]}"
            rows.append({"__key__": f"{shard}{n:04d}", "png": png(pixels), "txt": caption, "json": facts})
        write_shard(root / "shards" / f"{shard:05d}.tar", rows)
    rhostream.index([str(root / "shards")], str(root / "index"), content="pair", keep="uid:str")
    return root


def data_of(pairs: Path, run: Path, model: Any, optimizer: Any, **given: Any) -> OpenClipData:
    own = {name: given.pop(name) for name in ("rule", "buffer_size", "stream", "selector", "config") if name in given}
    return OpenClipData(
        arguments(**given), model, optimizer, shards=str(pairs / "shards"), il=str(pairs / "index"), run=str(run),
        **{"rule": "loss", "buffer_size": 40, **own},
    )  # fmt: skip


def trained(pairs: Path, run: Path, epochs: int = 2, **given: Any) -> tuple[Any, OpenClipData]:
    """Their main.py, uninterrupted; a checkpoint an epoch beside the run."""
    model, optimizer = made()
    data = data_of(pairs, run, model, optimizer, **given)
    for epoch in range(epochs):
        train_one_epoch(model, data, epoch, optimizer, accum_freq=given.get("accum_freq", 1))
        save(run.parent / f"epoch_{epoch + 1}.pt", epoch + 1, model, optimizer)
    data.confirm()
    return model, data


def same_weights(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A run of two epochs, uninterrupted, with its checkpoints beside."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        from tests.support import libraries as stand_ins

        patch.setitem(sys.modules, "open_clip", stand_ins.open_clip())
        yield folder, trained(pairs, folder / "run")[0]


def test_an_epoch_is_a_pass_and_each_sample_has_one_row_a_pass(whole: tuple[Path, Any]) -> None:
    run = whole[0] / "run"
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.complete and not latest.unconfirmed and latest.step == 12
    assert ask(run, "SELECT pass, count(*) AS n, count(DISTINCT (shard, ordinal)) AS d, count(*) FILTER (kept) AS k "
                    "FROM selections GROUP BY pass ORDER BY pass") == [
        {"pass": n, "n": sum(COUNTS), "d": sum(COUNTS), "k": 48} for n in (0, 1)
    ]  # fmt: skip
    assert verify(str(run))["problems"] == []
    steps = ask(run, "SELECT kept, loss_kept, loss_candidates FROM steps")
    assert {row["kept"] for row in steps} == {8} and {row["loss_kept"] for row in steps} == {None}
    assert all(row["loss_candidates"] > 0 for row in steps)


def test_the_kept_rows_of_the_ledger_learned_again_are_the_weights(pairs: Path, whole: tuple[Path, Any]) -> None:
    """A second loop that knows the ledger alone, and decodes what it names."""
    folder, model = whole
    again, optimizer = made()
    opened = data_of(pairs, folder / "other", again, optimizer).run.stream
    opened.stream.passes, inputs = 2, dict[tuple[str, int], Any]()  # the end of one pass isn't that of the other
    for candidates in opened:
        names, x = candidates.shard_names.to_pylist(), candidates.inputs(candidates.candidate_rows)
        for at, row in enumerate(candidates.candidate_rows.tolist()):
            inputs[names[candidates.shard[row]], int(candidates.ordinal[row])] = x[at : at + 1]
    kept = [row for row in rows_of(folder / "run").to_pylist() if row["kept"]]  # in the order of each buffer
    batches = list[tuple[Tensor, Tensor]]()
    for step in range(12):
        batch = [inputs[row["shard"], row["ordinal"]] for row in kept if row["step"] == step]
        batches.append((torch.cat([x["pixels"] for x in batch]), torch.cat([x["tokens"] for x in batch])))

    class Batches(list[Any]):
        num_batches, num_samples, dataloader = 12, 96, property(lambda self: self)

        def set_epoch(self, epoch: int) -> None: ...

    train_one_epoch(again, Batches(batches), 0, optimizer)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_any_of_their_checkpoints_goes_on_exactly_and_the_ledger_with_it(
    pairs: Path, whole: tuple[Path, Any], tmp_path: Path
) -> None:
    """Killed within the second epoch; then, from behind its end, back to the first one's checkpoint."""
    model, optimizer = made()
    data = data_of(pairs, tmp_path / "run", model, optimizer)
    train_one_epoch(model, data, 0, optimizer)
    save(tmp_path / "epoch_1.pt", 1, model, optimizer)
    train_one_epoch(model, data, 1, optimizer, after=4)
    for number in range(2):
        model, optimizer, epoch = resumed(tmp_path / "epoch_1.pt")
        data = data_of(pairs, tmp_path / "run", model, optimizer, resume=str(tmp_path / "epoch_1.pt"))
        latest = checkpoint.latest(str(tmp_path / "run"))
        assert latest is not None and (latest.step, latest.unconfirmed) == (6, False)  # what it loaded was saved
        train_one_epoch(model, data, epoch, optimizer)
        assert same_weights(model, whole[1]) and verify(str(tmp_path / "run"))["problems"] == []
        assert log_of(tmp_path / "run") == log_of(whole[0] / "run"), number


def test_batches_of_one_update_are_of_one_buffer(pairs: Path, tmp_path: Path) -> None:
    model, optimizer = made()
    data = data_of(pairs, tmp_path / "run", model, optimizer, accum_freq=3, batch_size=4, epochs=1)
    assert (data.num_batches, data.num_samples, len(data)) == (18, 72, 18)
    assert train_one_epoch(model, data, 0, optimizer, accum_freq=3) == [4] * 18
    assert ask(tmp_path / "run", "SELECT DISTINCT kept, count(*) OVER () AS n FROM steps") == [{"kept": 12, "n": 6}]


def test_a_buffer_with_too_few_for_every_batch_is_no_update_and_the_run_still_ends(pairs: Path, tmp_path: Path) -> None:
    """Epochs have their number of updates as long as there are buffers; a pass is a pass."""
    rows = [{"shard": str(pairs / "shards" / "00002.tar"), "ordinal": n} for n in range(0, 90, 7)]
    (tmp_path / "few.json").write_text(json.dumps(rows))
    model, optimizer = made()
    data = data_of(pairs, tmp_path / "run", model, optimizer, accum_freq=3, batch_size=2,
                   stream={"keep_list": str(tmp_path / "few.json")})  # fmt: skip
    sizes = [train_one_epoch(model, data, epoch, optimizer, accum_freq=3) for epoch in range(2)]
    save(tmp_path / "epoch_2.pt", 2, model, optimizer)
    data.confirm()
    steps = ask(tmp_path / "run", "SELECT step, count(*) FILTER (kept) AS n, count(*) FILTER (reason = 'unapplied') "
                                  "AS u FROM selections WHERE step IS NOT NULL GROUP BY step")  # fmt: skip
    handed_out = [row["n"] for row in steps if row["n"]]
    assert len(steps) == 12 and all(row["u"] < 3 if row["n"] == 0 else row["u"] == 0 for row in steps)
    assert min(handed_out) >= 3  # of every buffer but those: 13 pairs in six can't be three in each
    assert sum(map(sum, sizes)) == sum(handed_out) and sum(map(len, sizes)) == 3 * len(handed_out) < 36
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.complete and not latest.unconfirmed
    assert verify(str(tmp_path / "run"))["problems"] == []
    write_report([str(tmp_path / "run")], str(tmp_path / "report.html"))


def test_an_update_that_the_scaler_refused_is_of_no_sample(pairs: Path, tmp_path: Path) -> None:
    model, optimizer = made()
    data = data_of(pairs, tmp_path / "run", model, optimizer, epochs=1)
    seen = list[Tensor]()

    def overflowed(gradient: Tensor) -> Tensor:
        """In the second update."""
        seen.append(gradient)
        return gradient * torch.inf if len(seen) == 2 else gradient

    model.logit_scale.register_hook(overflowed)  # type: ignore[union-attr]
    train_one_epoch(model, data, 0, optimizer, scaler=torch.amp.GradScaler("cpu"))
    found = reasons(tmp_path / "run")
    assert [("kept" in found[step], "unapplied" in found[step]) for step in range(6)] == [
        (step != 1, step == 1) for step in range(6)
    ]
    assert [row["kept"] for row in ask(tmp_path / "run", "SELECT kept FROM steps ORDER BY step")] == [8, 0, 8, 8, 8, 8]


def test_a_checkpoint_within_an_epoch_names_the_step_behind_which_it_was_saved(pairs: Path, tmp_path: Path) -> None:
    model, optimizer = made()
    data = data_of(pairs, tmp_path / "run", model, optimizer)
    train_one_epoch(model, data, 0, optimizer, after=4)
    save(tmp_path / "inside.pt", 0, model, optimizer)
    model, optimizer, epoch = resumed(tmp_path / "inside.pt")
    data = data_of(pairs, tmp_path / "run", model, optimizer, resume=str(tmp_path / "inside.pt"))
    assert len(train_one_epoch(model, data, epoch, optimizer)) == 2
    assert len(train_one_epoch(model, data, 1, optimizer)) == 6
    assert ask(tmp_path / "run", "SELECT count(*) AS n, count(DISTINCT step) AS s FROM selections WHERE kept") == [
        {"n": 96, "s": 12}
    ]


def test_epochs_of_so_many_samples_cut_a_pass_and_resume_inside_it(pairs: Path, tmp_path: Path) -> None:
    model, optimizer = made()
    data = data_of(pairs, tmp_path / "run", model, optimizer, train_num_samples=16, epochs=3)
    assert len(train_one_epoch(model, data, 0, optimizer)) == 2
    save(tmp_path / "epoch_1.pt", 1, model, optimizer)
    model, optimizer, epoch = resumed(tmp_path / "epoch_1.pt")
    options = {"train_num_samples": 16, "epochs": 3, "resume": str(tmp_path / "epoch_1.pt")}
    data = data_of(pairs, tmp_path / "run", model, optimizer, **options)
    for epoch in (1, 2):
        train_one_epoch(model, data, epoch, optimizer)
    assert ask(tmp_path / "run", "SELECT count(*) AS n, count(DISTINCT (shard, ordinal)) AS d FROM selections") == [
        {"n": sum(COUNTS), "d": sum(COUNTS)}
    ]
    latest = checkpoint.latest(str(tmp_path / "run"))
    assert latest is not None and latest.complete


def test_what_cannot_go_together_is_refused_before_any_work(
    pairs: Path, whole: tuple[Path, Any], tmp_path: Path
) -> None:
    model, optimizer = made()
    bare = tmp_path / "bare.pt"
    save(bare, 1, model, optimizer)
    first = str(whole[0] / "epoch_1.pt")
    for error, words, given in (
        (MismatchError, "no state of a run", {"resume": str(bare)}),
        (MismatchError, "epochs of 6 updates", {"resume": first, "train_num_samples": 16}),
        (MismatchError, "config.lr", {"resume": first, "lr": 0.5}),
        (UsageError, "il", {"rule": "rho"}),
        (UsageError, "horovod", {"horovod": True}),
        (UsageError, "exactly once", {"dataset_resampled": True}),
        (UsageError, "16 pixels", {"stream": {"image_size": 20}}),
        (UsageError, "8", {"stream": {"text_length": 7}}),
    ):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole[0] / "run", tmp_path / "run")
        with pytest.raises(error, match=words):
            data_of(pairs, tmp_path / "run", *made(), **given)
    data = data_of(pairs, tmp_path / "new", *made())
    with pytest.raises(MismatchError, match="epoch 1 begins at update 6"):
        data.set_epoch(1)


def test_a_list_of_uids_is_what_the_loop_is_given(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's block, <!-- run by tests/test_open_clip.py --> of openclip.md, on DataComp's form of such a list."""
    text = (Path(__file__).parents[1] / "docs" / "openclip.md").read_text(encoding="utf-8")
    block = text.partition("<!-- run by tests/test_open_clip.py -->\n```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "il").symlink_to(pairs / "index")
    np.save("uids.npy", np.array([(shard, n) for shard in range(4) for n in range(0, 40, 2)], np.dtype("u8,u8")))
    (tmp_path / "block.py").write_text(block)
    runpy.run_path("block.py")
    model, optimizer = made()
    data = data_of(pairs, tmp_path / "run", model, optimizer, stream={"keep_list": "uids.parquet"}, buffer_size=120,
                   epochs=1)  # fmt: skip
    train_one_epoch(model, data, 0, optimizer)
    found = ask(tmp_path / "run", "SELECT DISTINCT ordinal % 2 AS odd, ordinal < 40 AS low FROM selections WHERE kept")
    assert found == [{"odd": 0, "low": True}]
    assert "unlisted" in reasons(tmp_path / "run")[0]
