"""Models of image and text by name: what a folder or a library gives is what its own library makes of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rhostream.errors import MissingExtraError, UnknownNameError, UsageError
from rhostream.models.towers import Towers, find_towers, is_towers
from rhostream.samples.text import TextKind
from tests.support.libraries import libraries  # noqa: F401  # a fixture
from tests.support.tiny_towers import LENGTH, MEAN, SIZE, STD, WORDS

VOCABULARY = 3 + len(WORDS)
FITTING = {"image_size": SIZE, "channels": 3, "vocabulary": VOCABULARY, "length": LENGTH}


def unit(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(x, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_vectors_compared_are_the_logits_of_transformers(family: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder: Path = request.getfixturevalue(f"{family}_folder")
    towers, theirs = find_towers(f"hf:{folder}"), AutoModel.from_pretrained(str(folder)).eval()
    assert (towers.loss, towers.stored, towers.exact_length) == (family, True, family == "siglip")
    assert towers.resize == ("crop" if family == "clip" else "squash")
    assert (towers.image_size, towers.channels, towers.text_length) == (SIZE, 3, LENGTH)
    assert towers.mean == MEAN and towers.std == STD and towers.vocabulary == VOCABULARY
    texts = ["a photo of the plum", "gull", "red small iron . a photo of the oboe of the gull"]
    kind = TextKind.of_tokenizer(towers.tokenizer, towers.text_length)
    rows = np.zeros((3, LENGTH), np.int32)
    assert [kind.decode({"text": t.encode()}, {"tokens": row}) for t, row in zip(texts, rows, strict=True)] == [
        "ok"
    ] * 3
    given = AutoTokenizer.from_pretrained(str(folder))(texts, padding="max_length", max_length=LENGTH, truncation=True)
    assert rows.tolist() == given["input_ids"]
    pixels, model = torch.randn(4, 3, SIZE, SIZE), towers.model.eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(given["input_ids"]), pixel_values=pixels).logits_per_image
        image, text = unit(model.encode_image(pixels)), unit(model.encode_text(torch.from_numpy(rows).long()))
        bias = 0.0 if model.logit_bias is None else model.logit_bias
        assert torch.allclose(model.logit_scale.exp() * image @ text.T + bias, expected, atol=1e-5)
    assert expected.std() > 0.01
    assert (model.logit_bias is None) == (family == "clip") and isinstance(model.logit_scale, nn.Parameter)


@pytest.mark.slow
def test_what_is_filled_up_means_nothing_to_clip(clip_folder: Path) -> None:
    model = find_towers(f"hf:{clip_folder}").model.eval()
    ids = torch.tensor([[1, 4, 5, 2]])
    filled = nn.functional.pad(ids, (0, LENGTH - 4), value=2)
    assert torch.allclose(model.encode_text(ids), model.encode_text(filled), atol=1e-5)


@pytest.mark.slow
def test_without_its_weights_the_config_alone_is_read(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    towers = find_towers(f"hf:{tmp_path / 'm'}", initial=False)
    assert not towers.stored
    stored = find_towers(f"hf:{clip_folder}")
    towers.model.load_state_dict(stored.model.state_dict())
    with pytest.raises(UsageError, match=r"can't be loaded.*model\.safetensors"):
        find_towers(f"hf:{tmp_path / 'm'}")


@pytest.mark.slow
def test_weights_that_are_not_there_are_never_drawn_at_random(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "m")
    state = load_file(tmp_path / "m" / "model.safetensors")
    for change in (None, torch.zeros(9, 16)):
        altered = {name: t for name, t in state.items() if name != "visual_projection.weight"}
        altered |= {} if change is None else {"visual_projection.weight": change}
        save_file(altered, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UsageError, match=r"visual_projection\.weight"):
            find_towers(f"hf:{tmp_path / 'm'}")


@pytest.mark.slow
def test_what_is_no_pair_of_towers_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UsageError, match=r"is of the type bert, expected.*clip, siglip"):
        find_towers(f"hf:{tmp_path / 'm'}")
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "model_type": "of_mine"}))
    with pytest.raises(UsageError, match="can't be loaded"):
        find_towers(f"hf:{tmp_path / 'm'}")
    with pytest.raises(UsageError, match="no such folder"):
        find_towers(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    assert "mean and deviation are taken as 0.5" in find_towers(f"hf:{tmp_path / 'm'}").doubts[0]


def test_names_say_which_library_and_others_have_no_towers() -> None:
    assert is_towers("hf:x") and is_towers("open_clip:ViT-B-32") and not is_towers("timm:resnet50")
    with pytest.raises(UnknownNameError, match="hf:NAME or open_clip:NAME"):
        find_towers("resnet18-small")
    for name in ("open_clip:", "open_clip:ViT-B-32/", "open_clip:hf-hub:someone/model", "open_clip:/x"):
        with pytest.raises(UsageError, match="expected open_clip:NAME"):
            find_towers(name)


def test_a_library_that_is_missing_or_broken_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == "open_clip"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingExtraError, match="pip install open_clip_torch"):
        find_towers("open_clip:ViT-B-32")
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms')")
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(UsageError, match=r"doesn't load.*nms"):
        find_towers("open_clip:ViT-B-32")


# -- a stand-in of open_clip -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("libraries")
def test_open_clips_models_say_what_they_take(tmp_path: Path) -> None:
    towers = find_towers("open_clip:ViT-B-32")
    assert (towers.loss, towers.stored, towers.exact_length) == ("clip", False, True)
    assert (towers.image_size, towers.text_length, towers.vocabulary) == (SIZE, LENGTH, 50)
    assert (towers.mean, towers.std, towers.resize) == (MEAN, STD, "squash")
    assert towers.tokenizer == "open_clip:ViT-B-32" and find_towers("open_clip:ViT-B-16-SigLIP").loss == "siglip"
    weights = tmp_path / "w.safetensors"
    save_file(towers.model.state_dict(), weights)
    again = find_towers(f"open_clip:ViT-B-32/{weights}")
    assert again.stored and torch.equal(again.model.visual.weight, towers.model.visual.weight)  # type: ignore[arg-type, union-attr]
    assert not find_towers(f"open_clip:ViT-B-32/{weights}", initial=False).stored


@pytest.mark.usefixtures("libraries")
def test_open_clips_tokenizer_cuts_and_fills_up_as_it_does() -> None:
    kind, row = TextKind.of_tokenizer("open_clip:ViT-B-32", LENGTH), np.zeros(LENGTH, np.int32)
    assert (kind.vocabulary, kind.padding) == (13, 0) and len(kind.digest) == 16
    for text, ids in (("a plum", [1, 3, 8, 2, 0, 0, 0, 0]), ("a plum " * 5, [1, 3, 8, 3, 8, 3, 8, 2])):
        assert kind.decode({"text": text.encode()}, {"tokens": row}) == "ok"
        assert row.tolist() == ids


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("ViT-B-33", UnknownNameError, "did you mean 'ViT-B-32'"),
        ("ViT-B-32/openia", UnknownNameError, "did you mean 'openai'"),
        ("ViT-B-32/laion2b", Exception, "can't be had: no route to host.*name a file"),
        ("ViT-B-32/w.pt", UsageError, "pickles are never loaded"),
        ("ViT-B-32/nowhere/w.safetensors", UsageError, "no file nowhere/w"),
    ],
)
def test_a_name_that_open_clip_lacks_is_one_sentence(name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        find_towers(f"open_clip:{name}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_size": 32}, "16 pixels.*--image-size 16"),
        ({"channels": 1}, "3 channels.*--channels 3"),
        ({"vocabulary": 99}, f"knows {VOCABULARY} ids.*makes 99.*--tokenizer bytes"),
        ({"length": 9}, "takes 8 tokens, and texts have 9.*--text-length 8"),
        ({"length": 7}, "takes 8 tokens, and texts have 7"),
    ],
)
def test_samples_that_towers_can_not_take_are_refused_with_both_numbers(change: dict[str, int], says: str) -> None:
    given: dict[str, Any] = {"text_length": LENGTH, "vocabulary": VOCABULARY, "image_size": SIZE, "channels": 3}
    towers = Towers(name="hf:x", model=nn.Identity(), loss="siglip", tokenizer="bytes", exact_length=True, mean=MEAN,
                    std=STD, resize="crop", stored=True, **given)  # fmt: skip
    towers.require_fitting(**FITTING)
    with pytest.raises(UsageError, match=says):
        towers.require_fitting(**{**FITTING, **change})
