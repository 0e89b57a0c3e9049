"""Language: losses of tokens, sequences chosen by their mean, and the tokens that the gradient goes through."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import rhostream
from rhostream import models
from rhostream.advisor.estimate import estimate
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, UsageError
from rhostream.il_model.networks import load_il_model
from rhostream.selection import tokens
from rhostream.selection.gradient import take_step
from rhostream.selection.tokens import LanguageLoss, SequenceMean, TokenShare, kept_tokens
from rhostream.tables import il, parquet
from tests.support.ranks import together, train
from tests.support.shards import write_shard
from tests.support.text_world import WORDS

V, T = 40, 12
TRAIN: dict[str, Any] = {"model": "text-lm", "buffer_size": 30, "batch_size": 10, "device": "cpu", "threads": 1}
CHAIN = " ".join(WORDS).split()
NOISE = [f"zz{n}" for n in range(40)]


def saying(rng: np.random.Generator) -> tuple[str, list[bool]]:
    """Words of a fixed round, each followed by the next, with words of noise between; and which ones those are."""
    at, words, noise = int(rng.integers(len(CHAIN))), list[str](), list[bool]()
    for _ in range(int(rng.integers(4, T))):
        strange = bool(rng.random() < 0.3)
        words.append(str(rng.choice(NOISE)) if strange else CHAIN[at % len(CHAIN)])
        noise.append(strange)
        at += not strange
    return " ".join(words), noise


@pytest.fixture(scope="module")
def sayings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ of 500 texts without labels, holdout/ of 800, il-model/, il/."""
    root, rng = tmp_path_factory.mktemp("language"), np.random.default_rng(0)
    for folder, count in (("shards", 500), ("holdout", 800)):
        rows = [{"__key__": f"{folder}{n:05d}", "txt": saying(rng)[0].encode()} for n in range(count)]
        for shard in range(2):
            write_shard(root / folder / f"{shard}.tar", rows[shard::2])
    rhostream.fit_il(
        [str(root / "shards")],
        str(root / "il-model"),
        model="text-lm",
        holdout=[str(root / "holdout")],
        tokenizer="words:500",
        text_length=T,
        epochs=7,
        lr=5e-3,
        batch_size=32,
        roots={"sayings": str(root)},  # draws are of names, and a path differs from run to run
    )
    rhostream.compute_il([str(root / "shards")], str(root / "il-model"), str(root / "il"), roots={"sayings": str(root)})
    return root


# -- the mathematics ---------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Logits that depend on nothing but the place and the token before."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(T, V, V, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return self.weight[torch.arange(x.shape[1]), before]


def batch(rows: int = 6, seed: int = 1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.integers(1, V, (rows, T))
    for row, n in enumerate(rng.integers(1, T + 1, rows)):
        x[row, n:] = 0
    return torch.from_numpy(x)


def token_losses(model: Table, x: torch.Tensor) -> np.ndarray[Any, Any]:
    """By NumPy, in float64."""
    weight, ids = model.weight.detach().double().numpy(), x.numpy()
    found = np.full(ids.shape, np.nan)
    for b, t in np.argwhere(ids != 0):
        z = weight[t, ids[b, t - 1] if t else 0]
        found[b, t] = np.log(np.exp(z - z.max()).sum()) + z.max() - z[ids[b, t]]
    return found


def test_token_losses_and_their_mean_equal_an_oracle_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = LanguageLoss(Table(), V, 0), batch()
    expected = token_losses(model.model, x)
    for room in (tokens.LOGIT_BYTES, 1):
        monkeypatch.setattr(tokens, "LOGIT_BYTES", room)
        with torch.no_grad():
            loss, right = model.judge(x)
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(right, np.where(x != 0, model.model(x).argmax(2) == x, False))
    np.testing.assert_allclose(SequenceMean()(loss, x[:, 0]), np.nanmean(expected, 1), rtol=1e-5)
    model(x).nan_to_num().sum().backward()
    assert torch.isfinite(model.model.weight.grad).all()


def chosen(loss: np.ndarray[Any, Any], il_BT: np.ndarray[Any, Any], share: float) -> np.ndarray[Any, Any]:
    """`kept_tokens` again, token by token."""
    kept = np.zeros(loss.shape, bool)
    for b in range(len(loss)):
        score = {t: loss[b, t] - il_BT[b, t] for t in range(loss.shape[1]) if np.isfinite(loss[b, t] - il_BT[b, t])}
        if not score:
            kept[b] = ~np.isnan(loss[b])
        for t in sorted(score, key=lambda t: (-score[t], t))[: math.ceil(round(len(score) * share, 6))]:
            kept[b, t] = True
    return kept


@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.99, 1.0]))
def test_kept_tokens_are_those_of_an_oracle_with_ties_and_without_il(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    loss = rng.integers(0, 5, (5, T)).astype(np.float32)  # many ties
    il_BT = rng.integers(0, 3, (5, T)).astype(np.float16)
    for row, n in enumerate(rng.integers(1, T + 1, 5)):
        loss[row, n:] = il_BT[row, n:] = np.nan
    il_BT[0], il_BT[1, 0] = np.nan, np.inf
    found = kept_tokens(torch.from_numpy(loss), torch.from_numpy(il_BT), share)
    np.testing.assert_array_equal(found, chosen(loss, il_BT.astype(np.float32), share))


def test_the_gradient_goes_through_the_kept_tokens_alone() -> None:
    x, il_BT = batch(), torch.rand(6, T, generator=torch.Generator().manual_seed(3)).half()
    model = LanguageLoss(Table(), V, 0)
    TokenShare(0.5)(model(x), il_BT).mean().backward()
    kept = torch.from_numpy(chosen(token_losses(model.model, x), il_BT.float().numpy(), 0.5))
    again = LanguageLoss(Table(), V, 0)
    loss = again(x).nan_to_num()
    ((loss * kept).sum(1) / kept.sum(1)).mean().backward()
    assert torch.allclose(model.model.weight.grad, again.model.weight.grad, atol=1e-7)
    assert torch.equal(TokenShare(1.0)(model(x), il_BT), SequenceMean()(model(x), x[:, 0]))
    for share in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(UsageError, match="--token-share"):
            TokenShare(share)


def test_a_step_on_kept_tokens_is_the_same_in_several_forwards() -> None:
    x, il_BT = batch(8), torch.rand(8, T, generator=torch.Generator().manual_seed(3)).half()
    weights = []
    for accumulate in (1, 3):
        model = LanguageLoss(Table(), V, 0)
        take_step(model, torch.optim.SGD(model.parameters(), 1.0), x, il_BT, TokenShare(0.6), accumulate=accumulate)
        weights.append(model.model.weight.detach())
    assert torch.allclose(*weights, atol=1e-6) and not torch.equal(weights[0], Table().weight)


def test_text_lm_looks_back_only_and_learns_in_every_weight() -> None:
    torch.manual_seed(0)
    model = models.build("text-lm", classes=1, vocabulary=V, length=T, padding=0, task="language")
    x = torch.from_numpy(np.random.default_rng(0).integers(1, V, (4, T)))
    changed = x.clone()
    changed[:, 7:] = torch.randint(1, V, (4, T - 7))
    with torch.no_grad():
        assert torch.allclose(model(x)[:, :7], model(changed)[:, :7], atol=1e-6)
        assert not torch.allclose(model(x)[:, 8:], model(changed)[:, 8:], atol=1e-3)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_model_that_gives_no_logits_of_tokens_is_told_what_was_expected() -> None:
    wrong = LanguageLoss(nn.EmbeddingBag(V, 3), V, 0)
    with pytest.raises(UsageError, match=r"\(B, T, V\) for ids \(B, T\): expected \(6, 12\) and V, got \(6, 3\)"):
        wrong(batch())


def test_the_first_token_of_a_packed_document_has_no_loss_and_all_others_have_theirs() -> None:
    end, x = 5, batch(40, seed=4)
    model = LanguageLoss(Table(), V, 0, end_of_text=end)
    plain, ids = token_losses(model.model, x), x.numpy()
    expected = plain.copy()
    for b in range(len(ids)):
        for t in range(1, T):
            if ids[b, t - 1] == end:
                expected[b, t] = np.nan
    assert np.isnan(expected).sum() > np.isnan(plain).sum() + 3
    with torch.no_grad():
        loss, right = model.judge(x)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    assert not right[torch.isnan(loss)].any()
    np.testing.assert_allclose(SequenceMean()(loss, x[:, 0]), np.nanmean(expected, 1), rtol=1e-5)
    il_BT = np.where(np.isnan(expected), np.nan, 0.5)
    kept = kept_tokens(loss, torch.from_numpy(il_BT), 0.5)
    np.testing.assert_array_equal(kept, chosen(loss.numpy(), il_BT, 0.5))
    TokenShare(0.5)(model(x), torch.from_numpy(il_BT)).mean().backward()
    assert torch.isfinite(model.model.weight.grad).all()
    alone = LanguageLoss(Table(), V, 0)
    ((alone(x).nan_to_num() * kept).sum(1) / kept.sum(1)).mean().backward()
    assert torch.allclose(model.model.weight.grad, alone.model.weight.grad, atol=1e-7)


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_the_table_holds_the_il_of_each_token_and_their_mean(sayings: Path) -> None:
    loaded = load_il_model(str(sayings / "il-model"))
    table = pa.concat_tables([pq.read_table(p) for p in sorted((sayings / "il" / "parts").rglob("*.parquet"))])
    assert table["il_tokens"].type == pa.list_(pa.float16()) and table["label"].to_pylist() == [0] * 500
    assert table["predicted"].null_count == 500
    loader = rhostream.open_stream(str(sayings / "shards"), str(sayings / "il"), buffer_size=30, il_tokens=True)
    candidates = next(iter(loader))
    with torch.no_grad():
        loss = loaded.networks[0](candidates.input)
    assert torch.allclose(loss, candidates.il_tokens.float(), rtol=2e-3, atol=1e-3, equal_nan=True)
    assert torch.allclose(SequenceMean()(loss, loss), candidates.il, atol=1e-4)
    some = candidates.take(np.array([3, 1]))
    assert torch.equal(some.il_tokens.nan_to_num(), candidates.il_tokens[[3, 1]].nan_to_num())
    assert verify(str(sayings / "il"))["problems"] == []
    with rhostream.open_ledger(str(sayings / "il")) as ledger:
        row = ledger.sql("select max(abs(il - list_avg(il_tokens))) as off, min(len(il_tokens)) as short from il")
    assert row["off"][0].as_py() < 0.01 and row["short"][0].as_py() >= 5


def test_verify_finds_an_il_that_is_not_the_mean_of_its_tokens(sayings: Path, tmp_path: Path) -> None:
    part = next((sayings / "il" / "parts").rglob("*.parquet"))
    rows, facts = parquet.read(str(part))
    lists = rows["il_tokens"].to_pylist()
    lists[7] = [float(lists[7][0]) + 4, *lists[7][1:]]
    at = rows.schema.get_field_index("il_tokens")
    forged = rows.set_column(at, rows.schema.field(at), pa.array(lists, pa.list_(pa.float16())))
    assert il.broken_laws(rows, il.PartFacts(**facts)) == []
    assert il.broken_laws(forged, il.PartFacts(**facts)) == ["il is the mean of il_tokens"]


def test_a_run_keeps_sequences_by_their_mean_and_ends_alike_however_it_is_stopped(
    sayings: Path, tmp_path: Path
) -> None:
    weights, logs = [], []
    for name, stops, options in (
        ("whole", (16,), {}),
        ("stopped", (5, 16), {"workers": 0}),
        ("all tokens", (16,), {"token_share": 1.0}),
    ):
        run = tmp_path / name
        for steps in stops:
            rhostream.train(
                [str(sayings / "shards")],
                str(sayings / "il"),
                str(run),
                steps=steps,
                test_shards=[str(sayings / "holdout")],
                **{**TRAIN, "token_share": 0.6, **options},
            )
        weights.append(load_file(max(run.rglob("model.safetensors"), key=lambda p: int(p.parts[-3][5:]))))
        with rhostream.open_ledger(str(run)) as ledger:
            logs.append(
                ledger.sql(
                    "select step, shard, ordinal, loss, il, kept from selections where step is not null order by all"
                ).to_pylist()
            )
            tested = ledger.sql("select final_test_accuracy from runs")["final_test_accuracy"][0].as_py()
        assert verify(str(run))["problems"] == [] and 0.0 < tested < 1.0
    assert logs[0] == logs[1] and logs[0] != logs[2]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    for step in range(16):
        rows = [r for r in logs[0] if r["step"] == step]
        best = sorted(rows, key=lambda r: r["il"] - r["loss"])[:10]
        assert {r["ordinal"] for r in best if r["kept"]} == {r["ordinal"] for r in rows if r["kept"]}


def trained(sayings: Path, run: Path, **options: Any) -> tuple[nn.Module, float]:
    """The model of a run that keeps every sequence, and its accuracy on the holdout."""
    rhostream.train(
        [str(sayings / "shards")],
        str(sayings / "il"),
        str(run),
        rule="uniform",
        test_shards=[str(sayings / "holdout")],
        **{**TRAIN, "batch_size": 30, "lr": 2e-3, **options},
    )
    model = models.build("text-lm", classes=1, vocabulary=500, length=T, padding=0, task="language")
    model.load_state_dict(load_file(max(run.rglob("model.safetensors"), key=lambda p: int(p.parts[-3][5:]))))
    with rhostream.open_ledger(str(run)) as ledger:
        return model, ledger.sql("select final_test_accuracy as a from runs")["a"][0].as_py()


def test_token_selection_leaves_out_the_words_that_nothing_explains_and_learns_the_rest_sooner(
    sayings: Path, tmp_path: Path
) -> None:
    model, _ = trained(sayings, tmp_path / "first", passes=1, token_share=0.5)
    noise = torch.tensor(sorted({int(i) for word in NOISE for i in _ids(word)}))
    strange = kept = there = strange_kept = 0
    for candidates in rhostream.open_stream(
        str(sayings / "shards"), str(sayings / "il"), buffer_size=30, il_tokens=True
    ):
        with torch.no_grad():
            loss = model(candidates.input)
        chosen_BT = kept_tokens(loss, candidates.il_tokens, 0.5)
        odd = torch.isin(candidates.image, noise)
        strange, there = strange + int(odd.sum()), there + int((candidates.image != 0).sum())
        strange_kept, kept = strange_kept + int((odd & chosen_BT).sum()), kept + int(chosen_BT.sum())
    assert 0.5 <= kept / there < 0.6 and strange_kept / kept < 0.7 * strange / there
    accuracy = [trained(sayings, tmp_path / f"{share}", passes=2, token_share=share)[1] for share in (0.5, None)]
    assert accuracy[0] > 1.5 * accuracy[1]


def _ids(word: str) -> list[int]:
    from rhostream.samples.tokenizers import find_tokenizer

    encode = find_tokenizer("words:500").encode
    assert encode is not None
    return encode(word, 1)


def test_estimate_measures_language(sayings: Path) -> None:
    found = estimate(
        [str(sayings / "shards")], il=str(sayings / "il"), model="text-lm", buffer_size=16, batch_size=4, seconds=1
    )
    assert found.proxy == found.il_model == "text-lm" and found.measured.score > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "text-bag", "rule": "loss", "token_share": 0.5}, r"--token-share 0.5 is for models of language"),
        ({"token_share": 0.0}, r"--token-share 0: expected a share"),
        ({"token_share": 0.5, "text_length": 5}, r"is of length 12, this run has 5: token by token"),
        ({"token_share": 0.5, "tokenizer": "words:499"}, r"is of tokenizer 'words:500', this run has 'words:499'"),
        ({"model": "text-bag"}, r"is of the task language, and this model learns label"),
        ({"loss_cap": True}, r"--loss-cap clips at the loss of a guess among classes"),
        ({"task": "label", "rule": "loss"}, r"'text-lm' learns language"),
    ],
)
def test_what_language_cannot_have_is_refused_before_any_work(
    options: dict[str, Any], says: str, sayings: Path, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, MismatchError), match=says):
        rhostream.train(
            [str(sayings / "shards")], str(sayings / "il"), str(tmp_path / "run"), **{**TRAIN, "steps": 1, **options}
        )
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_table_without_the_il_of_tokens_says_how_to_make_one(sayings: Path, tmp_path: Path) -> None:
    info = il.open_info(str(sayings / "il"))
    other = tmp_path / "il"
    (other / "parts").mkdir(parents=True)
    for part in (sayings / "il" / "parts").rglob("*.parquet"):
        (new := other / part.relative_to(sayings / "il")).parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(part.read_bytes())
    made = replace(info, preprocess={**(info.preprocess or {}), "task": "label"})
    il.make_or_match(str(other), made)
    with pytest.raises(UsageError, match=r"has no il of tokens \(il_tokens\): make it with a language model"):
        rhostream.open_stream(str(sayings / "shards"), str(other), buffer_size=30, il_tokens=True)


def test_two_ranks_keep_the_sequences_that_one_keeps_and_train_on_the_same_tokens(
    sayings: Path, tmp_path: Path
) -> None:
    options = {"shards": [str(sayings / "shards")], "il": str(sayings / "il"), "steps": 8, "token_share": 0.5, **TRAIN}
    logs = []
    for ranks in (1, 2):
        run = tmp_path / f"{ranks}"
        together(tmp_path / "answers", train, ranks, [{**options, "run": str(run)}])
        with rhostream.open_ledger(str(run)) as ledger:
            logs.append(
                ledger.sql(
                    "select step, shard, ordinal, kept, loss from selections where step is not null order by all"
                ).to_pylist()
            )
    alone, two = ([{**row, "loss": 0} for row in log] for log in logs)
    assert alone == two
    # Losses of a step are of the weights that the steps before made: of the same tokens, on either number of ranks.
    np.testing.assert_allclose(*([row["loss"] for row in log] for log in logs), rtol=1e-4)


# -- Hugging Face's: a reference and a learner by name -----------------------------------------------------------------

HF_T, HF_N = 8, 40
HF: dict[str, Any] = {"task": "language", "tokenizer": f"ids:{HF_N}", "text_length": HF_T, "device": "cpu"}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flat shards 0.bin and 1.bin of 60 samples each, and two models of transformers', teacher/ and learner/."""
    transformers = pytest.importorskip("transformers", reason="pip install 'rhostream[hf]'")
    root = tmp_path_factory.mktemp("causal")
    for shard in range(2):
        ids = np.random.default_rng(shard).integers(0, HF_N, 60 * HF_T + 3)
        (root / f"{shard}.bin").write_bytes(ids.astype("<u2").tobytes())
    for seed, name in enumerate(("teacher", "learner")):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            vocab_size=HF_N, n_embd=16, n_layer=1, n_head=2, n_positions=HF_T, bos_token_id=7, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        transformers.GPT2LMHeadModel(config).save_pretrained(root / name)
    return root


def losses_of(model: Any, row: list[int]) -> list[float]:
    """-log of the probability of each token, one forward for each, by what transformers gives of all before it."""
    found = []
    for t, id in enumerate(row):
        before = torch.tensor([[model.config.bos_token_id, *row[:t]]])
        found.append(-model(input_ids=before).logits[0, -1].double().log_softmax(0)[id].item())
    return found


@pytest.mark.slow
def test_the_il_of_a_reference_by_name_is_what_transformers_says_of_each_token(causal: Path) -> None:
    from transformers import AutoModelForCausalLM

    table = str(causal / "il")
    rhostream.compute_il(str(causal / "*.bin"), out=table, reference=f"hf:{causal}/teacher", **HF)
    theirs = AutoModelForCausalLM.from_pretrained(causal / "teacher").eval()
    ids = np.frombuffer((causal / "0.bin").read_bytes(), "<u2")[: 60 * HF_T].reshape(-1, HF_T)
    rows = pq.read_table(next((causal / "il").rglob("0.bin.parquet"))).to_pylist()
    with torch.no_grad():
        for row in (0, 17, 59):
            expected = losses_of(theirs, ids[row].tolist())
            np.testing.assert_allclose(rows[row]["il_tokens"], expected, rtol=2e-3)
            assert rows[row]["il"] == pytest.approx(np.mean(expected), rel=1e-5)
        network = models.build(
            f"hf:{causal}/teacher", classes=1, vocabulary=HF_N + 1, length=HF_T, padding=HF_N, task="language"
        ).eval()
        short = torch.tensor([[3, 4, 5, *[HF_N] * 5]])  # filled up with what the model knows no id of
        np.testing.assert_allclose(network(short)[0, :3], losses_of(theirs, [3, 4, 5]), rtol=1e-4)
        assert torch.isnan(network(short)[0, 3:]).all()
    with pytest.raises(MismatchError, match="reference"):
        rhostream.compute_il(str(causal / "*.bin"), out=table, reference=f"hf:{causal}/learner", **HF)


@pytest.mark.slow
def test_a_learner_by_name_trains_on_the_tokens_of_the_largest_excess_and_resumes(causal: Path, tmp_path: Path) -> None:
    shards, table, name = str(causal / "*.bin"), str(tmp_path / "il"), f"hf:{causal}/learner"
    rhostream.compute_il(shards, out=table, reference=f"hf:{causal}/teacher", **HF)
    how: dict[str, Any] = {
        "model": name, "task": "language", "rule": "uniform", "buffer_size": 12, "batch_size": 12, "token_share": 0.5,
        "optimizer": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "device": "cpu", "threads": 1,
        "test_shards": str(causal / "1.bin"),
    }  # fmt: skip
    states = []
    for folder, stops in (("one", (1,)), ("whole", (6,)), ("stopped", (2, 6))):
        for steps in stops:
            rhostream.train(shards, table, str(tmp_path / folder), steps=steps, **how)
        saved = max((tmp_path / folder).rglob("model.safetensors"), key=lambda p: int(p.parts[-3][5:]))
        states.append(load_file(saved))
    assert all(torch.equal(states[1][k], states[2][k]) for k in states[1])
    model = models.build(name, classes=1, vocabulary=HF_N + 1, length=HF_T, padding=HF_N, task="language")
    first = next(iter(rhostream.open_stream(shards, table, buffer_size=12, il_tokens=True)))
    loss_BT = model(first.input)
    kept_BT = torch.from_numpy(chosen(loss_BT.detach().numpy(), first.il_tokens.float().numpy(), 0.5))
    assert (kept_BT.sum(1) == HF_T // 2).all()
    torch.stack([loss[kept].mean() for loss, kept in zip(loss_BT, kept_BT, strict=True)]).mean().backward()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            assert torch.allclose(weight - 0.5 * weight.grad, states[0][key], atol=1e-6), key


@pytest.mark.slow
def test_a_model_by_name_that_knows_other_ids_is_refused_with_both_numbers(causal: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"vocabulary": HF_N + 1, "length": HF_T, "padding": HF_N, "task": "language"}
    config = json.loads((causal / "teacher" / "config.json").read_text())
    for name, change in (("endless", {"bos_token_id": None, "eos_token_id": 99}), ("wide", {"vocab_size": 1065})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
    for folder, change, says in (
        (causal / "teacher", {"vocabulary": HF_N + 2, "padding": HF_N + 1}, "knows 40 ids, the samples have 41"),
        (tmp_path / "wide", {}, "knows 1,065 ids, the samples have 40"),
        (causal / "teacher", {"length": HF_T + 1}, f"takes {HF_T} tokens, --text-length is {HF_T + 1}"),
        (tmp_path / "endless", {}, "names neither a token that begins"),
        (tmp_path / "nothing", {}, "there is no such folder"),
    ):
        with pytest.raises(UsageError, match=says):
            models.build(f"hf:{folder}", classes=1, initial=False, **{**given, **change})
    small = LanguageLoss(Table(), V + 5, V + 4)
    with pytest.raises(UsageError, match=f"gives {V} logits a token, the samples have {V + 4} ids"):
        small(batch())
