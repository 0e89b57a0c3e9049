"""il of libraries' models by name: their stored weights, their own preprocessing, and classes that are told apart by
name. The libraries are stand-ins; transformers' real models are made tiny, and slow to import."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rhostream
from rhostream.advisor.estimate import estimate
from rhostream.advisor.render import render
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.errors import MismatchError, MissingExtraError, StorageError, TableError, UsageError
from rhostream.irreducible.compute import compute_il
from rhostream.models.by_name import find_stored
from rhostream.models.towers import find_towers
from rhostream.repair import repair
from rhostream.samples.tokenizers import find_tokenizer
from rhostream.tables import il
from tests.support.command import command
from tests.support.libraries import NAMES, libraries  # noqa: F401  # a fixture
from tests.support.shards import png, write_shard
from tests.support.tables import parts, rows
from tests.support.text_world import make_text_shards, npy
from tests.support.tiny_towers import LENGTH, MEAN, SIZE, STD, save_tokenizer

LISTED = ",".join(NAMES)
OWN = "tests.support.own_references:"
CLIP, SIGLIP = "open_clip:ViT-B-32/openai", "open_clip:ViT-B-16-SigLIP/openai"
simulated = pytest.mark.usefixtures("libraries")


def coloured(number: int, rng: np.random.Generator, names: tuple[str, ...]) -> dict[str, object]:
    label = number % len(NAMES)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    named = {"label_name": names[label]} if names else {}
    return {"__key__": f"c{number:04d}", "png": png(pixels), "cls": str(label), "json": {"number": number, **named}}


def make(folder: Path, names: tuple[str, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    for at in range(2):
        write_shard(folder / f"train-{at:03d}.tar", [coloured(20 * at + n, rng, names) for n in range(20)])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 coloured squares of four classes without names."""
    return make(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, each with the name of its class."""
    return make(tmp_path_factory.mktemp("named"), NAMES)


def stored(folder: Path) -> list[tuple[np.ndarray[Any, Any], int]]:
    """(pixels (3, H, W) as a model of MEAN and STD sees them, label) of every sample, straight from the tars."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        for key in sorted({name.partition(".")[0] for name in members}):
            pixels = np.asarray(Image.open(io.BytesIO(members[f"{key}.png"])), np.float64) / 255
            found.append((((pixels - MEAN) / STD).transpose(2, 0, 1), int(members[f"{key}.cls"])))
    return found


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())  # type: ignore[no-any-return]


def zero_shot_by_hand(name: str, folder: Path, prompts: list[str]) -> list[tuple[float, int]]:
    """(il, predicted) of each sample by a literal double loop in float64."""
    towers = find_towers(name)
    model, encode = towers.model.double().eval(), find_tokenizer(towers.tokenizer).encode
    assert encode is not None
    means = []
    for word in NAMES:
        units = []
        for prompt in prompts:
            ids = encode(prompt.replace("{}", word), LENGTH)
            vector = model.encode_text(torch.tensor([ids + [0] * (LENGTH - len(ids))]))[0].detach().numpy()  # type: ignore[operator]
            units.append(vector / np.linalg.norm(vector))
        mean = sum(units) / len(units)
        means.append(mean / np.linalg.norm(mean))
    found, a = [], float(model.logit_scale.detach().exp())  # type: ignore[operator]
    for pixels, label in stored(folder):
        image = model.encode_image(torch.from_numpy(pixels[None]))[0].detach().numpy()  # type: ignore[operator]
        logits = np.array([a * float(image @ mean) / np.linalg.norm(image) for mean in means])
        found.append((-log_softmax(logits)[label], int(logits.argmax())))
    return found


@simulated
@pytest.mark.parametrize("name", [CLIP, SIGLIP])
def test_zero_shot_il_is_the_cross_entropy_of_scaled_cosines_by_a_literal_double_loop(
    name: str, pictures: Path, tmp_path: Path
) -> None:
    prompts = ["a photo of a {}.", "the {}", "red {} of the {}"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts) + "\n")
    asked: dict[str, Any] = {"reference": name, "class_names": LISTED, "prompts": str(tmp_path / "prompts.txt")}
    compute_il([str(pictures)], out=str(tmp_path / "il"), **asked)
    expected, found = zero_shot_by_hand(name, pictures, prompts), rows(tmp_path / "il")
    assert [row["il"] for row in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [row["predicted"] for row in found] == [predicted for _, predicted in expected]
    info = il.open_info(str(tmp_path / "il"))
    assert info.classes == 4 and info.class_names == dict(enumerate(NAMES)) and info.reference["prompts"] == prompts
    assert info.preprocess is not None and info.model["learned_from"] == "unknown" and info.model["macs"] > 0
    assert info.preprocess["mean"] == list(MEAN) and info.preprocess["resize"] == "squash"


@simulated
def test_whatever_decides_a_zero_shot_il_is_in_its_identity(pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    state = find_towers(CLIP).model.state_dict()
    save_file({**state, "logit_scale": torch.tensor(1.0)}, weights)
    (tmp_path / "p.txt").write_text("the {}")
    identities = []
    for number, change in enumerate(
        ({}, {"prompts": str(tmp_path / "p.txt")}, {"class_names": "iron,plum,gull,oboe"},
         {"reference": f"open_clip:ViT-B-32/{weights}"}, {"mean": (0.1, 0.2, 0.3)})
    ):  # fmt: skip
        asked: dict[str, Any] = {"reference": CLIP, "class_names": LISTED, **change}
        compute_il([str(pictures)], out=str(tmp_path / str(number)), **asked)
        identities.append(il.open_info(str(tmp_path / str(number))).reference["identity"])
    assert len({*identities}) == 5
    compute_il([str(pictures)], out=str(tmp_path / "again"), reference=CLIP, class_names=LISTED)
    assert il.open_info(str(tmp_path / "again")).reference["identity"] == identities[0]
    assert parts(tmp_path / "again") == parts(tmp_path / "0")


@simulated
def test_the_table_keeps_names_and_prompts_so_that_who_goes_on_or_repairs_names_the_reference_alone(
    pictures: Path, tmp_path: Path
) -> None:
    table, shards = tmp_path / "il", [str(pictures)]
    (tmp_path / "p.txt").write_text("the {}")
    compute_il(shards, out=str(table), reference=CLIP, class_names=LISTED, prompts=str(tmp_path / "p.txt"))
    before = parts(table)
    (tmp_path / "p.txt").unlink()
    next(table.rglob("train-001*.parquet")).unlink()
    assert "--reference open_clip:ViT-B-32/openai" in str(status_of(str(table), shards)["next"])
    compute_il(shards, out=str(table), reference=CLIP)
    assert parts(table) == before
    next(table.rglob("train-001*.parquet")).write_bytes(b"")
    assert repair(str(table), shards=shards, reference=CLIP)["problems"] == []
    assert parts(table) == before and any("unknown" in says for says in verify(str(table))["warnings"])
    with pytest.raises(MismatchError, match=r"reference"):
        compute_il(shards, out=str(table), reference=SIGLIP)
    text = (table / "_table.json").read_text()
    (table / "_table.json").write_text(text.replace('"the {}"', "7"))
    with pytest.raises(TableError, match="a prompt is a int"):
        il.open_info(str(table))


@simulated
def test_a_text_longer_than_the_model_reads_is_cut_as_its_tokenizer_does_and_told_once(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.txt").write_text("a photo of the red red red red {}\nthe {}\n")
    with caplog.at_level(logging.WARNING, "rhostream"):
        compute_il(
            [str(pictures)], out=str(tmp_path / "il"), reference=CLIP, class_names=LISTED,
            prompts=str(tmp_path / "p.txt"),
        )  # fmt: skip
    assert caplog.text.count("4 of 8 texts") == 1 and "than the 8 tokens" in caplog.text


@simulated
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class_names": None}, "give these with --class-names FILE"),
        ({"class_names": "plum,iron,gull"}, r"names 3 classes.*there are 4"),
        ({"class_names": "plum,,gull,oboe"}, "label 1 no name"),
        ({"class_names": "plum,iron,plum,oboe"}, "labels 0 and 2 are both called 'plum'"),
        ({"image_size": 32}, r"16 pixels.*32.*--image-size 16"),
        ({"prompts": "a photo"}, r"line 2.*'a photo' has no {}"),
        ({"prompts": "a {}"}, r"line 3.*'a {}' stands there twice"),
        ({"prompts": None}, "0 templates"),
        ({"reference": "open_clip:ViT-B-32"}, "has random weights"),
        ({"reference_id": "mine"}, "proved by its weights"),
        ({"tokenizer": "bytes"}, r"--tokenizer bytes.*are for|--tokenizer bytes"),
        ({"task": "language"}, "--task language is for text"),
    ],
)
def test_what_zero_shot_can_not_be_is_refused_before_a_shard_is_read(
    change: dict[str, Any], says: str, pictures: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"reference": CLIP, "class_names": LISTED, "classes": 4, **change}
    if "prompts" in change:
        lines = ["", *([change["prompts"]] * 2)] if change["prompts"] else [""]
        (tmp_path / "p.txt").write_text("\n".join(lines))
        asked["prompts"] = str(tmp_path / "p.txt")
    with pytest.raises(UsageError, match=says):
        compute_il([str(pictures)], out=str(tmp_path / "il"), **asked)
    assert not (tmp_path / "il").exists()


# -- classifiers -------------------------------------------------------------------------------------------------------


@simulated
@pytest.mark.parametrize("name", ["torchvision:resnet50", "torchvision:resnet50@V1", "timm:resnet50", "file"])
def test_a_classifiers_il_is_that_of_its_stored_weights_on_pixels_as_it_knows_them(
    name: str, named: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}
    if name == "file":
        save_file(find_stored("timm:resnet50").model.state_dict(), tmp_path / "w.safetensors")  # type: ignore[union-attr]
        name, asked = f"timm:resnet50@{tmp_path / 'w.safetensors'}", {"mean": MEAN, "std": STD}
    compute_il([str(named)], out=str(tmp_path / "il"), reference=name, **asked)
    model = find_stored("timm:resnet50").model.double()  # type: ignore[union-attr]
    logits = [model(torch.from_numpy(pixels[None]))[0].detach().numpy() for pixels, _ in stored(named)]
    expected = [-log_softmax(z)[label] for z, (_, label) in zip(logits, stored(named), strict=True)]
    found, info = rows(tmp_path / "il"), il.open_info(str(tmp_path / "il"))
    assert [row["il"] for row in found] == pytest.approx(expected, abs=1e-4)
    assert info.classes == 4 and info.preprocess is not None and info.preprocess["mean"] == list(MEAN)
    assert (info.class_names == dict(enumerate(NAMES))) == name.startswith("torchvision")


@simulated
def test_what_a_model_says_of_its_pictures_is_taken_and_the_rest_is_said(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rhostream"):
        compute_il([str(pictures)], out=str(tmp_path / "il"), reference="timm:resnet50")
    assert "the middle 88%" in caplog.text and "bicubic" in caplog.text and "it was made for" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "rhostream"):
        compute_il([str(pictures)], out=str(tmp_path / "other"), reference="timm:resnet50", resize="squash")
    assert "made for resize crop, these samples have squash" in caplog.text
    save_file(find_stored("timm:resnet50").model.state_dict(), tmp_path / "w.safetensors")  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING, "rhostream"):
        compute_il([str(pictures)], out=str(tmp_path / "f"), reference=f"timm:resnet50@{tmp_path / 'w.safetensors'}")
    assert "doesn't say how its images are normalised" in caplog.text


@simulated
def test_classes_that_differ_are_told_with_both_numbers_and_by_name(
    pictures: Path, named: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"out": str(tmp_path / "il"), "reference": "torchvision:resnet50"}
    with pytest.raises(UsageError, match=r"4 logits \(plum, iron, gull, \.\.\.\), and there are 9 classes"):
        compute_il([str(pictures)], classes=9, **asked)
    with pytest.raises(UsageError, match=r"gives 4 logits.*there are 2 classes by --class-names"):
        compute_il([str(pictures)], class_names="plum,iron", **asked)
    with pytest.raises(MismatchError, match=r"label 1 is 'zinc' in --class-names and 'iron' in reference"):
        compute_il([str(pictures)], class_names="plum,zinc,gull,oboe", **asked)
    other = make(tmp_path / "other", ("plum", "gull", "iron", "oboe"))
    with pytest.raises(MismatchError, match=r"label [12] is '(iron|gull)' in the reference.*'(iron|gull)' in"):
        compute_il([str(other)], **asked)
    shutil.copytree(pictures, tmp_path / "listed")
    for names, says in ((["plum", "gull", "iron", "oboe"], "label 1 is 'iron' in reference"),
                        ([*NAMES, "fife"], "gives 4 logits.*there are 5 classes|gives 4 logits")):  # fmt: skip
        (tmp_path / "listed" / "classes.json").write_text(json.dumps(names))
        with pytest.raises(UsageError, match=says):
            compute_il([str(tmp_path / "listed")], **{**asked, "out": str(tmp_path / "other-il")})
    (tmp_path / "listed" / "classes.json").write_text(json.dumps([*NAMES, "fife"]))
    with pytest.raises(UsageError, match=r"--class-names names 4 classes, and .*classes\.json 5"):
        compute_il([str(tmp_path / "listed")], out=str(tmp_path / "z"), reference=CLIP, class_names=LISTED)
    assert not parts(tmp_path / "il")


@simulated
def test_fewer_classes_than_the_weights_know_are_doubted_at_the_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    few = [s for n in range(60) if (s := coloured(n, rng, ()))["cls"] in ("0", "1")]
    write_shard(tmp_path / "few" / "a.tar", few)
    account = compute_il([str(tmp_path / "few")], out=str(tmp_path / "il"), reference="timm:resnet50")
    assert any("labels go up to 1, and the reference knows 4 classes" in doubt for doubt in account.doubts)


@simulated
@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("torchvision:resnet50@GONE", StorageError, "can't be had: .*no route to host"),
        ("torchvision:resnet50@V9", UsageError, "known: DEFAULT, GONE, V1"),
        ("torchvision:resnet51", UsageError, "did you mean resnet50"),
        ("torchvision:", UsageError, "expected torchvision:NAME"),
        ("timm:resnet50@v9", UsageError, "known: v1"),
        ("timm:untrained", UsageError, "no stored weights of it"),
        ("timm:dino", UsageError, "stored without a classifier"),
        ("timm:hf-hub:someone/model", UsageError, "expected timm:NAME"),
        ("hf:./nowhere", UsageError, "no such folder"),
        ("open_clip:ViT-B-32/laion2b", StorageError, "can't be had: no route to host"),
    ],
)
def test_a_reference_that_can_not_be_had_is_one_sentence(
    name: str, error: type[Exception], says: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        compute_il([str(pictures)], out=str(tmp_path / "il"), reference=name, class_names=LISTED)


@simulated
def test_a_classifier_without_its_head_is_refused_and_never_drawn_at_random(pictures: Path, tmp_path: Path) -> None:
    state = find_stored("timm:resnet50").model.state_dict()  # type: ignore[union-attr]
    for dropped in ("fc.weight", "fc.bias", "conv1.weight"):
        save_file({name: tensor for name, tensor in state.items() if name != dropped}, tmp_path / "w.safetensors")
        for library in ("timm", "torchvision"):
            with pytest.raises(MismatchError, match=rf"lacks {dropped}"):
                find_stored(f"{library}:resnet50@{tmp_path / 'w.safetensors'}")


def test_a_library_that_is_missing_is_one_sentence(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for library in ("timm", "open_clip", "torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    for name in ("timm:x", "open_clip:x/y", "torchvision:x", "hf:x"):
        with pytest.raises((MissingExtraError, UsageError), match="pip install"):
            compute_il([str(pictures)], out="never", reference=name)


@simulated
def test_rho_trains_on_zero_shot_il_and_the_command_line_takes_it_all(
    pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    out, run = tmp_path / "il", tmp_path / "run"
    command(capsys, "compute-il", "--shards", pictures, "--out", out, "--reference", CLIP, "--class-names",
            tmp_path / "names.txt")  # fmt: skip
    sizes: dict[str, Any] = {"buffer_size": 10, "batch_size": 5, "model": "mlp-64", "steps": 2, "threads": 1}
    rhostream.train([str(pictures)], str(out), str(run), **sizes)
    assert verify(str(run))["problems"] == []
    said = command(capsys, "status", out)[0]
    assert CLIP in said and "unknown" in said


@simulated
def test_the_advisor_charges_no_fit_for_a_reference_and_times_its_own_forward(pictures: Path) -> None:
    asked: dict[str, Any] = {"shards": [str(pictures)], "model": "mlp-64", "seconds": 0.5, "classes": 4}
    for name, macs in (("timm:resnet50", 8 * 192 * 4 + 32 * 4), (CLIP, 48 * 8), (OWN + "bright", 1)):
        found = estimate(**asked, reference=name)
        assert (found.il.trained, found.il.checked, found.il.pooled, found.il.scored) == (
            0,
            0,
            0,
            found.setting.samples,
        )
        assert found.il_model == name and found.measured.il_macs == macs and found.measured.il_forward > 0
        said = " ".join(render(found).split())
        assert f"compute-il ({name}, no fit)" in said and "its own forward was timed" in said
    with pytest.raises(UsageError, match="not both"):
        estimate(**asked, reference=CLIP, il_model="mlp-64")


# -- transformers' real models -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_zero_shot_with_transformers_is_what_its_own_model_gives(
    family: str, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder: Path = request.getfixturevalue(f"{family}_folder")
    compute_il([str(pictures)], out=str(tmp_path / "il"), reference=f"hf:{folder}", class_names=LISTED)
    texts = AutoTokenizer.from_pretrained(str(folder))(
        [f"a photo of a {name}." for name in NAMES], padding="max_length", max_length=LENGTH, truncation=True
    )["input_ids"]
    model = AutoModel.from_pretrained(str(folder)).eval()
    samples = stored(pictures)
    pixels = torch.stack([torch.from_numpy(pixels).float() for pixels, _ in samples])
    with torch.no_grad():  # SigLIP's bias is the same for every class
        logits = model(input_ids=torch.tensor(texts), pixel_values=pixels).logits_per_image.double().numpy()
    expected = [-log_softmax(z)[label] for z, (_, label) in zip(logits, samples, strict=True)]
    assert [row["il"] for row in rows(tmp_path / "il")] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_towers_whose_tokenizer_is_another_or_none_are_refused(
    clip_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(clip_folder, tmp_path / "m")
    asked: dict[str, Any] = {"reference": f"hf:{tmp_path / 'm'}", "class_names": LISTED, "out": str(tmp_path / "il")}
    save_tokenizer(tmp_path / "m", more=5)
    with pytest.raises(UsageError, match=r"knows 14 ids, the tokenizer makes 19"):
        compute_il([str(pictures)], **asked)
    find_tokenizer.cache_clear()
    for path in (tmp_path / "m").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match="no file of a tokenizer"):
        compute_il([str(pictures)], **asked)


def save_classifier(folder: Path, family: str) -> Path:
    """A ViT of pictures, or an ALBERT of texts, that knows NAMES."""
    import transformers
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(2)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
    if family == "vit":
        config = transformers.ViTConfig(image_size=SIZE, patch_size=8, **small, **labels)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        size = {"height": SIZE, "width": SIZE}
        ViTImageProcessorPil(size=size, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(folder)
    else:
        config = transformers.AlbertConfig(
            vocab_size=40, embedding_size=8, max_position_embeddings=12, **small, **labels
        )
        transformers.AlbertForSequenceClassification(config).save_pretrained(folder)
        save_tokenizer(folder, more=20)
    return folder


@pytest.mark.slow
def test_a_classifier_of_pictures_by_transformers(named: Path, tmp_path: Path, clip_folder: Path) -> None:
    from transformers import AutoModelForImageClassification

    folder = save_classifier(tmp_path / "vit", "vit")
    compute_il([str(named)], out=str(tmp_path / "il"), reference=f"hf:{folder}")
    model = AutoModelForImageClassification.from_pretrained(str(folder)).eval()
    samples, found = stored(named), rows(tmp_path / "il")
    logits = model(torch.stack([torch.from_numpy(x).float() for x, _ in samples])).logits.detach().double().numpy()
    expected = [-log_softmax(z)[label] for z, (_, label) in zip(logits, samples, strict=True)]
    assert [row["il"] for row in found] == pytest.approx(expected, abs=1e-4)
    assert il.open_info(str(tmp_path / "il")).class_names == dict(enumerate(NAMES))
    other = make(tmp_path / "other", ("plum", "gull", "iron", "oboe"))
    with pytest.raises(MismatchError, match="in the reference"):
        compute_il([str(other)], out=str(tmp_path / "no"), reference=f"hf:{folder}")
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if "classifier" not in n}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lack classifier\.bias, classifier\.weight"):
        compute_il([str(named)], out=str(tmp_path / "no"), reference=f"hf:{folder}")
    make_text_shards(tmp_path / "text", [20])
    with pytest.raises(UsageError, match=r"says what its samples have to be.*text"):
        compute_il([str(tmp_path / "text")], out=str(tmp_path / "never"), reference=f"hf:{clip_folder}")


@pytest.mark.slow
def test_a_classifier_of_texts_by_transformers_reads_its_own_tokens(tmp_path: Path, named: Path) -> None:
    folder = save_classifier(tmp_path / "albert", "albert")
    make_text_shards(tmp_path / "shards", [30])
    shards, asked = [str(tmp_path / "shards")], {"reference": f"hf:{folder}"}
    compute_il(shards, out=str(tmp_path / "il"), **asked)
    info = il.open_info(str(tmp_path / "il"))
    assert info.preprocess is not None and info.preprocess["tokenizer"] == f"hf:{folder}"
    assert info.preprocess["length"] == 12 and info.classes == 4 and len(rows(tmp_path / "il")) == 30
    for change, says in (
        ({"text_length": 99}, "takes 12 tokens, --text-length is 99"),
        ({"tokenizer": "bytes"}, r"--tokenizer bytes .*ids of another tokenizer"),
        ({"task": "language"}, "gives classes"),
    ):
        with pytest.raises(UsageError, match=says):
            compute_il(shards, out=str(tmp_path / "no"), **asked, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="takes text, and these samples are images"):
        compute_il([str(named)], out=str(tmp_path / "no"), **asked)


@pytest.mark.slow
def test_a_causal_model_gives_il_of_tokens_that_are_its_own_losses(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(4)
    folder = tmp_path / "gpt"
    config = transformers.GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=1,
                                     eos_token_id=2)  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 20, int(rng.integers(3, 10))) for _ in range(12)]
    samples: list[dict[str, object]] = [{"__key__": f"t{n:02d}", "npy": npy(ids)} for n, ids in enumerate(arrays)]
    write_shard(tmp_path / "shards" / "a.tar", samples)
    shards, asked = [str(tmp_path / "shards")], {"reference": f"hf:{folder}", "text_length": 8}
    compute_il(shards, out=str(tmp_path / "il"), tokenizer="ids:20", **asked)  # type: ignore[arg-type]
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    for row, ids in zip(rows(tmp_path / "il"), arrays, strict=True):
        ids = torch.tensor([[1, *ids[:8].tolist()]])
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        assert row["il_tokens"][: len(loss)] == pytest.approx(loss.tolist(), abs=2e-3)  # as float16
        assert np.isnan(row["il_tokens"][len(loss) :]).all() and row["il"] == pytest.approx(
            float(loss.mean()), abs=1e-4
        )
    sizes: dict[str, Any] = {"buffer_size": 6, "batch_size": 3, "model": "text-lm", "steps": 2, "threads": 1}
    rhostream.train(shards, str(tmp_path / "il"), str(tmp_path / "run"), token_share=0.6, **sizes)
    for change, says in (
        ({"tokenizer": "ids:50257"}, r"knows 20 ids, and these samples are of --tokenizer ids:50257"),
        ({"tokenizer": "ids:20", "text_length": 99}, "takes 16 tokens, --text-length is 99"),
        ({"tokenizer": "ids:20", "task": "label"}, "gives language"),
        ({}, "--tokenizer ids:N"),
    ):
        with pytest.raises(UsageError, match=says):
            compute_il(shards, out=str(tmp_path / "no"), **{**asked, **change})  # type: ignore[arg-type]
