"""The networks of Fig. 2: the published sizes, the wiring, and what any target must do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhostream
from jobs.reproduce import nets
from jobs.reproduce.nets.densenet import Dense
from jobs.reproduce.nets.googlenet import _inception
from jobs.reproduce.nets.inception import _e
from jobs.reproduce.nets.mobilenet import _inverted
from jobs.reproduce.nets.resnet import bottleneck
from rhostream.models import build
from rhostream.models.resnet import basic
from tests.support.networks import (
    MORE_SHAPES,
    SHAPES,
    check_logits,
    check_target,
    counted_by_layers,
    macs,
    parameters,
)

NAMED = "jobs.reproduce.nets:"
NETS = [NAMED + name for name in nets.__all__]
# Millions of parameters, as the table of huyvnphan/PyTorch_CIFAR10 (the paper's Phan, 2021) has them for 10 classes.
PUBLISHED = {"vgg11_bn": 28.150, "googlenet": 5.491, "resnet34": 21.282, "resnet50": 23.521, "densenet121": 6.956,
             "mobilenet_v2": 2.237, "inception_v3": 21.640}  # fmt: skip
DROPOUT = {"vgg11_bn", "googlenet", "mobilenet_v2", "inception_v3"}
FAST = {"densenet121", "mobilenet_v2"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small pictures: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_published_numbers_of_parameters() -> None:
    found = {name: parameters(NAMED + name) / 1e6 for name in nets.__all__}
    assert found == pytest.approx(PUBLISHED, abs=0.0011)  # Inception's is given to 0.01


def test_multiply_adds_are_those_of_the_convolutions_and_the_head() -> None:
    for name in (NAMED + "resnet34", NAMED + "densenet121"):
        assert macs(name) == counted_by_layers(name)


@pytest.mark.parametrize("shapes", [SHAPES, pytest.param(MORE_SHAPES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETS)
def test_logits_have_one_column_a_class_for_every_size_and_number_of_channels(
    name: str, shapes: tuple[tuple[int, int], ...]
) -> None:
    check_logits(name, shapes)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
                                  for name in nets.__all__])  # fmt: skip
def test_a_target_learns_everywhere_and_is_a_function_when_it_only_scores(name: str, tmp_path: Path) -> None:
    check_target(NAMED + name, tmp_path, drops=name in DROPOUT)


# -- wiring, against the same sums written out -----------------------------------------------------------------------


class Weights:
    """The convolutions and norms of a module, handed out in the order in which they were registered."""

    def __init__(self, module: nn.Module) -> None:
        self.left = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]

    def conv(self, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        layer = self.left.pop(0)
        assert isinstance(layer, nn.Conv2d)
        padding = tuple(k // 2 for k in layer.kernel_size)
        return F.conv2d(x, layer.weight, layer.bias, stride, padding, groups=groups)

    def norm(self, x: Tensor, eps: float = 1e-5) -> Tensor:
        layer = self.left.pop(0)
        assert isinstance(layer, nn.BatchNorm2d)
        shape = (1, -1, 1, 1)
        mean, var = layer.running_mean.view(shape), layer.running_var.view(shape)  # type: ignore[union-attr]
        return (x - mean) / (var + eps).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)

    def unit(self, x: Tensor, stride: int = 1, groups: int = 1, eps: float = 1e-5) -> Tensor:
        return self.norm(self.conv(x, stride, groups), eps).clamp(min=0)


def unsettled(module: nn.Module) -> nn.Module:
    """In eval mode, with norms that do something."""
    rng = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.running_var, part.weight.data, part.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)  # type: ignore[union-attr]
    return module.eval()


def same(module: nn.Module, x: Tensor, expected: Tensor, weights: Weights) -> None:
    assert not weights.left
    with torch.no_grad():
        assert torch.allclose(module(x.clone()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (6, 1), (8, 2)])
@torch.no_grad()
def test_residual_blocks_add_their_input(inputs: int, stride: int) -> None:
    x = torch.randn(2, inputs, 9, 9)
    block = unsettled(basic(inputs, 8, stride))
    w = Weights(block)
    y = w.norm(w.conv(w.unit(x, stride)))
    straight = x if inputs == 8 and stride == 1 else w.norm(w.conv(x, stride))
    same(block, x, (y + straight).clamp(min=0), w)

    block = unsettled(bottleneck(inputs, 2, stride))
    w = Weights(block)
    y = w.norm(w.conv(w.unit(w.unit(x), stride)))
    straight = x if inputs == 8 and stride == 1 else w.norm(w.conv(x, stride))
    same(block, x, (y + straight).clamp(min=0), w)


@pytest.mark.parametrize(("outputs", "stride", "expansion"), [(6, 1, 6), (6, 2, 6), (8, 1, 1)])
@torch.no_grad()
def test_inverted_residuals_add_their_input_only_where_shapes_allow(outputs: int, stride: int, expansion: int) -> None:
    x = torch.randn(2, 6, 8, 8)
    block = unsettled(_inverted(6, outputs, stride, expansion))
    w, y = Weights(block), x
    if expansion > 1:
        y = w.unit(y).clamp(max=6)
    y = w.norm(w.conv(w.unit(y, stride, groups=6 * expansion).clamp(max=6)))
    same(block, x, x + y if (outputs, stride) == (6, 1) else y, w)


@torch.no_grad()
def test_dense_layers_keep_their_input_and_append() -> None:
    x = torch.randn(2, 10, 6, 6)
    block = unsettled(Dense(10))
    w = Weights(block)
    y = w.conv(w.norm(w.conv(w.norm(x).clamp(min=0))).clamp(min=0))
    same(block, x, torch.cat([x, y], 1), w)


@torch.no_grad()
def test_inception_blocks_lay_their_branches_side_by_side() -> None:
    x = torch.randn(2, 12, 7, 7)
    block = unsettled(_inception(12, (3, 4, 5, 2, 6, 7)))
    w = Weights(block)
    unit = lambda x: w.unit(x, eps=1e-3)  # noqa: E731
    branches = [unit(x), unit(unit(x)), unit(unit(x)), unit(F.max_pool2d(x, 3, 1, 1))]
    same(block, x, torch.cat(branches, 1), w)

    block = unsettled(_e(12))
    w = Weights(block)
    branches = [unit(x)]
    for depth in (1, 2):
        stem = x
        for _ in range(depth):
            stem = unit(stem)
        branches += [unit(stem), unit(stem)]
    branches.append(unit(F.avg_pool2d(x, 3, 1, 1)))
    same(block, x, torch.cat(branches, 1), w)
    assert block(x).shape[1] == 2048


# -- against torchvision ---------------------------------------------------------------------------------------------


def has_torchvision() -> bool:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def stemmed(name: str) -> nn.Module:
    """torchvision's own model with the changes that make it the CIFAR form."""
    from torchvision import models as zoo

    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = zoo.get_model(name, weights=None, num_classes=10, **options)
    if name.startswith("resnet"):
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    elif name == "densenet121":
        model.features.conv0 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    elif name == "mobilenet_v2":
        model.features[0][0].stride = model.features[2].conv[1][0].stride = (1, 1)
    elif name == "vgg11_bn":
        model.avgpool, model.classifier[0] = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 4096)
    elif name == "googlenet":
        model.conv1.conv, model.conv1.bn = nn.Conv2d(3, 192, 3, 1, 1, bias=False), nn.BatchNorm2d(192, eps=1e-3)
        model.maxpool1 = model.conv2 = model.conv3 = model.maxpool2 = nn.Identity()
        model.maxpool3, model.maxpool4 = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)
    else:
        stem = model.Conv2d_1a_3x3
        stem.conv, stem.bn = nn.Conv2d(3, 192, 3, 1, 1, bias=False), nn.BatchNorm2d(192, eps=1e-3)
        for part in ("Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"):
            setattr(model, part, nn.Identity())
    return model  # type: ignore[no-any-return]


@pytest.mark.skipif(not has_torchvision(), reason="torchvision is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("name", nets.__all__)
def test_a_cifar_form_computes_what_torchvisions_model_with_that_stem_computes(name: str) -> None:
    theirs, ours = stemmed(name), build(NAMED + name, image_size=32, channels=3, classes=10)
    theirs.train()(torch.randn(8, 3, 32, 32))  # running statistics that are not those of a fresh norm
    pairs = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict({name: tensor for (name, _), tensor in pairs})
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-4)


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_every_network_with_its_sizes() -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    rows = dict(re.findall(r"^\| `(jobs[\w.:]+)` \| ([\d,]+ \| [\d,]+) \|", page, re.MULTILINE))
    assert rows == {name: f"{parameters(name):,} | {macs(name):,}" for name in NETS}


# -- through the product ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_run_with_it_trains_resumes_and_logs(name: str, trained: Callable[..., Path]) -> None:
    settings = {"model": name, "buffer_size": 20, "batch_size": 8, "threads": 1}
    trained("run", steps=2, **settings)
    run = trained("run", steps=3, **settings)
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("SELECT count(*) AS n, sum(kept::int) AS kept, count(loss) AS scored FROM selections")
    assert rows.to_pylist() == [{"n": 60, "kept": 24, "scored": 60}]
