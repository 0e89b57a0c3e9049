"""A Hugging Face tokenizer and model of a local folder, made here from a tiny config: data only, never its code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rhostream
from rhostream import models
from rhostream.errors import MismatchError, UntrustedCodeError, UsageError
from rhostream.samples.text import TextKind
from rhostream.samples.tokenizers import find_tokenizer
from tests.support.text_world import COMMON, WORDS, make_text_shards

pytestmark = pytest.mark.slow  # the import alone takes seconds
LENGTH = 20


@pytest.fixture(scope="module", autouse=True)
def transformers() -> ModuleType:
    """Not imported where these tests aren't run."""
    return pytest.importorskip("transformers", reason="pip install 'rhostream[hf]'")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Tokenizers are kept by name, and here folders change under theirs."""
    find_tokenizer.cache_clear()
    yield
    find_tokenizer.cache_clear()


def save_tokenizer(transformers: ModuleType, folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def albert(transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ALBERT in its smallest: one layer, 32 wide, random weights, and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("albert")
    words = [*COMMON, *" ".join(WORDS).split(), "."]
    save_tokenizer(transformers, folder, words)
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=64,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=4,
    )
    transformers.AlbertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_the_ids_are_those_of_transformers_and_its_files_are_digested(
    transformers: ModuleType, albert: Path, tmp_path: Path
) -> None:
    preprocess, row = TextKind.of_tokenizer(f"hf:{albert}", LENGTH), np.zeros(LENGTH, np.int32)
    own = transformers.AutoTokenizer.from_pretrained(str(albert))
    for text in ("The plum and a fig.", "iron " * 50, "unheard words"):
        assert preprocess.decode({"text": text.encode()}, {"tokens": row}) == "ok"
        assert row.tolist() == own(text, truncation=True, max_length=LENGTH, padding="max_length")["input_ids"]
    assert preprocess.vocabulary == len(own) and preprocess.padding == 0 and len(preprocess.digest) == 16
    save_tokenizer(transformers, tmp_path / "other", ["plum", "fig"])
    assert TextKind.of_tokenizer(f"hf:{tmp_path / 'other'}", LENGTH).digest != preprocess.digest
    save_tokenizer(transformers, albert.parent / "moved", ["a"])
    there = TextKind.of_tokenizer(f"hf:{albert.parent / 'moved'}", LENGTH)
    save_tokenizer(transformers, albert.parent / "moved", ["b"])
    find_tokenizer.cache_clear()
    with pytest.raises(MismatchError, match="is not the one of the table or model"):
        there.with_decoder("auto")


def test_a_tokenizer_without_a_fast_form_is_taken_as_it_is(transformers: ModuleType, tmp_path: Path) -> None:
    transformers.ByT5Tokenizer().save_pretrained(tmp_path / "a")
    transformers.ByT5Tokenizer(extra_ids=9).save_pretrained(tmp_path / "b")
    kind, row = TextKind.of_tokenizer(f"hf:{tmp_path / 'a'}", 9), np.zeros(9, np.int32)
    for text in ("plum", "a fig and a quince"):
        assert kind.decode({"text": text.encode()}, {"tokens": row}) == "ok"
        expected = transformers.ByT5Tokenizer()(text, truncation=True, max_length=9, padding="max_length")["input_ids"]
        assert row.tolist() == expected
    other = TextKind.of_tokenizer(f"hf:{tmp_path / 'b'}", 9)
    assert len(kind.digest) == 16 and other.digest != kind.digest and kind.vocabulary > max(row)


def test_the_model_gives_the_logits_of_transformers_whatever_is_filled_up(
    transformers: ModuleType, albert: Path
) -> None:
    model = models.build(f"hf:{albert}", classes=4, vocabulary=64, length=LENGTH, padding=0, task="label").eval()
    theirs = transformers.AlbertForSequenceClassification.from_pretrained(str(albert)).eval()
    x = torch.randint(4, 60, (3, 9))
    filled = torch.nn.functional.pad(x, (0, 11))
    assert torch.allclose(model(x), theirs(input_ids=x).logits, atol=1e-6)
    assert torch.allclose(model(filled), model(x), atol=1e-5)
    assert models.build(f"hf:{albert}", classes=7, vocabulary=64, length=9, padding=0, task="label")(x).shape == (3, 7)


def test_the_whole_way_with_a_hugging_face_model(albert: Path, tmp_path: Path) -> None:
    make_text_shards(tmp_path / "shards", [60, 40])
    name, shards = f"hf:{albert}", [str(tmp_path / "shards")]
    info = rhostream.fit_il(shards, str(tmp_path / "m"), model=name, text_length=LENGTH, epochs=1, device="cpu")
    assert info.preprocess["tokenizer"] == name and info.preprocess["digest"] and info.architecture == name
    with pytest.raises(UntrustedCodeError, match=f"--model {name}"):
        rhostream.compute_il(shards, str(tmp_path / "m"), str(tmp_path / "il"))
    (albert / "model.safetensors").rename(albert / "aside")  # the IL model has weights of its own
    rhostream.compute_il(shards, str(tmp_path / "m"), str(tmp_path / "il"), model=name, device="cpu")
    (albert / "aside").rename(albert / "model.safetensors")
    done = rhostream.train(
        shards,
        str(tmp_path / "il"),
        str(tmp_path / "run"),
        model=name,
        buffer_size=20,
        batch_size=5,
        lr=1e-3,
        threads=1,
        device="cpu",
    )
    assert done.reasons == {"kept": 25, "below": 75}
    again = rhostream.train(
        shards,
        str(tmp_path / "il"),
        str(tmp_path / "bag"),
        model="text-bag",
        buffer_size=20,
        batch_size=5,
        tokenizer="words:100",
        text_length=8,
        threads=1,
        device="cpu",
        steps=2,
    )
    assert again.steps == 2


def test_no_code_and_no_pickle_of_a_folder_is_ever_used(albert: Path, tmp_path: Path) -> None:
    given: Any = {"classes": 4, "vocabulary": 64, "length": 9, "padding": 0, "task": "label"}
    for file in albert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    trap, config = tmp_path / "ran", json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Evil: pass\n")
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert isinstance(models.build(f"hf:{tmp_path}", **given), torch.nn.Module)  # by transformers' own class
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(UsageError, match="can't be loaded"):
        models.build(f"hf:{tmp_path}", **given)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").rename(tmp_path / "aside")
    torch.save(load_file(tmp_path / "aside"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        models.build(f"hf:{tmp_path}", **given)
    assert not trap.exists()


def test_what_does_not_fit_together_is_said(albert: Path, tmp_path: Path) -> None:
    given: Any = {"classes": 4, "vocabulary": 64, "length": 9, "padding": 0, "task": "label"}
    for change, says in (
        ({"vocabulary": 30_000}, f"knows 64 ids, its tokenizer makes 30,000.*--tokenizer hf:{albert}"),
        ({"length": 100}, "takes 32 tokens, --text-length is 100"),
        ({"task": "language"}, "can't be loaded.*AutoModelForCausalLM"),
    ):
        with pytest.raises(UsageError, match=says):
            models.build(f"hf:{albert}", **{**given, **change})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"tokenizer 'hf:.*empty' can't be loaded"):
        TextKind.of_tokenizer(f"hf:{tmp_path / 'empty'}", 9)
    save_file({"x": torch.zeros(1)}, tmp_path / "empty" / "model.safetensors")
    with pytest.raises(UsageError, match=r"model 'hf:.*empty' can't be loaded"):
        models.build(f"hf:{tmp_path / 'empty'}", **given)
