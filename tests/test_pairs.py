"""Pairs of image and caption from the fit to the run: il against a bank, the loss of a buffer, retrieval, ranks."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import rhostream
from rhostream.audit.report import write_report
from rhostream.audit.verify import verify
from rhostream.compute.retrieval import recalls
from rhostream.errors import MismatchError, TableError, UsageError
from rhostream.il_model.networks import load_il_model
from rhostream.models import build
from rhostream.models.pairs import TwoTowers
from rhostream.repair import repair
from rhostream.samples.fields import Fields
from rhostream.samples.tokenizers import find_tokenizer
from rhostream.selection.contrastive import Pairs
from rhostream.tables import il
from tests.support import ranks
from tests.support.logs import weights_of
from tests.support.pair_world import COLOURS, TEXT, drawn, make_pair_shards
from tests.support.shards import write_shard

PAIR = {"content": "pair", **TEXT}
MODEL = {"model": "pair-small", "loss": "clip"}
SIZES = {"image_size": 16, "channels": 3, "vocabulary": 500, "length": 8, "padding": 0}
TRAIN = {**MODEL, **ranks.SGD, "buffer_size": 60, "batch_size": 12, "seed": 1, "threads": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ (unequal, a third swapped), holdout/, test/, il-model/ (of the holdout), folds/, il/, il-folds/."""
    root = tmp_path_factory.mktemp("pairs")
    make_pair_shards(root / "shards", [70, 41, 1, 68], swapped=0.33)
    make_pair_shards(root / "holdout", [60, 50], seed=1)
    make_pair_shards(root / "test", [30, 15], seed=2)
    data, fit = [str(root / "shards")], {**PAIR, **MODEL, "epochs": 20, "lr": 3e-3, "batch_size": 16}
    rhostream.fit_il(data, str(root / "il-model"), holdout=[str(root / "holdout")], **fit)
    rhostream.fit_il(data, str(root / "folds"), **{**fit, "epochs": 1, "loss": "siglip"})
    for model, table, more in (("il-model", "il", {"vectors": "float16"}), ("folds", "il-folds", {})):
        rhostream.compute_il(data, il_model=str(root / model), out=str(root / table), keep={"swapped": "bool"}, **more)
    return root


def rows_of(table: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(shard, ordinal) -> the row of the table."""
    found = {}
    for part in sorted((table / "parts").rglob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            found[part.name.removesuffix(".parquet"), row["ordinal"]] = row
    return found


def bytes_of(table: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(table)): f.read_bytes() for f in table.rglob("*") if f.is_file() and f.parent.name != "jobs"
    }


# -- il ----------------------------------------------------------------------------------------------------------------


def outputs(world: Path, model: str, table: str) -> dict[tuple[str, int], np.ndarray[Any, np.dtype[np.float64]]]:
    """What the network of each sample's fold sees of it, one at a time."""
    loaded = load_il_model(str(world / model))
    fold = {place: row["fold"] for place, row in rows_of(world / table).items()}
    stream = rhostream.open_stream([str(world / "shards")], str(world / table), buffer_size=20, needs_il=False,
                                   keep_holdout=True)  # fmt: skip
    names, found = stream.stream.table.names, {}
    for candidates in stream:
        for row in candidates.candidate_rows.tolist():
            place = Path(names[candidates.shard[row]]).name, int(candidates.ordinal[row])
            with torch.no_grad():
                output = loaded.networks[fold[place]](candidates.inputs(np.array([row])))
            found[place] = output[0].double().numpy()
    return found


@pytest.mark.parametrize(("model", "table", "loss"), [("il-model", "il", "clip"), ("folds", "il-folds", "siglip")])
def test_il_of_a_pair_is_its_loss_against_the_bank_of_its_network(
    world: Path, model: str, table: str, loss: str
) -> None:
    loaded, rows = load_il_model(str(world / model)), rows_of(world / table)
    folds, seen, in_bank = (
        json.loads((world / model / "model.json").read_text())["folds"],
        outputs(world, model, table),
        0,
    )
    assert len(seen) > 150 and len(loaded.banks) == len(loaded.networks)
    for place, packed in [*seen.items()][::3]:
        row, bank = rows[place], loaded.banks[rows[place]["fold"]]
        assert len(bank) == folds[row["fold"]]["bank_samples"]
        width = len(packed) // 2 - 1
        z, t, a, b = packed[:width], packed[width:-2], packed[-2], packed[-1]
        mine = a * z @ t + b
        images, texts = [], []
        for k, (shard, ordinal) in enumerate(bank.place.tolist()):
            if (Path(bank.shard[shard]).name, ordinal) == place:
                in_bank += 1
                continue  # the pair itself is none of its others
            images.append(a * z @ bank.text_MD[k].double().numpy() + b)
            texts.append(a * t @ bank.image_MD[k].double().numpy() + b)
        assert len(images) > 40
        if loss == "siglip":
            own = math.log1p(math.exp(-mine))
            image, text = (float(np.mean(np.log1p(np.exp(values)))) for values in (images, texts))
            whole = own + 15 * (image + text)
        else:
            own = 0.0
            image, text = (math.log(float(np.mean(np.exp(values)))) - mine for values in (images, texts))
            whole = sum(math.log1p(math.exp(math.log(15) + rest)) for rest in (image, text)) / 2
        assert [row["il_own"], row["il_image"], row["il_text"], row["il"]] == pytest.approx(
            [own, image, text, whole], rel=2e-4, abs=2e-4
        )
        assert row["similarity"] == pytest.approx(z @ t, abs=2e-3)
        assert row["label"] is None and row["predicted"] is None
    assert in_bank > 15  # the bank is drawn from D


def test_il_of_a_pair_is_the_same_bytes_for_any_workers_order_machines_and_after_repair(
    world: Path, tmp_path: Path
) -> None:
    shards = sorted(map(str, (world / "shards").glob("*.tar")))
    how = {"il_model": str(world / "il-model"), "keep": {"swapped": "bool"}, "vectors": "float16"}
    expected = {name: data for name, data in bytes_of(world / "il").items() if not name.endswith("_table.json")}
    assert sum(name.startswith("vectors") for name in expected) == 4
    root = {"roots": il.open_info(str(world / "il")).roots}
    rhostream.compute_il(shards[::-1], out=str(tmp_path / "workers"), workers=2, **how, **root)
    for machine in ("1/2", "0/2"):
        rhostream.compute_il(shards, out=str(tmp_path / "machines"), index=machine, **how, **root)
    shutil.copytree(world / "il", tmp_path / "mended")
    for name in ("parts", "vectors"):
        damaged = next(path for path in sorted((tmp_path / "mended" / name).rglob("0*")) if path.is_file())
        damaged.write_bytes(damaged.read_bytes()[:-40])
    assert verify(str(tmp_path / "mended"))["problems"]
    repair(str(tmp_path / "mended"), il_model=str(world / "il-model"))
    assert not verify(str(tmp_path / "mended"))["problems"]
    for name in ("workers", "machines", "mended"):
        found = bytes_of(tmp_path / name)
        assert {key: found[key] for key in expected} == expected, name


def test_wrong_captions_have_a_higher_il(world: Path) -> None:
    rows = rows_of(world / "il").values()
    right, wrong = ([row["il"] for row in rows if row["swapped"] is value] for value in (False, True))
    assert np.mean(wrong) > np.mean(right) + 0.5


def test_what_il_of_pairs_is_made_of_is_proved(world: Path, tmp_path: Path) -> None:
    assert not verify(str(world / "il"))["problems"] and not verify(str(world / "il-model"))["problems"]
    shutil.copytree(world / "il-model", tmp_path / "model")
    bank = tmp_path / "model" / "bank.safetensors"
    bank.write_bytes(bank.read_bytes()[:-4] + b"\1\2\3\4")
    assert "bank.safetensors" in verify(str(tmp_path / "model"))["problems"][0]
    with pytest.raises(TableError, match=r"bank\.safetensors"):
        rhostream.compute_il([str(world / "shards")], il_model=str(tmp_path / "model"), out=str(tmp_path / "il"))
    url = il.part_urls(str(world / "il"))[0]
    table, info = pq.read_table(url), il.open_info(str(world / "il"))
    assert not il.broken_terms(table, info)
    place = table.schema.get_field_index("il_text")
    assert il.broken_terms(table.set_column(place, "il_text", table["il_image"]), info)


def test_a_table_of_pairs_keeps_no_field_of_a_name_of_its_own(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="similarity"):
        rhostream.compute_il([str(world / "shards")], il_model=str(world / "il-model"), out=str(tmp_path / "il"),
                             keep={"similarity": "float"})  # fmt: skip


def test_vectors_of_several_networks_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 networks"):
        rhostream.compute_il([str(world / "shards")], il_model=str(world / "folds"), out=str(tmp_path / "il"),
                             vectors="int8")  # fmt: skip


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs as one process and as two (`one-RULE`, `two-RULE`).

    By SGD, where rounding stays rounding: AdamW makes whole steps of gradients that are nothing else.
    """
    folder = tmp_path_factory.mktemp("runs")
    settings = {**TRAIN, "shards": [str(world / "shards")], "il": str(world / "il"), "passes": 3,
                "test_shards": [str(world / "test")], "eval_every": 4}  # fmt: skip
    both = [{**settings, "rule": rule, **more} for rule, more in RULES.items()]
    for name, number in (("one", 1), ("two", 2)):
        ranks.together(
            folder, ranks.train, number, [{**one, "run": str(folder / f"{name}-{one['rule']}")} for one in both]
        )
    return folder


RULES: dict[str, dict[str, Any]] = {
    "rho": {"band": "similarity=10%:"},
    "jest_top": {"joint_chunks": 4},
    "uniform": {"band": "similarity=40%:"},
    "loss": {"loss": "siglip"},
}


@pytest.mark.parametrize("rule", RULES)
def test_two_ranks_keep_and_learn_what_one_does(runs: Path, rule: str) -> None:
    one, two = runs / f"one-{rule}", runs / f"two-{rule}"
    assert ranks.assert_same_but_for_noise(one, two) == 9
    first, second = weights_of(one), weights_of(two)
    for name, weight in first.items():
        torch.testing.assert_close(
            second[name], weight, atol=5e-6, rtol=1e-5, msg=lambda told, of=name: f"{of}: {told}"
        )
    assert abs(float(first["model.logit_scale"]) - math.log(10.0)) > 1e-3
    tables = []
    for run in (one, two):
        with rhostream.open_ledger(str(run)) as ledger:
            tables.append(ledger.sql("SELECT step, loss_kept, test_loss, test_accuracy, image_to_text_10, "
                                     "text_to_image_10, test_samples FROM steps ORDER BY step"))  # fmt: skip
    for column in tables[0].column_names:
        np.testing.assert_allclose(*(np.array(t[column].to_pylist(), float) for t in tables), atol=2e-3)


def test_a_run_of_pairs_goes_on_with_other_workers_bit_for_bit(runs: Path, world: Path, tmp_path: Path) -> None:
    settings = {**TRAIN, "shards": [str(world / "shards")], "il": str(world / "il"), "passes": 3, "rule": "jest_top",
                **RULES["jest_top"], "test_shards": [str(world / "test")], "eval_every": 4}  # fmt: skip
    first = {**settings, "run": str(tmp_path / "run"), "checkpoint_every": 2}
    ranks.train_killed_at(4, first)
    rhostream.train(**{**first, "workers": 2})
    expected, found = weights_of(runs / "one-jest_top"), weights_of(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logs = []
    for run in (runs / "one-jest_top", tmp_path / "run"):
        with rhostream.open_ledger(str(run)) as ledger:
            logs.append(ledger.sql("SELECT * EXCLUDE (run) FROM selections ORDER BY step, shard, ordinal"))
    assert logs[0].equals(logs[1]) and logs[0].num_rows > 500


def test_the_ledger_of_pairs_is_whole_and_says_why_each_was_left_out(runs: Path, world: Path) -> None:
    run = runs / "one-rho"
    assert not verify(str(run), shards=[str(world / "shards")])["problems"]
    with rhostream.open_ledger(str(run)) as ledger:
        counted = "SELECT reason, count(*) AS n FROM selections WHERE step IS NOT NULL GROUP BY reason"
        reasons = {row["reason"]: row["n"] for row in ledger.sql(counted).to_pylist()}
        rows = ledger.sql("SELECT loss, il, score, reason FROM selections WHERE score IS NOT NULL").to_pylist()
        last = ledger.sql("SELECT * FROM steps ORDER BY step DESC LIMIT 1").to_pylist()[0]
    assert reasons["kept"] == 9 * 12 and reasons["band"] > 20
    assert all(row["score"] == pytest.approx(row["loss"] - row["il"], abs=1e-4) for row in rows)
    assert last["test_accuracy"] == pytest.approx((last["image_to_text_1"] + last["text_to_image_1"]) / 2)
    assert last["class_accuracy"] is None and last["test_samples"] == 45


def test_a_report_of_pairs_measures_by_a_filter_before_uniform_choice(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_report([str(runs / "one-rho")], str(page), against=[str(runs / "one-uniform")])
    text = page.read_text()
    assert "A filter before uniform choice (one-uniform)" in text and "image to text 10" in text
    write_report([str(runs / "one-rho")], str(page))
    assert "the baseline to beat of pairs" in page.read_text()


def test_the_loss_that_is_logged_is_the_expected_one_in_a_batch_of_the_candidates(world: Path) -> None:
    made_for: dict[str, Any] = {**SIZES, "task": "pairs"}
    model = build("pair-small", classes=None, **made_for)
    selector = rhostream.Selector(model, "loss", 12, loss="siglip")
    stream = rhostream.open_stream([str(world / "shards")], str(world / "il"), buffer_size=60)
    candidates = next(iter(stream))
    kept = selector(candidates)
    rows = candidates.candidate_rows
    with torch.no_grad():
        pairs = Pairs.of(model.eval()(candidates.inputs(rows)).double())
    n = len(rows)
    logits = (pairs.scale * pairs.image_ND @ pairs.text_ND.T + pairs.bias).numpy()
    loss = [math.log1p(math.exp(-logits[i, i])) + 11 / (n - 1) * sum(
        math.log1p(math.exp(logits[i, j])) + math.log1p(math.exp(logits[j, i])) for j in range(n) if j != i
    ) for i in range(n)]  # fmt: skip
    np.testing.assert_allclose(kept.loss[rows], loss, rtol=1e-4)
    assert isinstance(kept.input, Fields) and len(kept.input["tokens"]) == 12
    assert sorted(kept.rows.tolist()) == sorted(rows[np.argsort(loss)[-12:]].tolist())
    loss_b = selector.loss(model.train()(kept.input), kept.target)
    kept.mean(loss_b).backward()
    assert model.model.logit_bias.grad is not None and loss_b.shape == (12,)


def test_the_loop_of_the_page_runs_as_it_stands(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "pairs.md").read_text()
    block = page.split("<!-- run by tests/test_pairs.py -->\n```python\n")[1].split("```")[0]
    monkeypatch.chdir(world)
    torch.manual_seed(0)
    model = build("pair-small", classes=None, **SIZES, task="pairs").model
    block = block.replace("320", "60").replace("batch_size=64", "batch_size=12").replace("siglip", "clip")
    exec(block, {"rhostream": rhostream, "torch": torch, "model": model})
    assert not verify(str(world / "runs" / "own"))["problems"]
    with rhostream.open_ledger(str(world / "runs" / "own")) as ledger:
        assert ledger.sql("SELECT count(*) FROM selections WHERE kept")[0][0].as_py() == 3 * 12


# -- a reference -----------------------------------------------------------------------------------------------------


def test_towers_of_a_library_are_a_reference_of_pairs_with_a_bank_in_the_table(
    world: Path, siglip_folder: Path, tmp_path: Path
) -> None:
    shards, name = [str(world / "shards")], f"hf:{siglip_folder}"
    with pytest.raises(UsageError, match="--batch-size"):
        rhostream.compute_il(shards, out=str(tmp_path / "il"), reference=name, content="pair")
    with pytest.raises(UsageError, match="tokenizer"):
        rhostream.compute_il(shards, out=str(tmp_path / "il"), reference=name, batch_size=64, **PAIR)
    how = {"reference": name, "content": "pair", "batch_size": 64, "vectors": "int8"}
    rhostream.compute_il(shards, out=str(tmp_path / "il"), index="0/2", **how)
    (bank,) = (tmp_path / "il").glob("bank-*.safetensors")
    before = bank.stat().st_mtime_ns
    rhostream.compute_il(shards, out=str(tmp_path / "il"), index="1/2", **how)  # the same bank, drawn once
    assert bank.stat().st_mtime_ns == before and not verify(str(tmp_path / "il"))["problems"]
    info = il.open_info(str(tmp_path / "il"))
    assert (info.bank["batch_size"], info.ingredients["loss"], info.model["learned_from"]) == (64, "siglip", "unknown")
    rhostream.compute_il(shards, out=str(tmp_path / "whole"), **how)
    parts = {path.name: path.read_bytes() for path in (tmp_path / "il" / "parts").rglob("*.parquet")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "whole" / "parts").rglob("*.parquet")} == parts
    one = next((tmp_path / "il" / "parts").rglob("0*.parquet"))
    one.write_bytes(one.read_bytes()[:-9])
    repair(str(tmp_path / "il"), reference=name)
    assert one.read_bytes() == parts[one.name]
    bank.unlink()
    assert any("is gone" in says for says in verify(str(tmp_path / "il"))["warnings"])
    summary = rhostream.train(shards, il=str(tmp_path / "whole"), run=str(tmp_path / "run"), rule="jest",
                              **{**TRAIN, "model": name, "loss": "siglip", "steps": 2})  # fmt: skip
    assert summary.reasons["kept"] == 24 and not verify(str(tmp_path / "run"))["problems"]


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "says"), [
    ({"loss": "cross_entropy"}, "siglip, clip"),
    ({"loss": "siglip"}, "il of .* is clip"),
    ({"accumulate": 2}, "--accumulate 2"),
    ({"shortlist": "proxy:2"}, "shortlist"),
    ({"rule": "grad_norm"}, "grad_norm"),
    ({"rule": "rho_updated", "il_model": "il-model"}, "learns along"),
    ({"mixup": 0.2}, "--mixup"),
    ({"augment": "flip"}, "flip"),
    ({"deduplicate": 0.9}, "--deduplicate"),
    ({"model": "mlp"}, "takes images"),
    ({"model": "torch.nn:Identity"}, "encode_image"),
    ({"classes": 3}, "--classes"),
])  # fmt: skip
def test_what_pairs_cannot_have_is_refused_before_any_work(
    world: Path, tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    if "il_model" in more:
        more = {**more, "il_model": str(world / "il-model")}
    with pytest.raises((UsageError, MismatchError), match=says):
        rhostream.train(**{**TRAIN, "shards": [str(world / "shards")], "il": str(world / "il"),
                           "run": str(tmp_path / "run"), **more})  # fmt: skip
    assert not (tmp_path / "run" / "log").exists()


def test_losses_of_pairs_are_for_pairs(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="siglip"):
        rhostream.fit_il([str(world / "shards")], str(tmp_path / "model"), content="image", loss="siglip")


# -- retrieval and zero-shot -------------------------------------------------------------------------------------------


def test_recalls_are_those_of_a_literal_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        n, captions = int(rng.integers(12, 40)), int(rng.integers(11, 30))
        of = rng.integers(captions, size=n)
        tokens = torch.from_numpy(np.stack([of, of**2], 1))
        image = rng.standard_normal((n, 5))
        text = rng.standard_normal((captions, 5))[of] + 0  # equal captions have equal vectors
        image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text))
        pairs = Pairs(torch.from_numpy(image), torch.from_numpy(text), torch.tensor(1.0), torch.tensor(0.0))
        found, there = recalls(pairs, tokens), sorted({*of.tolist()})
        for k in (1, 10):
            right = 0
            for i in range(n):
                best = sorted(there, key=lambda c: -image[i] @ text[of.tolist().index(c)])[:k]
                right += of[i] in best
            assert found[f"image_to_text_{k}"] == pytest.approx(right / n)
            right = 0
            for c in there:
                best = sorted(range(n), key=lambda i: -image[i] @ text[of.tolist().index(c)])[:k]
                right += any(of[i] == c for i in best)
            assert found[f"text_to_image_{k}"] == pytest.approx(right / len(there))


def test_classes_of_labelled_pictures_are_named_by_text(world: Path, tmp_path: Path) -> None:
    rng, samples = np.random.default_rng(5), []
    for n in range(24):
        image, caption = drawn(rng)
        label = list(COLOURS).index(caption.split()[1])
        samples.append({"__key__": f"{n}", "png": image, "cls": str(label)})
    write_shard(tmp_path / "pictures" / "0.tar", samples)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    (tmp_path / "prompts.txt").write_text("a {} square at the top left\na {} square at the bottom right\n")
    options: dict[str, Any] = {
        **TRAIN, "shards": [str(world / "shards")], "il": str(world / "il"), "steps": 3, "init": None,
        "zero_shot": [str(tmp_path / "pictures")], "zero_shot_classes": str(tmp_path / "names.txt"),
        "prompts": str(tmp_path / "prompts.txt"),
    }  # fmt: skip
    run = tmp_path / "run"
    rhostream.train(**{**options, "run": str(run)})
    with rhostream.open_ledger(str(run)) as ledger:
        last = ledger.sql("SELECT * FROM steps ORDER BY step DESC LIMIT 1").to_pylist()[0]
    assert last["test_accuracy"] is None and last["test_samples"] == 24 and len(last["class_accuracy"]) == 4
    model = build("pair-small", classes=None, **SIZES, task="pairs")
    model.load_state_dict(weights_of(run))
    tower, tokenizer, right = model.eval().model, find_tokenizer(TEXT["tokenizer"]), 0

    def vector(text: str) -> torch.Tensor:
        ids = tokenizer.encode(text, 8)  # type: ignore[misc]
        own = tower.encode_text(torch.tensor([ids + [0] * (8 - len(ids))]))[0]
        return own / own.norm()

    with torch.no_grad():
        texts = [
            (vector(f"a {c} square at the top left") + vector(f"a {c} square at the bottom right")) for c in COLOURS
        ]
        for sample in samples:
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(sample["png"])))).permute(2, 0, 1).float()
            image = tower.encode_image((pixels[None] / 255 - 0.5) / 0.5)[0]
            right += int(np.argmax([float(image @ (text / text.norm())) for text in texts])) == int(sample["cls"])
    assert last["zero_shot_accuracy"] == pytest.approx(right / 24)
    with pytest.raises(UsageError, match="--zero-shot-classes"):
        rhostream.train(**{**options, "run": str(tmp_path / "other"), "zero_shot_classes": None})


def test_pairs_that_are_no_numbers_are_never_found() -> None:
    image, text = torch.eye(12, 13), torch.eye(12, 13)
    image[0], text[1] = torch.nan, torch.nan
    found = recalls(Pairs(image, text, torch.tensor(1.0), torch.tensor(0.0)), torch.arange(12)[:, None])
    assert found["image_to_text_1"] == found["text_to_image_1"] == pytest.approx(10 / 12)


def test_towers_of_different_sizes_are_refused() -> None:
    class Uneven(torch.nn.Module):
        logit_scale = torch.zeros(())

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.flatten(1)[:, :3]

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.float()[:, :2]

    with pytest.raises(UsageError, match="of one D"):
        TwoTowers(Uneven())(Fields({"pixels": torch.ones(2, 1, 4, 4), "tokens": torch.ones(2, 5, dtype=torch.int64)}))
