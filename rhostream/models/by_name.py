"""Models of libraries by name, as they are stored: no weight at random, and each says what its samples have to be.

    torchvision:NAME[@WEIGHTS]   timm:NAME[@WEIGHTS]   hf:NAME   open_clip:NAME/PRETRAINED

of transformers a classifier of images or text, a causal language model, or two towers; of open_clip two towers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rhostream.errors import UsageError
from rhostream.models import hub
from rhostream.models.hub import HUGGING_FACE
from rhostream.models.language import CausalLM, begin_of
from rhostream.models.stored import Stored, named_classes
from rhostream.models.text import HuggingFace
from rhostream.models.towers import OPEN_CLIP, Towers, find_towers
from rhostream.models.zoo import is_from_zoo, stored_from_zoo
from rhostream.samples.tokenizers import Tokenizer, find_tokenizer

# The end of an architecture's name in transformers -> the class that makes one, whether of pictures, what it gives.
_HEADS = {
    "ForImageClassification": ("AutoModelForImageClassification", True, "classes"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", False, "classes"),
    "ForCausalLM": ("AutoModelForCausalLM", False, "language"),
    "LMHeadModel": ("AutoModelForCausalLM", False, "language"),
}
_TOWERS = ("CLIPModel", "SiglipModel")


def find_stored(name: str) -> Stored | Towers:
    """The model of that name with its stored weights, on the CPU.

    Raises UsageError for one that has none, or is none of those, and as `find_towers` and `stored_from_zoo`.
    """
    if is_from_zoo(name):
        return stored_from_zoo(name)
    if name.startswith(OPEN_CLIP):
        towers = find_towers(name)
        if not towers.stored:
            raise UsageError(
                f"model {name!r} has random weights: name stored ones, {name}/PRETRAINED (open_clip.list_pretrained() "
                f"has them all) or {name}/weights.safetensors"
            )
        return towers
    return _hugging_face(name.removeprefix(HUGGING_FACE))


def _hugging_face(name: str) -> Stored | Towers:
    config = hub.config_of(name)
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    if architecture in _TOWERS:
        return find_towers(HUGGING_FACE + name)
    head = next((made for ending, made in _HEADS.items() if architecture.endswith(ending)), None)
    if head is None:
        raise UsageError(
            f"model 'hf:{name}' is a {architecture or config.model_type}, which gives neither classes nor the next "
            f"token: expected one {', '.join(_HEADS)}, or {' or '.join(_TOWERS)}"
        )
    auto, pictures, gives = head
    made: dict[str, Any] = {
        "name": HUGGING_FACE + name,
        "model": hub.with_stored_weights(name, auto, config),
        "pictures": pictures,
        "gives": gives,
    }
    if gives == "classes":
        made |= {"classes": int(config.num_labels), "labels": named_classes(config.id2label)}
    if pictures:
        side = getattr(config, "image_size", None)
        seen = hub.preprocessing(name, side if isinstance(side, int) else None)
        return Stored(**made, seen=seen, channels=int(getattr(config, "num_channels", 3)))
    return Stored(
        **made,
        tokenizer=HUGGING_FACE + name,
        vocabulary=int(config.vocab_size),
        text_length=int(getattr(config, "max_position_embeddings", None) or 0),
        begin=begin_of(name, config) if gives == "language" else 0,
    )


# -- of text -----------------------------------------------------------------------------------------------------------


def for_text(stored: Stored, *, vocabulary: int, length: int, padding: int) -> nn.Module:
    """The network of a stored model of text: ids (n, L) to logits of classes (n, C), or (n, L, V) of the tokens.

    Raises UsageError, naming both numbers, for ids or a length that it doesn't know.
    """
    filling = stored.gives == "language" and padding == vocabulary - 1  # an id that no text has
    if vocabulary - filling > stored.vocabulary:
        raise UsageError(
            f"model {stored.name!r} knows {stored.vocabulary:,} ids, and the samples' tokenizer makes {vocabulary:,}: "
            f"give its own with --tokenizer {stored.tokenizer}"
        )
    if stored.text_length and length > stored.text_length:
        raise UsageError(f"model {stored.name!r} takes {stored.text_length:,} tokens, --text-length is {length:,}")
    if stored.gives == "classes":
        return HuggingFace(stored.model, padding)
    return CausalLM(stored.model, stored.vocabulary, stored.begin)


def require_tokenizer(stored: Stored, tokenizer: str, digest: str) -> None:
    """Raise UsageError, naming both, where samples are of another tokenizer than the model's, of ids 0 to N - 1 where
    N is neither its tokenizer's nor the model's own number."""
    known = _own_tokenizer(stored)
    if tokenizer.startswith("ids:"):
        number = int(tokenizer.partition(":")[2])
        if number not in {stored.vocabulary, *(() if known is None else (known.vocabulary,))}:
            its = "" if known is None else f", its tokenizer {known.vocabulary:,}"
            raise UsageError(
                f"model {stored.name!r} knows {stored.vocabulary:,} ids{its}, and these samples are of --tokenizer "
                f"{tokenizer}: ids of another tokenizer mean other words"
            )
    elif known is not None and known.digest != digest:
        raise UsageError(
            f"these samples are of --tokenizer {tokenizer} (digest {digest or 'none'}), model {stored.name!r} reads "
            f"{stored.tokenizer} ({known.digest}): ids of another tokenizer mean other words; give its own"
        )


def _own_tokenizer(stored: Stored) -> Tokenizer | None:
    try:
        return find_tokenizer(str(stored.tokenizer), fetch=True)
    except UsageError:  # the folder has none
        return None
