"""Joint rules against choices made from the whole matrix in float64, and what every joint choice must be."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rhostream.candidates import CANDIDATE, Candidates, Reason
from rhostream.errors import UsageError
from rhostream.models.pairs import TwoTowers
from rhostream.samples.fields import Fields
from rhostream.selection.contrastive import CONTRASTIVE, Pairs, marginal_loss_B
from rhostream.selection.greedy import diverse, in_chunks
from rhostream.selection.joint import JOINT, chosen
from rhostream.selection.rules import RULES, find_rule, make_rule
from rhostream.selection.selector import Selector
from tests.support.ranks import join_group, leave_group, together
from tests.support.scoring import buffer
from tests.support.vectors import Array, Towers, packed

JOINT_RULES = [name for name, rule in RULES.items() if rule.joint]


def matrix(output: Tensor) -> Array:
    """L (B, B) whole."""
    values, width = output.numpy(), output.shape[1] // 2 - 1
    return values[:, :width] @ values[:, width:-2].T * values[0, -2] + values[0, -1]


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def lse(x: Array, axis: int) -> Array:
    return np.log(np.exp(x).sum(axis))


def by_matrix(
    models: list[Array], n: int, loss: str, chunks: int, weight: float, noise: list[Array] | None
) -> list[int]:
    """JEST as it is written down, from L of the learner and of the reference."""
    size, taken = len(models[0]), list[int]()
    off = ~np.eye(size, dtype=bool)
    for chunk in range(chunks):
        score = np.zeros(size)
        for sign, L in zip((1, -1), models, strict=True):
            own = np.diag(L)
            if loss == "siglip":
                p = np.where(off, softplus(L), softplus(-L))
                score += sign * (np.diag(p) + weight * (p[:, taken].sum(1) + p[taken].sum(0)))
            elif not taken:
                for rest in (np.where(off, L, -np.inf), np.where(off, L.T, -np.inf)):
                    score += sign * softplus(np.log(n - 1) + lse(rest, 1) - np.log(size - 1) - own) / 2
            else:
                for rest in (L[:, taken], L[taken].T):
                    score += sign * softplus(np.log(weight) + lse(rest, 1) - own) / 2
        ranked = score + (0 if noise is None else noise[chunk])
        ranked[taken] = -np.inf
        taken += np.argsort(-ranked, kind="stable")[: n // chunks + (chunk < n % chunks)].tolist()
    return taken


@pytest.mark.parametrize("loss", CONTRASTIVE)
@pytest.mark.parametrize("drawn", [True, False])
def test_running_sums_choose_the_rows_of_the_whole_matrix(loss: str, drawn: bool) -> None:
    rng = np.random.default_rng(0)
    for case in range(100):
        size, width = int(rng.integers(4, 40)), int(rng.integers(2, 8))
        n, chunks, weight = int(rng.integers(2, size)), int(rng.integers(1, 6)), float(rng.uniform(0.1, 2))
        outputs = [packed(rng, size, width, rng.uniform(1, 20), rng.uniform(-10, 0)) for _ in range(2)]
        noise = None
        if drawn:
            same = np.random.default_rng(case)
            noise = [same.gumbel(size=size) for _ in range(chunks)]
        expected = by_matrix([matrix(o) for o in outputs], n, loss, chunks, weight, noise)
        rows, score_B = in_chunks(
            *map(Pairs.of, outputs), n, loss, chunks=chunks, negatives=weight,
            rng=np.random.default_rng(case) if drawn else None,
        )  # fmt: skip
        assert rows.tolist() == expected and not score_B.isnan().any()


def test_draws_follow_the_softmax_of_the_learnability() -> None:
    outputs = [packed(np.random.default_rng(k), 5, 4, 3.0, -1.0) for k in range(2)]
    models = [Pairs.of(output) for output in outputs]
    own = [softplus(-np.diag(matrix(output))) for output in outputs]
    expected = np.exp(own[0] - own[1]) / np.exp(own[0] - own[1]).sum()
    rng, times = np.random.default_rng(0), np.zeros(5)
    for _ in range(1000):
        times[in_chunks(*models, 1, "siglip", chunks=16, negatives=1.0, rng=rng)[0]] += 1
    np.testing.assert_allclose(times / 1000, expected, atol=0.06)


def test_divbs_spans_the_sum_of_the_features_as_the_literal_greedy_choice_does() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        size, width = int(rng.integers(8, 30)), int(rng.integers(2, 5))
        output = packed(rng, size, width, 1.0, 0.0)
        feature = output.numpy()[:, :-2]
        rest, taken = feature.sum(0), list[int]()
        n = min(2 * width, size) - 1
        for _ in range(n):
            along = np.abs(feature @ rest)
            along[taken] = -1
            taken.append(int(along.argmax()))
            basis = np.linalg.qr(feature[taken].T)[0]
            rest = feature.sum(0) - basis @ (basis.T @ feature.sum(0))
        rows, score_B = diverse(Pairs.of(output), n, rng)
        assert rows.tolist() == taken and not score_B.isnan().any()
        more = diverse(Pairs.of(output), size - 1, np.random.default_rng(1))[0].tolist()
        assert more[:n] == taken and len({*more}) == size - 1  # beyond all dimensions the rest is drawn


def given(seed: int, size: int = 40, n: int = 9, loss: str = "siglip") -> dict[str, object]:
    rng = np.random.default_rng(seed)
    outputs = [packed(rng, size, 6, 10.0, -5.0).float() for _ in range(2)]
    outputs[0][3], outputs[1][5] = torch.nan, torch.nan
    return {
        "learner": Pairs.of(outputs[0]), "reference": Pairs.of(outputs[1]), "columns": {"il": torch.zeros(size)},
        "n": n, "rng": np.random.default_rng(seed), "loss": loss, "joint_chunks": 16, "joint_negatives": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("loss", CONTRASTIVE)
@pytest.mark.parametrize("name", JOINT_RULES)
def test_every_joint_rule_keeps_distinct_pairs_as_its_seed_says_and_all_where_there_are_too_few(
    name: str, loss: str
) -> None:
    rule = RULES[name]
    assert rule.score is not None and {*rule.takes} <= {*JOINT}
    missing = [3, 5] if rule.needs_reference else [3]
    first, again = (chosen(name, rule.score, rule.takes, given(7, loss=loss)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and len({*first[0].tolist()}) == 9
    assert first[1].dtype == torch.float32 and first[1].isnan().nonzero()[:, 0].tolist() == missing
    rows, _ = chosen(name, rule.score, rule.takes, given(7, n=400, loss=loss))
    assert rows.tolist() == [row for row in range(40) if row not in missing]
    nobody = {**given(7, loss=loss), "learner": Pairs.of(torch.full((40, 14), torch.nan))}
    assert len(chosen(name, rule.score, rule.takes, nobody)[0]) == 0
    one = chosen(name, rule.score, rule.takes, given(7, n=1, loss=loss))[0]
    assert len(one) == 1


# -- one's own -------------------------------------------------------------------------------------------------------


def easiest(columns: dict[str, Tensor], n: int, learner: Pairs) -> Tensor:
    return columns["il"].argsort()[:n].flip(0)


def twice(learner: Pairs, n: int) -> list[int]:
    return [1] * n


def test_a_rule_that_takes_the_learner_is_joint_and_its_rows_are_looked_at() -> None:
    rule = find_rule("tests.test_joint:easiest")
    assert rule.joint and rule.takes == ("columns", "n", "learner")
    assert not rule.needs_reference and not rule.needs_il and rule.score is not None
    columns = {"il": torch.arange(40.0).flip(0)}
    rows, score_B = chosen(rule.name, rule.score, rule.takes, {**given(0), "columns": columns})
    assert rows.tolist() == [*range(31, 40)]
    assert score_B[31:].tolist() == [1.0] * 9 and score_B[:3].tolist() == [0.0] * 3 and score_B[3].isnan()
    with pytest.raises(UsageError, match=r"twice.*up to 9 different positions"):
        chosen("twice", twice, ("learner", "n"), given(0))
    for wrong in ([3, 1], [40], [-1], [], [0.5], [*range(10, 20)], [[1]], 3):
        with pytest.raises(UsageError, match="expected up to 9 different positions"):
            chosen("own", lambda learner, wrong=wrong: wrong, ("learner",), given(0))
    with pytest.raises(UsageError, match="scores of shape"):
        chosen("own", lambda learner: ([1], torch.zeros(3)), ("learner",), given(0))
    with pytest.raises(UsageError, match=r"'referense'.*did you mean reference"):
        make_rule("own", lambda learner, referense: [1])


# -- in a selector ---------------------------------------------------------------------------------------------------


def pairs_in(fields: Fields) -> Fields:
    return Fields({"pixels": fields["pixels"].float() / 255, "tokens": fields["tokens"].long()})


def candidates(seed: int, left: int = 40) -> Candidates:
    rng = np.random.default_rng(seed)
    reason = np.full(40, CANDIDATE, np.uint8)
    reason[rng.permutation(40)[left:]] = Reason.quarantined
    pixels = torch.from_numpy(rng.integers(0, 255, (40, 2, 2, 3), dtype=np.uint8))
    tokens = torch.from_numpy(rng.integers(0, 50, (40, 8)).astype(np.int32))
    return buffer(
        seed=seed, fields=Fields({"pixels": pixels, "tokens": tokens}), prepare=pairs_in, target_field="",
        reason=reason, columns=Fields({"quality": torch.from_numpy(rng.random(40).astype(np.float32))}),
        reference=packed(rng, 40, 5, 9.0, -5.0).float(), label=torch.full((40,), -1),
    )  # fmt: skip


def kept_rows(rank: int, size: int, loss: str) -> list[list[float]]:
    """Of each rule and buffer the rows of this rank that were kept, in the buffer of all, and their scores."""
    group, found = join_group(), []
    own = np.arange(rank * 40 // size, (rank + 1) * 40 // size)
    for rule in ("jest", "jest_top", "divbs", "rho", "tests.test_joint:easiest"):
        for step, left in enumerate((40, 17, 3, 0)):
            selector = Selector(TwoTowers(Towers()), rule, 8, loss=loss, group=group, gradients="mean", seed=3)
            kept = selector(candidates(step, left).take(own), step=step)
            found.append([float(own[row]) for row in kept.rows])
            found.append(kept.score[kept.rows].tolist())
            found.append(kept.loss[kept.rows].tolist())
    leave_group()
    return found


@pytest.mark.parametrize("loss", ["siglip", pytest.param("clip", marks=pytest.mark.slow)])
def test_every_rank_keeps_what_one_process_keeps(tmp_path: Path, loss: str) -> None:
    alone, several = kept_rows(0, 1, loss), together(tmp_path, kept_rows, 2, 2, loss)
    assert [len(rows) for rows in alone[::3]] == [8, 8, 3, 0] * 5
    for number, one in enumerate(alone):
        both = [value for rank in several for value in rank[number]]
        assert both == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_the_log_has_the_marginal_loss_and_the_score_that_a_row_was_taken_with() -> None:
    model, there = TwoTowers(Towers()), candidates(0)
    learner, reference = Pairs.of(model(there.input).detach()), Pairs.of(there.reference)
    kept = Selector(model, "jest_top", 8, loss="siglip", joint_chunks=2, joint_negatives=0.5)(there)
    rows, score_B = in_chunks(learner, reference, 8, "siglip", chunks=2, negatives=0.5)
    assert kept.rows.tolist() == sorted(rows.tolist())
    np.testing.assert_allclose(kept.score, score_B.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept.loss, marginal_loss_B(learner, 8, "siglip").numpy(), rtol=1e-4)
    assert (kept.reason[kept.rows] == Reason.kept).all() and (kept.reason == Reason.below).sum() == 32


def test_what_a_joint_rule_cannot_have_is_refused_before_any_work() -> None:
    model, there = TwoTowers(Towers()), candidates(0)
    with pytest.raises(UsageError, match="siglip or clip"):
        Selector(model, "jest", 8)
    for option in (
        {"gumbel": 1.0},
        {"class_quota": 0.5},
        {"deduplicate": 0.9},
        {"adjust": "tests.support.tiny:middle"},
    ):
        with pytest.raises(UsageError, match="together"):
            Selector(model, "jest", 8, loss="siglip", **option)
    with pytest.raises(UsageError, match="jest"):
        Selector(model, "rho", 8, loss="siglip", joint_chunks=4)
    with pytest.raises(UsageError, match="--shadow jest"):
        Selector(model, "rho", 8, loss="siglip", shadow="jest")
    with pytest.raises(UsageError, match=r"vectors=True"):
        Selector(model, "jest", 8, loss="siglip")(replace(there, reference=None))
    for option in ({"joint_chunks": 0}, {"joint_negatives": 0.0}):
        with pytest.raises(UsageError, match="--joint"):
            Selector(model, "jest", 8, loss="siglip", **option)


# -- columns ---------------------------------------------------------------------------------------------------------


def similar(similarity_B: Tensor, column_B: dict[str, Tensor]) -> Tensor:
    return similarity_B - column_B["quality"]


def test_a_column_of_the_table_is_a_score_and_ones_own_rule_reads_any_by_name() -> None:
    model, there = TwoTowers(Towers()), candidates(0)
    quality = there.columns["quality"]
    kept = Selector(model, "column", 8, loss="siglip", column="quality")(there)
    assert kept.rows.tolist() == sorted(quality.topk(8).indices.tolist())
    np.testing.assert_array_equal(kept.score, quality.numpy())
    there = replace(there, columns=Fields({"quality": quality, "similarity": 2 * quality}))
    kept = Selector(model, "tests.test_joint:similar", 8, loss="siglip", column="quality")(there)
    assert kept.rows.tolist() == sorted(quality.topk(8).indices.tolist())
    with pytest.raises(UsageError, match="name them with --column"):
        Selector(model, "column", 8, loss="siglip")
    with pytest.raises(UsageError, match="rho looks at no column"):
        Selector(model, "rho", 8, loss="siglip", column="quality")
    with pytest.raises(UsageError, match="goes by one column"):
        Selector(model, "column", 8, loss="siglip", column="quality,similarity")(there)
    with pytest.raises(UsageError, match=r"'beauty'.*open_stream\(columns="):
        Selector(model, "column", 8, loss="siglip", column="beauty")(there)


# fmt: off
def most_alike(learner, columns, n):
    both = learner.similarity_N - columns["il"] / 10
    return both.nan_to_num(-1e9).topk(n).indices
# fmt: on


def test_the_rule_of_the_page_runs_as_it_stands() -> None:
    page = (Path(__file__).parent.parent / "docs" / "joint-rules.md").read_text()
    assert inspect.getsource(most_alike) in page
    rule = find_rule("tests.test_joint:most_alike")
    assert rule.joint and rule.score is not None
    rows, _ = chosen(rule.name, rule.score, rule.takes, given(0))
    assert len(rows) == 9 and 3 not in rows.tolist()
