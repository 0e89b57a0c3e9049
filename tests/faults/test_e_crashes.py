"""Every crash point of the source, each hit with SIGKILL at its 1st and 3rd passing, and the same command run again."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import rhostream
from rhostream.audit.verify import verify
from rhostream.il_model.bounds import MOST_EPOCHS
from rhostream.runs import checkpoint, tensors
from rhostream.tables.unfinished import unfinished_in
from tests.faults import tally
from tests.faults.crash_server import Rig
from tests.support.own_loop import all_of
from tests.support.pair_world import TEXT, make_pair_shards
from tests.support.points import points
from tests.support.shards import make_shards
from tests.support.tables import without_il

OFFLINE_MOMENTS = {"compute-il: shards listed", "scan: rows read", "scan: image decoded", "compute-il: forward made",
                   "compute-il: part encoded", "commit: temporary file written", "compute-il: part committed",
                   "compute-il: all parts committed"}  # fmt: skip
TRAIN_MOMENTS = {"train: loss computed", "train: optimizer stepped", "log: segment committed",
                 "checkpoint: one of its files written", "checkpoint: tensors written", "checkpoint: committed",
                 "checkpoint: one file of an old one removed"}  # fmt: skip
COMPACTION_MOMENTS = {"chain: segments merged", "chain: merged segment written",
                      "chain: before raw segments are removed", "chain: raw segments removed"}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command, where its result lies, and what of the result must be equal."""

    verb: str
    options: dict[str, Any]
    result: str  # the option that names the folder of the result
    content: Callable[[Path], Any]

    def at(self, folder: Path) -> dict[str, Any]:
        return {**self.options, self.result: str(folder)}


def parts_and_table(table: Path) -> dict[str, str]:
    files = [*table.rglob("_table.json"), *table.rglob("*.parquet"), *table.rglob("*.bin")]
    return {str(f.relative_to(table)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def whole_folder(folder: Path) -> dict[str, str]:
    """All but what a killed process left under a hidden name, which is no result."""
    files = [f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".")]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def weights_of_folds(model: Path) -> dict[str, str]:
    files = [*model.rglob("*.safetensors")]
    return {str(f.relative_to(model)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def log_and_weights(run: Path) -> tuple[list[Any], dict[str, bytes], set[str], list[int]]:
    """The view `selections` row by row in its order, the weights bit by bit, the files that stay, and the steps."""
    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.complete
    assert not verify(str(run))["problems"] and json.loads((run / "cost.json").read_text())["forward_units"] > 0
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("SELECT * EXCLUDE (run) FROM selections")
        steps = ledger.sql("SELECT step FROM steps")["step"].to_pylist()
    weights = {k: v.numpy().tobytes() for k, v in tensors.load_tensors(str(run), latest)[0].items()}
    stay = {f.parent.parent.name + "/" + f.name for f in (run / "checkpoints").rglob("*")
            if f.is_file() and not f.name.startswith(".")}  # fmt: skip
    return [repr(row) for row in rows.to_pylist()], weights, stay, steps


def all_that_a_rule_keeps(run: Path) -> tuple[Any, ...]:
    """That, and what its rule and its options keep beside it: shadow rows, further models, the selector's state."""
    found = checkpoint.latest(str(run))
    assert found is not None and found.shadow
    with rhostream.open_ledger(str(run)) as ledger:
        shadow = ledger.sql("SELECT * EXCLUDE (run) FROM shadow").to_pylist()
    others = {
        name: {k: v.numpy().tobytes() for k, v in tensors.load_other(str(run), found, name)["model"].items()}
        for name in tensors.others_of(found)
    }
    return (*log_and_weights(run), [repr(row) for row in shadow], others, found.selector)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, rig: Rig) -> dict[str, Job]:
    """Small and real: five shards of unequal size, two folds, four checkpoints of which two stay."""
    root = tmp_path_factory.mktemp("crashes")
    make_shards(root / "shards", [40, 30, 1, 37, 24])
    make_shards(root / "test", [20], seed=1)
    shards = [str(root / "shards")]
    fit = {"shards": shards, "model": "mlp-64", "epochs": 2}
    assert rig.job("fit-il", {**fit, "out": str(root / "il-model")})["code"] == 0
    compute = {"shards": shards, "il_model": str(root / "il-model"), "keep": {"is_noisy": "bool"}}
    assert rig.job("compute-il", {**compute, "out": str(root / "il")})["code"] == 0
    train = {"shards": shards, "il": str(root / "il"), "model": "mlp-64", "buffer_size": 24, "batch_size": 4,
             "steps": 6, "checkpoint_every": 2, "test_shards": [str(root / "test")], "eval_every": 3}  # fmt: skip
    make_pair_shards(root / "pairs", [40, 1, 31])
    make_pair_shards(root / "others", [50], seed=1)
    pairs = [str(root / "pairs")]
    fit_pairs = {"shards": pairs, "holdout": [str(root / "others")], "content": "pair", "model": "pair-small",
                 "loss": "siglip", "epochs": 1, **TEXT}  # fmt: skip
    assert rig.job("fit-il", {**fit_pairs, "out": str(root / "model-of-pairs")})["code"] == 0
    of_pairs = {"shards": pairs, "il_model": str(root / "model-of-pairs"), "vectors": "float16"}
    assert rig.job("compute-il", {**of_pairs, "out": str(root / "il-of-pairs")})["code"] == 0
    train_pairs = {"shards": pairs, "il": str(root / "il-of-pairs"), "model": "pair-small", "loss": "siglip",
                   "rule": "jest", "joint_chunks": 2, "buffer_size": 16, "batch_size": 4, "steps": 6,
                   "checkpoint_every": 2, "test_shards": [str(root / "others")], "eval_every": 3}  # fmt: skip
    few = without_il(root / "il", root / "few", {1, 4})  # buffers without candidates
    loop = {"world": str(root), "il": str(few), "buffer_size": 12}
    return {
        "README's loop": Job("README's loop", {"world": str(root), "buffer_size": 12, "every": 2}, "run", all_of),
        "loop of one's own": Job("loop", loop, "run", all_of),
        "loop with checkpoints of its own": Job(
            "loop", {**loop, "keeps_its_own": True}, "run", functools.partial(all_of, keeps_its_own=True)
        ),
        "fit-il": Job("fit-il", fit, "out", weights_of_folds),
        "index": Job("index", {"shards": shards}, "out", parts_and_table),
        "keep": Job(
            "keep", {"shards": shards, "table": str(root / "il"), "keep": {"true_label": "int"}}, "out", parts_and_table
        ),
        "compute-il": Job("compute-il", compute, "out", parts_and_table),
        "export": Job(
            "export",
            {"runs": str(root / "il"), "form": "shards", "where": "ordinal % 3 < 2", "samples_per_shard": 19},
            "out",
            whole_folder,
        ),
        "train": Job("train", train, "run", log_and_weights),
        "fit-il of pairs": Job("fit-il", fit_pairs, "out", weights_of_folds),
        "compute-il of pairs": Job("compute-il", of_pairs, "out", parts_and_table),
        "train of pairs": Job("train", train_pairs, "run", log_and_weights),
        # Every second commit is a whole link: raw segments are merged twice and removed once.
        "train with compaction": Job(
            "train", {**train, "checkpoint_every": 1, "whole_every": 2}, "run", log_and_weights
        ),
        "train of a network with batch norm": Job("train", {**train, "model": "small-cnn"}, "run", log_and_weights),
        "train by a rule that learns along": Job(
            "train",
            {
                **train,
                "rule": "rho_updated",
                "class_quota": "reducr",
                "shadow": "loss,grad_norm_is",
                "uniform_every": 3,
                "shortlist": "proxy:2",
            },
            "run",
            all_that_a_rule_keeps,
        ),
    }


class Whole:
    """Each job without a crash: its content, and how often it passed each point; run when it is first asked for."""

    def __init__(self, rig: Rig, jobs: dict[str, Job], folder: Path) -> None:
        self._rig, self._jobs, self._folder = rig, jobs, folder
        self._found: dict[str, tuple[Any, dict[str, int]]] = {}

    def __getitem__(self, name: str) -> tuple[Any, dict[str, int]]:
        if name not in self._found:
            job, place = self._jobs[name], self._folder / str(len(self._found))
            done = self._rig.job(job.verb, job.at(place))
            assert done["code"] == 0, done["error"]
            self._found[name] = job.content(place), done["passings"]
        return self._found[name]


@pytest.fixture(scope="module")
def whole(rig: Rig, jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(rig, jobs, tmp_path_factory.mktemp("whole"))


def matrix(
    rig: Rig,
    job: Job,
    whole: tuple[Any, dict[str, int]],
    folder: Path,
    passings: tuple[int, ...],
    label: str,
    only: str = "",
) -> None:
    """Kill at every point and passing there is (whose name begins with `only`), run the same command again, compare."""
    content = whole[0]
    passed = {point: n for point, n in whole[1].items() if point.startswith(only)}
    spots = [(point, n) for n in passings for point in sorted(passed) if passed[point] >= n]

    def crash(spot: tuple[str, int]) -> str:
        point, n = spot
        place = folder / hashlib.sha256(f"{point}@{n}".encode()).hexdigest()[:12]
        killed = rig.job(job.verb, job.at(place), f"{point}@{n}")
        if killed["code"] != -signal.SIGKILL:
            return f"{point}@{n}: not killed: {killed}"
        again = rig.job(job.verb, job.at(place))
        if again["code"]:
            return f"{point}@{n}: the second run failed: {again['error']}"
        same = job.content(place) == content
        shutil.rmtree(place)
        return "" if same else f"{point}@{n}: the result differs"

    wrong = list(filter(None, rig.each(crash, spots)))
    tries = Counter(n for _, n in spots)
    tally.say(
        f"crash matrix of {label}: {len(passed)} points, {len(spots)} kills and as many second runs ("
        + ", ".join(f"{count} at passing {n}" for n, count in sorted(tries.items()))
        + f"); {sum(n < 3 for n in passed.values())} points are passed fewer than 3 times; {len(wrong)} wrong"
    )
    assert not wrong, "\n".join(wrong)


def test_E1_every_crash_point_of_the_source_is_passed_by_some_job(whole: Whole) -> None:
    """The places where a crash is tried are found in the source; a place that no job reaches fails the tests."""
    verbs = ("fit-il", "index", "keep", "compute-il", "export", "train", "train with compaction", "compute-il of pairs")
    passed = {point for verb in verbs for point in whole[verb][1]}
    there = points()
    assert {point: where for point, where in there.items() if point not in passed} == {}
    assert passed <= set(there)
    assert set(whole["compute-il"][1]) >= OFFLINE_MOMENTS and set(whole["train"][1]) >= TRAIN_MOMENTS
    assert set(whole["train with compaction"][1]) >= COMPACTION_MOMENTS
    tally.say(f"crash points in the source: {len(there)}")


def test_E1_a_killed_scorer_run_again_leaves_the_same_bytes(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path
) -> None:
    """compute-il killed with SIGKILL at any of its crash points and run again leaves the same parts and the same
    table, byte for byte, as if it had never been killed."""
    matrix(rig, jobs["compute-il"], whole["compute-il"], tmp_path, (1,), "compute-il")


def test_E1_a_killed_export_of_shards_goes_on_and_leaves_the_same_bytes(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path
) -> None:
    """export of new shards killed with SIGKILL between a shard's list of sources and the shard, or behind it, and run
    again leaves the same shards, lists and checksums, byte for byte."""
    matrix(rig, jobs["export"], whole["export"], tmp_path, (1, 3), "export", "export: ")
    matrix(rig, jobs["export"], whole["export"], tmp_path, (2,), "export", "commit: ")


def test_E15_a_killed_job_over_pairs_run_again_leaves_the_same_bytes(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path
) -> None:
    """compute-il of pairs killed with SIGKILL between a shard's vectors and its part, and a run that chooses pairs
    together killed at a commit and at a step, end with the same parts, vectors, rows and weights, byte for byte."""
    matrix(rig, jobs["compute-il of pairs"], whole["compute-il of pairs"], tmp_path, (1,), "pairs", "compute-il: v")
    matrix(rig, jobs["train of pairs"], whole["train of pairs"], tmp_path, (1,), "a run of pairs", "train: s")
    matrix(rig, jobs["train of pairs"], whole["train of pairs"], tmp_path, (2,), "a run of pairs", "checkpoint: c")


def test_E15_a_killed_trainer_run_again_has_the_same_log_and_weights(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path
) -> None:
    """train killed with SIGKILL at any of its crash points and run again ends with the same rows of `selections` in the
    same order, the same weights bit for bit, and every step once."""
    matrix(rig, jobs["train"], whole["train"], tmp_path, (1,), "train")


def test_E1_a_fit_killed_after_each_of_its_epochs_has_the_weights_of_one_in_one_piece(
    rig: Rig, jobs: dict[str, Job], tmp_path: Path
) -> None:
    """fit-il killed with SIGKILL after every epoch of each of its networks and run again goes on behind that epoch. It
    ends with the same weights and figures as in one piece: with dropout, batch norm, augmentation, drawn classes and
    checkpoints on the way. Nothing of the unfinished states stays."""
    fit = {**jobs["fit-il"].options, "model": "small-cnn-dropout", "image_size": 18, "epochs": 2, "balance": "sample",
           "augment": "shift-flip", "keep_share": 0}  # fmt: skip

    def figures(folder: Path) -> Any:
        record = json.loads((folder / "model.json").read_text())
        record["cost"].pop("seconds"), record["read"].pop("retried")
        for fold in record["folds"]:
            fold.pop("seconds")
        return record, sorted(p.name for p in folder.iterdir())

    done = rig.job("fit-il", {**fit, "out": str(tmp_path / "whole")})
    assert done["code"] == 0, done["error"]
    for _ in range(2 * 2):  # an epoch each: a process that began anew would never come to the end
        killed = rig.job("fit-il", {**fit, "out": str(tmp_path / "m")}, "fit-il: state kept@1")
        assert killed["code"] == -signal.SIGKILL, killed
    assert rig.job("fit-il", {**fit, "out": str(tmp_path / "m")}, "fit-il: step taken@1")["code"] == 0
    assert weights_of_folds(tmp_path / "m") == weights_of_folds(tmp_path / "whole")
    assert figures(tmp_path / "m") == figures(tmp_path / "whole")


def test_E1_a_fit_that_ends_by_itself_ends_alike_wherever_it_was_killed(
    rig: Rig, jobs: dict[str, Job], tmp_path: Path
) -> None:
    """fit-il that is given no number of epochs, killed with SIGKILL in its epochs, behind the end of its first network
    and in its second one, and run again, ends where it would have ended in one piece, with the same weights."""
    options = jobs["fit-il"].options
    # With a root the folds are the same wherever the test runs, and with them the end.
    fit = {**options, "epochs": None, "lr": 3e-3, "keep_share": 0, "roots": {"r": options["shards"][0]}}
    assert rig.job("fit-il", {**fit, "out": str(tmp_path / "whole")})["code"] == 0
    folds = json.loads((tmp_path / "whole" / "model.json").read_text())["folds"]
    first = math.ceil(folds[0]["curve"][-1]["epoch"])
    assert first < MOST_EPOCHS
    moments = [
        "fit-il: state kept@2",
        "fit-il: step taken@2",
        f"fit-il: state kept@{first - 2}",
        "fit-il: step taken@4",
    ]
    for moment in moments:
        killed = rig.job("fit-il", {**fit, "out": str(tmp_path / "m")}, moment)
        assert killed["code"] == -signal.SIGKILL, (moment, killed)
    kept = unfinished_in(str(tmp_path / "m")).values()
    assert max(one.epochs for one in kept if one.model == 1) == first and {one.of for one in kept} == {MOST_EPOCHS}
    assert any(one.model == 2 for one in kept)  # the first one is not begun again
    assert rig.job("fit-il", {**fit, "out": str(tmp_path / "m")})["code"] == 0
    assert weights_of_folds(tmp_path / "m") == weights_of_folds(tmp_path / "whole")
    again = json.loads((tmp_path / "m" / "model.json").read_text())["folds"]
    assert [f["curve"] for f in again] == [f["curve"] for f in folds]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("loop of one's own", marks=pytest.mark.slow),  # `train` is one of these
        "loop with checkpoints of its own",
    ],
)
def test_E15_a_killed_loop_of_ones_own_run_again_has_the_same_log_and_state(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path, name: str
) -> None:
    """A user's script with dropout, weight decay, an average of its weights, updates of two batches, importance
    sampling, buffers without candidates and a refused update, killed with SIGKILL at any of its crash points and run
    again, ends with the same log and the same state bit for bit: with our commits, and with `torch.save` of
    `run.state_dict()` in a checkpoint of its own, of which some are lost."""
    matrix(rig, jobs[name], whole[name], tmp_path, (1,), name)


def test_E15_the_readmes_loop_killed_at_ten_moments_ends_as_if_it_never_was(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path
) -> None:
    """The README's twelve lines, killed with SIGKILL ten times at moments of all kinds, a script started again each
    time: the same log and weights bit for bit."""
    job, (content, passed) = jobs["README's loop"], whole["README's loop"]
    moments = [
        "train: buffer scored@1",
        "train: step logged@1",
        "log: segment committed@1",
        "stream: buffer joined@2",
        "checkpoint: committed@1",
        "train: buffer scored@4",
        "train: step logged@3",
        "checkpoint: committed@1",
        "checkpoint: tensors written@2",
        "run: before cost.json@1",
    ]
    for moment in moments:
        assert passed[moment.partition("@")[0]]
        died = rig.job(job.verb, job.at(tmp_path / "run"), moment)
        assert died["code"] == -signal.SIGKILL, (moment, died)
    assert rig.job(job.verb, job.at(tmp_path / "run"))["code"] == 0
    assert job.content(tmp_path / "run") == content


def test_E15_a_trainer_killed_while_segments_are_merged_or_removed_has_the_same_log_and_weights(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path
) -> None:
    """train killed with SIGKILL while it merges small segments of its log, before the commit that names the merged
    ones, or while it removes those that were merged, and run again: the same rows, weights and steps, each once."""
    name = "train with compaction"
    matrix(rig, jobs[name], whole[name], tmp_path, (1,), name, "chain: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "loop of one's own",
        "loop with checkpoints of its own",
        "fit-il",
        "index",
        "keep",
        "compute-il",
        "train",
        "train with compaction",
        "train of a network with batch norm",
        "train by a rule that learns along",
        "fit-il of pairs",
        "compute-il of pairs",
        "train of pairs",
    ],
)
def test_E1_the_whole_crash_matrix(rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path, name: str) -> None:
    """The same holds at the third passing of every point, for fit-il and index, for a network with batch norm, and for
    a rule with a live IL model, a proxy, class weights and a shadow log, which are the same bits too."""
    matrix(rig, jobs[name], whole[name], tmp_path, (1, 3), name)


def test_E15_steps_and_log_agree_after_a_crash_in_every_checkpoint(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path
) -> None:
    """A run that is killed again and again, each time in the middle of a checkpoint, loses no step and repeats none."""
    job, kills = jobs["train"], 0
    while (done := rig.job(job.verb, job.at(tmp_path / "run"), "checkpoint: committed@1"))["code"]:
        assert done["code"] == -signal.SIGKILL
        kills += 1
    content = job.content(tmp_path / "run")
    assert kills == 3 and content == whole["train"][0] and content[3] == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spot"), [
    ("compute-il", "scan: rows read@2"), ("compute-il", "scan: image decoded@30"),
    ("compute-il", "compute-il: part committed@1"), ("train", "stream: image decoded@40"),
    ("train", "train: optimizer stepped@3"),
])  # fmt: skip
def test_E1_with_workers_a_crash_in_them_or_beside_them_changes_nothing(
    rig: Rig, jobs: dict[str, Job], whole: Whole, tmp_path: Path, name: str, spot: str
) -> None:
    """With worker processes too: one of them killed in the middle of a shard is started again by compute-il, and stops
    train with an error that says so; the same command run again leaves the same bytes, log and weights."""
    job = jobs[name]
    killed = rig.job(job.verb, {**job.at(tmp_path / "it"), "workers": 2}, spot)
    inside = spot.startswith("stream")
    assert killed["code"] == (1 if inside else 0 if spot.startswith("scan") else -signal.SIGKILL)
    assert not inside or ("WorkerError: a loader worker died" in killed["error"] and "resumes" in killed["error"])
    assert rig.job(job.verb, {**job.at(tmp_path / "it"), "workers": 2})["code"] == 0
    assert job.content(tmp_path / "it") == whole[name][0]
