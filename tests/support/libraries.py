"""Stand-ins of open_clip, torchvision and timm, of the face that is used of each: they are no dependency here."""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.error import URLError

import pytest

from tests.support.tiny_towers import LENGTH, MEAN, SIZE, STD

NAMES = ("plum", "iron", "gull", "oboe")


def open_clip() -> types.ModuleType:
    """Two architectures, with CLIP's and with SigLIP's scale; weights `laion2b` can't be fetched."""
    import torch
    from safetensors.torch import load_file
    from torch import Tensor, nn

    class TwoTowers(nn.Module):
        """The face of open_clip's CLIP."""

        def __init__(self, bias: bool) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.visual: Any = nn.Linear(3 * 16, 8)
            self.visual.image_size = (SIZE, SIZE)
            self.visual.preprocess_cfg = {"size": SIZE, "mean": MEAN, "std": STD, "resize_mode": "squash"}
            self.token_embedding = nn.Embedding(50, 8)
            self.context_length, self.vocab_size = LENGTH, 50
            self.logit_scale = nn.Parameter(torch.tensor(1.5))
            self.logit_bias = nn.Parameter(torch.tensor(-3.0)) if bias else None

        def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
            return self.visual(nn.functional.adaptive_avg_pool2d(image, 4).flatten(1))  # type: ignore[no-any-return]

        def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
            there = (text != 0).unsqueeze(2)
            return (self.token_embedding(text) * there).sum(1)  # type: ignore[no-any-return]

    class Words:
        """The face of open_clip's own tokenizer: begins with 1, ends with 2, and fills up with 0."""

        encoder: ClassVar = {
            word: at
            for at, word in enumerate(("pad", "start", "end", "a", "photo", "of", "the", "red", *NAMES, "unknown"))
        }

        def __call__(self, texts: list[str], context_length: int) -> Tensor:
            rows = torch.zeros(len(texts), context_length, dtype=torch.long)
            for row, text in zip(rows, texts, strict=True):
                words = text.replace(".", " ").split()
                ids = [1, *(self.encoder.get(word, len(self.encoder) - 1) for word in words), 2]
                if len(ids) > context_length:
                    ids = [*ids[: context_length - 1], 2]
                row[: len(ids)] = torch.tensor(ids)
            return rows

    def create_model(name: str, *, pretrained: str | None, precision: str, pretrained_hf: bool) -> nn.Module:
        if pretrained == "laion2b":
            raise OSError("no route to host")
        model = TwoTowers(bias="SigLIP" in name)
        if pretrained and pretrained != "openai":
            model.load_state_dict(load_file(pretrained))
        return model

    made = types.ModuleType("open_clip")
    made.__dict__.update(
        list_models=lambda: ["ViT-B-32", "ViT-B-16-SigLIP"],
        list_pretrained_tags_by_model=lambda name: ["openai", "laion2b"],
        create_model=create_model,
        get_tokenizer=lambda name: Words(),
    )
    return made


def classifiers() -> dict[str, types.ModuleType]:
    """torchvision and timm, whose `resnet50` knows the classes NAMES by its stored weights."""
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        """A stem and a classifier."""

        def __init__(self, num_classes: int = 1000) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 8, 8)
            self.fc = nn.Linear(8 * 4, num_classes)
            self.num_classes = num_classes

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv1(x).relu().flatten(1))  # type: ignore[no-any-return]

    def stored() -> Net:
        torch.manual_seed(5)
        return Net(len(NAMES))

    class Transforms:
        crop_size, resize_size, interpolation = [SIZE], [18], "bilinear"
        mean, std = list(MEAN), list(STD)

    class Weights(enum.Enum):
        V1 = "stored"
        GONE = "gone"
        DEFAULT = "stored"

        @property
        def meta(self) -> dict[str, Any]:
            return {"categories": list(NAMES)}

        def transforms(self) -> Transforms:
            return Transforms()

        def get_state_dict(self, **options: Any) -> dict[str, Tensor]:
            assert options["weights_only"] and options["check_hash"]
            if self is Weights.GONE:
                raise URLError("no route to host")
            return stored().state_dict()

    def create_model(name: str, pretrained: bool = False, num_classes: int | None = None, **options: Any) -> nn.Module:
        model: Any = stored() if pretrained else Net(1000 if num_classes is None else num_classes)
        if name == "dino":
            model.fc, model.num_classes = nn.Identity(), 0
        model.pretrained_cfg = {
            "mean": MEAN, "std": STD, "input_size": (3, SIZE, SIZE), "crop_pct": 0.875, "interpolation": "bicubic",
        }  # fmt: skip
        return model  # type: ignore[no-any-return]

    torchvision, models, timm = (types.ModuleType(name) for name in ("torchvision", "torchvision.models", "timm"))
    models.__dict__.update(
        list_models=lambda module: ["resnet50"],
        get_model=lambda name, *, weights, num_classes=1000, **options: Net(num_classes),
        get_model_weights=lambda name: Weights,
    )
    torchvision.__dict__["models"] = models
    timm.__dict__.update(
        list_models=lambda: ["resnet50", "dino", "untrained"],
        list_pretrained=lambda pattern: ["resnet50.v1"],
        is_model_pretrained=lambda name: name != "untrained",
        create_model=create_model,
    )
    return {"torchvision": torchvision, "torchvision.models": models, "timm": timm}


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All three, in the place of those that are installed."""
    from rhostream.samples.tokenizers import find_tokenizer

    for name, module in {"open_clip": open_clip(), **classifiers()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    find_tokenizer.cache_clear()
    yield
    find_tokenizer.cache_clear()
