"""The study of a reference against fitted IL models goes its whole way on a small set, with another network for the
pretrained one, and what it says of heads, bills and goals is as by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

import rhostream
from jobs import reference
from jobs.reference import Study, Upscaled, bill, fit_head, make_tables, page, train
from rhostream.il_model.reference import load_reference
from rhostream.runs.macs import macs_per_sample
from rhostream.samples.image import ImageKind
from rhostream.tables import il as il_table
from tests.support.shards import make_shards

CLASSES = 4


def quarters() -> nn.Module:
    """Stands in for the pretrained network: what it sees are the means of a picture's sixteenths."""
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten())


def seeded_quarters() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return quarters()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Study:
    """Shards of 300, 60 and 40 samples, of which the first have wrong labels, and all that the job makes of them."""
    out = tmp_path_factory.mktemp("reference")
    make_shards(out / "d", [160, 140])
    make_shards(out / "test", [40], seed=1)
    make_shards(out / "clean", [60], seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "pretrained", seeded_quarters)
        patch.setenv(reference.HEAD, "")  # as it was, afterwards
        small = Study(out=str(out), seeds=1, steps=6, every=2, side=24, classes=CLASSES, model="mlp-64",
                      augment="none", epochs=(1, 1), sizes=(40, 8))  # fmt: skip
        make_tables(small)
        train(small)
    return small


def test_the_reference_is_scored_as_a_users_own_is_and_its_identity_knows_head_and_size(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = il_table.open_info(study.at("il", "reference"))
    assert info.reference["name"] == "jobs.reference:network" and info.reference["proved"]
    monkeypatch.setenv(reference.HEAD, study.at("head.safetensors"))
    monkeypatch.setattr(reference, "pretrained", seeded_quarters)
    kind, cpu = ImageKind(image_size=16, channels=1), torch.device("cpu")
    network = reference.network()
    assert load_reference(network, kind, CLASSES, cpu).identity == info.reference["identity"]
    assert isinstance(network, Upscaled)
    with torch.no_grad():
        network.head.bias += 1e-3
    network.side += 1
    others = {load_reference(network, kind, CLASSES, cpu).identity, info.reference["identity"]}
    assert len(others) == 2


def test_the_bill_of_a_reference_is_its_forwards_and_that_of_a_fit_its_gradients_too(study: Study) -> None:
    target = json.loads(Path(study.at("runs", "reference-0", "cost.json")).read_text())["macs"]
    forward = macs_per_sample(Upscaled(seeded_quarters(), 24, 32, CLASSES), torch.zeros(1, 1, 16, 16))
    assert bill(study, "reference") == pytest.approx({"fit": 60 * forward / target, "score": 300 * forward / target})
    fitted = bill(study, "cross-fit")  # an IL model of the same size
    assert fitted["score"] == 300 and fitted["fit"] >= 3 * 256  # whole batches of each half


@pytest.mark.slow
def test_the_page_has_a_row_an_il_and_a_row_an_arm(study: Study) -> None:
    first, second = page(study).split("\n\n")
    assert len(first.splitlines()) == 2 + 3 and len(second.splitlines()) == 2 + 4
    assert {row.count("|") for row in second.splitlines()} == {second.splitlines()[0].count("|")}
    done = {path: path.stat().st_mtime_ns for path in Path(study.out).rglob("*.parquet")}
    make_tables(study)  # what is there isn't made again
    assert done == {path: path.stat().st_mtime_ns for path in Path(study.out).rglob("*.parquet")}


def test_a_head_is_the_minimum_of_its_own_loss_and_reads_plain_features() -> None:
    x, label = torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) * 5 + 3, torch.arange(200) % 3
    x[torch.arange(200), label] += 4
    head = fit_head(x, label, 3, decay=0.01)
    assert (head(x).argmax(1) == label).float().mean() > 0.8
    scaled = (head.weight.detach() * x.std(0)).requires_grad_()
    bias = head.bias.detach().requires_grad_()
    loss = functional.cross_entropy((x / x.std(0)) @ scaled.T + bias, label) + 0.01 * scaled.square().sum()
    loss.backward()
    assert scaled.grad is not None and bias.grad is not None
    assert max(scaled.grad.abs().max(), bias.grad.abs().max()) < 1e-4


def test_without_the_packages_or_the_head_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # as if it were nowhere
    asked = ["--cifar10", "nowhere", "--labels", "nowhere", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(reference.main, asked)
    assert done.exit_code == 1 and "pip install --no-deps" in done.output and not (tmp_path / "out").exists()
    monkeypatch.setenv(reference.HEAD, str(tmp_path / "none"))
    with pytest.raises(rhostream.RhostreamError, match="no head"):
        reference.network()
