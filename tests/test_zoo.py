"""Models of torchvision and timm by name, and weights as a start: against the libraries where they are installed.

They are no dependency, so here a small stand-in of the same face is enough, and what needs the real ones is skipped.
"""

from __future__ import annotations

import enum
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rhostream
from rhostream.errors import (
    MismatchError,
    MissingExtraError,
    StorageError,
    UnknownNameError,
    UntrustedCodeError,
    UsageError,
)
from rhostream.models import build, load_initial
from rhostream.models.zoo import LIBRARIES
from rhostream.runs.macs import macs_per_sample

SHAPE = {"image_size": 32, "channels": 3, "classes": 14}


def importable(library: str) -> bool:
    try:
        __import__(library)
    except (ImportError, RuntimeError, OSError):
        return False
    return True


needs_torchvision = pytest.mark.skipif(not importable("torchvision"), reason="torchvision is not installed")
needs_timm = pytest.mark.skipif(not importable("timm"), reason="timm is not installed")


# -- a stand-in of torchvision.models --------------------------------------------------------------------------------


class Net(nn.Module):
    """A stem, a body and a classifier, with an auxiliary head as GoogLeNet has them."""

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        init_weights: bool | None = None,
        transform_input: bool = False,
    ) -> None:
        super().__init__()
        self.transform_input = transform_input
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.aux1 = nn.Linear(4, num_classes) if aux_logits else None
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, channels, H, W) to (B, classes), or a pair while training with the auxiliary head."""
        x = self.bn1(self.conv1(x)).mean((2, 3))
        return (self.fc(x), self.aux1(x)) if self.aux1 is not None and self.training else self.fc(x)


class Weights(enum.Enum):
    """Pretrained weights by name."""

    IMAGENET1K_V1 = "fetched"
    GONE = "gone"

    def get_state_dict(self, **options: Any) -> dict[str, Tensor]:
        """1000 classes and an auxiliary head, every time the same."""
        assert options["weights_only"] and options["check_hash"]
        if self is Weights.GONE:
            raise URLError("no route to host")
        torch.manual_seed(5)
        return Net().state_dict()


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    models = types.ModuleType("torchvision.models")

    def get_model(name: str, *, weights: None, num_classes: int, **options: Any) -> nn.Module:
        if name == "resnet50" and options:
            raise TypeError(f"unexpected {options}")
        return Net(num_classes, **{"aux_logits": False, **options})

    models.__dict__.update(
        list_models=lambda module: ["resnet50", "googlenet", "resnet18"],
        get_model=get_model,
        get_model_weights=lambda name: Weights,
    )
    package = types.ModuleType("torchvision")
    package.__dict__["models"] = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return models


@pytest.mark.usefixtures("zoo")
def test_a_model_of_the_zoo_has_our_classes_and_channels_and_gives_logits_only() -> None:
    for name in ("torchvision:resnet50", "torchvision:googlenet"):
        for channels in (1, 3, 4):
            model = build(name, image_size=32, channels=channels, classes=14).train()
            assert model(torch.randn(2, channels, 32, 32)).shape == (2, 14)


@pytest.mark.usefixtures("zoo")
def test_weights_come_only_when_they_are_named_and_the_classifier_is_ours() -> None:
    theirs = Weights.IMAGENET1K_V1.get_state_dict(weights_only=True, check_hash=True)
    plain = build("torchvision:resnet50", **SHAPE)
    assert not torch.equal(plain.conv1.weight, theirs["conv1.weight"])
    for name in ("torchvision:resnet50", "torchvision:googlenet"):
        model = build(f"{name}@IMAGENET1K_V1", **SHAPE)
        assert torch.equal(model.conv1.weight, theirs["conv1.weight"]) and model.fc.weight.shape == (14, 4)
        other = build(f"{name}@IMAGENET1K_V1", **SHAPE, initial=False)
        assert not torch.equal(other.conv1.weight, theirs["conv1.weight"])
        assert model.transform_input is other.transform_input is name.endswith("googlenet")


@pytest.mark.usefixtures("zoo")
def test_a_pretrained_stem_sees_in_a_grey_picture_what_it_sees_in_three_equal_channels() -> None:
    grey = build("torchvision:resnet50@IMAGENET1K_V1", image_size=32, channels=1, classes=14).eval()
    color = build("torchvision:resnet50@IMAGENET1K_V1", **SHAPE).eval()
    color.fc.load_state_dict(grey.fc.state_dict())
    x = torch.randn(2, 1, 32, 32)
    assert torch.allclose(grey(x), color(x.expand(2, 3, 32, 32)), atol=1e-5)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("torchvision:resnet51", UnknownNameError, "did you mean resnet50"),
        ("torchvision:resnet50@IMAGENET1K_V9", UnknownNameError, "did you mean 'IMAGENET1K_V1'"),
        ("torchvision:resnet50@GONE", StorageError, "can't be had: .*no route to host.* --init"),
        ("torchvision:resnet50@", UsageError, "expected torchvision:NAME"),
        ("torchvision:", UsageError, "expected torchvision:NAME"),
        ("torchvision:../x", UsageError, "expected torchvision:NAME"),
        ("timm:hf-hub:someone/model", UsageError, "expected timm:NAME or timm:NAME@WEIGHTS"),
    ],
)
def test_a_name_that_the_zoo_lacks_is_one_sentence(name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build(name, **SHAPE)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_zoo_that_is_missing_or_broken_is_one_sentence(
    library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingExtraError, match=f"{library} is not installed: pip install the {library} that fits"):
        build(f"{library}:resnet18", **SHAPE)
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(UsageError, match=f"{library} is installed, but doesn't load beside torch .*::nms"):
        build(f"{library}:resnet18", **SHAPE)


@pytest.mark.usefixtures("zoo")
def test_an_il_model_of_the_zoo_is_loaded_by_name_and_without_its_first_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, shards, out = "torchvision:resnet50@IMAGENET1K_V1", [str(world / "shards")], str(tmp_path / "il-model")
    rhostream.fit_il(shards, out, model=name, fit_samples=100, epochs=1, lr=1e-12)
    theirs = Weights.IMAGENET1K_V1.get_state_dict(weights_only=True, check_hash=True)
    learned = load_file(tmp_path / "il-model" / "fold-0.safetensors")["conv1.weight"]
    assert torch.allclose(learned, theirs["conv1.weight"].sum(1, keepdim=True), atol=1e-6)
    monkeypatch.setattr(Weights, "get_state_dict", None)  # a second download would fail
    with pytest.raises(UntrustedCodeError, match="--model torchvision:resnet50@IMAGENET1K_V1"):
        rhostream.compute_il(shards, out, str(tmp_path / "il"))
    assert rhostream.compute_il(shards, out, str(tmp_path / "il"), model=name).made == 7


# -- weights as a start ----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    def save(model: nn.Module, **changes: Tensor | None) -> str:
        state = {**model.state_dict(), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
        save_file({n: t.contiguous() for n, t in state.items() if t is not None}, tmp_path / "start.safetensors")
        return str(tmp_path / "start.safetensors")

    return save


def small(classes: int = 10, channels: int = 3) -> nn.Module:
    return build("small-cnn", image_size=16, channels=channels, classes=classes)


def test_a_start_for_the_same_classes_is_loaded_whole(
    saved: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    there, model = small(), small()
    with caplog.at_level(logging.INFO, "rhostream"):
        load_initial(model, saved(there))
    assert all(torch.equal(a, b) for a, b in zip(there.state_dict().values(), model.state_dict().values(), strict=True))
    assert not caplog.records


@pytest.mark.parametrize("absent", [False, True])
def test_a_start_may_lack_the_classifier_or_have_one_for_other_classes(
    absent: bool, saved: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    there, model = small(classes=1000), small(classes=14)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    head = list(before)[-2:]
    file = saved(there, **dict.fromkeys((n.replace(".", "__") for n in head), None)) if absent else saved(there)
    with caplog.at_level(logging.INFO, "rhostream"):
        load_initial(model, file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in head else there.state_dict()[name])
    assert f"no classifier that fits: {head[0].split('.')[0]} starts at random" in caplog.text


def test_nothing_else_may_differ(saved: Callable[..., str]) -> None:
    there = small(classes=1000)
    first, norm, hidden = "0__weight", "1__running_mean", "16__weight"
    for change, says in (
        ({first: None}, r"it lacks 0\.weight"),
        ({norm: None}, r"it lacks 1\.running_mean"),
        ({hidden: torch.zeros(288, 7)}, r"16\.weight is \(288, 7\), expected \(288, 1536\)"),
        ({first: torch.zeros(32, 4, 3, 3)}, r"0\.weight is \(32, 4, 3, 3\), expected \(32, 3, 3, 3\)"),
        ({"18__weight": torch.zeros(1000, 7)}, r"18\.weight is \(1000, 7\), expected \(10, 288\)"),
        ({"extra__weight": torch.zeros(1)}, r"it has extra\.weight, which the model lacks"),
    ):
        with pytest.raises(MismatchError, match=says):
            load_initial(small(), saved(there, **change))


def test_old_files_may_lack_the_counter_of_batches_and_a_grey_model_sums_the_stem(saved: Callable[..., str]) -> None:
    there, grey = small(), small(channels=1)
    load_initial(grey, saved(there, **{"1__num_batches_tracked": None}))
    x = torch.randn(2, 1, 16, 16)
    assert torch.allclose(grey.eval()(x), there.eval()(x.expand(2, 3, 16, 16)), atol=1e-4)


def test_a_pickle_is_never_a_start(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "start.pt")
    with pytest.raises(UsageError, match="pickles are never loaded"):
        load_initial(small(), str(tmp_path / "start.pt"))


def test_the_il_model_starts_from_given_weights_and_remembers_which(
    world: Path, tmp_path: Path, saved: Callable[..., str]
) -> None:
    there = build("mlp-64", image_size=16, channels=1, classes=1000)
    settings: dict[str, Any] = {"model": "mlp-64", "fit_samples": 200, "epochs": 1, "lr": 1e-12}
    file, out = saved(there), str(tmp_path / "il-model")
    info = rhostream.fit_il([str(world / "shards")], out, init=file, **settings)
    for fold in info.folds:
        state = load_file(tmp_path / "il-model" / fold["weights"])
        assert torch.allclose(state["1.weight"], there.state_dict()["1.weight"], atol=1e-6)
        assert state["5.weight"].shape == (4, 64)
    assert rhostream.fit_il([str(world / "shards")], out, init=file, **settings) == info
    for other in (None, saved(build("mlp-64", image_size=16, channels=1, classes=4))):
        with pytest.raises(MismatchError, match="holds an IL model with init"):
            rhostream.fit_il([str(world / "shards")], out, init=other, **settings)
    with pytest.raises(MismatchError, match=r"1\.weight is \(64, 768\), expected \(64, 256\)"):
        rhostream.fit_il(
            [str(world / "shards")],
            str(tmp_path / "no"),
            init=saved(build("mlp-64", image_size=16, channels=3, classes=4)),
            **settings,
        )
    assert not (tmp_path / "no" / "model.json").exists()


def test_a_target_starts_from_weights_made_for_other_classes(
    trained: Callable[..., Path], saved: Callable[..., str]
) -> None:
    there = build("mlp-64", image_size=16, channels=1, classes=1000)
    run = trained(init=saved(there), steps=1, lr=1e-12)
    (weights,) = run.glob("checkpoints/*/*/model.safetensors")
    assert torch.allclose(load_file(weights)["3.weight"], there.state_dict()["3.weight"], atol=1e-6)


# -- the real libraries ----------------------------------------------------------------------------------------------


@needs_torchvision
@pytest.mark.slow
def test_torchvisions_own_pretrained_weights_load_with_a_classifier_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models as zoo

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = zoo.resnet18(weights=None)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(theirs.state_dict(), cache / zoo.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    model = build("torchvision:resnet18@IMAGENET1K_V1", **SHAPE)
    assert torch.equal(model.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 14)


@needs_torchvision
@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("resnet50", 64), ("googlenet", 64), ("inception_v3", 96), ("vit_b_32", 64),
                                            ("densenet121", 64), ("mobilenet_v2", 64)])  # fmt: skip
def test_torchvisions_models_are_built_by_name(name: str, size: int) -> None:
    for channels in (1, 3) if name != "vit_b_32" else (3,):
        model = build(f"torchvision:{name}", image_size=size, channels=channels, classes=14).train()
        assert model(torch.randn(2, channels, size, size)).shape == (2, 14)


@needs_torchvision
@pytest.mark.parametrize(("name", "giga"), [("resnet50", 4.1), ("resnet18", 1.8)])
def test_the_papers_cost_of_clothing1m_is_that_of_torchvisions_models(name: str, giga: float) -> None:
    with torch.device("meta"):
        model = build(f"torchvision:{name}", image_size=224, channels=3, classes=14)
    assert round(macs_per_sample(model, torch.empty(1, 3, 224, 224, device="meta")) / 1e9, 1) == giga


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "inception_v3"])
def test_timms_models_are_built_by_name(name: str) -> None:
    for channels in (1, 3):
        model = build(f"timm:{name}", image_size=96, channels=channels, classes=14).train()
        assert model(torch.randn(2, channels, 96, 96)).shape == (2, 14)
    with pytest.raises(UnknownNameError, match=r"weights of timm:resnet18 'a1_in'.*did you mean 'a1_in1k'"):
        build("timm:resnet18@a1_in", **SHAPE)
    with pytest.raises(UsageError, match="weights of timm stand after an @, timm:resnet18@a1_in1k"):
        build("timm:resnet18.a1_in1k", **SHAPE)
