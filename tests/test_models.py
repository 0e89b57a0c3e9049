"""The built-in networks: the paper's sizes, and what any target must do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rhostream
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.models import NAMES, build, load_weights
from tests.support.networks import (
    MORE_SHAPES,
    SHAPES,
    check_logits,
    check_target,
    counted_by_layers,
    macs,
    parameters,
    pictures,
)

IMAGE_MODELS = [name for name in NAMES if not name.startswith(("text", "pair"))]
DROPOUT = {"mlp-512-dropout", "small-cnn-dropout"}
SLOW = {"mlp-64", "mlp-256", "mlp-512", "resnet18-small"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small pictures: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", ["small-cnn", "small-cnn-lenet", "small-cnn-dropout"])
@pytest.mark.parametrize("resnet", ["resnet18-small", "resnet18-small-unpooled"])
def test_every_small_cnn_has_the_papers_ratios_to_every_form_of_its_resnet(resnet: str, small: str) -> None:
    assert round(parameters(resnet) / parameters(small)) == 21
    assert round(macs(resnet) / macs(small)) == 29


def test_the_unpooled_head_sees_all_sixteen_places_of_the_last_features() -> None:
    assert parameters("resnet18-small-unpooled") - parameters("resnet18-small") == 15 * 512 * 10


def test_multiply_adds_are_those_of_the_convolutions_and_the_head() -> None:
    assert macs("resnet18-small") == counted_by_layers("resnet18-small")


# -- what any target must do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [SHAPES, pytest.param(MORE_SHAPES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_logits_have_one_column_a_class_for_every_size_and_number_of_channels(
    name: str, shapes: tuple[tuple[int, int], ...]
) -> None:
    check_logits(name, shapes)


@pytest.mark.parametrize(("name", "size"), [("resnet18-small", 15), ("small-cnn-lenet", 17), ("small-cnn-dropout", 16)])
def test_an_image_that_is_too_small_is_refused(name: str, size: int) -> None:
    with pytest.raises(UsageError, match=rf"takes images of {16 if 'resnet' in name else 18} pixels and more.*{size}"):
        build(name, image_size=size, channels=3, classes=10)


def test_a_mistyped_name_is_guessed() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18-small'"):
        build("resnet18-smal", image_size=32, channels=3, classes=10)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
                                  for name in IMAGE_MODELS])  # fmt: skip
def test_a_target_learns_everywhere_and_is_a_function_when_it_only_scores(name: str, tmp_path: Path) -> None:
    check_target(name, tmp_path, drops=name in DROPOUT)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model = build("small-cnn", image_size=32, channels=3, classes=10)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(MismatchError, match="doesn't fit the model"):
        load_weights(
            build("small-cnn-lenet", image_size=32, channels=3, classes=10), str(tmp_path / "weights.safetensors")
        )


@pytest.mark.parametrize(("name", "rate", "layers"), [("mlp-512-dropout", 0.5, 2), ("small-cnn-dropout", 0.05, 5)])
def test_the_models_of_the_dropout_rules_drop_after_every_hidden_layer(name: str, rate: float, layers: int) -> None:
    model = build(name, image_size=28, channels=1, classes=10)
    drops = [m for m in model.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert [m.p for m in drops] == [rate] * layers


def test_dropout_changes_nothing_but_the_dropping() -> None:
    pair = []
    for name in ("small-cnn-lenet", "small-cnn-dropout"):
        torch.manual_seed(0)
        pair.append(build(name, image_size=28, channels=1, classes=10).eval())
    assert torch.equal(pair[0](pictures(4, 28, 1)), pair[1](pictures(4, 28, 1)))


def test_a_network_that_was_built_in_once_says_its_name_of_now() -> None:
    for old, now in (("resnet34-cifar", "resnet34"), ("vgg11-bn-cifar", "vgg11_bn")):
        with pytest.raises(UnknownNameError, match=rf"'{old}'.*jobs\.reproduce\.nets:{now} "):
            build(old, image_size=32, channels=3, classes=10)


def test_a_run_of_a_network_that_was_built_in_once_is_read_and_not_gone_on_with(trained: Callable[..., Path]) -> None:
    run = trained(steps=2)
    record = run / "run.json"
    record.write_text(record.read_text().replace('"mlp-64"', '"googlenet-cifar"'))
    with rhostream.open_ledger(str(run)) as ledger:
        assert ledger.sql("SELECT count(*) AS n FROM selections")["n"].to_pylist() == [80]
    assert "googlenet-cifar" in Path(rhostream.write_report(str(run), str(run.parent / "report.html"))).read_text()
    with pytest.raises(UnknownNameError, match=r"jobs\.reproduce\.nets:googlenet "):
        trained(steps=4, model="googlenet-cifar")


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_every_model_with_its_sizes() -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d,]+ \| [\d,]+) \|", page, re.MULTILINE))
    assert {n: rows.get(n) for n in IMAGE_MODELS} == {n: f"{parameters(n):,} | {macs(n):,}" for n in IMAGE_MODELS}
    assert rows.keys() == set(IMAGE_MODELS)


# -- through the product ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_the_unpooled_resnet_trains_resumes_and_logs(trained: Callable[..., Path]) -> None:
    settings = {"model": "resnet18-small-unpooled", "buffer_size": 20, "batch_size": 8, "threads": 1}
    trained("run", steps=2, **settings)
    run = trained("run", steps=3, **settings)
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("SELECT count(*) AS n, sum(kept::int) AS kept, count(loss) AS scored FROM selections")
    assert rows.to_pylist() == [{"n": 60, "kept": 24, "scored": 60}]
