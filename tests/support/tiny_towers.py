"""Models of transformers' with towers of image and text in their smallest, random, as folders; and their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

SIZE, LENGTH = 16, 8  # pixels of a side, tokens
WORDS = ("a", "photo", "of", "the", "plum", "iron", "gull", "oboe", "red", "small", ".")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
_TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_tokenizer(folder: Path, words: tuple[str, ...] = WORDS, more: int = 0) -> None:
    """Of whole words in small letters, begun and ended as CLIP's are; `more` ids that no word has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    named = ("[UNK]", "[SOT]", "[EOT]", *words, *(f"[{n}]" for n in range(more)))
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(named)}, "[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[SOT] $A [EOT]", special_tokens=[("[SOT]", 1), ("[EOT]", 2)])
    names = {"pad_token": "[EOT]", "unk_token": "[UNK]", "bos_token": "[SOT]", "eos_token": "[EOT]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)


def save_towers(folder: Path, family: str, seed: int = 0) -> Path:
    """A `clip` or `siglip` with all its files."""
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(seed)
    text = {"vocab_size": 3 + len(WORDS), "max_position_embeddings": LENGTH, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 2, **_TOWER}  # fmt: skip
    vision = {"image_size": SIZE, "patch_size": 8, **_TOWER}
    normal = {"image_mean": list(MEAN), "image_std": list(STD)}
    if family == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, **normal
        )
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        processor = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, **normal)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # initialised, two towers are all but constant
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel."""
    pytest.importorskip("transformers", reason="pip install 'rhostream[hf]'")
    return save_towers(tmp_path_factory.mktemp("clip") / "tiny", "clip")


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SiglipModel."""
    pytest.importorskip("transformers", reason="pip install 'rhostream[hf]'")
    return save_towers(tmp_path_factory.mktemp("siglip") / "tiny", "siglip")
