"""A target that is no class (a float, a vector, none) goes through every verb, and il and run have the same loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

import rhostream
from rhostream.audit.report import write_report
from rhostream.errors import MismatchError, RhostreamError, UntrustedCodeError, UsageError
from rhostream.il_model.info import require_info
from rhostream.il_model.networks import load_il_model
from rhostream.runs.record import recorded
from rhostream.samples.own import OwnKind
from rhostream.selection.losses import binary_cross_entropy, squared_error
from tests.support import own_kinds
from tests.support.command import command
from tests.support.logs import weights_of
from tests.support.ranks import assert_same_but_for_noise, together, train_killed_at
from tests.support.ranks import train as train_ranks
from tests.support.shards import write_shard
from tests.support.text_world import npy

HERE = "tests.support.own_kinds"
NET, GOOD, SHARDS = f"{HERE}:regressor", 40, 3
LOSSES = {"Heights": "squared_error", "Tags": "binary_cross_entropy", "Untargeted": "squared_error"}


def truth(shard: int, n: int) -> tuple[npt.NDArray[np.float32], float, list[int]]:
    rng = np.random.default_rng((shard, n))
    vector = rng.normal(size=own_kinds.SIZE).astype(np.float32)
    return vector, float(vector[:3].sum()), [t for t in range(own_kinds.TAGS) if vector[t] > 0]


def rows(shard: int) -> Iterator[dict[str, object]]:
    for n in range(GOOD):
        vector, height, tags = truth(shard, n)
        facts = json.dumps({"height": height, "tags": tags}).encode()
        yield {"__key__": f"s{shard}-{n:03d}", "npy": npy(vector), "json": facts, "cls": b"no number"}
    if shard == 1:
        for key, facts in (("nan", {"height": float("nan"), "tags": []}), ("two", {"height": [1.0, 2.0], "tags": []})):
            yield {"__key__": f"x-{key}", "npy": npy(vector), "json": json.dumps(facts).encode()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("targets")
    for shard in range(SHARDS):
        write_shard(root / "shards" / f"train-{shard}.tar", list(rows(shard)))
    return root


@pytest.fixture(scope="module")
def tables(shards: Path) -> dict[str, Path]:
    """A folder for each kind, with the IL model and the table of it."""
    for kind, loss in LOSSES.items():
        where, model = [str(shards / "shards")], str(shards / kind / "model")
        named: dict[str, Any] = {"kind": f"{HERE}:{kind}", "model": NET, "max_bad_fraction": 0.1}
        rhostream.fit_il(where, model, epochs=2, loss=loss, **named)
        rhostream.compute_il(where, model, str(shards / kind / "il"), **named)
    return {kind: shards / kind for kind in LOSSES}


def options_of(made: Path, out: Path, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"model": NET, "kind": f"{HERE}:{made.name}", "loss": LOSSES[made.name]}
    options |= {"shards": [str(made.parent / "shards")], "il": str(made / "il"), "run": str(out), "steps": 6}
    return {**options, "batch_size": 8, "buffer_size": 32, "max_bad_fraction": 0.1, **more}


def train(made: Path, out: Path, **more: Any) -> Any:
    return rhostream.train(**options_of(made, out, **more))


def by_hand(kind: str, output: torch.Tensor, key: str) -> float:
    shard, n = int(key[1]), int(key[3:])
    vector, height, tags = truth(shard, n)
    if kind == "Tags":
        hot = torch.zeros(own_kinds.TAGS)
        hot[tags] = 1
        return float(functional.binary_cross_entropy_with_logits(output, hot))
    target = torch.tensor([height]) if kind == "Heights" else torch.from_numpy(vector)
    return float(((output - target) ** 2).mean())


@pytest.mark.parametrize("kind", LOSSES)
def test_il_is_the_loss_function_applied_by_hand(tables: dict[str, Path], kind: str) -> None:
    made = tables[kind]
    model = load_il_model(str(made / "model"), NET, f"{HERE}:{kind}")
    info = require_info(str(made / "model"))
    assert (info.classes, info.accuracy, info.quality, info.loss) == (None, None, {}, LOSSES[kind])
    with rhostream.open_ledger(str(made / "il")) as ledger:
        found = ledger.sql("SELECT key, label, predicted, il, fold FROM il WHERE status = 'ok'").to_pylist()
        bad = {row["key"]: row["status"] for row in ledger.sql("SELECT key, status FROM quarantine").to_pylist()}
    assert len(found) == SHARDS * GOOD + (0 if kind == "Heights" else 2)
    assert bad == ({"x-nan": "kind:target", "x-two": "kind:shape"} if kind == "Heights" else {})
    for row in found:
        assert row["label"] is None and row["predicted"] is None
        if row["key"].startswith("s"):
            vector = torch.from_numpy(truth(int(row["key"][1]), int(row["key"][3:]))[0])
            with torch.no_grad():
                output = model.networks[row["fold"]](vector[None])[0]
            assert row["il"] == pytest.approx(by_hand(kind, output, row["key"]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_run_logs_the_losses_and_every_reader_says_that_there_are_no_classes(
    tables: dict[str, Path], tmp_path: Path, capsys: Any, kind: str
) -> None:
    made, out = tables[kind], tmp_path / "run"
    done = train(made, out, test_shards=[str(made.parent / "shards" / "train-0.tar")], eval_every=3)
    assert done.test_accuracy is None and done.test_samples == GOOD
    with rhostream.open_ledger(str(out)) as ledger:
        log = ledger.sql("SELECT * FROM selections WHERE step IS NOT NULL").to_pylist()
        steps = ledger.sql("SELECT * FROM steps ORDER BY step").to_pylist()
        assert not ledger.sql("SELECT * FROM classes").to_pylist()
    reached = [row for row in log if row["loss"] is not None]
    assert len(reached) > 150 and all(row["label"] is None and row["correct"] is None for row in log)
    assert all(row["score"] == pytest.approx(row["loss"] - row["il"], abs=1e-5) for row in reached)
    assert steps[-1]["test_loss"] > 0 and steps[-1]["test_accuracy"] is None
    assert all(row["accuracy_candidates"] is None and row["effective_classes"] is None for row in steps)
    for folder in (out, made / "il", made / "model"):
        command(capsys, "verify", folder)
        command(capsys, "status", folder)
    assert "no class" in command(capsys, "sql", out, "@kept_by_class")[1]
    assert "no class" not in command(capsys, "sql", out, "select 1")[1]
    if kind == "Heights":  # the figures take a second a page
        page = Path(write_report([str(out)], str(tmp_path / "page.html"))).read_text()
        assert (
            "the mean loss of the test" in page
            and "and no class" in page
            and "Worst class" not in page
            and LOSSES[kind] in page
        )
    figures = json.loads(command(capsys, "report", made / "il", "--json")[0])
    assert figures["loss"] == LOSSES[kind] and figures["accuracy"] is figures["worst_class"] is None
    assert recorded(str(out))["fingerprints"]["classes"] is None


def test_the_losses_of_the_first_buffer_are_those_of_the_first_weights(tables: dict[str, Path], tmp_path: Path) -> None:
    made = tables["Heights"]
    seen: dict[str, float] = {}
    stream = rhostream.open_stream(
        [str(made.parent / "shards")], str(made / "il"), buffer_size=32, kind=f"{HERE}:Heights"
    )
    model = own_kinds.regressor(size=own_kinds.SIZE)
    selector = rhostream.Selector(model, "rho", 8, loss="squared_error")
    candidates = next(iter(stream))
    assert candidates.target.shape == (32,) and (candidates.label == -1).all()
    selection = selector(candidates)
    for row, key in enumerate(candidates.key.to_pylist()):
        if np.isfinite(selection.loss[row]):
            output = model(torch.from_numpy(truth(int(key[1]), int(key[3:]))[0])[None])[0]
            seen[key] = by_hand("Heights", output.detach(), key)
            assert selection.loss[row] == pytest.approx(seen[key], rel=1e-4, abs=1e-5)
    assert len(seen) >= 30 and selection.input is not None
    kept = [truth(int(k[1]), int(k[3:]))[1] for k in candidates.key.take(selection.rows).to_pylist()]
    assert selection.target.tolist() == pytest.approx(kept) and len(kept) == 8
    assert torch.equal(selection.fields["height"], selection.target)


def test_a_run_that_was_killed_goes_on_exactly(tables: dict[str, Path], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tables["Heights"], whole, steps=9, checkpoint_every=2)
    train_killed_at(5, options_of(tables["Heights"], cut, steps=9, checkpoint_every=2))
    train(tables["Heights"], cut, steps=9, checkpoint_every=2)
    found = []
    for out in (whole, cut):
        with rhostream.open_ledger(str(out)) as ledger:
            found.append(ledger.sql("SELECT step, key, loss, il, kept FROM selections ORDER BY ALL").to_pylist())
    assert found[0] == found[1] and len(found[0]) >= 9 * 32
    first, second = weights_of(whole), weights_of(cut)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loop_of_ones_own_takes_the_target_of_what_is_kept(tables: dict[str, Path], tmp_path: Path) -> None:
    made, model = tables["Untargeted"], own_kinds.regressor(size=own_kinds.SIZE, outputs=own_kinds.SIZE)
    stream = rhostream.open_stream([str(made.parent / "shards")], str(made / "il"), buffer_size=32,
                                   kind=f"{HERE}:Untargeted")  # fmt: skip
    selector = rhostream.Selector(model, "rho", 8, loss="squared_error")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ledger = rhostream.Run(str(tmp_path / "run"), stream, selector, state={"model": model, "optimizer": optimizer})
    for kept in ledger:
        assert torch.equal(kept.target, kept.input)
        loss_b = squared_error(model(kept.input), kept.target)
        optimizer.zero_grad()
        kept.mean(loss_b).backward()
        optimizer.step()
        ledger.step(loss_b)
    pins = recorded(str(tmp_path / "run"))["fingerprints"]
    assert pins["loss"] == "squared_error" and pins["preprocess_target"] == ""


def test_two_ranks_keep_what_one_keeps(tables: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("Heights", "Tags"):
        for ranks in (1, 2):
            options = options_of(tables[kind], tmp_path / f"{kind}-{ranks}", steps=6)
            together(tmp_path / "answers", train_ranks, ranks, [options])
        assert assert_same_but_for_noise(tmp_path / f"{kind}-1", tmp_path / f"{kind}-2") == 6


@pytest.mark.slow
def test_a_worker_fills_the_slots_of_a_target(tables: dict[str, Path], tmp_path: Path) -> None:
    logs = []
    for workers in (0, 1):
        train(tables["Tags"], tmp_path / str(workers), workers=workers)
        with rhostream.open_ledger(str(tmp_path / str(workers))) as ledger:
            logs.append(ledger.sql("SELECT step, key, loss, il, kept FROM selections ORDER BY ALL").to_pylist())
    assert logs[0] == logs[1] and len(logs[0]) >= 6 * 32


def test_the_kind_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "kinds.md").read_text(encoding="utf-8")
    block = page.split("<!-- run by tests/test_targets.py -->\n```python\n")[1].split("```")[0]
    (tmp_path / "heights.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    write_shard(tmp_path / "a.tar", [row for row in rows(0) if row["__key__"] < "s0-009"])
    rhostream.index([str(tmp_path / "a.tar")], str(tmp_path / "index"), kind="heights:Heights")
    stream = rhostream.open_stream(
        [str(tmp_path / "a.tar")], str(tmp_path / "index"), kind="heights:Heights", needs_il=False, buffer_size=8
    )
    candidates = next(iter(stream))
    expected = [truth(0, int(key[3:]))[1] for key in candidates.key.to_pylist()]
    assert candidates.target.tolist() == pytest.approx(expected) and candidates.input.shape == (8, 8)


def test_a_run_takes_a_proxy_a_live_il_and_uniform_choice(tables: dict[str, Path], tmp_path: Path) -> None:
    for number, more in enumerate((
        {"rule": "rho_updated", "il_code": NET},
        {"rule": "uniform"},
        {"shortlist": "proxy:2", "proxy_model": NET, "shadow": "loss"},
    )):  # fmt: skip
        done = train(tables["Tags"], tmp_path / str(number), steps=2, **more)
        assert done.reasons["kept"] == 16


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rule": "grad_norm"}, "grad_norm looks at the logits of classes.*expected one of uniform, loss"),
        ({"rule": "bald"}, "bald"),
        ({"shadow": "entropy"}, "entropy"),
        ({"class_quota": "balanced"}, "--class-quota balanced"),
        ({"loss_cap": True}, "--loss-cap"),
        ({"classes": 3}, "--classes 3"),
        ({"loss": "cross_entropy"}, "squared_error, binary_cross_entropy"),
        ({"model": f"{HERE}:wide"}, r"\(1, 3\) of float32, the target is \(1,\) of float32"),
        ({"model": "small-cnn"}, "small-cnn"),
    ],
)
def test_what_needs_classes_is_refused_at_the_start(
    tables: dict[str, Path], tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        train(tables["Heights"], tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"loss": "cross_entropy"},
        {"classes": 3},
        {"label": "height"},
        {"min_accuracy": 0.5},
        {"balance": "sample"},
        {"kind": f"{HERE}:Strayed"},
        {"kind": f"{HERE}:Tags", "loss": "binary_cross_entropy", "model": f"{HERE}:wide"},
    ],
)
def test_fit_il_refuses_what_is_for_classes(shards: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    options: dict[str, Any] = {"model": NET, "kind": f"{HERE}:Heights", "loss": "squared_error", **more}
    with pytest.raises(UsageError):
        rhostream.fit_il([str(shards / "shards")], str(tmp_path / "model"), **options)
    assert not (tmp_path / "model" / "model.json").exists()


def test_il_of_another_loss_is_refused_and_a_loss_of_ones_own_is_named(
    tables: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    made, own = tables["Heights"], f"{HERE}:absolute_error"
    with pytest.raises(MismatchError, match=rf"squared_error.*{own}"):
        train(made, tmp_path / "run", loss=own)
    train(made, tmp_path / "run", loss=own, rule="loss", steps=1)  # which compares with no il
    where, named = [str(made.parent / "shards")], {"model": NET, "kind": f"{HERE}:Heights", "max_bad_fraction": 0.1}
    rhostream.fit_il(where, str(tmp_path / "model"), loss=own, epochs=1, **named)
    with pytest.raises(UntrustedCodeError, match=f"--loss {own}"):
        rhostream.compute_il(where, str(tmp_path / "model"), str(tmp_path / "il"), **named)
    with pytest.raises(MismatchError, match="squared_error"):
        rhostream.compute_il(where, str(tmp_path / "model"), str(tmp_path / "il"), loss="squared_error", **named)
    rhostream.compute_il(where, str(tmp_path / "model"), str(tmp_path / "il"), loss=own, **named)
    with rhostream.open_ledger(str(tmp_path / "il")) as ledger:
        assert ledger.sql("SELECT count(*) AS n FROM il WHERE il IS NOT NULL").to_pylist()[0]["n"] == SHARDS * GOOD
    part = next((tmp_path / "il" / "parts").rglob("train-1*"))
    before = part.read_bytes()
    part.unlink()
    code = ("--model", NET, "--kind", f"{HERE}:Heights", "--max-bad-fraction", "0.1", "--loss", own)
    command(capsys, "verify", tmp_path / "il", "--shards", where[0], "--repair", *code)
    assert part.read_bytes() == before


def test_il_of_classes_may_be_of_a_users_loss(world: Path, tmp_path: Path) -> None:
    where, own = [str(world / "shards")], "tests.support.tiny:smooth_loss"
    info = rhostream.fit_il(where, str(tmp_path / "model"), model="mlp-64", epochs=1, fit_samples=200, loss=own)
    assert info.loss == own and info.accuracy is not None and info.classes == 4
    rhostream.compute_il(where, str(tmp_path / "model"), str(tmp_path / "il"), loss=own)
    options: dict[str, Any] = {"model": "mlp-64", "batch_size": 8, "buffer_size": 40, "steps": 1}
    rhostream.train(where, str(tmp_path / "il"), str(tmp_path / "run"), loss=own, **options)
    with pytest.raises(MismatchError, match="cross_entropy"):
        rhostream.train(where, str(tmp_path / "il"), str(tmp_path / "other"), **options)


def test_a_selector_says_what_is_missing(tables: dict[str, Path]) -> None:
    made = tables["Heights"]
    stream = rhostream.open_stream(
        [str(made.parent / "shards")], str(made / "il"), buffer_size=32, kind=f"{HERE}:Heights"
    )
    candidates, model = next(iter(stream)), own_kinds.regressor(size=own_kinds.SIZE)
    for options, says in (({}, "cross_entropy"), ({"loss": "squared_error", "rule": "entropy"}, "dropout|entropy")):
        with pytest.raises(UsageError, match=says):
            rhostream.Selector(model, batch_size=8, **options)(candidates)


def test_the_losses_of_targets_name_both_shapes_where_they_differ() -> None:
    output, target = torch.randn(6, 4), torch.rand(6, 4)
    assert torch.allclose(squared_error(output, target), ((output - target) ** 2).mean(1))
    assert torch.equal(squared_error(output[:, :1], target[:, 0]), squared_error(output[:, 0], target[:, 0]))
    expected = functional.binary_cross_entropy_with_logits(output, target, reduction="none").mean(1)
    assert torch.allclose(binary_cross_entropy(output, target), expected)
    for loss in (squared_error, binary_cross_entropy):
        with pytest.raises(UsageError, match=r"\(6, 4\) of float32.*\(6,\) of int64"):
            loss(output, torch.zeros(6, dtype=torch.int64))


def test_a_target_that_is_no_field_is_told_when_the_kind_is_loaded() -> None:
    with pytest.raises(RhostreamError, match=r"target is 'weight'.*vector, height"):
        OwnKind(f"{HERE}:Strayed")
    assert "target" not in OwnKind(f"{HERE}:Vectors").to_json()
    assert OwnKind(f"{HERE}:Untargeted").to_json()["target"] == ""
