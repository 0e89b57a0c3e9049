"""The cascade: what is dropped unread, what a proxy or a cheap view shortlists, and what fresh scores keep."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import rhostream
from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.errors import MismatchError, NonFiniteError, UnknownNameError, UsageError
from rhostream.irreducible.kept import keep_fields
from rhostream.models import build
from rhostream.runs import checkpoint, tensors
from rhostream.samples.decoders import decode_into
from rhostream.selection.gradient import step_if_finite
from rhostream.selection.proxy import Proxy
from rhostream.selection.selector import Selector
from rhostream.stream.band import Band, resolve_band
from rhostream.stream.copying import ahead
from rhostream.tables import il, selections
from rhostream.training import hardware
from tests.support.logs import same
from tests.support.ranks import train_killed_at
from tests.support.scoring import buffer, oracle
from tests.support.streams import content, open_world


def rows_of_log(run: Path) -> list[dict[str, object]]:
    latest = checkpoint.latest(str(run))
    assert latest is not None
    return selections.read(str(run), latest.log).to_pylist()


def all_il(world: Path) -> np.ndarray:
    parts = sorted((world / "il" / "parts").rglob("*.parquet"))
    found = [il.read_part(str(p)) for p in parts]
    return np.concatenate([p.il[p.usable & np.isfinite(p.il)] for p in found])


# -- before a byte is read -------------------------------------------------------------------------------------------


def test_a_band_in_per_cent_is_the_tables_own_quantiles(world: Path) -> None:
    loader = open_world(world)
    band, values = resolve_band("20%:90%", loader.stream.table), all_il(world)
    assert band == Band(float(np.quantile(values, 0.2)), float(np.quantile(values, 0.9)))
    assert resolve_band("0.5:", loader.stream.table) == Band(0.5, math.inf)
    assert resolve_band(":10%", loader.stream.table) == Band(-math.inf, float(np.quantile(values, 0.1)))


def test_a_band_of_a_kept_field_is_that_fields_quantiles_and_a_null_is_in_it(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "kept"
    keep_fields([str(world / "shards")], str(world / "il"), str(table), {"true_label": "int", "nowhere": "float"})
    loader = rhostream.open_stream([str(world / "shards")], str(table), buffer_size=20, band="true_label=25%:")
    parts = [pq.read_table(part) for part in sorted((table / "parts").rglob("*.parquet"))]
    rows = [row for part in parts for row in part.to_pylist() if row["status"] == "ok"]
    low = float(np.quantile([np.float32(row["true_label"]) for row in rows], 0.25))
    assert resolve_band("true_label=25%:", loader.stream.table) == Band(low, math.inf, "true_label")
    assert repr(Band(low, 1.0, "true_label")) == f"Band(low={low}, high=1.0, column='true_label')"
    label = {(row["key"], row["ordinal"]): row["true_label"] for row in rows}
    found = [(c.reason[n] == Reason.band, label[c.key[n].as_py(), int(c.ordinal[n])] < low)
             for c in loader for n in range(len(c)) if (c.key[n].as_py(), int(c.ordinal[n])) in label]  # fmt: skip
    assert all(dropped == below for dropped, below in found) and 0 < sum(dropped for dropped, _ in found) < len(found)
    unknown = rhostream.open_stream([str(world / "shards")], str(table), buffer_size=20, band="nowhere=0.5:")
    assert not any((candidates.reason == Reason.band).any() for candidates in unknown)
    with pytest.raises(UsageError, match="--band colour"):
        open_world(world, band="colour=1:")


def test_what_lies_outside_the_band_is_never_read(world: Path, trained: Callable[..., Path]) -> None:
    run = trained(band="20%:90%")
    rows, (low, high) = rows_of_log(run), np.quantile(all_il(world), [0.2, 0.9])
    planned = [r for r in rows if r["step"] is not None]
    outside = [r for r in planned if not low <= r["il"] <= high]
    assert 0 < len(outside) < len(planned)
    assert all((r["reason"] == "band") == (not low <= r["il"] <= high) for r in planned)
    assert all(r["loss"] is None and r["score"] is None for r in outside)
    cost = json.loads((run / "cost.json").read_text())
    assert cost["decoded"] == cost["scored"] == len(planned) - len(outside)


@pytest.mark.parametrize("band", ["", ":", "20%", "90%:20%", "a:b", "0:101%", "nan:1", "5:4"])
def test_a_band_that_is_none_is_refused(world: Path, band: str) -> None:
    with pytest.raises(UsageError, match="--band"):
        open_world(world, band=band)


def test_a_band_needs_a_table_with_il(world: Path, tmp_path: Path) -> None:
    rhostream.index([str(world / "shards")], str(tmp_path / "index"))
    with pytest.raises(UsageError, match="compute-il"):
        open_world(world, il=str(tmp_path / "index"), needs_il=False, band="20%:90%")


def listed_rows(world: Path) -> tuple[pa.Table, list[tuple[str, int]]]:
    with rhostream.open_ledger(str(world / "il")) as ledger:
        table = ledger.sql("SELECT shard, ordinal, key FROM il WHERE ordinal % 3 = 1 ORDER BY hash(key)")
    return table, list(zip(table["shard"].to_pylist(), table["ordinal"].to_pylist(), strict=True))


@pytest.mark.parametrize("columns", [["shard", "ordinal"], ["shard", "key"]])
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_only_what_a_keep_list_names_is_a_candidate(world: Path, tmp_path: Path, columns: list[str], form: str) -> None:
    table, wanted = listed_rows(world)
    path = tmp_path / f"keep.{form}"
    if form == "parquet":
        pq.write_table(table.select(columns), path)
    else:
        import pyarrow.csv

        pyarrow.csv.write_csv(table.select(columns), path)
    for workers in (0, 2):
        seen = []
        for candidates in open_world(world, keep_list=path, workers=workers):
            on_it = candidates.reason == CANDIDATE
            assert set(candidates.reason.tolist()) <= {CANDIDATE, Reason.unlisted}
            names = [candidates.shard_names[int(s)].as_py() for s in candidates.shard[on_it]]
            seen += list(zip(names, candidates.ordinal[on_it].tolist(), strict=True))
        assert set(seen) <= set(wanted) and len(seen) == len(set(seen)) >= len(wanted) - 3  # a tail fills no buffer


def test_a_keep_list_that_can_not_be_is_refused_and_strangers_on_it_are_counted(world: Path, tmp_path: Path) -> None:
    _, wanted = listed_rows(world)
    for name, table, says in (
        ("none", pa.table({"shard": ["elsewhere/x.tar"], "ordinal": [0]}), "none of its 1 rows"),
        ("columns", pa.table({"name": ["x"]}), "expected shard and ordinal"),
    ):
        pq.write_table(table, tmp_path / name)
        with pytest.raises(UsageError, match=says):
            open_world(world, keep_list=str(tmp_path / name))
    (tmp_path / "garbage").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UsageError, match="no Parquet or CSV"):
        open_world(world, keep_list=str(tmp_path / "garbage"))
    strange = pa.table({"shard": [wanted[0][0]] * 3 + ["elsewhere.tar"], "ordinal": [0, -1, 10**6, 0]})
    pq.write_table(strange, tmp_path / "strange")
    with pytest.warns(UserWarning, match="3 of its rows name no sample"):
        open_world(world, keep_list=str(tmp_path / "strange"))


# -- the shortlist ---------------------------------------------------------------------------------------------------


def test_fresh_scores_choose_from_what_the_proxy_shortlists() -> None:
    torch.manual_seed(0)
    target, small = (build("mlp-64", image_size=16, channels=1, classes=4) for _ in range(2))
    proxy = Proxy(small)
    selector = Selector(target, "rho", 4, shortlist=3, proxy=proxy)
    for number in range(50):
        candidates = buffer(seed=number)
        with torch.no_grad():
            cheap, fresh = (nn.functional.cross_entropy(m(candidates.input), candidates.label, reduction="none").numpy()
                            for m in (small, target))  # fmt: skip
        il_B = candidates.il.numpy()
        shortlist = oracle(cheap, il_B, 12)
        expected = [shortlist[i] for i in oracle(fresh[shortlist], il_B[shortlist], 4)]
        selection = selector(candidates)
        assert selection.rows.tolist() == expected and (selection.shortlisted, selection.scored) == (40, 12)
        reached = np.flatnonzero(~np.isnan(selection.loss)).tolist()
        assert reached == shortlist
        assert (selection.reason == Reason.shortlist).sum() == 28 and (selection.reason == Reason.below).sum() == 8
        np.testing.assert_allclose(selection.loss[shortlist], fresh[shortlist], rtol=1e-5)


def test_the_proxy_learns_from_what_is_kept() -> None:
    torch.manual_seed(0)
    target, small, twin = (build("mlp-64", image_size=16, channels=1, classes=4) for _ in range(3))
    twin.load_state_dict(small.state_dict())
    selector, own = Selector(target, "rho", 4, shortlist=3, proxy=Proxy(small)), Proxy(twin)
    for number in range(5):
        selection = selector(buffer(seed=number))
        own.learn(selection.input, selection.label)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), twin.parameters(), strict=True))
    before = [p.clone() for p in twin.parameters()]
    own.learn(torch.full((4, 1, 16, 16), math.nan), torch.zeros(4, dtype=torch.int64))
    assert all(torch.equal(a, b) for a, b in zip(before, twin.parameters(), strict=True))


def test_a_run_with_a_proxy_continued_in_pieces_and_killed_equals_one_in_one_go(
    world: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    settings = {
        "shortlist": "proxy:2",
        "band": "10%:",
        "steps": 24,
        "checkpoint_every": 5,
        "buffer_size": 40,
        "batch_size": 8,
        "model": "mlp-64",
        "threads": 1,
    }
    whole = trained("whole", **settings)
    options = {"shards": [str(world / "shards")], "il": str(world / "il"), "run": str(tmp_path / "killed"), **settings}
    train_killed_at(12, options)
    rhostream.train(**options, workers=1)
    assert same(whole, tmp_path / "killed")
    proxies = [
        tensors.load_other(str(r), checkpoint.latest(str(r)), "proxy")["model"] for r in (whole, tmp_path / "killed")
    ]
    assert all(torch.equal(proxies[0][k], proxies[1][k]) for k in proxies[0])
    costs = [json.loads((r / "cost.json").read_text()) for r in (whole, tmp_path / "killed")]
    assert costs[0]["forward_units"] == costs[1]["forward_units"]


# -- two views -------------------------------------------------------------------------------------------------------


def test_kept_samples_come_at_full_size_and_are_scored_on_the_view(world: Path) -> None:
    torch.manual_seed(0)
    model = build("small-cnn", image_size=16, channels=1, classes=4)
    selector = Selector(model, "rho", 8)
    full, view = iter(open_world(world)), iter(open_world(world, view_size=8, workers=1))
    for _ in range(3):
        whole, cheap = next(full), next(view)
        assert cheap.image.shape == (40, 8, 8, 1) and cheap.key.equals(whole.key)
        selection = selector(cheap)
        assert torch.equal(selection.input, whole.input[torch.from_numpy(selection.rows)])
        assert selection.reread == 8 and selection.scored == 40
        np.testing.assert_allclose(selection.loss, selector(cheap.take(np.arange(40))).loss, rtol=1e-6)
        assert not np.allclose(selection.loss, selector(whole).loss)


def test_a_shortlist_by_the_view_is_scored_again_at_full_size(world: Path) -> None:
    torch.manual_seed(0)
    model = build("small-cnn", image_size=16, channels=1, classes=4)
    whole, cheap = next(iter(open_world(world))), next(iter(open_world(world, view_size=8)))
    first = Selector(model, "rho", 16)(cheap)
    selection = Selector(model, "rho", 4, shortlist=4)(cheap)
    fresh = Selector(model, "rho", 4)(whole.take(first.rows))
    assert np.flatnonzero(~np.isnan(selection.loss)).tolist() == first.rows.tolist()
    assert selection.rows.tolist() == first.rows[fresh.rows].tolist()
    np.testing.assert_allclose(selection.loss[first.rows], fresh.loss, rtol=1e-5)
    assert (selection.shortlisted, selection.scored, selection.reread) == (40, 16, 16)
    assert torch.equal(selection.input, fresh.input)


def test_what_can_not_be_read_at_full_size_is_unreadable_and_not_kept(world: Path) -> None:
    cheap = next(iter(open_world(world, view_size=8)))
    read, failing = cheap.full, set(Selector(nn.Flatten(), "uniform", 8)(cheap).rows[:3].tolist())

    def some(rows: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        image, ok = read(rows)
        return image, ok & ~np.isin(rows, list(failing))

    object.__setattr__(cheap, "full", some)
    for rule, extra in (("uniform", {}), ("irreducible", {}), ("irreducible", {"shortlist": 2})):
        model = build("small-cnn", image_size=16, channels=1, classes=4)
        selection = Selector(model, rule, 8, **extra)(cheap)
        lost = np.flatnonzero(selection.reason == Reason.unreadable)
        assert set(lost.tolist()) <= failing and not selection.kept[lost].any()
        assert len(selection.input) == len(selection) == selection.kept.sum()
        if rule == "uniform":
            assert len(selection) == 5


def test_decoding_twice_gives_what_decoding_once_gives(world: Path, trained: Callable[..., Path]) -> None:
    run = trained("view", model="small-cnn", view_size=8, steps=10)
    cost = json.loads((run / "cost.json").read_text())
    assert (cost["decoded"], cost["reread"], cost["scored"]) == (400, 80, 400)
    assert 0 < cost["scored_macs"] < cost["macs"]
    units = 400 * cost["scored_macs"] / cost["macs"] + 3 * 80
    assert cost["forward_units"] == pytest.approx(units)
    run = trained(
        "view-proxy",
        model="small-cnn",
        view_size=8,
        shortlist="proxy:2.5",
        proxy_model="tests.support.tiny:linear",
        steps=10,
    )
    cost = json.loads((run / "cost.json").read_text())
    assert (cost["shortlisted"], cost["scored"], cost["reread"], cost["proxy_trained"]) == (400, 200, 200, 80)
    units = 200 + 3 * 80 + (400 + 3 * 80) * cost["shortlist_macs"] / cost["macs"]
    assert cost["shortlist_macs"] == 64 * 4 and cost["forward_units"] == pytest.approx(units)


@pytest.mark.parametrize(("options", "says"), [
    ({"shortlist": "proxi:4"}, "did you mean 'proxy'"),
    ({"shortlist": "proxy"}, "proxy:4"),
    ({"shortlist": "proxy:5"}, "between 1 and n_B / n_b = 5"),
    ({"shortlist": "proxy:1"}, "between 1 and"),
    ({"shortlist": "view:2"}, "--view-size"),
    ({"view_size": 16}, "less than the full size of 16"),
    ({"view_size": 0}, "less than the full size"),
    ({"view_size": 20, "image_size": 32}, "larger than the images themselves"),
    ({"view_size": 8}, "takes images of 16 pixels only.*--shortlist proxy:4"),
    ({"rule": "uniform", "shortlist": "proxy:2"}, "makes no forward"),
    ({"rule": "uniform", "view_size": 8}, "makes no forward"),
    ({"precision": "float16"}, "--precision 'float16'"),
    ({"train_precision": "half"}, "--train-precision 'half'"),
    ({"threads": 0}, "--threads 0"),
    ({"chunk": 0}, "chunk 0"),
    ({"keep_list": "/nowhere/list.csv"}, "does not exist"),
    ({"shortlist": "proxy:2", "proxy_model": "mlp-65"}, "did you mean 'mlp-"),
])  # fmt: skip
def test_settings_that_can_not_be_stop_before_any_work(
    trained: Callable[..., Path], options: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, UnknownNameError, rhostream.errors.NotFoundError), match=says):
        trained(**options)
    assert not (tmp_path / "run" / "log").exists()


def test_bfloat16_is_refused_where_it_is_only_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "bf16_supported", lambda device: False)
    with pytest.raises(UsageError, match="has no bfloat16 arithmetic"):
        hardware.autocast("--precision", "bfloat16", torch.device("cpu"))
    assert hardware.autocast("--precision", "float32", torch.device("cpu")) is None


@pytest.mark.skipif(not hardware.bf16_supported(torch.device("cpu")), reason="no bfloat16 arithmetic on this CPU")
def test_bfloat16_keeps_nearly_what_float32_keeps(trained: Callable[..., Path]) -> None:
    runs = [trained(p, model="small-cnn", precision=p, train_precision=p, steps=1) for p in ("float32", "bfloat16")]
    (loss, kept), (low, low_kept) = (
        [np.array([r[c] for r in rows_of_log(run)], float) for c in ("loss", "kept")] for run in runs
    )
    np.testing.assert_allclose(loss, low, atol=0.1)
    assert not np.array_equal(loss, low) and (kept * low_kept).sum() >= 6


# -- one wait a step -------------------------------------------------------------------------------------------------


class CopyingLater:
    """A copier that copies when it is asked to finish, the latest moment at which a slot may still be needed."""

    def start(self, candidates: Candidates) -> Candidates:
        return candidates

    def finish(self, candidates: Candidates) -> Candidates:
        return candidates.take(np.arange(len(candidates)))


@pytest.mark.parametrize("workers", [0, 2])
def test_looking_one_buffer_ahead_changes_no_row_and_no_pixel(world: Path, workers: int) -> None:
    expected = [content(c) for c in open_world(world, seed=3)]

    def buffers() -> Iterator[Candidates]:
        loader = open_world(world, seed=3, workers=workers)
        loader.stream.allocate(workers)
        yield from loader

    assert [content(c) for c in ahead(buffers(), CopyingLater())] == expected


def test_a_batch_whose_loss_is_not_finite_changes_no_weight(trained: Callable[..., Path], tmp_path: Path) -> None:
    for fused in (True, False):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        before = [p.clone() for p in model.parameters()]
        for value in (math.nan, math.inf):
            model(torch.full((1, 3), value)).sum().backward()
            step_if_finite(optimizer, torch.tensor(value))
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        step_if_finite(optimizer, torch.tensor(1.0))
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(NonFiniteError, match="batches in a row"):
        trained("broken", make_model=lambda: TrainsToNaN(16, 4), model="broken")


class TrainsToNaN(nn.Module):
    """Scores well and is NaN when it learns."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) * (math.nan if self.training else 1.0)


def test_the_threads_of_a_run_stay_those_of_its_start(trained: Callable[..., Path], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    trained(steps=3, threads=1)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    trained(steps=6)
    assert record["threads"] == 1 and torch.get_num_threads() == before
    assert hardware.threads_of(None, 0, 1) == 1 and hardware.threads_of(3, 0, 1) == 3
    cores = len(os.sched_getaffinity(0))
    assert hardware.threads_of(None, 0, None) == cores and hardware.threads_of(None, cores + 5, None) == 1


def test_a_cascade_is_part_of_the_run_and_a_change_is_refused(trained: Callable[..., Path]) -> None:
    trained(shortlist="proxy:2", band="10%:", steps=3)
    for change, says in (({"band": None}, "band: was '10%:', now None"), ({"shortlist": "proxy:3"}, "shortlist: was")):
        with pytest.raises(MismatchError, match=says):
            trained(**{"shortlist": "proxy:2", "band": "10%:", "steps": 3, **change})


@pytest.mark.slow
def test_torch_compile_gives_the_same_choice(trained: Callable[..., Path]) -> None:
    plain, compiled = (trained(str(c), model="small-cnn", compile=c, steps=4) for c in (False, True))
    first, second = ([r for r in rows_of_log(run) if r["step"] == 0] for run in (plain, compiled))
    np.testing.assert_allclose([r["loss"] for r in first], [r["loss"] for r in second], rtol=1e-4)
    assert [r["key"] for r in first if r["kept"]] == [r["key"] for r in second if r["kept"]]


def test_the_view_is_the_same_geometry_at_another_size() -> None:
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).resize((96, 64), Image.Resampling.BOX)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    large, small = np.empty((32, 32, 3), np.uint8), np.empty((8, 8, 3), np.uint8)
    assert decode_into(sink.getvalue(), large) == decode_into(sink.getvalue(), small) == "ok"
    np.testing.assert_allclose(large.reshape(8, 4, 8, 4, 3).mean((1, 3)), small, atol=24)
