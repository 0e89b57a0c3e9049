"""The built-in networks: the paper's sizes, the published sizes of the CIFAR forms, and what any target must do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import rhostream
from rhostream.errors import MismatchError, UnknownNameError, UsageError
from rhostream.models import NAMES, build, load_weights
from rhostream.models.densenet import Dense
from rhostream.models.googlenet import _inception
from rhostream.models.inception import _e
from rhostream.models.mobilenet import _inverted
from rhostream.models.resnet import basic, bottleneck
from rhostream.runs.macs import macs_per_sample

IMAGE_MODELS = [name for name in NAMES if not name.startswith("text")]
CIFAR = [name for name in NAMES if name.endswith("-cifar")]
DROPOUT = {"mlp-512-dropout", "small-cnn-dropout", "vgg11-bn-cifar", "googlenet-cifar", "mobilenet-v2-cifar",
           "inception-v3-cifar"}  # fmt: skip
SLOW = {"mlp-64", "mlp-256", "mlp-512", "resnet18-small", "vgg11-bn-cifar", "googlenet-cifar", "resnet34-cifar",
        "resnet50-cifar", "inception-v3-cifar"}  # fmt: skip
# Millions of parameters, as the table of huyvnphan/PyTorch_CIFAR10 (the paper's Phan, 2021) has them for 10 classes.
PUBLISHED = {"vgg11-bn-cifar": 28.150, "googlenet-cifar": 5.491, "resnet34-cifar": 21.282, "resnet50-cifar": 23.521,
             "densenet121-cifar": 6.956, "mobilenet-v2-cifar": 2.237, "inception-v3-cifar": 21.640}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small pictures: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_paper(name: str, image_size: int = 32, channels: int = 3, classes: int = 10) -> nn.Module:
    """The model without memory or weights: shapes and counts alone."""
    with torch.device("meta"):
        return build(name, image_size=image_size, channels=channels, classes=classes)


@cache
def parameters(name: str) -> int:
    return sum(p.numel() for p in on_paper(name).parameters())


@cache
def macs(name: str) -> int:
    return macs_per_sample(on_paper(name), torch.empty(1, 3, 32, 32, device="meta"))


def pictures(count: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", ["small-cnn", "small-cnn-lenet", "small-cnn-dropout"])
@pytest.mark.parametrize("resnet", ["resnet18-small", "resnet18-small-unpooled"])
def test_every_small_cnn_has_the_papers_ratios_to_every_form_of_its_resnet(resnet: str, small: str) -> None:
    assert round(parameters(resnet) / parameters(small)) == 21
    assert round(macs(resnet) / macs(small)) == 29


def test_the_unpooled_head_sees_all_sixteen_places_of_the_last_features() -> None:
    assert parameters("resnet18-small-unpooled") - parameters("resnet18-small") == 15 * 512 * 10


@pytest.mark.parametrize("name", CIFAR)
def test_a_cifar_form_has_the_published_number_of_parameters(name: str) -> None:
    assert parameters(name) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.0011)  # Inception's is given to 0.01


def test_there_are_the_seven_architectures_of_figure_2() -> None:
    assert set(CIFAR) == set(PUBLISHED)


@pytest.mark.parametrize("name", ["resnet34-cifar", "resnet18-small", "densenet121-cifar"])
def test_multiply_adds_are_those_of_the_convolutions_and_the_head(name: str) -> None:
    counted, model = 0, on_paper(name)

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            counted += weight.numel() * (output.shape[2] * output.shape[3] if output.dim() == 4 else 1)

    for module in model.modules():
        module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    assert macs(name) == counted


# -- what any target must do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((28, 1), (32, 3)), pytest.param(((28, 3), (32, 1), (18, 3), (45, 3), (64, 1)),
                                                                     marks=pytest.mark.slow)])  # fmt: skip
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_logits_have_one_column_a_class_for_every_size_and_number_of_channels(
    name: str, shapes: tuple[tuple[int, int], ...]
) -> None:
    for size, channels in shapes:
        model = on_paper(name, size, channels, 7)
        assert model(torch.empty(3, channels, size, size, device="meta")).shape == (3, 7)


@pytest.mark.parametrize(("name", "size"), [("resnet50-cifar", 15), ("small-cnn-lenet", 17), ("small-cnn-dropout", 16)])
def test_an_image_that_is_too_small_is_refused(name: str, size: int) -> None:
    with pytest.raises(UsageError, match=rf"takes images of {16 if 'resnet' in name else 18} pixels and more.*{size}"):
        build(name, image_size=size, channels=3, classes=10)


def test_a_mistyped_name_is_guessed() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet34-cifar'"):
        build("resnet34-cifr", image_size=32, channels=3, classes=10)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
                                  for name in IMAGE_MODELS])  # fmt: skip
def test_a_target_learns_everywhere_and_is_a_function_when_it_only_scores(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(name, image_size=18, channels=3, classes=5)
    torch.manual_seed(0)
    other = build(name, image_size=18, channels=3, classes=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    x = pictures(4, 18)

    model.train()
    F.cross_entropy(model(x), torch.arange(4)).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
              or not p.grad.any()]  # fmt: skip
    assert silent == []
    with torch.no_grad():
        assert torch.equal(model(x), model(x)) is (name not in DROPOUT)

        model.eval()
        logits = model(x)
        assert torch.equal(logits, model(x))
        assert torch.allclose(logits[2:3], model(x[2:3]), rtol=1e-3, atol=1e-4)
        assert logits.std(0).max() > 0

        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        load_weights(other, str(tmp_path / "weights.safetensors"))
        assert torch.equal(other.eval()(x), logits)

        last = other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert torch.allclose(last(x.to(memory_format=torch.channels_last)), logits, rtol=1e-3, atol=1e-4)


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


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_every_model_with_its_sizes() -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d,]+ \| [\d,]+) \|", page, re.MULTILINE))
    assert {n: rows.get(n) for n in IMAGE_MODELS} == {n: f"{parameters(n):,} | {macs(n):,}" for n in IMAGE_MODELS}
    assert rows.keys() == set(IMAGE_MODELS)


# -- through the product ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18-small-unpooled", *CIFAR])
def test_a_run_with_it_trains_resumes_and_logs(name: str, trained: Callable[..., Path]) -> None:
    settings = {"model": name, "buffer_size": 20, "batch_size": 8, "threads": 1}
    trained("run", steps=2, **settings)
    run = trained("run", steps=3, **settings)
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("SELECT count(*) AS n, sum(kept::int) AS kept, count(loss) AS scored FROM selections")
    assert rows.to_pylist() == [{"n": 60, "kept": 24, "scored": 60}]
