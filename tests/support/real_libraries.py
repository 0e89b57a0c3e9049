"""Run in the environment open-clip (tests/support/environments.py): what is made of their models is what they make.

python -m tests.support.real_libraries FOLDER          it holds shards/, pictures of four classes
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = ("plum", "iron", "gull", "oboe")
TINY: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def towers_and_zero_shot(folder: Path) -> None:
    """Both families, tiny and random: vectors, tokens, weights, and il by open_clip's own zero-shot classifier."""
    import open_clip
    from safetensors.torch import save_file

    from rhostream.irreducible.compute import compute_il
    from rhostream.models.by_name import find_stored
    from rhostream.models.towers import Towers, find_towers
    from rhostream.samples.text import TextKind
    from rhostream.stream.open import open_stream

    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    (folder / "tiny-biased.json").write_text(json.dumps({**TINY, "custom_text": True, "init_logit_bias": -10}))
    open_clip.add_model_config(folder)
    for name, loss in (("tiny-clip", "clip"), ("tiny-biased", "siglip")):
        torch.manual_seed(0)
        random = find_towers(f"open_clip:{name}")
        assert (random.loss, random.stored, random.text_length, random.image_size) == (loss, False, 12, 16)
        assert random.vocabulary == 49408 and random.mean == open_clip.OPENAI_DATASET_MEAN
        with torch.no_grad():
            for parameter in random.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        save_file(random.model.state_dict(), folder / f"{name}.safetensors")
        reference = f"open_clip:{name}/{folder / name}.safetensors"
        stored = find_stored(reference)
        assert isinstance(stored, Towers) and stored.stored
        for key, value in stored.model.state_dict().items():
            assert torch.equal(value, random.model.state_dict()[key])
        compute_il([str(folder / "shards")], out=str(folder / name), reference=reference, class_names=",".join(NAMES))
        model = stored.model.eval()
        tokenizer, templates = open_clip.SimpleTokenizer(context_length=12), ["a photo of a {}."]
        classifier = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, templates, device="cpu")
        buffer = next(iter(open_stream([str(folder / "shards")], str(folder / name), buffer_size=40)))
        with torch.no_grad():
            logits = model.logit_scale.exp() * model.encode_image(buffer.input, normalize=True) @ classifier  # type: ignore[operator]
        expected = torch.nn.functional.cross_entropy(logits, buffer.label, reduction="none")
        assert torch.allclose(buffer.il, expected, atol=1e-4), (buffer.il - expected).abs().max()
    kind, row = TextKind.of_tokenizer("open_clip:tiny-clip", 12), np.zeros(12, np.int32)
    for text in ("A photo of a plum, on the table.", "word " * 40):
        assert kind.decode({"text": text.encode()}, {"tokens": row}) == "ok"
        assert row.tolist() == open_clip.get_tokenizer("tiny-clip")([text])[0].tolist()


def classifiers(folder: Path) -> None:
    """Of a file with four classes, and torchvision's own weights from its cache."""
    import timm
    from safetensors.torch import save_file
    from torchvision import models as zoo

    from rhostream.errors import RhostreamError
    from rhostream.models.zoo import stored_from_zoo

    x = torch.randn(2, 3, 64, 64)
    for library, make in (("timm", timm.create_model), ("torchvision", zoo.get_model)):
        theirs = make("resnet18", num_classes=4).eval()
        save_file(theirs.state_dict(), folder / "w.safetensors")
        ours = stored_from_zoo(f"{library}:resnet18@{folder / 'w.safetensors'}")
        assert ours.classes == 4 and torch.allclose(ours.model.eval()(x), theirs(x), atol=1e-5)
        cut = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
        save_file(cut, folder / "w.safetensors")
        try:
            stored_from_zoo(f"{library}:resnet18@{folder / 'w.safetensors'}")
        except RhostreamError as exc:
            assert "fc.weight" in str(exc)
        else:
            raise AssertionError("a classifier was drawn at random")
    os.environ["TORCH_HOME"] = str(folder)
    cache, weights = folder / "hub" / "checkpoints", zoo.ResNet18_Weights.IMAGENET1K_V1
    cache.mkdir(parents=True)
    theirs = zoo.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), cache / weights.url.rpartition("/")[2])
    ours = stored_from_zoo("torchvision:resnet18")
    assert ours.classes == 1000 and ours.labels[0] == "tench" and torch.equal(ours.model.eval()(x), theirs(x))
    assert ours.seen.image_size == 224 and ours.seen.mean == (0.485, 0.456, 0.406) and "88%" in ours.seen.doubts[0]
    assert timm.is_model_pretrained("resnet18") and timm.is_model_pretrained("resnet18.a1_in1k")
    config = timm.create_model("resnet18").pretrained_cfg
    assert {"mean", "std", "input_size", "crop_pct", "interpolation"} <= {*config}


if __name__ == "__main__":
    towers_and_zero_shot(Path(sys.argv[1]))
    classifiers(Path(sys.argv[1]))
    print("as they make them themselves")
